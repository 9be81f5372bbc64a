"""
Learns what a guarded function costs: some of its calls are measured while they run.

The peak is the process's own, so a call that ran beside others is charged its share of theirs.
"""

from __future__ import annotations

import itertools
import threading
from types import TracebackType
from typing import Self

from memguard.breaker._reservation import Reservation
from memguard.policy import LearnedCost
from memguard.relief import held_free_bytes
from memguard.sampling import PeakMeasurement, measure_cheaply


class CostLearner:
    """What is known of one function's cost, and which of its calls are being measured."""

    def __init__(self) -> None:
        self.cost = LearnedCost()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._running = 0
        self._open: set[_Sample] = set()

    def begin(self) -> _Sample | None:
        """Count a call that begins; measure it if it is one of those."""
        wanted = self.cost.wants(next(self._numbers))
        sample = _Sample(measure_cheaply(), held_free_bytes() or 0) if wanted else None
        with self._lock:
            self._running += 1
            if sample is not None:
                self._open.add(sample)
            for each in self._open:
                each.beside = max(each.beside, self._running)
        return sample

    def end(self, sample: _Sample | None) -> None:
        """Count a call that ended; learn from it if it was measured."""
        if sample is not None:
            sample.peak.__exit__(None, None, None)
        with self._lock:
            self._running -= 1
            if sample is not None:
                self._open.discard(sample)
                growth = sample.peak.peak_bytes
                self.cost = self.cost.measured(growth // sample.beside, growth + sample.free_bytes)


class _Sample:
    """One call that is being measured."""

    def __init__(self, peak: PeakMeasurement, free_bytes: int) -> None:
        self.peak = peak.__enter__()
        self.free_bytes = free_bytes
        self.beside = 1


class LearnedReservation:
    """A reservation whose size was learned; entered, it measures what is run in it now and then."""

    def __init__(self, reservation: Reservation, learner: CostLearner) -> None:
        self._reservation = reservation
        self._learner = learner
        self._sample: _Sample | None = None

    def activate(self) -> None:
        """See :meth:`Reservation.activate`."""
        self._reservation.activate()

    def deactivate(self) -> None:
        """See :meth:`Reservation.deactivate`."""
        self._reservation.deactivate()

    def __enter__(self) -> Self:
        self._reservation.__enter__()
        self._reservation.activate()
        self._begin()
        return self

    async def __aenter__(self) -> Self:
        await self._reservation.__aenter__()
        self._reservation.activate()
        self._begin()
        return self

    def _begin(self) -> None:
        try:
            self._sample = self._learner.begin()
        except BaseException as error:
            self._reservation.__exit__(type(error), error, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._learner.end(self._sample)
        finally:
            self._reservation.__exit__(kind, error, traceback)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)
