"""
Numbers that cannot be meant, and loops that are not asyncio's, are refused at the door.
"""

from __future__ import annotations

import asyncio
import math
import sys
import types

import pytest

from memguard import (
    UNGUARDED,
    LoopPacer,
    achunked,
    aprocess_in_chunks,
    chunked,
    process_in_chunks,
    yield_to_loop,
)

NONSENSE = [math.nan, math.inf, -math.inf, True, False, -1, -0.5, "1", 10**400]


async def nothing():
    return
    yield


def refused(call, value):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    if value != 10**400:  # beyond what Python prints
        assert str(value) in str(caught.value)


@pytest.mark.parametrize("value", [value for value in NONSENSE if value != 10**400], ids=str)
@pytest.mark.parametrize("name", ["chunk_size", "min_chunk_size", "concurrency", "total", "max_bytes"])
def test_whole_numbers_of_a_job(name, value):
    if (name, value) == ("max_bytes", "1"):
        return  # a size, in words
    refused(lambda: process_in_chunks([1], len, breaker=UNGUARDED, **{name: value}), value)
    refused(lambda: asyncio.run(aprocess_in_chunks([1], len, breaker=UNGUARDED, **{name: value})), value)


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: str(value)[:5] if value != 10**400 else "huge")
def test_seconds_of_a_job(value):
    refused(lambda: process_in_chunks([1], len, breaker=UNGUARDED, patience=value), value)
    refused(lambda: asyncio.run(aprocess_in_chunks([1], len, breaker=UNGUARDED, patience=value)), value)
    refused(lambda: asyncio.run(aprocess_in_chunks([1], len, breaker=UNGUARDED, max_block=value)), value)


@pytest.mark.parametrize("value", [0, *NONSENSE], ids=lambda value: str(value)[:5] if value != 10**400 else "huge")
def test_seconds_of_chunks_and_pacers(value):
    refused(lambda: achunked(nothing(), max_wait=value), value)
    refused(lambda: achunked([], max_block=value), value)
    refused(lambda: LoopPacer(value), value)


@pytest.mark.parametrize("value", [0, *(value for value in NONSENSE if value != 10**400)], ids=str)
def test_whole_numbers_of_chunks_and_slices(value):
    async def slices():
        async with LoopPacer() as pacer:
            pacer.slices([], value)

    refused(lambda: chunked([], value), value)
    refused(lambda: achunked([], value), value)
    refused(lambda: asyncio.run(slices()), value)
    if value != "1":
        refused(lambda: chunked([], max_bytes=value), value)
        refused(lambda: achunked([], max_bytes=value), value)


def test_what_a_choice_is_not():
    with pytest.raises(ValueError, match="on_memory_error is one of raise, shrink; got 'panic'"):
        process_in_chunks([1], len, breaker=UNGUARDED, on_memory_error="panic")


def test_an_async_source_where_a_sync_one_is_needed():
    async def slices():
        async with LoopPacer() as pacer:
            pacer.slices(nothing())

    for call in (
        lambda: chunked(nothing()),
        lambda: process_in_chunks(nothing(), len, breaker=UNGUARDED),
        lambda: asyncio.run(slices()),
    ):
        with pytest.raises(TypeError, match="not an async one"):
            call()


# ----- other loops


def step(coroutine):
    """Run *coroutine* to its first wait, as a loop does that is not asyncio's."""
    try:
        coroutine.send(None)
    except StopIteration:
        pass
    finally:
        coroutine.close()


async def in_pacer():
    async with LoopPacer():
        pass


async def in_chunks(source):
    await anext(achunked(source, 1))


async def entered_chunks(source):
    async with achunked(source, 1):
        pass


CALLS = {
    "LoopPacer": in_pacer,
    "yield_to_loop": yield_to_loop,
    "achunked": lambda: in_chunks([1]),
    "achunked, async": lambda: in_chunks(nothing()),
    "achunked, entered": lambda: entered_chunks(nothing()),
    "aprocess_in_chunks": lambda: aprocess_in_chunks([1], len, breaker=UNGUARDED),
    "aprocess_in_chunks, async": lambda: aprocess_in_chunks(nothing(), len, breaker=UNGUARDED),
}


@pytest.mark.parametrize("call", CALLS)
def test_without_asyncio_the_error_says_what_is_needed(call, monkeypatch):
    monkeypatch.delitem(sys.modules, "sniffio", raising=False)
    with pytest.raises(RuntimeError, match="asyncio is needed, and no asyncio event loop runs"):
        step(CALLS[call]())


@pytest.mark.parametrize("known_by", ["sniffio", "trio"])
@pytest.mark.parametrize("call", CALLS)
def test_under_trio_the_error_names_it(call, known_by, monkeypatch):
    sniffio = types.SimpleNamespace(current_async_library=lambda: "trio")
    trio = types.SimpleNamespace(lowlevel=types.SimpleNamespace(in_trio_run=lambda: True))
    monkeypatch.delitem(sys.modules, "sniffio", raising=False)
    monkeypatch.setitem(sys.modules, known_by, sniffio if known_by == "sniffio" else trio)
    with pytest.raises(RuntimeError, match="asyncio is needed, and this runs on trio"):
        step(CALLS[call]())
