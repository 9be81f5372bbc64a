"""
What flows between the parts: frozen values that name their units.

Nothing here measures, decides or acts.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from memguard.units import ByteSize, parse_bytes


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """
    One look at memory: this process, and the level that binds it.

    Attributes:
        rss_bytes: Resident size of this process.
        anon_bytes: The part of it that no file backs: heap, stacks, shared memory.
        used_bytes: What cannot be reclaimed at the level that binds; other processes there included.
        limit_bytes: What *used_bytes* may not exceed.
        source: Where the limit comes from: ``"cgroup v1 /a/b"``, ``"rlimit data"``, ``"host"``, ``"explicit"``.
        at: When, in seconds of :func:`time.monotonic`.
        python_blocks: Live blocks of the Python allocator, where somebody asked for it.
        malloc_in_use_bytes: What the C allocator has handed out, where somebody asked for it.
        malloc_free_bytes: What it holds without use, where somebody asked for it.
    """

    rss_bytes: int
    anon_bytes: int
    used_bytes: int
    limit_bytes: int
    source: str
    at: float
    python_blocks: int | None = None
    malloc_in_use_bytes: int | None = None
    malloc_free_bytes: int | None = None

    @property
    def fraction(self) -> float:
        """Used part of the limit; 1.0 where the limit is 0."""
        return self.used_bytes / self.limit_bytes if self.limit_bytes else 1.0

    @property
    def percent(self) -> float:
        """Used part of the limit in percent."""
        return self.fraction * 100

    @property
    def headroom_bytes(self) -> int:
        """What is left below the limit; never negative."""
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """
    The tightest limit that applies to this process.

    Attributes:
        bytes: The limit.
        source: Where it comes from, as in :attr:`MemoryUsage.source`.
    """

    bytes: int
    source: str


class Level(enum.IntEnum):
    """How tight memory is. Comparable: ``level >= Level.WARNING``."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """
    How far a job over many items is.

    Attributes:
        done: Items done.
        total: Items in all; None where nobody knows.
        percent: 0 to 100, and 100 only at the end; None without a total.
        rate: Items per second since the start.
        eta: Seconds that are left at this rate; None without a total.
        chunk_size: Items to a chunk at the moment; it shrinks under pressure.
        level: How tight memory is.
    """

    done: int
    total: int | None
    percent: float | None
    rate: float
    eta: float | None
    chunk_size: int
    level: Level


class Hold(Protocol):
    """Bytes set aside from entering to leaving; entered with ``with`` or ``async with``."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...

    def resize(self, nbytes: ByteSize) -> None:
        """Hold *nbytes* from now on."""
        ...

    def release(self) -> None:
        """Give the bytes back; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


class Gate(Protocol):
    """What work asks before it takes memory: a breaker, or something that acts like one."""

    @property
    def level(self) -> Level:
        """How tight memory is."""
        ...

    def check(self) -> MemoryUsage | None:
        """Raise while new work is refused; return the reading that it went by, if there is one."""
        ...

    def allows(self, nbytes: ByteSize = 0) -> bool:
        """Tell whether *nbytes* would be admitted now."""
        ...

    def reserve(self, nbytes: ByteSize, *, timeout: float | None = 0.0) -> Hold:
        """Set *nbytes* aside, once entered."""
        ...


class _NoHold:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def resize(self, nbytes: ByteSize) -> None:
        self.nbytes = parse_bytes(nbytes)

    def release(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass


class _Unguarded:
    """A gate that is always open and measures nothing."""

    level = Level.NORMAL

    def check(self) -> None:
        """Admit."""

    def allows(self, nbytes: ByteSize = 0) -> bool:
        """Admit."""
        return parse_bytes(nbytes) >= 0

    def reserve(self, nbytes: ByteSize, *, timeout: float | None = 0.0) -> _NoHold:  # noqa: ARG002 - never waits
        """Hold nothing."""
        return _NoHold(parse_bytes(nbytes))

    def __repr__(self) -> str:
        return "memguard.UNGUARDED"


UNGUARDED: Gate = _Unguarded()
"""Pass it as ``breaker=`` where no breaker shall be asked."""


def _load_default_gate() -> Gate:
    # The breaker stands above this module and fills the slot when it is imported; importing it by name here keeps
    # `breaker=None` true for a program that has not touched the breaker yet.
    importlib.import_module("memguard.breaker")
    return _default_gate[0]()


_default_gate: list[Callable[[], Gate]] = [_load_default_gate]


def set_default_gate(factory: Callable[[], Gate]) -> None:
    """Make *factory* say what ``breaker=None`` means."""
    _default_gate[0] = factory


def gate_of(breaker: Gate | None) -> Gate:
    """Return *breaker*, or the default one, looked up now."""
    return _default_gate[0]() if breaker is None else breaker
