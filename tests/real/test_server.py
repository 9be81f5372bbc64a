"""
A web server under a burst, for real: 60 connections, 1,500 requests of 15 MiB each, in a 300 MiB cgroup.

The client is plain asyncio. Each request is an upload that waits for ``100 Continue`` before it sends its body, so
that the first sixty are all inside the server before one of them takes its bytes, however slow the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from memguard.cli._box import make_box

pytest.importorskip("uvicorn")

MIB = 1024**2
SERVER = Path(__file__).with_name("server.py")
CONNECTIONS = 60
REQUESTS_EACH = 25
DEADLINE = 60
HEAD = b"POST / HTTP/1.1\r\nHost: box\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"


@pytest.fixture
def box():
    try:
        made = make_box(300 * MIB, kind="cgroup")
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    with made:
        yield made


class Client:
    """One connection, kept alive."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def read(self):
        """Return status, headers and body of the next response."""
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    async def get(self, path):
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: box\r\n\r\n".encode())
        status, _, body = await self.read()
        assert status == 200
        return json.loads(body)

    async def begin(self):
        """Send the head of an upload; return once the server asks for the body."""
        self.writer.write(HEAD)
        status, *_ = await self.read()
        if status != 100:
            raise ConnectionError(f"{status} before the body was sent")

    async def finish(self):
        """Send the body; return the status."""
        self.writer.write(b"body")
        status, headers, _ = await self.read()
        if status == 503 and int(headers.get("retry-after", 0)) < 1:
            return "503 without Retry-After"
        return status

    async def upload_all(self, counts):
        """Finish the upload that was begun, and then the others; count the answers."""
        try:
            counts[await self.finish()] += 1
            for _ in range(REQUESTS_EACH - 1):
                await self.begin()
                counts[await self.finish()] += 1
        except (OSError, EOFError):
            counts["connection lost"] += 1


@contextlib.asynccontextmanager
async def serving(box, way):
    """A server in the box: its process and its port."""
    command = box.command([sys.executable, str(SERVER), way])
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield process, int(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.communicate(), DEADLINE)
        except TimeoutError:
            process.kill()
            await process.communicate()


@contextlib.asynccontextmanager
async def clients(port, number):
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(number):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.push_async_callback(hang_up, writer)
            made.append(Client(reader, writer))
        yield made


async def hang_up(writer):
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def state(port, path="/state"):
    """Return the health of the server's breaker."""
    async with clients(port, 1) as [client]:
        return await client.get(path)


async def burst(port):
    """Send 1,500 requests over 60 connections; return how many had which answer."""
    counts = Counter()
    async with clients(port, CONNECTIONS) as all_of_them:
        await asyncio.gather(*(client.begin() for client in all_of_them))
        await asyncio.gather(*(client.upload_all(counts) for client in all_of_them))
    return counts


async def burst_until_killed(box, way):
    """Return how the server ended, and the counts."""
    async with asyncio.timeout(2 * DEADLINE), serving(box, way) as (process, port):
        counts = await burst(port)
        return await process.wait(), counts


async def burst_and_calm(box):
    """Return the counts, and the breaker's health before the burst and once all is over."""
    async with asyncio.timeout(2 * DEADLINE), serving(box, "reserve") as (process, port):
        before = await state(port)
        counts = await burst(port)
        while (await state(port))["state"] != "closed":
            await asyncio.sleep(0.1)
        after = await state(port, "/state/released")
        assert process.returncode is None
        return counts, before, after


@pytest.mark.parametrize("way", ["plain", "check"])
def test_a_server_that_asks_nobody_or_only_a_threshold_is_killed_by_the_kernel(box, way):
    returncode, counts = asyncio.run(burst_until_killed(box, way))

    print(f"{way}: {dict(counts)}")
    assert returncode == -9
    assert box.oom_kills()


def test_a_server_that_reserves_answers_1500_requests_below_the_limit_and_is_calm_again(box):
    counts, before, after = asyncio.run(burst_and_calm(box))

    print(f"reserve: {dict(counts)}, peak {box.peak_bytes() / MIB:.0f} MiB")
    print(f"used before {before['used_bytes'] / MIB:.0f} MiB, after {after['used_bytes'] / MIB:.0f} MiB")
    assert set(counts) == {200, 503}
    assert counts.total() == CONNECTIONS * REQUESTS_EACH
    assert box.oom_kills() == 0
    assert box.peak_bytes() < 300 * MIB
    assert (after["state"], after["reserved_bytes"], after["waiting"]) == ("closed", 0, 0)
    assert after["used_bytes"] < before["used_bytes"] + 15 * MIB
