"""
When the circuit opens, is half-open, and closes.

It opens with the first reading over the line. It leaves "open" only below the closing line, and then admits a ramp
(1, 2, 4 at a time, one step for each calm reading), so that the work which waited does not come back as a herd. One
that opens again soon stays open for a while, doubled each time.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from memguard.policy._lines import LineBytes, next_level
from memguard.values import Level

_LAST_PERMITS = 4
_FIRST_DWELL_SECONDS = 1.0
_LONGEST_DWELL_SECONDS = 60.0
_CALM_SECONDS = 60.0
"""Closed for so long, an opening is a new story."""


class State(enum.StrEnum):
    """Whether new work is admitted, refused, or tried out."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Circuit:
    """
    Where the circuit stands.

    Attributes:
        state: Closed, open or half-open.
        level: How tight memory is.
        permits: How many pieces of work may run at once while half-open.
        since: When *state* began, in seconds of the breaker's clock.
        dwell_seconds: How long it stays open at least.
    """

    state: State = State.CLOSED
    level: Level = Level.NORMAL
    permits: int = 0
    since: float | None = None
    dwell_seconds: float = 0.0


def next_circuit(circuit: Circuit, used_bytes: int, lines: LineBytes, now: float) -> Circuit:
    """Return the circuit that follows *circuit* when *used_bytes* are in use at *now*."""
    level = next_level(circuit.level, used_bytes, lines)
    if level is Level.CRITICAL:
        return _critical(circuit, now)
    if circuit.state is State.OPEN:
        return _relaxing(replace(circuit, level=level), now)
    if circuit.state is State.HALF_OPEN:
        return _ramped(replace(circuit, level=level), calm=used_bytes < lines.close, now=now)
    return circuit if circuit.level is level else replace(circuit, level=level)


def _critical(circuit: Circuit, now: float) -> Circuit:
    if circuit.state is State.OPEN:
        return circuit
    dwell = 0.0
    if circuit.state is State.HALF_OPEN or (circuit.since is not None and now - circuit.since < _CALM_SECONDS):
        dwell = min(_LONGEST_DWELL_SECONDS, max(_FIRST_DWELL_SECONDS, circuit.dwell_seconds * 2))
    return Circuit(State.OPEN, Level.CRITICAL, 0, now, dwell)


def _relaxing(circuit: Circuit, now: float) -> Circuit:
    assert circuit.since is not None
    if now < circuit.since + circuit.dwell_seconds:
        return circuit
    return replace(circuit, state=State.HALF_OPEN, permits=1, since=now)


def _ramped(circuit: Circuit, *, calm: bool, now: float) -> Circuit:
    if not calm:
        return circuit
    if circuit.permits >= _LAST_PERMITS:
        return replace(circuit, state=State.CLOSED, permits=0, since=now)
    return replace(circuit, permits=circuit.permits * 2)
