"""
A service that leaks, found and explained: which type piles up, where it hangs, and what to do.

    python examples/find_a_leak.py

Each request remembers its session in a dict that nothing ever empties. The samples of hours are taken in seconds here;
a real service starts the monitor, `with memguard.MemoryMonitor():`, and waits.
"""

import itertools
import sys

import memguard
from memguard.testing import FakeClock

SESSIONS: dict[str, "Session"] = {}


class Session:
    """What one visitor did. The leak: it stays after the visitor has gone."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.pages = [f"/page/{number}" for number in range(40)]


def handle(user: str) -> int:
    """Answer a request."""
    session = SESSIONS.setdefault(user, Session(user))
    return len(session.pages)


def main() -> int:
    """Serve until the leak is found and explained; return 0 then."""
    clock = FakeClock()
    monitor = memguard.MemoryMonitor(clock=clock, alerts=False)
    found: list[memguard.LeakDetectionResult] = []
    reports: list[memguard.GrowthReport] = []
    monitor.on_leak.connect(found.append)
    reporter = memguard.LeakReporter(monitor, on_report=reports.append)
    users = (f"user {number}" for number in itertools.count())

    while not found and clock.now < 100_000:
        for user in itertools.islice(users, 100):
            handle(user)
        monitor.tick()
        clock.advance(60)
    reporter.close()  # waits for the report

    for result, report in zip(found, reports, strict=True):
        print(f"{result.verdict}, {result.cause}: {result.recommendation}\n\n{report}")
    return 0 if reports and reports[0].types[0].name.endswith(".Session") else 1


if __name__ == "__main__":
    sys.exit(main())
