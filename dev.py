"""
Everything a developer runs, with nothing but Python and pip: ``python3 dev.py COMMAND``.

    demo [ARGS]     show a job that is killed without memguard and finishes with it
    test [ARGS]     the quick suite (arguments go to pytest)
    check           lint, types, import layers, documentation
    docs            the documentation alone: snippets, links, names
    ci              check and test, with the seconds of each step
    accept [PART]   the long suite, whole or one part; prints a table
    bench [NAME]    the benchmarks, all or those named; --quick for seconds instead of minutes

Makes ``.venv`` once; set it aside to start over.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST = (3, 11)

LONG = ["-m", "pytest", "-q", "-s", "-m", "long"]
ACCEPT = {
    "pyright": ["-m", "pyright", "src"],
    "coverage": ["tests/long/places.py", "coverage"],
    "flights": [*LONG, "tests/long/test_flights.py"],
    "races": [*LONG, "tests/long/test_races.py"],
    "kernel": [*LONG, "tests/long/test_kernel_repeats.py"],
    "gunicorn": [*LONG, "tests/long/test_gunicorn.py"],
    "knowing": [*LONG, "tests/long/test_knowing.py"],
    "pools": [*LONG, "tests/long/test_pools.py"],
    "applications": [*LONG, "tests/long/test_applications.py"],
    "holding": [*LONG, "tests/long/test_holding.py", "tests/test_sizing.py"],
    "files": [*LONG, "tests/long/test_files.py"],
    "s3": [*LONG, "tests/long/test_s3.py"],
    "service": [*LONG, "tests/real/test_upload_service.py"],
    "torture": [*LONG, "tests/long/test_torture.py"],
    "calls": [*LONG, "tests/long/test_every_call.py"],
    "plugin": [*LONG, "tests/long/test_pytest_plugin.py"],
    "peers": [*LONG, "tests/long/test_peers.py"],
    "busy": ["tests/long/places.py", "busy"],
    "twins": ["tests/long/places.py", "twins"],
    "interpreters": ["tests/long/places.py", "interpreters"],
    "bare": ["tests/long/places.py", "bare"],
}
TOOLS = {
    "pyright": ["pyright==1.1.414"],
    "gunicorn": ["gunicorn>=22"],
    "coverage": ["coverage==7.17.5"],
    "holding": ["numpy>=1.26", "pandas>=2.2"],
    "applications": ["pillow>=10", "numpy>=1.26", "pandas>=2.2", "pyarrow>=15"],
    "plugin": ["pytest-xdist>=3.5", "pytest-asyncio>=1.0", "pytest-rerunfailures>=14", "anyio>=4", "coverage==7.17.5"],
    "s3": ["boto3>=1.34", "moto[server]>=5"],
    "service": ["boto3>=1.34", "moto[server]>=5"],
}  # of parts of the long suite
BENCHES = ["hot_paths", "reading", "import", "pacing", "demo", "allocator", "leaks", "monitor", "cache", "assembly"]


def run(*command: str | Path) -> int:
    """Run *command* here; return its exit status."""
    return subprocess.run([str(part) for part in command], cwd=HERE, check=False).returncode


def must(*command: str | Path) -> None:
    """Run *command* here; stop with its exit status if it fails."""
    code = run(*command)
    if code:
        raise SystemExit(code)


def python(*arguments: str) -> list[str | Path]:
    """Return the command that runs the environment's Python."""
    return [PYTHON, *arguments]


def make_venv() -> None:
    """
    Make an empty environment.

    Debian's Python may lack ensurepip: then the environment has no pip of its own, and the host's pip
    installs into it (``pip --python``, pip 22.3 or newer).
    """
    shutil.rmtree(VENV, ignore_errors=True)
    if run(sys.executable, "-m", "venv", "--without-pip", VENV):
        raise SystemExit("dev.py: this Python cannot make an environment: its venv module fails")


def requirements() -> list[str]:
    """Return what beside the library an environment holds: the tests' extra and the tools of `check`."""
    import tomllib

    groups = tomllib.loads((HERE / "pyproject.toml").read_text())["dependency-groups"]
    return list(groups["check"])


def set_up() -> None:
    """Make or refresh the environment if pyproject.toml or the interpreter changed."""
    stamp = VENV / "memguard-dev"
    text = (HERE / "pyproject.toml").read_bytes() + sys.version.encode()
    wanted = hashlib.sha256(text).hexdigest()
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    make_venv()
    install: list[str | Path] = [sys.executable, "-m", "pip", "--python", PYTHON, "install", "--quiet"]
    must(*install, "--no-input", "--editable", f"{HERE}[test]", *requirements())
    stamp.write_text(wanted)


LAYERS = "from importlinter.cli import lint_imports_command as lint; lint()"
CHECKS = {
    "format": ["-m", "ruff", "format", "--check", "."],
    "lint": ["-m", "ruff", "check", "."],
    "types": ["-m", "mypy"],
    "layers": ["-c", LAYERS],
    "docs": ["docs/check.py"],
}


def steps(table: dict[str, list[str]]) -> int:
    """Run each step of *table*, print its seconds, and return how many failed."""
    seconds: list[tuple[str, float, int]] = []
    for name, arguments in table.items():
        print(f"--- {name}", flush=True)
        began = time.monotonic()
        code = run(*python(*arguments))
        seconds.append((name, time.monotonic() - began, code))
    print("\nstep             seconds  result")
    for name, took, code in seconds:
        print(f"{name:<16} {took:7.1f}  {'ok' if code == 0 else f'failed with {code}'}")
    return sum(code != 0 for _, _, code in seconds)


def ci() -> int:
    """Run what decides a landing."""
    began = time.monotonic()
    set_up()
    print(f"set up in {time.monotonic() - began:.1f} s", flush=True)
    return steps({**CHECKS, "test": ["-m", "pytest", "-q"]})


def accept(parts: list[str]) -> int:
    """Run the long suite, or the *parts* of it."""
    unknown = set(parts) - set(ACCEPT)
    if unknown:
        raise SystemExit(f"dev.py: no part {sorted(unknown)}; there are {', '.join(ACCEPT)}")
    chosen = {part: ACCEPT[part] for part in parts or ACCEPT}
    install: list[str | Path] = [sys.executable, "-m", "pip", "--python", PYTHON, "install", "--quiet"]
    tools = [tool for part, needed in TOOLS.items() if part in chosen for tool in needed]
    if tools:
        must(*install, *tools)
    if "flights" in chosen:
        must(*install, f"{HERE}[flights]")
        # Again as it was: the line above replaced the editable install.
        must(*install, "--no-deps", "--editable", HERE)
    return steps(chosen)


def install_peers() -> None:
    """Install what the benchmarks measure memguard beside, once; what cannot be installed is left out."""
    import tomllib

    peers = tomllib.loads((HERE / "pyproject.toml").read_text())["dependency-groups"]["bench"]
    stamp = VENV / "memguard-bench"
    if stamp.exists() and stamp.read_text() == repr(peers):
        return
    install: list[str | Path] = [sys.executable, "-m", "pip", "--python", PYTHON, "install", "--quiet", "--no-input"]
    missing = [peer for peer in peers if run(*install, peer)]
    if missing:
        print(f"dev.py: goes on without {', '.join(missing)}", flush=True)
    else:
        stamp.write_text(repr(peers))


def bench(arguments: list[str]) -> int:
    """Run the benchmarks named, or all, and say which targets were met; return how many broke down."""
    quick = [argument for argument in arguments if argument == "--quick"]
    names = [argument for argument in arguments if argument != "--quick"] or BENCHES
    unknown = set(names) - set(BENCHES)
    if unknown:
        raise SystemExit(f"dev.py: no benchmark {sorted(unknown)}; there are {', '.join(BENCHES)}")
    install_peers()
    broken = [name for name in names if run(*python(f"benchmarks/bench_{name}.py", *quick))]
    print("\nbenchmark        result")
    for name in names:
        lines = ["broke down"] if name in broken else verdicts(name, quick=bool(quick))
        print("\n".join(f"{name:<16} {line}" for line in lines))
    return len(broken)


def verdicts(name: str, *, quick: bool) -> list[str]:
    """Return a line for each target of the benchmark *name*, from the file that it wrote."""
    import json

    result = HERE / "benchmarks" / "results" / f"{name}{'-quick' if quick else ''}.json"
    return [target["text"] for target in json.loads(result.read_text(encoding="utf-8"))["targets"]]


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": lambda rest: run(*python("-m", "memguard", "demo", *rest)),
    "test": lambda rest: run(*python("-m", "pytest", *rest)),
    "check": lambda _: steps(CHECKS),
    "docs": lambda _: run(*python(*CHECKS["docs"])),
    "ci": lambda _: ci(),
    "accept": accept,
    "bench": bench,
}


def main() -> int:
    """Read the command line and do it."""
    if sys.version_info < OLDEST:
        raise SystemExit(f"dev.py: memguard needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    options, rest = parser.parse_known_args()
    if options.command != "ci":  # which says how long it took
        set_up()
    return COMMANDS[options.command](rest)


if __name__ == "__main__":
    raise SystemExit(main())
