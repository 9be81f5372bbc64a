"""
What a process consists of at one moment, and what grew between two of them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from memguard.attribution._census import Census, Container, take_census
from memguard.attribution._parts import GrowthKind, MemoryParts, kind_of_growth, next_step, read_parts
from memguard.attribution._sites import Site, trace_sites
from memguard.units import format_bytes

_OWN_TYPE_BYTES = 1024
"""What a type of the program's own counts more for each object: what that holds is counted elsewhere."""
_BUILT_IN = ("builtins.", "collections.", "types.", "functools.", "weakref.", "_thread.")
_KINDS = {"none": "nothing worth a word"}


@dataclass(frozen=True, slots=True)
class TypeGrowth:
    """
    A type of which there are more now.

    Attributes:
        name: Its full name.
        count: How many more.
        size_bytes: How many bytes more, without what they hold.
        now: How many there are.
    """

    name: str
    count: int
    size_bytes: int
    now: int


@dataclass(frozen=True, slots=True)
class ContainerGrowth:
    """A container that is longer now, by *count* elements."""

    container: Container
    count: int


@dataclass(frozen=True, slots=True)
class GrowthReport:
    """
    What grew; ``print`` it.

    Attributes:
        kind: What most of the growth is.
        seconds: Between the two snapshots.
        before: The counters then.
        after: The counters now.
        types: The types that grew, what matters most first.
        containers: The containers that grew most.
        sites: The lines that allocated most of what stayed, if the newer snapshot traced.
        next_step: What to do.
        estimated: Whether the counts of types come from a sample.
    """

    kind: GrowthKind
    seconds: float
    before: MemoryParts
    after: MemoryParts
    types: tuple[TypeGrowth, ...]
    containers: tuple[ContainerGrowth, ...]
    sites: tuple[Site, ...]
    next_step: str
    estimated: bool

    @property
    def growth_bytes(self) -> int:
        """By how much the resident size grew."""
        return self.after.rss_bytes - self.before.rss_bytes

    def __str__(self) -> str:
        lines = [
            f"Growth of {_signed(self.growth_bytes)} in {self.seconds:.0f} s: {_KINDS.get(self.kind, self.kind)}",
            *self._part_lines(),
        ]
        if self.types:
            about = "about " if self.estimated else ""
            lines += ["", "types that grew" + (" (from a sample)" if self.estimated else "")]
            lines += [
                f"  {each.name:<44} {about}{each.count:+,} to {each.now:,}, {_signed(each.size_bytes)}"
                for each in self.types
            ]
        if self.containers:
            lines += ["", "containers that grew"]
            lines += [f"  {_described(each)}" for each in self.containers]
        if self.sites:
            lines += ["", "lines that allocated what stayed"]
            lines += [f"  {format_bytes(site.size_bytes):>10} in {site.count:,}: {site.where}" for site in self.sites]
        return "\n".join([*lines, "", f"next: {self.next_step}"])

    def _part_lines(self) -> list[str]:
        rows = (
            ("anonymous", self.before.anon_bytes, self.after.anon_bytes),
            ("file pages", self.before.file_bytes, self.after.file_bytes),
            ("shared", self.before.shared_bytes, self.after.shared_bytes),
            ("malloc, in use", self.before.malloc_in_use_bytes, self.after.malloc_in_use_bytes),
            ("freed but kept", self.before.kept_bytes, self.after.kept_bytes),
        )
        lines = [
            f"  {name:<16} {format_bytes(before):>10} -> {format_bytes(after):>10}  ({_signed(after - before)})"
            for name, before, after in rows
            if before is not None and after is not None
        ]
        before, after = self.before.python_blocks, self.after.python_blocks
        if before is not None and after is not None:
            lines.append(f"  {'Python blocks':<16} {before:>10,} -> {after:>10,}  ({after - before:+,})")
        if self.after.kept_bytes:
            kept, resident = format_bytes(self.after.kept_bytes), format_bytes(self.after.rss_bytes)
            lines.append(f"  of {resident} resident, {kept} are freed but kept by the allocator")
        return lines


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    What this process consisted of at one moment. Holds numbers and names, none of the objects.

    Attributes:
        at: When, in seconds of :func:`time.monotonic`.
        parts: The counters.
        counts: How many objects of each type, by full name.
        sizes: Their bytes, without what they hold.
        containers: The longest ones.
        sites: The lines that allocated most of what stayed during the window; empty without one.
        stride: How many objects each one stands for that was looked at; 1.0 if that was every one.
    """

    at: float
    parts: MemoryParts
    counts: dict[str, int] = field(repr=False)
    sizes: dict[str, int] = field(repr=False)
    containers: tuple[Container, ...] = field(repr=False)
    sites: tuple[Site, ...] = field(repr=False)
    stride: float

    def compare(self, older: Snapshot, *, top: int = 10) -> GrowthReport:
        """
        Return what grew since *older*.

        Args:
            older: Taken before this one.
            top: How many types and containers to name.

        Raises:
            TypeError: *older* is no snapshot.
            ValueError: It is the younger one.
        """
        if not isinstance(older, Snapshot):
            raise TypeError(f"compare takes the older snapshot, got {older!r}")
        if older.at > self.at:
            raise ValueError("compare is asked of the newer snapshot: new.compare(old)")
        kind = kind_of_growth(older.parts, self.parts)
        return GrowthReport(
            kind=kind,
            seconds=self.at - older.at,
            before=older.parts,
            after=self.parts,
            types=_types(older, self)[:top],
            containers=_containers(older, self)[:top],
            sites=self.sites,
            next_step=next_step(kind),
            estimated=self.stride > 1 or older.stride > 1,
        )


def take_snapshot(*, exact: bool = False, trace_seconds: float = 0.0, frames: int = 1) -> Snapshot:
    """
    Return what this process consists of now: counters, types, the longest containers, and lines if asked to trace.

    Cheap enough for production without tracing: 0.17 s for a million objects, in which the GIL is held. Compare two:
    ``print(take_snapshot().compare(older))``.

    Args:
        exact: Count every object instead of a sample of 50,000; 0.4 s for a million.
        trace_seconds: Trace allocations for so long first (this thread waits), which slows code that allocates much 5
            times meanwhile. Nothing where tracemalloc is on already.
        frames: How many frames of each traced allocation to keep.

    Raises:
        ValueError: *trace_seconds* is negative, or *frames* below 1.
        SamplingError: The machine does not say how large this process is.
    """
    if not trace_seconds >= 0:
        raise ValueError(f"trace_seconds is 0 or more, got {trace_seconds!r}")
    if frames < 1:
        raise ValueError(f"frames is 1 or more, got {frames!r}")
    sites = trace_sites(trace_seconds, frames=frames) if trace_seconds else ()
    parts = read_parts()
    census: Census = take_census(exact=exact)
    return Snapshot(time.monotonic(), parts, census.counts, census.sizes, census.containers, sites, census.stride)


def _types(older: Snapshot, newer: Snapshot) -> tuple[TypeGrowth, ...]:
    grown = []
    for name, now in newer.counts.items():
        growth = TypeGrowth(
            name,
            now - older.counts.get(name, 0),
            newer.sizes.get(name, 0) - older.sizes.get(name, 0),
            now,
        )
        # An estimate from a sample strays by the square root of what was seen; three times that is growth.
        stray = 3 * math.sqrt(newer.stride * now) if newer.stride > 1 or older.stride > 1 else 0.0
        if growth.count > stray:
            grown.append(growth)
    return tuple(sorted(grown, key=_weight, reverse=True))


def _weight(growth: TypeGrowth) -> int:
    own = not growth.name.startswith(_BUILT_IN)
    return growth.size_bytes + growth.count * (_OWN_TYPE_BYTES if own else 0)


def _containers(older: Snapshot, newer: Snapshot) -> tuple[ContainerGrowth, ...]:
    # Another object may stand where an old one did; a type of the same name rarely, and then it is as long as it is.
    before = {(each.identity, each.type_name): each.length for each in older.containers}
    shortest = min((each.length for each in older.containers), default=0)
    grown = []
    for each in newer.containers:
        # One that was not among the longest was at most as long as the shortest of them.
        was = before.get((each.identity, each.type_name), min(shortest, each.length))
        if each.length > was:
            grown.append(ContainerGrowth(each, each.length - was))
    return tuple(sorted(grown, key=lambda growth: growth.count, reverse=True))


def _described(growth: ContainerGrowth) -> str:
    each = growth.container
    held = each.holder or f"{each.type_name} at {each.identity:#x}"
    inside = f", of {', '.join(each.elements)}" if each.elements else ""
    return f"{held}: {growth.count:+,} to {each.length:,} elements{inside}"


def _signed(nbytes: int) -> str:
    return f"{'+' if nbytes >= 0 else ''}{format_bytes(nbytes)}"
