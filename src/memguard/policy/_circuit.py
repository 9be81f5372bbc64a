"""
When the circuit opens, is half-open, and closes.

It opens with the first reading over the line. It leaves "open" only below the closing line, and then admits a ramp
(1, 2, 4 at a time, one step for each calm reading), so that the work which waited does not come back as a herd. One
that opens again soon stays open for a while, doubled each time.

It is stuck when, open for half a minute, nobody holds a reservation and what is used does not change: freed pages
that the allocator keeps, or live data. Refusing more would never end it. Then the lines are raised to halfway between
there and 95 % of the limit, and the ramp begins; they come back once what is used falls below the closing line.
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
_STUCK_SECONDS = 30.0
_STEADY_FRACTION = 0.02
_HIGHEST_STUCK_FRACTION = 0.9
"""Above this part of the limit there is no room worth raising the lines for: it stays open."""


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
        steady_bytes: While open: what is used without changing since *steady_since*.
        steady_since: While open: since when.
        raised_bytes: What was used when it was found stuck and the lines were raised; None while they are as told.
    """

    state: State = State.CLOSED
    level: Level = Level.NORMAL
    permits: int = 0
    since: float | None = None
    dwell_seconds: float = 0.0
    steady_bytes: int = 0
    steady_since: float = 0.0
    raised_bytes: int | None = None

    def lines(self, lines: LineBytes) -> LineBytes:
        """Return the lines that count, where *lines* are those that were told."""
        return lines if self.raised_bytes is None else lines.above(self.raised_bytes)


def next_circuit(
    circuit: Circuit, used_bytes: int, lines: LineBytes, now: float, *, reserved_bytes: int = 0
) -> Circuit:
    """
    Return the circuit that follows *circuit* when *used_bytes* are in use at *now*.

    Args:
        circuit: Where it stands.
        used_bytes: What the reading saw.
        lines: Where to open and to close, as told.
        now: Seconds, monotonic.
        reserved_bytes: What callers hold: as long as that is not nothing, it is not stuck.
    """
    if circuit.raised_bytes is not None and used_bytes < lines.close:
        circuit = replace(circuit, raised_bytes=None)
    level = next_level(circuit.level, used_bytes, circuit.lines(lines))
    if level is Level.CRITICAL:
        return _stuck(_critical(circuit, used_bytes, now), used_bytes, lines, now, reserved_bytes)
    if circuit.state is State.OPEN:
        return _relaxing(replace(circuit, level=level), now)
    if circuit.state is State.HALF_OPEN:
        calm = used_bytes < circuit.lines(lines).close
        return _ramped(replace(circuit, level=level), calm=calm, now=now)
    return circuit if circuit.level is level else replace(circuit, level=level)


def _critical(circuit: Circuit, used_bytes: int, now: float) -> Circuit:
    if circuit.state is State.OPEN:
        return circuit
    dwell = 0.0
    if circuit.state is State.HALF_OPEN or (circuit.since is not None and now - circuit.since < _CALM_SECONDS):
        dwell = min(_LONGEST_DWELL_SECONDS, max(_FIRST_DWELL_SECONDS, circuit.dwell_seconds * 2))
    return Circuit(State.OPEN, Level.CRITICAL, 0, now, dwell, used_bytes, now)


def _stuck(circuit: Circuit, used_bytes: int, lines: LineBytes, now: float, reserved_bytes: int) -> Circuit:
    changed = abs(used_bytes - circuit.steady_bytes) > lines.limit * _STEADY_FRACTION
    if changed or reserved_bytes:
        return replace(circuit, steady_bytes=used_bytes, steady_since=now)
    if used_bytes > lines.limit * _HIGHEST_STUCK_FRACTION:
        return circuit
    if now - circuit.steady_since < max(_STUCK_SECONDS, circuit.dwell_seconds):
        return circuit
    return replace(circuit, state=State.HALF_OPEN, level=Level.WARNING, permits=1, since=now, raised_bytes=used_bytes)


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
