"""
A server that keeps the report of every request in a dict without a bound; and one that does not.

    leaking_server.py INTERVAL

The monitor samples every INTERVAL seconds; it is off until it is asked for. Prints its port on the first line.

    GET /leak           answer, and keep what was made
    GET /work           answer the same, and keep the last thousand only
    GET /monitor/on     /monitor/off
    GET /state          the monitor's health, and the report of what grew if there is one
"""

from __future__ import annotations

import collections
import itertools
import json
import socket
import sys

import uvicorn

from memguard import GrowthReport, LeakReporter, MemoryMonitor

REPORTS: dict[int, Report] = {}
LATEST: collections.deque[Report] = collections.deque(maxlen=1000)
numbers = itertools.count()
found: list[GrowthReport] = []


class Report:
    """What one request made."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.rows = [f"row {number} {at}" for at in range(20)]

    def body(self) -> bytes:
        return json.dumps({"number": self.number, "rows": self.rows}).encode()


def answer_of(path: str) -> bytes:
    report = Report(next(numbers))
    if path == "/leak":
        REPORTS[report.number] = report
    elif path == "/work":
        LATEST.append(report)
    elif path == "/monitor/on":
        monitor.start()
    elif path == "/monitor/off":
        monitor.stop()
    else:
        types = [each.name for each in found[0].types] if found else []
        holders = [each.container.holder for each in found[0].containers] if found else []
        return json.dumps(monitor.health() | {"types": types, "holders": holders}).encode()
    return report.body()


async def app(scope, receive, send) -> None:
    body = answer_of(scope["path"])
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    monitor = MemoryMonitor(sample_interval=float(sys.argv[1]), alerts=False)
    reporter = LeakReporter(monitor, on_report=found.append)
    config = uvicorn.Config(app, loop="asyncio", http="h11", ws="none", lifespan="off", log_level="warning")
    config.load()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # What is accepted inherits it; without it each answer waits 40 ms for the client's acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listener])
