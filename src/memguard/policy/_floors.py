"""
What a signal never falls below, on several time scales at once, and how these floors move.

A floor is the least value of a block of samples. Two blocks of one level make one block of the level above, so a few
hundred numbers cover a long history. `shape_of` looks at twelve floors; it sees neither times nor units, so it judges
a process of 10 MiB that is sampled every second like one of 10 GiB that is sampled every hour.

Rule: nothing here knows what the signal is, or what a leak is. It says how the floors move.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence

BLOCKS = 12
"""Floors that are judged together: four quarters of three."""
LEVELS = 7
"""Time scales: blocks of 1, 2, 4, ... 64 times the shortest. Seven reach back 128 windows."""
_KEPT = 2 * BLOCKS

_NOISE_FACTOR = 1.5
"""Growth below this many times the mean jump between neighbouring floors is noise."""
_STEP_SHARE = 0.7
"""One quarter that has more than this of all growth makes it a step."""
_JUMP_SHARE = 0.4
"""So does one jump between neighbours that has more than this: the tables of a dict grow so, a leak does not."""
_EVEN_SHARE = 0.12
"""A leak grows in each quarter; one that has less than this of all growth is a pause."""
_FADES_BELOW = 0.8
"""Growth fades if the third quarter brings less than this part of what the first brought ..."""
_NOISE_DOUBT = 3.0
"""... less this many times the noise, as a part of the growth: the curve of a noisy series says little ..."""
_FADES_SURELY_BELOW = 0.4
"""... but less than this is fading for certain."""
_FADES_BETWEEN_WINDOWS_BELOW = 0.7
"""Growth fades as well if a window brings less than this part of what the window before it brought."""
_MEMORY = 2048
"""
A peak is forgotten over so many blocks: a week at the shortest scale of a process that is sampled once a minute. Load
that comes back every day is no news, but one large job must not hide every smaller leak after it.
"""


class Shape(enum.Enum):
    """How twelve floors move."""

    UNKNOWN = "fewer than twelve"
    FLAT = "no growth beyond the noise"
    STEP = "one jump"
    UNEVEN = "growth with a pause"
    FADING = "growth that fades"
    RECURRING = "growth to where it has been before"
    RISING = "growth that keeps on"


def shape_of(floors: Sequence[float], least_growth: float, highest_before: float) -> Shape:
    """
    Return how the last twelve of *floors* move.

    Each floor is first lowered to the least that follows it: what was given back later does not count as held. That
    removes sawtooth, spikes, dips and load that passes. The last three floors only confirm.

    Args:
        floors: Oldest first; up to twelve before the last twelve are compared with.
        least_growth: Growth below this is none.
        highest_before: The highest floor older than *floors*; minus infinity for none.
    """
    if len(floors) < BLOCKS:
        return Shape.UNKNOWN
    first, second, third, fourth = retained_quarters(floors)
    growth = fourth - first
    if growth <= 0 or growth < least_growth:
        return Shape.FLAT
    noise = jumpiness(floors[-BLOCKS:], growth)
    if growth < _NOISE_FACTOR * noise:
        return Shape.FLAT
    return _shape_of_growth(floors, (second - first, third - second, fourth - third), noise, highest_before)


def _shape_of_growth(
    floors: Sequence[float], gains: tuple[float, float, float], noise: float, highest_before: float
) -> Shape:
    growth = sum(gains)
    if max(gains) > _STEP_SHARE * growth:
        return Shape.STEP
    if min(gains) < _EVEN_SHARE * growth:
        return Shape.UNEVEN
    fades_below = max(_FADES_SURELY_BELOW, _FADES_BELOW - _NOISE_DOUBT * noise / growth)
    earlier = floors[:-BLOCKS]
    if gains[2] < fades_below * gains[0] or growth < _FADES_BETWEEN_WINDOWS_BELOW * retained_growth(earlier):
        return Shape.FADING
    if min(floors[-3:]) <= max(highest_before, max(earlier, default=highest_before)):
        return Shape.RECURRING
    return Shape.STEP if largest_jump(floors[-BLOCKS:]) > _JUMP_SHARE else Shape.RISING


def jumpiness(floors: Sequence[float], growth: float) -> float:
    """Return the mean distance of the jumps between *floors* from even steps of *growth* over nine floors."""
    step = growth / 9
    total = 0.0
    before = floors[0]
    for floor in floors:
        total += abs(floor - before - step)
        before = floor
    # The first floor is no jump from itself.
    return (total - abs(step)) / (len(floors) - 1)


def largest_jump(floors: Sequence[float]) -> float:
    """Return the largest jump between neighbours, as a part of all that *floors* gained and kept, which is not 0."""
    kept = after = floors[-1]
    largest = 0.0
    for floor in reversed(floors):
        if floor < kept:
            largest = max(largest, kept - floor)
            kept = floor
    return largest / (after - kept)


def retained_growth(floors: Sequence[float]) -> float:
    """Return what twelve *floors* gained and kept; 0 for fewer."""
    return float(min(floors[-3:]) - min(floors)) if len(floors) == BLOCKS else 0.0


def retained_quarters(floors: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the least of each quarter of the last twelve *floors* and all that follows it."""
    fourth = min(floors[-3:])
    third = min(fourth, *floors[-6:-3])
    second = min(third, *floors[-9:-6])
    return min(second, *floors[-12:-9]), second, third, fourth


def plateau_of(floors: Sequence[float]) -> float:
    """Return where the last twelve of *floors* lead if their growth goes on to fade as it does: a geometric series."""
    first, second, third, fourth = retained_quarters(floors)
    gain, gain_before = fourth - third, second - first
    if gain_before <= 0 or gain <= 0:
        return fourth
    ratio = min(0.95, math.sqrt(gain / gain_before))
    return fourth + gain * ratio / (1 - ratio)


def _remembered(highest: float, floor: float) -> float:
    if floor >= highest:
        return floor
    return highest - (highest - floor) / _MEMORY


class Scale:
    """
    One level of one signal: its floors, and how long they have been rising.

    Attributes:
        floors: The last 24, oldest first.
        shape: How the last twelve move.
        passes: How often in a row they rose, less how often they did not.
        standing: They rose *patience* times, and have not stopped for as long.
    """

    __slots__ = ("_highest_gone", "_net_highest_gone", "_patience", "floors", "nets", "passes", "shape", "standing")

    def __init__(self, patience: float) -> None:
        self.floors: list[float] = []
        self.nets: list[float] = []
        self.shape = Shape.UNKNOWN
        self.passes = 0
        self.standing = False
        self._patience = patience
        self._highest_gone = self._net_highest_gone = float("-inf")

    def add(self, floor: float, net: float, least_share: float, least_growth: float) -> None:
        """Add a *floor*, and the *net* one, without what is explained; growth of either below the least is none."""
        floors, nets = self.floors, self.nets
        floors.append(floor)
        nets.append(net)
        if len(floors) > _KEPT:
            self._highest_gone = _remembered(self._highest_gone, floors.pop(0))
            self._net_highest_gone = _remembered(self._net_highest_gone, nets.pop(0))
        if len(floors) < BLOCKS:
            return
        least = max(least_growth, least_share * floors[-BLOCKS])
        self.shape = shape_of(floors, least, self._highest_gone)
        if self.shape is Shape.RISING and nets != floors:
            self.shape = shape_of(nets, least, self._net_highest_gone)
        self._count()

    @property
    def gain(self) -> float:
        """What the last twelve floors gained and kept; 0 for fewer."""
        return retained_growth(self.floors[-BLOCKS:])

    def _count(self) -> None:
        if self.shape is Shape.RISING:
            self.passes = min(self.passes + 1, int(self._patience) + 1)
            self.standing = self.standing or self.passes >= self._patience
        elif self.passes and not self._undecided():
            self.passes -= 1
            self.standing = self.standing and self.passes > 0

    def _undecided(self) -> bool:
        """Whether an uneven stretch says nothing: a leak under load is one, as is the end of a leak."""
        if self.shape not in (Shape.STEP, Shape.UNEVEN):
            return False
        first, _, third, fourth = retained_quarters(self.floors)
        return not self.standing or fourth - third > _EVEN_SHARE * (fourth - first)


class Ladder:
    """All levels of one signal."""

    __slots__ = ("_least_growth", "_least_share", "_pending", "scales")

    def __init__(self, patience: float, least_share: float, least_growth: float) -> None:
        # The longer the blocks, the fewer of them show as much patience; two at least, or a single one would decide.
        self.scales = [Scale(max(2.0, (patience - 1) * BLOCKS / 2**level)) for level in range(LEVELS)]
        self._pending: list[tuple[float, float] | None] = [None] * LEVELS
        self._least_share = least_share
        self._least_growth = least_growth

    def add(self, floor: float, net: float) -> None:
        """Add the floor of the shortest block, and hand every second one up."""
        pending = self._pending
        for level, scale in enumerate(self.scales):
            scale.add(floor, net, self._least_share, self._least_growth)
            first = pending[level]
            if first is None:
                pending[level] = (floor, net)
                return
            pending[level] = None
            floor, net = min(first[0], floor), min(first[1], net)

    @property
    def ready(self) -> bool:
        """Whether there is enough to judge by."""
        return self.scales[0].shape is not Shape.UNKNOWN

    def longest(self, sign: Callable[[Scale], bool]) -> int | None:
        """Return the longest level that *sign* holds for."""
        return max((level for level, scale in enumerate(self.scales) if sign(scale)), default=None)

    def fading(self) -> int | None:
        """Return the shortest level on which growth fades and is not over: the level below sees some of it."""
        below = Shape.FADING
        for level, scale in enumerate(self.scales):
            if scale.shape is Shape.FADING and below is not Shape.FLAT:
                return level
            below = scale.shape
        return None
