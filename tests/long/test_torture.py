"""
Everything at once on one breaker, for minutes, on each interpreter that is installed. Long because what it looks for
comes once in many rounds.

``MEMGUARD_TORTURE_SECONDS`` is how long on each: ten minutes without it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long("torture")
HERE = Path(__file__).parent
NEEDED = ("psutil", "cachetools", "typing_extensions")
SECONDS = float(os.environ.get("MEMGUARD_TORTURE_SECONDS", "600"))


def interpreters():
    """Return this one, and each other that is installed and works."""
    found = [sys.executable]
    for name in ("python3.11", "python3.12", "python3.13", "python3.14"):
        path = shutil.which(name)
        if name == f"python3.{sys.version_info.minor}" or path is None:
            continue
        if subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            found.append(path)
    return found


@pytest.fixture(scope="module")
def requirements(tmp_path_factory):
    """A folder with what memguard needs and nothing else; psutil is built for all interpreters at once."""
    folder = tmp_path_factory.mktemp("needed")
    for name in NEEDED:
        origin = Path(importlib.util.find_spec(name).origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        (folder / source.name).symlink_to(source)
    return folder


@pytest.mark.parametrize("python", interpreters(), ids=lambda path: Path(path).name)
def test_nothing_hangs_and_the_books_are_right(python, requirements):
    env = {name: value for name, value in os.environ.items() if not name.startswith("MEMGUARD_")}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1] / "src"), str(requirements)])
    command = [python, str(HERE / "torture.py"), "--seconds", str(SECONDS)]
    out = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=3 * SECONDS + 300)

    lines = out.stdout.splitlines()
    print("\n" + "\n".join([line for line in lines if "FAULT" in line] + lines[-2:]))
    assert out.returncode == 0, out.stdout[-2000:] + out.stderr[-20_000:]
