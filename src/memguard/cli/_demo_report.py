"""
What the demo shows at its end: a table for the terminal, and one HTML file with a chart, which needs no network.

Pure: results in, text out.
"""

from __future__ import annotations

import html
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from memguard.cli._demo_jobs import MEMORY_ERROR_STATUS
from memguard.units import format_bytes

_MIB = 1024**2


class Sample(NamedTuple):
    """What counted against the limit at one moment of a run."""

    seconds: float
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """
    One way of doing the job, and what became of it.

    Attributes:
        way: Its name.
        status: Exit status as :mod:`subprocess` gives it: negative for a signal.
        oom_killed: Whether the kernel counted a kill for the limit.
        seconds: From the start of the process to its end.
        peak_bytes: The most that was seen to count against the limit; the limit itself where the kernel killed for it.
        grown_bytes: The job's own peak above its start, where it lived to tell.
        rows: Rows done; of a run that did not finish, as far as it said.
        samples: What counted against the limit, in order of time.
        last_words: The end of its standard error.
    """

    way: str
    status: int
    oom_killed: bool
    seconds: float
    peak_bytes: int
    grown_bytes: int | None
    rows: int
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    last_words: str = ""

    @property
    def finished(self) -> bool:
        """Whether the job was done."""
        return self.status == 0

    @property
    def fate(self) -> str:
        """How it ended, in words."""
        return fate(self.status, oom_killed=self.oom_killed)


def fate(status: int, *, oom_killed: bool) -> str:
    """Return an exit *status* of :mod:`subprocess` in words."""
    if status == 0:
        return "finished"
    if status == MEMORY_ERROR_STATUS:
        return "MemoryError"
    # A shell reports the signal of its child as 128 + N.
    number = -status if status < 0 else status - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"failed with exit status {status}"
    return f"killed by the kernel ({name})" if oom_killed else f"killed ({name})"


def table(runs: Iterable[Run]) -> list[tuple[str, ...]]:
    """Return the cells of the table, its head first."""
    head = ("way", "peak", "above start", "seconds", "exit status", "rows")
    return [head, *(_cells(run) for run in runs)]


def _cells(run: Run) -> tuple[str, ...]:
    return (
        run.way,
        format_bytes(run.peak_bytes),
        "unknown" if run.grown_bytes is None else format_bytes(run.grown_bytes),
        f"{run.seconds:.1f}",
        run.fate,
        f"{run.rows:,}" if run.finished else f"{run.rows:,} read",
    )


_NUMBERS = frozenset({1, 2, 3, 5})


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Return *rows* with their columns aligned, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if place in _NUMBERS else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def size_ticks(limit_bytes: int, most: int = 4) -> list[int]:
    """Return round binary sizes from 0 up to, and not at, *limit_bytes*: at most *most* of them above 0."""
    step = 1
    while step * (most + 1) < limit_bytes:
        step *= 2
    return list(range(0, limit_bytes, step))


def second_ticks(seconds: float, most: int = 6) -> list[float]:
    """Return round times from 0 to *seconds*: steps of 1, 2 or 5 times a power of ten."""
    for step in (base * 10**power for power in range(-3, 7) for base in (1, 2, 5)):
        if seconds / step <= most:
            return [round(step * n, 3) for n in range(int(seconds / step) + 1)]
    return [0.0]


# The chart's frame, in units of its viewBox.
_LEFT, _TOP, _WIDTH, _HEIGHT = 80, 50, 620, 270
_BOTTOM, _RIGHT = _TOP + _HEIGHT, _LEFT + _WIDTH


@dataclass(frozen=True, slots=True)
class _Scale:
    seconds: float
    limit_bytes: int

    def x(self, seconds: float) -> float:
        return _LEFT + _WIDTH * seconds / self.seconds

    def y(self, size: float) -> float:
        return _BOTTOM - _HEIGHT * size / self.limit_bytes


def chart(runs: Sequence[Run], limit_bytes: int) -> str:
    """Return memory over time as SVG: a line for each run, one for the limit, a mark where a run was ended."""
    scale = _Scale(max([run.seconds for run in runs], default=0.0) or 1.0, limit_bytes)
    parts = [
        f'<svg viewBox="0 0 {_RIGHT + 30} {_BOTTOM + 60}" role="img" aria-label="memory over time">',
        *_axes(scale),
        *(part for number, run in enumerate(runs) for part in _curve(number, run, scale)),
        *_legend(runs),
        "</svg>",
    ]
    return "\n".join(parts)


def _axes(scale: _Scale) -> Iterable[str]:
    for size in size_ticks(scale.limit_bytes):
        y = scale.y(size)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{format_bytes(size)}</text>'
    for seconds in second_ticks(scale.seconds):
        x = scale.x(seconds)
        yield f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 5}"/>'
        yield f'<text x="{x:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{seconds:g}</text>'
    yield f'<text x="{(_LEFT + _RIGHT) / 2:.0f}" y="{_BOTTOM + 44}" text-anchor="middle">time in seconds</text>'
    middle = (_TOP + _BOTTOM) // 2
    yield f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">memory used</text>'
    yield f'<line class="limit" x1="{_LEFT}" x2="{_RIGHT}" y1="{_TOP}" y2="{_TOP}"/>'
    text = f"limit {format_bytes(scale.limit_bytes)}"
    yield f'<text class="limit" x="{_RIGHT}" y="{_TOP - 8}" text-anchor="end">{text}</text>'


def _curve(number: int, run: Run, scale: _Scale) -> Iterable[str]:
    if not run.samples:
        return
    points = " ".join(f"{scale.x(at):.1f},{scale.y(used):.1f}" for at, used in run.samples)
    yield f'<polyline class="run run{number}" points="{points}"/>'
    if not run.finished:
        x, y = (scale.x(run.samples[-1].seconds), scale.y(run.samples[-1].used_bytes))
        cross = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
        yield f'<path class="run run{number}" d="{cross}"/>'
        # Towards the side that has room; below the mark, since the limit's line and word are above it.
        near_end = x > (_LEFT + _RIGHT) / 2
        side, anchor = (-10, "end") if near_end else (10, "start")
        yield (
            f'<text class="word run{number}" x="{x + side:.1f}" y="{y + 18:.1f}" text-anchor="{anchor}">'
            f"{html.escape(run.fate)}</text>"
        )


def _legend(runs: Sequence[Run]) -> Iterable[str]:
    x = _LEFT
    for number, run in enumerate(runs):
        yield f'<line class="run run{number}" x1="{x}" x2="{x + 22}" y1="20" y2="20"/>'
        yield f'<text x="{x + 28}" y="24">{html.escape(run.way)}</text>'
        x += 48 + 8 * len(run.way)


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --faint: #d8dee4;
  --run0: #c2410c; --run1: #0f766e; --limit: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --faint: #30363d;
  --run0: #fb923c; --run1: #2dd4bf; --limit: #f87171; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 78rem; padding: 0 1rem; }
main { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
figure { flex: 3 1 30rem; margin: 0; } aside { flex: 2 1 22rem; overflow-x: auto; }
svg { width: 100%; height: auto; } svg text { font-size: 13px; fill: var(--ink); }
.grid { stroke: var(--faint); } .tick { stroke: var(--ink); }
line.limit { stroke: var(--limit); stroke-dasharray: 6 4; stroke-width: 1.5; } svg text.limit { fill: var(--limit); }
.run { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
.run0 { stroke: var(--run0); } .run1 { stroke: var(--run1); }
svg text.word { stroke: none; font-weight: 600; } svg text.run0 { fill: var(--run0); } svg text.run1 { fill: var(--run1); }
table { border-collapse: collapse; } th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--faint); }
th { text-align: left; vertical-align: bottom; }
"""  # noqa: E501 - style sheets break where their rules do


def page(runs: Sequence[Run], limit_bytes: int, *, kind: str, job: str, remarks: Sequence[str]) -> str:
    """
    Return the report as one HTML document.

    Args:
        runs: What was run, in order.
        limit_bytes: The limit of each.
        kind: What enforced it.
        job: What the job was, in a few words.
        remarks: Sentences for below the table.
    """
    # Turned on its side: beside a chart there is room for two narrow columns, not for six.
    rows = "\n".join(
        "<tr>"
        + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for tag, cell in zip(_tags(line), line, strict=True))
        + "</tr>"
        for line in zip(*table(runs), strict=True)
    )
    notes = "\n".join(f"<p>{html.escape(remark)}</p>" for remark in remarks)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>memguard demo</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>The same job, the same limit</h1>
<p>{html.escape(job)} Hard limit {format_bytes(limit_bytes)}, enforced by the kernel: {html.escape(kind)}.</p>
<main>
<figure>
{chart(runs, limit_bytes)}
</figure>
<aside>
<table>
{rows}
</table>
{notes}
</aside>
</main>
</body>
</html>
"""


def _tags(line: Sequence[str]) -> list[str]:
    return ["th", *("td" for _ in line[1:])]
