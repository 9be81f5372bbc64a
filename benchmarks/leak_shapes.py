"""
Seeded series of memory samples with a known answer: healthy shapes that look like leaks, and leaks that do not.

Each is a process with a start size, noise, one shape of load, and perhaps a leak, in Python objects, in malloc or in
mappings; the counters inside the process follow from that. Nothing here knows a detector.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

PAGE = 4096
MIB = 1024**2
BYTES_PER_BLOCK = 80

Curve: TypeAlias = Callable[[int], float]
"""What is held at a sample, as a part of the start size."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a detector is given: seconds, bytes, and a count of blocks; None for what is not known."""

    seconds: float
    rss_bytes: int
    python_blocks: int | None
    malloc_in_use_bytes: int | None
    malloc_free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Series:
    """
    Samples and the truth about them.

    Attributes:
        name: The shape.
        leaks: Whether it leaks, at the end at least.
        cause: Where the leak is; None if there is none.
        onset: The sample at which it begins.
        bytes_per_second: Its rate; 0 unless it is even.
        samples: In order.
    """

    name: str
    leaks: bool
    cause: str | None
    onset: int
    bytes_per_second: float
    samples: tuple[Sample, ...]


def flat(_chance: random.Random, _length: int) -> Curve:
    """Nothing but noise."""
    return lambda _i: 0.0


def warm_up(chance: random.Random, _length: int) -> Curve:
    """A start that fades."""
    size, tau = chance.uniform(0.05, 1.0), chance.uniform(5, 60)
    return lambda i: size * (1 - math.exp(-i / tau))


def step(chance: random.Random, length: int) -> Curve:
    """One to three jumps, far apart."""
    steps = [(chance.uniform(0.05, 0.95) * length, chance.uniform(0.02, 0.6)) for _ in range(chance.randint(1, 3))]
    return lambda i: sum(size for at, size in steps if i >= at)


def sawtooth(chance: random.Random, _length: int) -> Curve:
    """Garbage that waits for a collector."""
    size, period = chance.uniform(0.02, 0.5), chance.uniform(6, 90)
    phase = chance.uniform(0, period)
    return lambda i: size * ((i + phase) % period) / period


def periodic(chance: random.Random, length: int) -> Curve:
    """Load that comes and goes, each time a little different."""
    size, period = chance.uniform(0.02, 0.4), chance.uniform(15, 150)
    heights = [chance.uniform(0.8, 1.2) for _ in range(length)]
    phase = chance.uniform(0, period)

    def held(i: int) -> float:
        turns = (i + phase) / period
        return size * heights[int(turns)] * (1 - math.cos(2 * math.pi * turns)) / 2

    return held


def cache_fill(chance: random.Random, length: int) -> Curve:
    """A cache that fills evenly up to its bound."""
    size, begin, lasts = chance.uniform(0.05, 0.8), chance.uniform(0, 0.4) * length, chance.uniform(10, 80)
    return lambda i: size * min(1.0, max(0.0, i - begin) / lasts)


def keyed_cache(chance: random.Random, length: int) -> Curve:
    """A cache of a fixed set of keys that come at random: the more are known, the fewer are new."""
    size, keys, rate = chance.uniform(0.05, 0.8), chance.randint(200, 3000), chance.uniform(0.01, 0.1)
    known: set[int] = set()
    held = []
    for _ in range(length):
        known.update(chance.randrange(keys) for _ in range(max(1, int(rate * keys))))
        held.append(size * len(known) / keys)
    return held.__getitem__


def wander(chance: random.Random, length: int) -> Curve:
    """A random walk that is pulled back."""
    size, pull, value = chance.uniform(0.01, 0.1), 1 / chance.uniform(5, 40), 0.0
    held = []
    for _ in range(length):
        value += -pull * value + math.sqrt(2 * pull) * chance.gauss(0, size)
        held.append(max(0.0, 3 * size + value))
    return held.__getitem__


def creep(chance: random.Random, length: int) -> Curve:
    """Fragmentation: new highs, ever fewer."""
    size, tau, level = chance.uniform(0.02, 0.3), chance.uniform(10, 60), 0.0
    held = []
    for _ in range(length):
        if chance.random() < 0.3:
            level += (size - level) / tau * chance.uniform(0, 6) / 0.9
        held.append(level)
    return held.__getitem__


def spikes(chance: random.Random, length: int) -> Curve:
    """Single large requests."""
    often, size = chance.uniform(0.01, 0.1), chance.uniform(0.05, 0.5)
    held = [size * chance.paretovariate(1.5) if chance.random() < often else 0.0 for _ in range(length)]
    return held.__getitem__


def bursts(chance: random.Random, length: int) -> Curve:
    """Jobs that hold memory for a while."""
    held = [0.0] * length
    for _ in range(chance.randint(4, 25)):
        begin, lasts, size = chance.randrange(length), chance.randint(3, 50), chance.uniform(0.02, 0.3)
        for i in range(begin, min(length, begin + lasts)):
            held[i] += size
    return held.__getitem__


def even(rate: float, _chance: random.Random, _length: int) -> Curve:
    """So much with each sample."""
    return lambda i: rate * i


def stairs(rate: float, chance: random.Random, _length: int) -> Curve:
    """A portion from time to time."""
    every = chance.uniform(4, 25)
    return lambda i: rate * every * int(i / every)


def accelerating(rate: float, _chance: random.Random, length: int) -> Curve:
    """Slow at first."""
    return lambda i: rate * i * (0.3 + 0.7 * i / length)


def random_portions(rate: float, chance: random.Random, length: int) -> Curve:
    """A portion with some requests."""
    often, level, held = chance.uniform(0.1, 0.8), 0.0, []
    for _ in range(length):
        if chance.random() < often:
            level += rate / often * chance.uniform(0.2, 1.8)
        held.append(level)
    return held.__getitem__


def on_and_off(rate: float, chance: random.Random, _length: int) -> Curve:
    """Only while there is load."""
    period, share = chance.uniform(8, 40), chance.uniform(0.4, 0.8)

    def held(i: int) -> float:
        turns, rest = divmod(i, period)
        return rate / share * (turns * period * share + min(rest, period * share))

    return held


def outliers(chance: random.Random, length: int) -> Curve:
    """Requests of any size, most of them small."""
    held = [
        min(3.0, abs(chance.gauss(0, 0.01)) * chance.paretovariate(1.1)) if chance.random() < 0.15 else 0.0
        for _ in range(length)
    ]
    return held.__getitem__


def deploys(chance: random.Random, length: int) -> Curve:
    """Several jumps, some of them down."""
    steps = [(chance.uniform(0, length), chance.uniform(-0.1, 0.4)) for _ in range(chance.randint(3, 5))]
    return lambda i: max(-0.3, sum(size for at, size in steps if i >= at))


def recycled(chance: random.Random, _length: int) -> Curve:
    """A worker that is replaced from time to time."""
    size, period = chance.uniform(0.1, 0.5), chance.uniform(20, 70)
    return lambda i: size * (i % period) / period


def on_off_load(chance: random.Random, _length: int) -> Curve:
    """Load that is there or not."""
    size, period = chance.uniform(0.05, 0.4), chance.uniform(10, 120)
    return lambda i: size * (i // period % 2)


def two_waves(chance: random.Random, _length: int) -> Curve:
    """Load with two rhythms."""
    short, long = chance.uniform(8, 30), chance.uniform(60, 150)
    small, large = chance.uniform(0.01, 0.1), chance.uniform(0.01, 0.15)
    return lambda i: small * (1 - math.cos(2 * math.pi * i / short)) + large * (1 - math.cos(2 * math.pi * i / long))


def two_collectors(chance: random.Random, _length: int) -> Curve:
    """Young garbage and old."""
    short, long = chance.uniform(4, 10), chance.uniform(30, 100)
    small, large = chance.uniform(0.01, 0.05), chance.uniform(0.05, 0.3)
    return lambda i: small * (i % short) / short + large * (i % long) / long


def drained(chance: random.Random, length: int) -> Curve:
    """A jump that drains away."""
    at, size, tau = chance.uniform(0, 0.6) * length, chance.uniform(0.1, 1), chance.uniform(10, 80)
    return lambda i: size * math.exp(-(i - at) / tau) if i >= at else 0.0


def two_fills(chance: random.Random, length: int) -> Curve:
    """Two caches that fill, perhaps one after the other."""
    first, second = cache_fill(chance, length), cache_fill(chance, length)
    return lambda i: (first(i) + second(i)) / 2


def by_traffic(rate: float, chance: random.Random, length: int) -> Curve:
    """A portion with each request, of which there are more and fewer."""
    level, held = 0.0, []
    for i in range(length):
        level += rate * chance.expovariate(1) * (1 + 0.8 * math.sin(i / 15))
        held.append(level)
    return held.__getitem__


def by_timer(rate: float, chance: random.Random, _length: int) -> Curve:
    """The same portion every so often."""
    every = chance.uniform(5, 15)
    return lambda i: rate * every * int(i / every)


def slow_start(rate: float, _chance: random.Random, _length: int) -> Curve:
    """Even after a while."""
    return lambda i: rate * (i - 30 + 30 * math.exp(-i / 30))


HEALTHY = (flat, warm_up, step, sawtooth, periodic, cache_fill, keyed_cache, wander, creep, spikes, bursts)
LEAKS = (even, stairs, accelerating, random_portions, on_and_off)
UNDER_A_LEAK = (flat, flat, warm_up, sawtooth, periodic, spikes, bursts, wander)
UNSEEN_HEALTHY = (outliers, deploys, recycled, on_off_load, two_waves, two_collectors, drained, two_fills)
UNSEEN_LEAKS = (by_traffic, by_timer, slow_start)
UNSEEN_UNDER_A_LEAK = (flat, outliers, recycled, on_off_load, two_waves, two_collectors, drained, step)
"""Shapes that no constant was chosen by."""
CAUSES = ("python objects", "native", "mapped or fragmented")


def healthy_series(seed: int, each: int, length: int = 480, *, unseen: bool = False) -> Iterator[Series]:
    """Yield *each* series of every healthy shape."""
    for number, shape in enumerate(UNSEEN_HEALTHY if unseen else HEALTHY):
        for turn in range(each):
            chance = random.Random(f"{seed} healthy {number} {turn}")
            load = shape(chance, length)
            yield Series(shape.__name__, False, None, 0, 0.0, _samples(chance, length, load, lambda _i: 0.0, "none"))


def leaking_series(
    seed: int, each: int, length: int = 480, most_load: float = 0.5, *, unseen: bool = False
) -> Iterator[Series]:
    """
    Yield *each* series of every kind of leak, under loads and from onsets that differ.

    The load swings by at most *most_load* times what has leaked at the end: far above that no look at the samples
    tells the two apart.
    """
    for number, shape in enumerate(UNSEEN_LEAKS if unseen else LEAKS):
        for turn in range(each):
            chance = random.Random(f"{seed} leak {number} {turn}")
            load_shape, cause = chance.choice(UNSEEN_UNDER_A_LEAK if unseen else UNDER_A_LEAK), chance.choice(CAUSES)
            onset = chance.choice((0, 0, int(chance.uniform(0.1, 0.4) * length)))
            total = math.exp(chance.uniform(math.log(0.08), math.log(1.5)))
            rate = total / (length - onset)
            leak = shape(rate, chance, length)
            load = _scaled(load_shape(chance, length), length, total * chance.uniform(0.1, most_load))
            samples = _samples(chance, length, load, _from(onset, leak), cause)
            slope = rate * samples[0].rss_bytes / 10 if shape is even else 0.0
            yield Series(f"{shape.__name__} under {load_shape.__name__}", True, cause, onset, slope, samples)


def _from(onset: int, leak: Curve) -> Curve:
    return lambda i: leak(max(0, i - onset))


def _scaled(load: Curve, length: int, most: float) -> Curve:
    held = [load(i) for i in range(length)]
    swing = max(held) - min(held)
    factor = min(1.0, most / swing) if swing else 1.0
    return lambda i: held[i] * factor


def _samples(chance: random.Random, length: int, load: Curve, leak: Curve, cause: str) -> tuple[Sample, ...]:
    base = math.exp(chance.uniform(math.log(30 * MIB), math.log(4096 * MIB)))
    noise, memory = chance.uniform(0.0005, 0.008) * base, chance.choice((0.0, 0.0, chance.uniform(0.3, 0.9)))
    in_python, kept = chance.uniform(0.2, 0.8), chance.uniform(0.0, 0.7)
    seconds, wave, top, samples = 0.0, 0.0, 0.0, []
    for i in range(length):
        seconds += 10 * chance.uniform(0.95, 1.05)
        wave = memory * wave + math.sqrt(1 - memory**2) * chance.gauss(0, noise)
        held, leaked = load(i) * base, leak(i) * base
        # A part of what load has given back stays with malloc, and is used again first.
        top = max(top, held)
        free = kept * (1 - in_python) * (top - held)
        python = base * 0.4 + in_python * held + 0.3 * wave + (leaked if cause == "python objects" else 0)
        malloc = base * 0.2 + (1 - in_python) * held + 0.3 * wave + (leaked if cause == "native" else 0)
        rss = base + held + free + leaked + wave
        samples.append(
            Sample(
                seconds,
                max(PAGE, int(rss) // PAGE * PAGE),
                int(python) // BYTES_PER_BLOCK,
                max(0, int(malloc)),
                int(free + 0.01 * base),
            )
        )
    return tuple(samples)
