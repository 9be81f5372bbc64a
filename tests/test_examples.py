"""
Every program in examples/ runs, here with little to do.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
RUNS = [
    pytest.param("csv_in_chunks", ["--rows", "25000"], "25,000 rows done", id="a table in chunks"),
    pytest.param(
        "bursting_service", ["--patience", "60"], "200: 100, 413: 0, 503: 0", id="requests that wait are all served"
    ),
    pytest.param(
        "bursting_service", ["--need", "1 GiB"], "200: 0, 413: 100, 503: 0", id="what can never fit gets a 413"
    ),
    pytest.param("worker_pool", ["--jobs", "40"], "40 jobs done", id="more threads than fit at once"),
    pytest.param("submit_jobs", ["--jobs", "30"], "30 jobs done, 0 bytes still held", id="jobs that end elsewhere"),
    pytest.param("parallel_chunks", ["--blocks", "100"], "100 blocks done in 2 chunks", id="chunks in threads"),
    pytest.param(
        "parallel_chunks",
        ["--blocks", "20", "--pool", "processes", "--concurrency", "2"],
        "20 blocks done in 1 chunks",
        id="chunks in processes",
    ),
    pytest.param("csv_into_sqlite", ["--rows", "25000"], "25,000 rows loaded", id="a table into a database"),
    pytest.param("find_a_leak", [], "__main__.SESSIONS: +", id="a leak found and explained"),
    pytest.param("caching", [], "of look-ups found", id="three caches"),
    pytest.param("degrade", [], "90% used, CRITICAL: 10 results, batches of 25", id="less under pressure"),
    pytest.param("degrade", ["--rows", "500"], "300 of 500 rows exported, go on at row 300", id="partial results"),
]

IN_REAL = {"upload_service", "upload_client"}
"""Run by ``tests/real/test_upload_service.py``: one needs the other."""


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("name", "arguments", "fact"), RUNS)
def test_the_example_does_what_it_shows(name, arguments, fact):
    out = run(name, *arguments)

    assert out.returncode == 0, out.stderr
    assert fact in out.stdout


def test_no_example_is_left_out():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {each.values[0] for each in RUNS} | IN_REAL


def test_a_file_of_ones_own_is_rewritten(tmp_path):
    (tmp_path / "in.csv").write_text("id,name\n1,  a   b \n2,c\n", encoding="utf-8")

    out = run("csv_in_chunks", str(tmp_path / "in.csv"), str(tmp_path / "out.csv"))

    assert out.returncode == 0, out.stderr
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == "id,name\n1,a b\n2,c\n"
