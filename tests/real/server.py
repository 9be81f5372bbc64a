"""
A server of which each request takes 15 MiB for a while. Run in a box by the tests beside it.

    server.py plain      takes them without asking
    server.py check      asks the threshold at the start of each request
    server.py reserve    reserves them first, and answers 503 where there is no room in time

Prints its port on the first line. GET /state answers with what the breaker shows; GET /state/released gives back first
what the allocator holds free.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import sys

import uvicorn
from burst import JOB_BYTES, take

from memguard import MemoryCircuitBreakerError, default_breaker, release_memory

WAY = sys.argv[1]
PATIENCE = 0.25
"""Seconds to wait for room: of 60 at once some get in from the line, and the others are refused."""


async def work() -> None:
    block = take()
    await asyncio.sleep(random.uniform(0.05, 0.2))
    assert len(block) == JOB_BYTES


async def read_body(receive) -> None:
    """Read the request to its end. Its sender takes his time: here all others run."""
    while (await receive()).get("more_body"):
        pass


async def upload(receive) -> None:
    if WAY == "check":
        default_breaker().check()
    await read_body(receive)
    if WAY == "reserve":
        async with default_breaker().reserve(JOB_BYTES, timeout=PATIENCE):
            await work()
    else:
        await work()


async def answer(send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


def state(path: str) -> dict[str, object]:
    if path == "/state/released":
        release_memory()
        default_breaker().tick()
    return default_breaker().health()


async def app(scope, receive, send) -> None:
    if scope["path"].startswith("/state"):
        await answer(send, 200, json.dumps(state(scope["path"])).encode())
        return
    try:
        await upload(receive)
    except MemoryCircuitBreakerError as error:
        await answer(send, 503, str(error).encode(), (b"retry-after", str(math.ceil(error.retry_after)).encode()))
    else:
        await answer(send, 200, b"done")


if __name__ == "__main__":
    if WAY != "plain":
        default_breaker()  # early, so that threads yet to start share two arenas
    config = uvicorn.Config(app, loop="asyncio", http="h11", ws="none", lifespan="off", log_level="warning")
    config.load()  # imports what it would import at the first request
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listener])
