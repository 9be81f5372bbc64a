"""
Every way to take items from a source and do something with them, behind one call.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from memguard import UNGUARDED, LoopPacer, achunked, aprocess_in_chunks, chunked, process_in_chunks

SOON = 30.0


def sync_source(count, error):
    yield from range(count)
    if error is not None:
        raise error


async def async_source(count, error):
    for number in range(count):
        yield number
    if error is not None:
        raise error


class Rows:
    """An iterable that is no iterator; knows the generator that it made last."""

    def __init__(self, *arguments, make=sync_source):
        self.arguments, self.make, self.made = arguments, make, None

    def __iter__(self):
        self.made = self.make(*self.arguments)
        return self.made


class Stepper:
    """An iterator that is no generator."""

    def __init__(self, count, error):
        self.count, self.error, self.at = count, error, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.at < self.count:
            self.at += 1
            return self.at - 1
        raise self.error or StopIteration


class AsyncStepper(Stepper):
    """An async iterator that is no generator."""

    __iter__ = None
    __next__ = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        if self.at < self.count:
            self.at += 1
            return self.at - 1
        raise self.error or StopAsyncIteration


SYNC_SOURCES = {"generator": sync_source, "iterable": Rows, "iterator": Stepper}
ASYNC_SOURCES = {"async generator": async_source, "async iterator": AsyncStepper}


def whole(chunks, seen):
    # No frame of this module shall keep the last chunk.
    for _ in map(seen.extend, chunks):
        pass


async def awhole(chunks, seen):
    async for chunk in chunks:
        seen.extend(chunk)
        del chunk


def in_threads(items, fn, size, **options):
    with ThreadPoolExecutor(3) as pool:
        return process_in_chunks(items, fn, chunk_size=size, breaker=UNGUARDED, executor=pool, **options)


async def on_loop(items, fn, size, **options):
    return await aprocess_in_chunks(items, fn, chunk_size=size, breaker=UNGUARDED, **options)


async def on_loop_in_threads(items, fn, size, **options):
    with ThreadPoolExecutor(3) as pool:
        return await on_loop(items, fn, size, executor=pool, **options)


async def async_function(items, fn, size, **options):
    async def work(chunk):
        await asyncio.sleep(0)
        return fn(chunk)

    return await on_loop(items, work, size, **options)


async def in_slices(items, seen, size):
    async with LoopPacer() as pacer:
        await awhole(pacer.slices(items, size), seen)


SYNC_FORMS = {
    "chunked": lambda items, seen, size: whole(chunked(items, size), seen),
    "chunked by bytes": lambda items, seen, size: whole(chunked(items, 1000, max_bytes=size * 28), seen),
    "chunked by sizeof": lambda items, seen, size: whole(
        chunked(items, 1000, max_bytes=size, sizeof=lambda _: 1), seen
    ),
    "process": lambda items, seen, size: process_in_chunks(items, seen.extend, chunk_size=size, breaker=UNGUARDED),
    "process by bytes": lambda items, seen, size: process_in_chunks(
        items, seen.extend, chunk_size=1000, max_bytes=size * 28, breaker=UNGUARDED
    ),
    "in a thread": lambda items, seen, size: in_threads(items, seen.extend, size),
    "in threads": lambda items, seen, size: in_threads(items, list, size, concurrency=3, on_result=seen.extend),
    "in threads, as done": lambda items, seen, size: in_threads(
        items, list, size, concurrency=3, ordered=False, on_result=seen.extend
    ),
    "in threads by bytes": lambda items, seen, size: in_threads(
        items, list, 1000, max_bytes=size * 28, concurrency=3, on_result=seen.extend
    ),
}
ASYNC_FORMS = {
    "achunked": lambda items, seen, size: awhole(achunked(items, size), seen),
    "achunked by bytes": lambda items, seen, size: awhole(achunked(items, 1000, max_bytes=size * 28), seen),
    "aprocess in slices": lambda items, seen, size: on_loop(items, seen.extend, size),
    "aprocess in chunks": lambda items, seen, size: on_loop(items, seen.extend, size, max_block=None),
    "aprocess by bytes": lambda items, seen, size: on_loop(items, seen.extend, 1000, max_bytes=size * 28),
    "aprocess in threads": lambda items, seen, size: on_loop_in_threads(
        items, list, size, concurrency=3, on_result=seen.extend
    ),
    "async function": lambda items, seen, size: async_function(items, list, size, on_result=seen.extend),
    "async functions at once": lambda items, seen, size: async_function(
        items, list, size, concurrency=3, on_result=seen.extend
    ),
    "async functions as done": lambda items, seen, size: async_function(
        items, list, size, concurrency=3, ordered=False, on_result=seen.extend
    ),
}
SYNC_SOURCE_ON_A_LOOP = {"slices of a pacer": in_slices}


def run_sync(form, items, size):
    """Return what was handed out, in order but for forms that have none, and the error at the end."""
    seen = []
    try:
        SYNC_FORMS[form](items, seen, size)
    except BaseException as error:
        return _ordered(form, seen), error
    return _ordered(form, seen), None


def run_async(form, make, size):
    """Do so on a loop; the error is caught on it, for a loop lets a KeyboardInterrupt through at once."""
    seen = []

    async def main():
        try:
            await (ASYNC_FORMS | SYNC_SOURCE_ON_A_LOOP)[form](make(), seen, size)
        except BaseException as error:
            return error

    error = asyncio.run(main())
    return _ordered(form, seen), error


def _ordered(form, seen):
    return sorted(seen) if "as done" in form else seen
