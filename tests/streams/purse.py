"""
A gate for tests: so many bytes, held by whoever entered, and no measuring.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

from memguard import Level, MemoryCircuitBreakerError, MemoryUsage

USAGE = MemoryUsage(1, 1, 90, 100, "scripted", 0.0)
SCOPE = contextvars.ContextVar("scope", default=None)


def refusal(retry_after=1.0):
    return MemoryCircuitBreakerError(USAGE, 0, 0, retry_after, 80)


class Purse:
    """Admits as long as its bytes last; notes the most that was out, and who waited for how long."""

    level = Level.NORMAL

    def __init__(self, capacity=10**9):
        self.capacity = capacity
        self.out = self.most = 0
        self.closed = False
        self.asked = 0
        self.waits = []
        self.waiting = threading.Event()
        self.changed = threading.Condition()

    def check(self):
        self.asked += 1
        if self.closed:
            raise refusal()

    def allows(self, nbytes=0):
        return not self.closed and self.out + nbytes <= self.capacity

    def reserve(self, nbytes, *, timeout=0.0):
        return Hold(self, nbytes, timeout)

    def open(self):
        with self.changed:
            self.closed = False
            self.changed.notify_all()

    def book(self, nbytes):
        with self.changed:
            if nbytes > self.capacity:
                raise refusal(retry_after=None)
            if not self.allows(nbytes):
                return False
            self.out += nbytes
            self.most = max(self.most, self.out)
            return True

    def give_back(self, nbytes):
        with self.changed:
            self.out -= nbytes
            self.changed.notify_all()


class Hold:
    """Makes a scope in ``run`` and ``arun``, and nowhere else."""

    def __init__(self, purse, nbytes, timeout):
        self.purse, self.nbytes, self.timeout = purse, nbytes, timeout
        self.held = False

    def __enter__(self):
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        if self.timeout != 0:
            self.purse.waits.append(self.timeout)
        while not self.purse.book(self.nbytes):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise refusal()
            with self.purse.changed:
                self.purse.waiting.set()
                self.purse.changed.wait(0.01 if left is None else min(left, 0.01))
        self.held = True
        return self

    async def __aenter__(self):
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        if self.timeout != 0:
            self.purse.waits.append(self.timeout)
        while not self.purse.book(self.nbytes):
            if deadline is not None and time.monotonic() >= deadline:
                raise refusal()
            self.purse.waiting.set()
            await asyncio.sleep(0.001)
        self.held = True
        return self

    def __exit__(self, *error):
        self.release()

    async def __aexit__(self, *error):
        self.release()

    def release(self):
        with self.purse.changed:
            held, self.held = self.held, False
        if held:
            self.purse.give_back(self.nbytes)

    def resize(self, nbytes):
        raise NotImplementedError

    def run(self, fn, *args):
        token = SCOPE.set(self)
        try:
            return fn(*args)
        finally:
            SCOPE.reset(token)

    async def arun(self, fn, *args):
        token = SCOPE.set(self)
        try:
            return await fn(*args)
        finally:
            SCOPE.reset(token)


class PlainPurse(Purse):
    """A gate of somebody's own, whose holds have no scope."""

    def reserve(self, nbytes, *, timeout=0.0):
        return PlainHold(self, nbytes, timeout)


class PlainHold(Hold):
    run = arun = None
