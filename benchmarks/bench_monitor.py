"""
What it costs to know: a sample, a report, a tracked operation, a snapshot; and a web service with its monitor on.

The service is a real uvicorn that one client asks over one connection, in a second process; the monitor is switched on
and off in turns, at one sample a second, sixty times its default.
"""

from __future__ import annotations

import gc
import http.client
import json
import subprocess
import sys
import time
from pathlib import Path

from measuring import Report, in_turns, paired, read_options, timed

import memguard

SERVER = Path(__file__).resolve().parent.parent / "tests" / "real" / "leaking_server.py"
OBJECTS = 1_000_000


class Service:
    """The service, and a client of it."""

    def __init__(self) -> None:
        command = [sys.executable, str(SERVER), "1.0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._client = http.client.HTTPConnection("127.0.0.1", int(self._process.stdout.readline()), timeout=60)

    def get(self, path: str) -> bytes:
        """Return the answer."""
        self._client.request("GET", path)
        return self._client.getresponse().read()

    def throughput(self, switch: str, seconds: float) -> float:
        """Return the requests per second with the monitor ``on`` or ``off``."""
        self.get(f"/monitor/{switch}")
        count, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            for _ in range(50):
                self.get("/work")
            count += 50
        return count / passed

    def state(self) -> dict[str, object]:
        """Return the monitor's health."""
        found: dict[str, object] = json.loads(self.get("/state"))
        return found

    def close(self) -> None:
        """End it."""
        self._client.close()
        self._process.terminate()
        self._process.communicate(timeout=60)


def report_costs(report: Report, rounds: int, times: int) -> None:
    """Measure single calls."""
    monitor = memguard.MemoryMonitor(alerts=False)
    for _ in range(200):
        monitor.tick()
    got = in_turns(
        {
            "tick()": timed("monitor.tick()", times, monitor=monitor),
            "detect_leak()": timed("monitor.detect_leak()", times, monitor=monitor),
            "health()": timed("monitor.health()", times, monitor=monitor),
            "with track(): pass": timed("with monitor.track('x'): pass", times, monitor=monitor),
        },
        rounds,
    )
    for name, values in got.items():
        report.add(name, [value / 1000 for value in values], "us")
    share = [value / 1e9 * 100 for value in got["tick()"]]
    report.add("of one core at a sample a second", share, "%")
    report.target("share of one core at a sample a second", sorted(share)[len(share) // 2], "%", 0.1)


def report_snapshots(report: Report, rounds: int) -> None:
    """Measure snapshots of a million objects that the collector tracks."""
    kept = [[number] for number in range(OBJECTS)]
    gc.collect()
    got = in_turns(
        {
            f"take_snapshot(), {OBJECTS:,} objects": timed("memguard.take_snapshot()", 1, memguard=memguard),
            f"take_snapshot(exact=True), {OBJECTS:,} objects": timed(
                "memguard.take_snapshot(exact=True)", 1, memguard=memguard
            ),
        },
        rounds,
    )
    for name, values in got.items():
        report.add(name, [value / 1e6 for value in values], "ms")
    del kept


def report_service(report: Report, rounds: int, seconds: float) -> None:
    """Measure the service, with and without."""
    service = Service()
    try:
        got = in_turns(
            {
                "requests, monitor off": lambda: service.throughput("off", seconds),
                "requests, monitor off again": lambda: service.throughput("off", seconds),
                "requests, monitor on": lambda: service.throughput("on", seconds),
            },
            rounds,
        )
        report.note("samples taken by the service's monitor", service.state()["samples"])
    finally:
        service.close()
    off, again, on = got.values()
    report.add_all(got, "/s", versus="requests, monitor off")

    def lost(figures: list[float]) -> float:
        return paired(figures, off, lambda with_, without: (1 - with_ / without) * 100)

    report.note("lost between the two without", f"{lost(again):.2g} %")
    report.target("throughput lost to the monitor", lost(on), "%", 2)


def main() -> None:
    """Measure and report."""
    options = read_options(__doc__)
    report = Report("monitor", options, ["uvicorn"])
    report_costs(report, 3 if options.quick else 15, 200 if options.quick else 2000)
    report_service(report, 2 if options.quick else 20, 1.2 if options.quick else 3.0)
    report_snapshots(report, 2 if options.quick else 7)
    report.finish()


if __name__ == "__main__":
    main()
