"""
What stands around the function of a test while it is called.

The function is replaced rather than the call of the test measured: so neither the set-up of a ``unittest.TestCase``
nor an event loop is counted, and whoever runs the function (pytest, unittest, pytest-asyncio, anyio) runs it as ever.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from memguard.pytest_plugin._block import MemoryBlock, limit_of
from memguard.pytest_plugin._repeat import repetitions

_REPEAT, _WARMUP = 50, 10


class _Leak(NamedTuple):
    repeat: int = _REPEAT
    warmup: int = _WARMUP


class _Checks:
    """What is asked of one test."""

    def __init__(self, what: str, block: MemoryBlock, leak: _Leak | None) -> None:
        self.what = what
        self.block = block
        self.leak = leak
        self.reached = False

    def rounds(self) -> Iterator[int]:
        return repetitions(self.what, *self.leak) if self.leak else iter(())


@contextmanager
def around(
    item: pytest.Item, *, marked: bool, leak: pytest.Mark | None, default_bytes: int | None
) -> Generator[None, None, None]:
    """
    Measure the test's function while *item* is called, and hold it to its budget.

    Args:
        item: A test that is set up.
        marked: Whether there is a marker ``memory_budget``.
        leak: The marker ``no_memory_leak``.
        default_bytes: The budget where there is no marker.
    """
    __tracebackhide__ = True
    peak, kept = _limits(item) if marked else (default_bytes, None)
    block = MemoryBlock(item.name, peak, kept, name_types=marked, traceback=False)
    checks = _Checks(item.name, block, _leak(leak) if leak else None)
    if not isinstance(item, pytest.Function):
        if leak:
            pytest.fail("no_memory_leak repeats functions; this is none", pytrace=False)
        with block:
            checks.reached = True
            yield
    else:
        with _replaced(item, _wrap(item.obj, checks)):
            yield
        if not checks.reached and (marked or leak):
            pytest.fail("the test's function was not called as pytest knows it: its memory is unknown", pytrace=False)
    if checks.reached:
        _record(item, block)


@contextmanager
def _replaced(item: pytest.Function, function: Callable[..., Any]) -> Generator[None, None, None]:
    __tracebackhide__ = True
    original = item.obj
    # unittest runs its own coroutines, and looks them up by their name.
    by_name = item.instance if inspect.iscoroutinefunction(original) and hasattr(item.instance, "assertEqual") else None
    item.obj = function
    if by_name is not None:
        setattr(by_name, item.name, function)
    try:
        yield
    finally:
        item.obj = original
        if by_name is not None:
            delattr(by_name, item.name)


def _wrap(function: Callable[..., Any], checks: _Checks) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):
        return _wrap_async(function, checks)

    @functools.wraps(function)
    def body(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        checks.reached = True
        with checks.block:
            result = function(*args, **kwargs)
        with _nothing_noted():
            for calls in checks.rounds():
                for _ in range(calls):
                    function(*args, **kwargs)
                _forget_log()
        return result

    return body


def _wrap_async(function: Callable[..., Any], checks: _Checks) -> Callable[..., Any]:
    @functools.wraps(function)
    async def body(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        checks.reached = True
        with checks.block:
            result = await function(*args, **kwargs)
        with _nothing_noted():
            for calls in checks.rounds():
                for _ in range(calls):
                    await function(*args, **kwargs)
                await _let_others_end()
                _forget_log()
        return result

    return body


@contextmanager
def _nothing_noted() -> Generator[None, None, None]:
    """Keep others from noting each repetition: coverage has a tracer for each thread, pytest a list of warnings."""
    traces = threading.gettrace()
    threading.settrace(None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        threading.settrace(traces)


def _forget_log() -> None:
    """Empty what pytest keeps of the log for the report of a test; it would be counted as kept."""
    for handler in logging.getLogger().handlers:
        clear = getattr(handler, "clear", None)
        if clear is not None and type(handler).__module__ == "_pytest.logging":
            clear()


async def _let_others_end() -> None:
    """Let what the calls left ready to run on an asyncio loop end: it would be counted as kept."""
    import asyncio  # noqa: PLC0415 - only for coroutines

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return  # trio
    for _ in range(3):
        await asyncio.sleep(0)


def _limits(item: pytest.Item) -> tuple[int | None, int | None]:
    """Return the limits of the closest marker: the parameter's, the function's, the class's, the module's."""
    __tracebackhide__ = True
    callspec = getattr(item, "callspec", None)
    own = [mark for mark in getattr(callspec, "marks", ()) if mark.name == "memory_budget"]
    mark = own[-1] if own else item.get_closest_marker("memory_budget")
    assert mark is not None, "there is one"
    values = {**getattr(item, "funcargs", {}), **getattr(callspec, "params", {})}
    try:
        peak, kept = _marker_arguments(*mark.args, **mark.kwargs)
        return limit_of(_resolved(peak, values)), limit_of(_resolved(kept, values))
    except (TypeError, ValueError) as error:
        said = str(error).replace("_marker_arguments()", "it")
    pytest.fail(f"marker memory_budget: {said}", pytrace=False)


def _marker_arguments(peak: Any, *, kept: Any = None) -> tuple[Any, Any]:
    return peak, kept


def _resolved(size: Any, values: Mapping[str, Any]) -> Any:
    """Return *size*, or what it returns if it is a callable of the test's parameters."""
    if not callable(size):
        return size
    wanted = inspect.signature(size).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in wanted):
        return size(**values)
    missing = [each.name for each in wanted if each.name not in values and each.default is each.empty]
    if missing:
        raise ValueError(f"the test has no parameter {', '.join(missing)}; it has {', '.join(values) or 'none'}")
    return size(**{each.name: values[each.name] for each in wanted if each.name in values})


def _leak(mark: pytest.Mark) -> _Leak:
    try:
        leak = _Leak(*mark.args, **mark.kwargs)
    except TypeError:
        leak = _Leak(0)  # refused below
    if not all(type(number) is int and number >= 1 for number in leak):
        given = ", ".join([*map(repr, mark.args), *(f"{name}={value!r}" for name, value in mark.kwargs.items())])
        pytest.fail(f"no_memory_leak takes repeat and warmup, calls from 1 on; got {given}", pytrace=False)
    return leak


def _record(item: pytest.Item, block: MemoryBlock) -> None:
    # A test that is run again by a plugin for flaky ones keeps its list.
    others = [each for each in item.user_properties if not each[0].startswith("memguard_")]
    item.user_properties[:] = [
        *others,
        ("memguard_peak_bytes", block.peak_bytes),
        ("memguard_kept_bytes", block.kept_bytes),
        ("memguard_seconds", round(block.seconds, 6)),
        ("memguard_meter", block.meter),
    ]
