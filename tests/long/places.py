"""
The quick suite in other places, as a script: ``places.py interpreters | busy | twins | bare | coverage``.

    interpreters    on each other Python that is installed
    busy            three times beside two busy loops, and right after a run of it was killed
    twins           in two clones side by side
    coverage        under coverage, children too: at least 95 % of lines and branches
    bare            demo and test in a fresh clone with the system's python3 and pip alone
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = sys._base_executable  # type: ignore[attr-defined]  # the environment's own Python has no pip
OTHERS = ("python3.12", "python3.13", "python3.14", "python3.15", "python3.13t", "python3.14t")
SUITE = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]


def timed(title: str, command: list[object], folder: Path, **options: object) -> bool:
    began = time.monotonic()
    out = subprocess.run(
        [str(part) for part in command], cwd=folder, text=True, capture_output=True, check=False, **options
    )
    lines = out.stdout.strip().splitlines()
    last = lines[-1] if lines else out.stderr[-300:]
    print(f"{title:<28} {time.monotonic() - began:7.1f} s  exit {out.returncode}  {last}", flush=True)
    if out.returncode:
        print(out.stdout[-3000:], out.stderr[-2000:])
    return out.returncode == 0


def clone(folder: Path, name: str) -> Path:
    target = folder / name
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(target)], check=True)
    return target


def interpreters(folder: Path) -> bool:
    good = True
    for name in OTHERS:
        found = shutil.which(name)
        works = found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0
        if not works:
            print(f"{name:<28} not installed here")
            continue
        good &= timed(name, [found, "dev.py", "test", "-q"], clone(folder, name))
    return good


def busy(folder: Path) -> bool:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        runs = [timed(f"beside busy loops, {n} of 3", [sys.executable, *SUITE], ROOT) for n in (1, 2, 3)]
        good = all(runs)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    for after in (1, 4, 8):
        victim = subprocess.Popen([sys.executable, *SUITE], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(after)
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
        good &= timed(f"after one killed at {after} s", [sys.executable, *SUITE], ROOT)
    return good


def twins(folder: Path) -> bool:
    clones = [clone(folder, name) for name in ("one", "two")]
    running = [
        subprocess.Popen(
            [BASE, "dev.py", "test", "-q"],
            cwd=each,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for each in clones
    ]
    good = True
    for each, process in zip(clones, running, strict=True):
        text = process.communicate()[0]
        print(f"{each.name:<28} exit {process.returncode}  {text.strip().splitlines()[-1]}", flush=True)
        good &= process.returncode == 0
    return good


def bare(folder: Path) -> bool:
    python = "/usr/bin/python3"
    if not Path(python).exists():
        print(f"{python} is not here")
        return False
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name in ("HOME", "LANG")}
    env = kept | {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    target = clone(folder, "bare")
    good = timed("demo, first run", [python, "dev.py", "demo"], target, env=env)
    good &= timed("demo, second run", [python, "dev.py", "demo"], target, env=env)
    good &= timed("test, first run", [python, "dev.py", "test", "-q"], target, env=env)
    return good & timed("test, second run", [python, "dev.py", "test", "-q"], target, env=env)


COVERAGE = """
[run]
branch = true
source = memguard
parallel = true
data_file = {folder}/data
patch = subprocess, fork, _exit
[report]
exclude_also =
    if TYPE_CHECKING:
    : \\.\\.\\.$
    ^ +\\.\\.\\.$
"""


def coverage(folder: Path) -> bool:
    options = folder / "coverage.ini"
    options.write_text(COVERAGE.format(folder=folder))
    tool = [sys.executable, "-m", "coverage"]
    # This one asks which modules an import loads: coverage's own are among them.
    heavy = "tests/test_front_door.py::test_what_needs_no_heavy_module_loads_none"
    good = timed("under coverage", [*tool, "run", f"--rcfile={options}", *SUITE, "--deselect", heavy], ROOT)
    subprocess.run([*tool, "combine", "-q", f"--rcfile={options}"], cwd=ROOT, check=True)
    subprocess.run([*tool, "report", f"--rcfile={options}", "--skip-covered", "-m"], cwd=ROOT, check=True)
    figures = folder / "coverage.json"
    subprocess.run([*tool, "json", "-q", f"--rcfile={options}", "-o", str(figures)], cwd=ROOT, check=True)
    totals = json.loads(figures.read_text())["totals"]
    for kind in ("statements", "branches"):
        percent = totals[f"percent_{kind}_covered"]
        print(f"{kind:<28} {percent:.1f} %")
        good &= percent >= 95
    return good


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        ways = {"interpreters": interpreters, "busy": busy, "twins": twins, "bare": bare, "coverage": coverage}
        raise SystemExit(0 if ways[sys.argv[1]](Path(name)) else 1)
