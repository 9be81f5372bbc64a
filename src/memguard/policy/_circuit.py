"""
When the circuit opens, is half-open, and closes.

It opens with the first reading over the line. It leaves "open" only below the closing threshold, and then admits a ramp
(1, 2, 4 at a time), so that the work which waited does not come back as a herd. The ramp goes up by a calm reading, and
only once a while has passed or a piece of work has ended since the last step: however many ask, at one moment they get
one step. One that opens again soon stays open for a while, doubled each time; but for a few seconds only where less
than half of the closing threshold is in use.

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
_ALL = 2**62
_FIRST_DWELL_SECONDS = 1.0
_LONGEST_DWELL_SECONDS = 60.0
_LONGEST_DWELL_SECONDS_LOW = 4.0
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
        stepped_at: When the ramp went up last.
        stepped_finished: How many pieces of work had ended then.
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
    stepped_at: float = 0.0
    stepped_finished: int = 0

    @property
    def permits_now(self) -> int:
        """How many pieces of work may run at once: as many as like while closed, none while open."""
        return _ALL if self.state is State.CLOSED else self.permits

    def lines(self, lines: LineBytes) -> LineBytes:
        """Return the lines that count, where *lines* are those that were told."""
        return lines if self.raised_bytes is None else lines.above(self.raised_bytes)

    def dwells_until(self, used_bytes: int, lines: LineBytes) -> float:
        """Return until when it stays open, however little is used; for a shorter while if that is very little."""
        low = used_bytes < self.lines(lines).close // 2
        seconds = min(self.dwell_seconds, _LONGEST_DWELL_SECONDS_LOW) if low else self.dwell_seconds
        return (self.since or 0.0) + seconds


def next_circuit(
    circuit: Circuit,
    used_bytes: int,
    lines: LineBytes,
    now: float,
    *,
    reserved_bytes: int = 0,
    finished: int = 0,
    step_seconds: float = 1.0,
) -> Circuit:
    """
    Return the circuit that follows *circuit* when *used_bytes* are in use at *now*.

    Args:
        circuit: Where it stands.
        used_bytes: What the reading saw.
        lines: Where to open and to close, as told.
        now: Seconds, monotonic.
        reserved_bytes: What callers hold: as long as that is not nothing, it is not stuck.
        finished: How many pieces of work that the ramp admitted have ended.
        step_seconds: After so long the ramp goes up without one.
    """
    if circuit.raised_bytes is not None and used_bytes < lines.close:
        circuit = replace(circuit, raised_bytes=None)
    level = next_level(circuit.level, used_bytes, circuit.lines(lines))
    if level is Level.CRITICAL:
        circuit = _steady(_critical(circuit, used_bytes, now), used_bytes, lines, now, reserved_bytes)
        return _raised(circuit, used_bytes, now, finished) if _is_stuck(circuit, used_bytes, lines, now) else circuit
    if circuit.state is State.OPEN:
        circuit = replace(circuit, level=level)
        return circuit if now < circuit.dwells_until(used_bytes, lines) else _half_open(circuit, now, finished)
    if circuit.state is State.HALF_OPEN:
        circuit = replace(circuit, level=level)
        calm = used_bytes < circuit.lines(lines).close
        due = now >= circuit.stepped_at + step_seconds or finished > circuit.stepped_finished
        return _stepped(circuit, now, finished) if calm and due else circuit
    return circuit if circuit.level is level else replace(circuit, level=level)


def _critical(circuit: Circuit, used_bytes: int, now: float) -> Circuit:
    if circuit.state is State.OPEN:
        return circuit
    dwell = 0.0
    if circuit.state is State.HALF_OPEN or (circuit.since is not None and now - circuit.since < _CALM_SECONDS):
        dwell = min(_LONGEST_DWELL_SECONDS, max(_FIRST_DWELL_SECONDS, circuit.dwell_seconds * 2))
    return Circuit(State.OPEN, Level.CRITICAL, 0, now, dwell, used_bytes, now)


def _steady(circuit: Circuit, used_bytes: int, lines: LineBytes, now: float, reserved_bytes: int) -> Circuit:
    changed = abs(used_bytes - circuit.steady_bytes) > lines.limit * _STEADY_FRACTION
    return replace(circuit, steady_bytes=used_bytes, steady_since=now) if changed or reserved_bytes else circuit


def _is_stuck(circuit: Circuit, used_bytes: int, lines: LineBytes, now: float) -> bool:
    if used_bytes > lines.limit * _HIGHEST_STUCK_FRACTION:
        return False
    return now - circuit.steady_since >= max(_STUCK_SECONDS, circuit.dwell_seconds)


def _raised(circuit: Circuit, used_bytes: int, now: float, finished: int) -> Circuit:
    return replace(_half_open(circuit, now, finished), level=Level.WARNING, raised_bytes=used_bytes)


def _half_open(circuit: Circuit, now: float, finished: int) -> Circuit:
    return replace(circuit, state=State.HALF_OPEN, permits=1, since=now, stepped_at=now, stepped_finished=finished)


def _stepped(circuit: Circuit, now: float, finished: int) -> Circuit:
    if circuit.permits >= _LAST_PERMITS:
        return replace(circuit, state=State.CLOSED, permits=0, since=now)
    return replace(circuit, permits=circuit.permits * 2, stepped_at=now, stepped_finished=finished)
