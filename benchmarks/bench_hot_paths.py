"""
What a call pays: a check, a reservation and a guard, beside psutil and the circuit breakers.

The other breakers decide by errors, not by memory; what compares is what their decorator adds to a call. An empty
loop, an empty call and an attribute read stand there for scale: each figure has the loop's few nanoseconds in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
from measuring import Measure, Report, in_turns, paired, peer, read_options, timed

import memguard
from memguard.testing import ScriptedSampler

_COST = 4096
_SLOW = 10
"""System calls are measured this many times less often."""


_MICROSECONDS = {
    "with reserve()": 2.5,
    "async with reserve()": 2.5,
    "async with reserve() beside 300 caches": 2.5,
    "a refusal while open": 10,
    "guard(cost='auto'), plain function": 35,
}
"""The most that each may take at the median."""


class _Thing:
    __slots__ = ("attribute",)

    def __init__(self) -> None:
        self.attribute = 1


def empty() -> None:
    """Do nothing."""


async def aempty() -> None:
    """Do nothing, awaited."""


def awaited(fn: Callable[[], Awaitable[object]], times: int) -> Measure:
    """Return what measures nanoseconds per ``await fn()``."""

    async def loop() -> float:
        began = time.perf_counter()
        for _ in range(times):
            await fn()
        return (time.perf_counter() - began) / times * 1e9

    return lambda: asyncio.run(loop())


def async_reserve(breaker: memguard.MemoryCircuitBreaker, times: int) -> Measure:
    """Return what measures nanoseconds per ``async with breaker.reserve(...)``."""

    async def loop() -> float:
        began = time.perf_counter()
        for _ in range(times):
            async with breaker.reserve(_COST):
                pass
        return (time.perf_counter() - began) / times * 1e9

    return lambda: asyncio.run(loop())


def refusals(times: int) -> Measure:
    """Return what measures nanoseconds per reservation that an open breaker refuses."""
    sampler = ScriptedSampler([0.9], limit_bytes=2**40)
    breaker = memguard.MemoryCircuitBreaker(sampler=sampler, check_interval=1000.0)

    def loop() -> float:
        began = time.perf_counter()
        for _ in range(times):
            with contextlib.suppress(memguard.MemoryCircuitBreakerError), breaker.reserve(_COST):
                pass
        return (time.perf_counter() - began) / times * 1e9

    return loop


def beside_caches(breaker: memguard.MemoryCircuitBreaker, times: int) -> Measure:
    """Return what measures an async reservation while 300 caches are alive."""
    measure = async_reserve(breaker, times)

    def loop() -> float:
        caches = [memguard.LRUCache(10) for _ in range(300)]
        took = measure()
        caches.clear()
        return took

    return loop


def learned(breaker: memguard.MemoryCircuitBreaker) -> Callable[[], None]:
    """Return a function that does nothing, whose cost is learned already."""
    guarded = breaker.guard(cost="auto", timeout=60.0)(empty)
    for _ in range(500):
        guarded()
    return guarded


def ours(times: int) -> dict[str, Measure]:
    """Return what memguard's calls cost, and what they are held against."""
    breaker = memguard.default_breaker()
    process = psutil.Process()
    names: dict[str, Any] = {"breaker": breaker, "psutil": psutil, "process": process, "cost": _COST}
    return {
        "empty loop": timed("pass", times),
        "attribute read": timed("thing.attribute", times, thing=_Thing()),
        "empty call": timed("fn()", times, fn=empty),
        "check()": timed("breaker.check()", times, before="breaker.tick()", **names),
        "psutil.Process().memory_info()": timed("psutil.Process().memory_info()", times // _SLOW, **names),
        "psutil memory_info(), process kept": timed("process.memory_info()", times // _SLOW, **names),
        "with reserve()": timed("with breaker.reserve(cost): pass", times // _SLOW, **names),
        "async with reserve()": async_reserve(breaker, times // _SLOW),
        "a refusal while open": refusals(times // _SLOW),
        "async with reserve() beside 300 caches": beside_caches(breaker, times // _SLOW),
        "guard(cost='auto'), plain function": timed("fn()", times // _SLOW, fn=learned(breaker)),
        "guard, plain function": timed("fn()", times, fn=memguard.guard(empty)),
        "guard(cost=...), plain function": timed("fn()", times // _SLOW, fn=memguard.guard(cost=_COST)(empty)),
        "empty await": awaited(aempty, times),
        "guard, async function": awaited(memguard.guard(aempty), times // _SLOW),
    }


def theirs(times: int) -> dict[str, Measure]:
    """Return what a call costs that a peer's breaker decorates, of the peers that are installed."""
    found: dict[str, Measure] = {}
    if pybreaker := peer("pybreaker"):
        found["pybreaker, plain function"] = timed("fn()", times, fn=pybreaker.CircuitBreaker()(empty))
    if circuitbreaker := peer("circuitbreaker"):
        found["circuitbreaker, plain function"] = timed("fn()", times, fn=circuitbreaker.circuit(empty))
        found["circuitbreaker, async function"] = awaited(circuitbreaker.circuit(aempty), times)
    if aiobreaker := peer("aiobreaker"):
        found["aiobreaker, plain function"] = timed("fn()", times, fn=aiobreaker.CircuitBreaker()(empty))
        found["aiobreaker, async function"] = awaited(aiobreaker.CircuitBreaker()(aempty), times)
    return found


def main() -> None:
    """Measure and report."""
    options = read_options(__doc__)
    times, rounds = (5_000, 5) if options.quick else (50_000, 25)
    report = Report("hot_paths", options, ("psutil", "pybreaker", "circuitbreaker", "aiobreaker"))
    got = in_turns(ours(times) | theirs(times // _SLOW), rounds)
    report.add_all(got, "ns", versus="check()")
    check = got["check()"]
    cheaper = paired(got["psutil.Process().memory_info()"], check, lambda psutil_, check_: psutil_ / check_)
    added = paired(got["guard, plain function"], got["empty call"], lambda guarded, plain: guarded - plain)
    report.target("check() with a fresh reading", statistics.median(check), "ns", 150)
    report.target("check() against psutil.Process().memory_info()", cheaper, "x cheaper", 50, at_least=True)
    for label, bound in _MICROSECONDS.items():
        report.target(label, statistics.median(got[label]) / 1000, "us", bound)
    report.target("guard adds to a plain function", added / 1000, "us", 0.5)
    report.finish()


if __name__ == "__main__":
    main()
