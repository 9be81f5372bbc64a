"""
The table at the end of a run, and the file of what tests took: written, and compared against.

Lives in the process that shows the results; with pytest-xdist the tests run in others, and what they took travels with
their reports.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memguard.units import format_bytes, parse_threshold

_TOP = 10
_LEAST_TOLERANCE = 1024**2
"""What the resident size strays by."""
_FORMAT = 1


class Taken(NamedTuple):
    """What the call of a test took, in bytes and seconds."""

    peak_bytes: int
    kept_bytes: int
    seconds: float
    meter: str


class Higher(NamedTuple):
    """A test whose peak is higher than before."""

    test: str
    before_bytes: int
    now_bytes: int


class Report:
    """Collects what the tests of a run took."""

    def __init__(self, config: pytest.Config) -> None:
        top = config.getoption("memguard_top")
        if top is not None and top < 0:
            raise pytest.UsageError(f"--memguard-top takes a number of tests, got {top}")
        self._top = top if top is not None else _TOP if config.getoption("memguard") else 0
        self._save = _path(config, "memguard_save")
        compare = _path(config, "memguard_compare")
        self._tolerance = _tolerance(str(config.getoption("memguard_tolerance")))
        self._before = _read(compare) if compare else None
        self._taken: dict[str, Taken] = {}
        self._passed: dict[str, Taken] = {}
        self._higher: list[Higher] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what a test took; of one that is run again, the last time."""
        found = {name: value for name, value in report.user_properties if name.startswith("memguard_")}
        if report.when != "call" or not found:
            return
        taken = Taken(**{name.removeprefix("memguard_"): value for name, value in found.items()})  # type: ignore[arg-type]
        self._taken[report.nodeid] = taken
        self._passed.pop(report.nodeid, None)
        if report.passed:
            self._passed[report.nodeid] = taken

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare, then write: both may be the same file."""
        if self._before is not None:
            self._higher = higher(self._before, self._passed, self._tolerance)
            if self._higher and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._save:
            _write(self._save, self._passed)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table, and what is higher than before."""
        if self._top and self._taken:
            terminalreporter.write_sep("=", "memory of tests")
            terminalreporter.write_line(f"{'peak':>10}  {'kept':>10}  {'seconds':>8}  test")
            for test, taken in _highest(self._taken)[: self._top]:
                terminalreporter.write_line(
                    f"{format_bytes(taken.peak_bytes):>10}  {format_bytes(taken.kept_bytes):>10}  "
                    f"{taken.seconds:8.3f}  {test}"
                )
        if self._save:
            terminalreporter.write_line(f"memguard: wrote what {len(self._passed)} tests took to {self._save}")
        if self._before is not None:
            self._show_comparison(terminalreporter, self._before)

    def _show_comparison(self, terminal: pytest.TerminalReporter, before: dict[str, Taken]) -> None:
        new = len(self._passed.keys() - before.keys())
        same = len(self._passed) - new
        if not self._higher:
            terminal.write_line(f"memguard: no peak is higher than before in {same} tests; {new} are new")
            return
        terminal.write_sep("=", "peaks higher than before", red=True)
        for each in self._higher:
            was, now = format_bytes(each.before_bytes), format_bytes(each.now_bytes)
            terminal.write_line(f"{was:>10} -> {now:>10}  {each.test}", red=True)


def higher(before: dict[str, Taken], now: dict[str, Taken], tolerance: Callable[[int], float]) -> list[Higher]:
    """
    Return the tests whose peak is higher than before by more than *tolerance*, the most first.

    What another meter measured is not compared.
    """
    found = []
    for test, taken in now.items():
        was = before.get(test)
        if was is None or was.meter != taken.meter:
            continue
        if taken.peak_bytes > was.peak_bytes + max(_LEAST_TOLERANCE, tolerance(was.peak_bytes)):
            found.append(Higher(test, was.peak_bytes, taken.peak_bytes))
    return sorted(found, key=lambda each: each.before_bytes - each.now_bytes)


def _highest(taken: dict[str, Taken]) -> list[tuple[str, Taken]]:
    return sorted(taken.items(), key=lambda each: -each[1].peak_bytes)


def _path(config: pytest.Config, option: str) -> Path | None:
    name = config.getoption(option)
    return None if name is None else config.invocation_params.dir / name


def _tolerance(text: str) -> Callable[[int], float]:
    """Return what says by how many bytes a peak may be higher than one of so many."""
    try:
        line = parse_threshold(text)
    except ValueError as error:
        raise pytest.UsageError(f"--memguard-tolerance: {error}") from None
    return (lambda peak: line * peak) if isinstance(line, float) else (lambda _: line)


def _read(path: Path) -> dict[str, Taken]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["memguard"] != _FORMAT:
            raise ValueError(f"format {content['memguard']}, not {_FORMAT}")
        return {test: Taken(**taken) for test, taken in content["tests"].items()}
    except OSError as error:
        raise pytest.UsageError(f"--memguard-compare: {error}; --memguard-save writes such a file") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise pytest.UsageError(f"--memguard-compare: {path} was not written by --memguard-save ({error})") from None


def _write(path: Path, taken: dict[str, Taken]) -> None:
    tests = {test: each._asdict() for test, each in sorted(taken.items())}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps({"memguard": _FORMAT, "tests": tests}, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
