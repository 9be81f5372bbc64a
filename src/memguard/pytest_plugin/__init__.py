"""
The pytest plugin: memory budgets, leak-free repetition, a table, and a baseline to compare against.

pytest loads this module in every run of whoever has memguard installed. So it imports nothing but pytest, and a test
that asks for nothing costs the look at two markers. What measures (``_block``, ``_settle``), repeats (``_repeat``),
stands around the test's function (``_around``) and reports (``_report``) loads when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from memguard.pytest_plugin._block import MemoryBlock
    from memguard.units import ByteSize

__all__ = ["memory_budget"]

_BUDGET_MARKER = (
    "memory_budget(peak, *, kept=None): fail the test if memory grows by more than *peak* at any moment of its call, "
    "or by more than *kept* to its end; sizes such as '64 MiB', callables of the parameters, or None for no limit"
)
_LEAK_MARKER = (
    "no_memory_leak(repeat=50, warmup=10): repeat the test's body, and fail it if memory grows with each call"
)


class _Asked(NamedTuple):
    """What the command line and the ini file ask of every test."""

    default_bytes: int | None
    measure: bool


_asked_key = pytest.StashKey[_Asked]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the ini value."""
    group = parser.getgroup("memguard", "memory of tests (memguard)")
    group.addoption("--memguard", action="store_true", help="measure every test, and show the ten highest peaks")
    group.addoption("--memguard-top", type=int, metavar="N", help="measure every test, and show the N highest peaks")
    group.addoption("--memguard-save", metavar="FILE", help="measure every test, and write what those that passed took")
    group.addoption(
        "--memguard-compare",
        metavar="FILE",
        help="fail the run if a test's peak is higher than in FILE, which --memguard-save wrote",
    )
    group.addoption(
        "--memguard-tolerance",
        metavar="SIZE",
        default="10%",
        help="by how much it may be higher: '10%%' (the default) or a size, 1 MiB in any case",
    )
    parser.addini(
        "memory_budget", "peak that every test may take, such as '256 MiB'; a marker overrides it", default=""
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; load the rest of the plugin only if the command line or the ini file asks for it."""
    for line in (_BUDGET_MARKER, _LEAK_MARKER):
        config.addinivalue_line("markers", line)
    default = _default_budget(config.getini("memory_budget"))
    options = ("memguard", "memguard_top", "memguard_save", "memguard_compare")
    report = any(config.getoption(name) not in (None, False) for name in options)
    config.stash[_asked_key] = _Asked(default, report)
    # The workers of pytest-xdist measure; what they found travels with the reports to the process that shows it.
    if report and not hasattr(config, "workerinput"):
        from memguard.pytest_plugin._report import Report  # noqa: PLC0415 - only if asked

        config.pluginmanager.register(Report(config), "memguard-report")


def _default_budget(text: str) -> int | None:
    if not text:
        return None
    from memguard.units import parse_bytes  # noqa: PLC0415 - only if asked

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise pytest.UsageError(f"ini value memory_budget: {error}") from None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Measure the call of a test that is asked for, without its fixtures' set-up."""
    budget, leak = item.get_closest_marker("memory_budget"), item.get_closest_marker("no_memory_leak")
    asked = item.config.stash[_asked_key]
    if budget is None and leak is None and asked.default_bytes is None and not asked.measure:
        return (yield)
    from memguard.pytest_plugin._around import around  # noqa: PLC0415 - only if asked

    with around(item, marked=budget is not None, leak=leak, default_bytes=asked.default_bytes):
        return (yield)


@pytest.fixture(scope="session")
def memory_budget() -> Callable[..., MemoryBlock]:
    """
    A budget for a part of a test: ``with memory_budget("50 MiB", kept="1 MiB") as used: ...``.

    After the block: ``used.peak_bytes``, ``used.kept_bytes``, ``used.seconds``, ``used.meter``.
    """

    def begin(peak: ByteSize | None = None, *, kept: ByteSize | None = None) -> MemoryBlock:
        from memguard.pytest_plugin._block import MemoryBlock, limit_of  # noqa: PLC0415 - only if asked

        return MemoryBlock("the block", limit_of(peak), limit_of(kept), name_types=True)

    return begin
