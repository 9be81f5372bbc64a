"""
Asking for a chunk until it is admitted, in both spellings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from memguard.errors import MemoryCircuitBreakerError
from memguard.streams._held import Held
from memguard.streams._job import Job, Step, never_fits

_PAUSE_SECONDS = 0.05
"""Before a gate that refuses at once, although it was given time, is asked again."""
_LONGEST_WAIT_SECONDS = 86_400.0
"""At a time, and then again: locks and timers do not take every number."""


def _none_run() -> bool:
    return False


def _collect_none() -> None:
    pass


def admitted(
    job: Job[Any], running: Callable[[], bool] = _none_run, collect: Callable[[], object] = _collect_none
) -> Held | None:
    """
    Ask until the next chunk is admitted.

    Args:
        job: Whose chunk.
        running: Tells whether chunks of the job run at the moment.
        collect: Waits until one of them is done.

    Returns:
        What is held, entered; None where the job stops here.

    Raises:
        MemoryCircuitBreakerError: The caller shall know.
    """
    while True:
        try:
            return job.ask().enter()
        except MemoryCircuitBreakerError as error:
            step = job.refused(error, running=running())
            if step is Step.RAISE:
                raise
        if step is Step.WAIT:
            return _room(job)
        if step is Step.COLLECT:
            collect()
        if job.stopping:
            return None


def _room(job: Job[Any]) -> Held:
    """Wait for room; nothing of the job runs meanwhile, so nothing is to be collected."""
    deadline = _deadline(job)
    while True:
        try:
            return job.ask_for_room(_left(deadline)).enter()
        except MemoryCircuitBreakerError as error:
            if _left(deadline) == 0 or never_fits(error):
                job.give_up(error)
                raise
        time.sleep(_PAUSE_SECONDS)


async def aadmitted(
    job: Job[Any], running: Callable[[], bool], collect: Callable[[], Awaitable[object]]
) -> Held | None:
    """Do what :func:`admitted` does, without blocking the loop."""
    while True:
        try:
            return await job.ask().aenter()
        except MemoryCircuitBreakerError as error:
            step = job.refused(error, running=running())
            if step is Step.RAISE:
                raise
        if step is Step.WAIT:
            return await _aroom(job)
        if step is Step.COLLECT:
            await collect()
        if job.stopping:
            return None


async def _aroom(job: Job[Any]) -> Held:
    deadline = _deadline(job)
    while True:
        try:
            return await job.ask_for_room(_left(deadline)).aenter()
        except MemoryCircuitBreakerError as error:
            if _left(deadline) == 0 or never_fits(error):
                job.give_up(error)
                raise
        await asyncio.sleep(_PAUSE_SECONDS)


def _deadline(job: Job[Any]) -> float | None:
    return None if job.patience is None else time.monotonic() + job.patience


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else min(_LONGEST_WAIT_SECONDS, max(0.0, deadline - time.monotonic()))
