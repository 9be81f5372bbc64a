"""
50 threads and 50 tasks race for reservations, 100,000 rounds in all. Long because it takes minutes.
"""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from memguard import MemoryCircuitBreaker, MemoryCircuitBreakerError
from memguard.testing import ScriptedSampler

pytestmark = pytest.mark.long("races")
MIB = 1024**2
ROUNDS = 1000
ROOM = 300 * MIB


class Race:
    def __init__(self):
        self.breaker = MemoryCircuitBreaker(sampler=ScriptedSampler([0.5], limit_bytes=1000 * MIB), relief=False)
        self.over = 0
        self.rounds = 0

    def look(self):
        if self.breaker.statistics().reserved_bytes > ROOM:
            self.over += 1

    def in_thread(self, seed):
        dice = random.Random(seed)
        for _ in range(ROUNDS):
            self.rounds += 1
            try:
                with self.breaker.reserve(dice.randrange(1, 200) * MIB, timeout=dice.choice([0, 0.0005, 0.01, 30])):
                    self.look()
                    if dice.random() < 0.2:
                        raise ValueError
            except (MemoryCircuitBreakerError, ValueError):
                pass

    async def in_task(self, seed):
        dice = random.Random(seed)
        for _ in range(ROUNDS):
            self.rounds += 1
            try:
                async with asyncio.timeout(dice.choice([0.0002, 0.005, 30])):
                    async with self.breaker.reserve(
                        dice.randrange(1, 200) * MIB, timeout=dice.choice([0, 0.0005, None])
                    ):
                        self.look()
                        await asyncio.sleep(0)
                        if dice.random() < 0.2:
                            raise ValueError
            except (MemoryCircuitBreakerError, TimeoutError, ValueError):
                pass

    async def all_tasks(self):
        await asyncio.gather(*(self.in_task(1000 + n) for n in range(50)))


def test_never_more_than_fits_and_nothing_leaks():
    race = Race()
    threads = [threading.Thread(target=race.in_thread, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    asyncio.run(race.all_tasks())
    for thread in threads:
        thread.join(600)

    counts = race.breaker.statistics()
    print(f"{counts.admitted} admitted, {counts.refused} refused")
    assert not any(thread.is_alive() for thread in threads)
    assert race.over == 0
    assert (counts.reserved_bytes, counts.waiting, race.breaker._desk.on_ramp) == (0, 0, 0)
