"""
One reading of everything that limits this process.

Decides nothing but which level binds: the one with the least room. The tightest limit need not be that one, since
siblings are charged to the parent's.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from memguard.errors import SamplingError
from memguard.sampling import _rlimit
from memguard.sampling._cgroup import LevelFiles, find_place, level_files
from memguard.sampling._files import KeptFile
from memguard.sampling._procfs import HostFiles, ProcessFiles, ProcessReading, limits_of_file
from memguard.settings import settings
from memguard.values import MemoryLimit, MemoryUsage

Sampler: TypeAlias = Callable[[], MemoryUsage]
"""Whatever takes a reading. :class:`Machine` is the real one."""

_LOOK_AGAIN_SECONDS = 1.0
"""How often to ask whether the process was moved to another cgroup."""


class _Bound(NamedTuple):
    limit_bytes: int
    used_bytes: int
    source: str

    @property
    def room_bytes(self) -> int:
        return self.limit_bytes - self.used_bytes


class Machine:
    """
    The machine as seen from this process; calling it takes a reading.

    Descriptors stay open between readings: a level costs microseconds. Limits are read each time, because containers
    are resized while they run.

    Args:
        root: A directory that stands for ``/``; None for the real one.
        limit_bytes: A limit of one's own, held against what this process itself uses.
    """

    def __init__(self, root: Path | None = None, *, limit_bytes: int | None = None) -> None:
        self._own_limit_bytes = limit_bytes
        base = Path("/") if root is None else root
        self._root = root
        self._base = base
        self._has_procfs = root is not None or (base / "proc/self/statm").exists()
        self._process = ProcessFiles(base)
        self._host = HostFiles(base)
        self._membership = KeptFile(base / "proc/self/cgroup")
        self._membership_text = b""
        self._levels: list[LevelFiles] = []
        self._looked_at: float | None = None

    def __call__(self) -> MemoryUsage:
        """
        Take a reading.

        Raises:
            SamplingError: The machine does not say how large this process is, or sets no limit that can be seen.
        """
        at = time.monotonic()
        process = self._read_process()
        bounds = self._bounds(process, at)
        if not bounds:
            raise SamplingError("nothing here limits memory, and the machine does not say its size; pass a limit")
        tightest = min(bounds, key=lambda bound: bound.room_bytes)
        return MemoryUsage(
            rss_bytes=process.rss_bytes,
            anon_bytes=process.anon_bytes,
            used_bytes=tightest.used_bytes,
            limit_bytes=tightest.limit_bytes,
            source=tightest.source,
            at=at,
        )

    def limit(self) -> MemoryLimit:
        """
        Return the tightest limit, whatever is used of it.

        Raises:
            SamplingError: Nothing sets one.
        """
        self._look_again(time.monotonic())
        found = [(size, f"rlimit {name}") for name, size in self._rlimits().items()]
        found += [limit for level in self._levels if (limit := level.limit()) is not None]
        if self._own_limit_bytes is not None:
            found.append((self._own_limit_bytes, "explicit"))
        host = self._read_host()
        if host is not None:
            # A limit of the machine's size or more does not bind.
            found = [(size, source) for size, source in found if size < host[0]]
            found.append((host[0], "host"))
        if not found:
            raise SamplingError("nothing here limits memory, and the machine does not say its size")
        return MemoryLimit(*min(found))

    def close(self) -> None:
        """Close the kept descriptors. A later reading opens them again."""
        self._process.close()
        self._host.close()
        self._membership.close()
        for level in self._levels:
            level.close()

    def _bounds(self, process: ProcessReading, at: float) -> list[_Bound]:
        self._look_again(at)
        host = self._read_host()
        total = host[0] if host else None
        bounds = [_Bound(*reading) for level in self._levels if (reading := level.read(total)) is not None]
        used = {"as": process.address_space_bytes, "data": process.data_bytes}
        bounds += [_Bound(size, used[name], f"rlimit {name}") for name, size in self._rlimits().items()]
        if self._own_limit_bytes is not None:
            bounds.append(_Bound(self._own_limit_bytes, process.anon_bytes, "explicit"))
        if host is not None:
            bounds.append(_Bound(*host, "host"))
        return bounds

    def _look_again(self, at: float) -> None:
        """Find the levels anew if the process was moved since the last look."""
        if self._looked_at is not None and at - self._looked_at < _LOOK_AGAIN_SECONDS:
            return
        self._find_levels()
        # Last: a thread that comes before must not take a machine without levels for one without limits.
        self._looked_at = at

    def _find_levels(self) -> None:
        try:
            text = self._membership.read()
            if text == self._membership_text:
                return
            mountinfo = (self._base / "proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return
        place = find_place(text.decode(errors="surrogateescape"), mountinfo, self._base)
        self._levels = level_files(place) if place else []
        self._membership_text = text

    def _rlimits(self) -> dict[str, int]:
        if self._root is not None:
            return limits_of_file(self._root / "proc/self/limits")
        # Without /proc there is no figure to hold against them.
        return _rlimit.own_limits() if self._has_procfs else {}

    def _read_process(self) -> ProcessReading:
        if self._has_procfs:
            return self._process.read()
        from memguard.sampling import _portable  # noqa: PLC0415 - psutil loads only where it is needed

        return ProcessReading(*_portable.process_bytes(), 0, 0)

    def _read_host(self) -> tuple[int, int] | None:
        if self._has_procfs:
            return self._host.read()
        from memguard.sampling import _portable  # noqa: PLC0415 - psutil loads only where it is needed

        return _portable.host_bytes()


@functools.cache
def this_machine() -> Machine:
    """Return the reader of the real machine that everybody shares."""
    return Machine(limit_bytes=settings().limit_bytes)


def memory_usage(*, root: Path | None = None) -> MemoryUsage:
    """
    Return what is used of the limit that binds this process.

    The limit is that of the level with the least room: a cgroup level (v1, v2 or hybrid), RLIMIT_AS, RLIMIT_DATA,
    ``MEMGUARD_LIMIT``, or the machine itself. Used is what cannot be reclaimed there.

    Args:
        root: A directory that stands for ``/``: it holds ``proc/self/{cgroup,mountinfo,statm,status}``,
            ``proc/meminfo`` and the cgroup mounts.

    Raises:
        SamplingError: The machine does not give the figures.
    """
    if root is None:
        return this_machine()()
    machine = Machine(Path(root))
    try:
        return machine()
    finally:
        machine.close()


def memory_limit(*, root: Path | None = None) -> MemoryLimit:
    """
    Return the tightest memory limit of this process, and where it comes from.

    It may name another level than :func:`memory_usage`, which goes by the room that is left.

    Args:
        root: As for :func:`memory_usage`.

    Raises:
        SamplingError: Nothing sets a limit, and the machine does not say its size.
    """
    if root is None:
        return this_machine().limit()
    machine = Machine(Path(root))
    try:
        return machine.limit()
    finally:
        machine.close()
