"""
One reading of everything that limits this process.

Decides nothing but which level binds: the one with the least room. The tightest limit need not be that one, since
siblings are charged to the parent's.
"""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from memguard.errors import SamplingError
from memguard.sampling import _rlimit
from memguard.sampling._cgroup import Charge, LevelFiles, find_place, level_files
from memguard.sampling._files import KeptFile, Troubles, read_once
from memguard.sampling._heap import held_free_bytes
from memguard.sampling._procfs import HostFiles, ProcessFiles, ProcessReading, limits_of_file
from memguard.settings import settings
from memguard.values import MemoryLimit, MemoryUsage

Sampler: TypeAlias = Callable[[], MemoryUsage]
"""Whatever takes a reading. :class:`Machine` is the real one."""

_LOOK_AGAIN_SECONDS = 1.0
"""How often to ask where the process stands, and whether files appeared that were not there."""


class _Here(NamedTuple):
    """The cgroup levels of this process, and what they were found by."""

    texts: tuple[bytes, bytes]
    levels: tuple[LevelFiles, ...] = ()
    certain: bool = False


class Machine:
    """
    The machine as seen from this process; calling it takes a reading.

    Descriptors stay open between readings: a level costs microseconds. Limits are read each time, because containers
    are resized while they run; once a second it is asked where the process stands.

    A figure that cannot be read stays what it was last. Only a file that does not exist means that there is no such
    limit; for want of a descriptor nothing is concluded.

    Args:
        root: A directory that stands for ``/``; None for the real one.
        limit_bytes: A limit of one's own, held against what this process itself uses.
        held_free: Returns what the allocator of the process holds free, in bytes, None where it does not say. Asked
            only where RLIMIT_DATA or RLIMIT_AS may bind. None: the C library's of this process, or nobody where *root*
            is given.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        limit_bytes: int | None = None,
        held_free: Callable[[], int | None] | None = None,
    ) -> None:
        self._own_limit_bytes = limit_bytes
        base = Path("/") if root is None else root
        self._root = root
        self._base = base
        self._has_procfs = root is not None or (base / "proc/self/statm").exists()
        self._held_free = held_free or (held_free_bytes if root is None else _nothing)
        self._troubles = Troubles()
        self._process = ProcessFiles(base, self._troubles)
        self._host = HostFiles(base, self._troubles)
        self._membership = KeptFile(base / "proc/self/cgroup", vouched=True)
        self._here: _Here | None = None
        self._looked_at: float | None = None
        self._troubled_at = float("-inf")
        self._last_charges: list[Charge] | None = None

    def __call__(self) -> MemoryUsage:
        """
        Take a reading.

        Raises:
            SamplingError: The machine does not say how large this process is, or sets no limit that can be seen; or
                one can be seen but not be read now, and never could.
        """
        at = time.monotonic()
        self._process.vouch()
        self._look_again(at)
        process, host = self._read_process(), self._read_host()
        total = host[0] if host else None
        charges = self._level_charges(total, process)
        charges += self._rlimit_charges(process)
        if self._own_limit_bytes is not None:
            charges.append(Charge(self._own_limit_bytes, process.anon_bytes, "explicit"))
        if host is not None:
            charges.append(Charge(*host, "host"))
        if not charges:
            raise SamplingError("nothing here limits memory, and the machine does not say its size; pass a limit")
        try:
            limit, used, source = _tightest(charges)
        except OSError as error:
            raise _unreadable(error) from error
        return MemoryUsage(process.rss_bytes, process.anon_bytes, used, limit, source, at)

    def limit(self) -> MemoryLimit:
        """
        Return the tightest limit, whatever is used of it.

        Raises:
            SamplingError: Nothing sets one; or one can be seen but not be read now, and never could.
        """
        self._process.vouch()
        self._look_again(time.monotonic())
        found = [(size, f"rlimit {name}") for name, size in self._rlimits().items()]
        found += self._level_limits()
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
        for level in self._levels():
            level.close()

    # ----- where the process stands

    def _levels(self) -> tuple[LevelFiles, ...]:
        return () if self._here is None else self._here.levels

    def _look_again(self, at: float) -> None:
        """Find the levels anew if the process was moved, or may have been, since the last look."""
        if self._looked_at is not None and at - self._looked_at < _LOOK_AGAIN_SECONDS:
            return
        self._host.look_again()
        try:
            self._find_levels()
        except OSError as error:
            if self._here is None and not isinstance(error, PermissionError):
                raise SamplingError(f"the limits of this process cannot be seen now: {error}") from error
            self._troubles.note(error, "the cgroups that are known go on to count")
        # Last: a thread that comes before must not take a machine without levels for one without limits.
        self._looked_at = at

    def _find_levels(self, *, vanished: bool = False) -> None:
        """
        Find out where the process stands now.

        Args:
            vanished: Search even if the process says that it stands where it stood.

        Raises:
            OSError: It cannot be told; what was known stays known.
        """
        try:
            texts = self._membership.read(), read_once(self._base / "proc/self/mountinfo")
        except FileNotFoundError:
            self._here = _Here((b"", b""))
            return
        here = self._here
        if here is None or vanished or not here.certain or texts != here.texts:
            membership, mountinfo = (text.decode(errors="surrogateescape") for text in texts)
            found = find_place(membership, mountinfo, self._base)
            known = {level.directory: level for level in self._levels()}
            levels = level_files(found, self._troubles) if found else []
            # Those that stay know their last figures.
            here = _Here(
                texts, tuple(known.get(each.directory, each) for each in levels), bool(found and found.certain)
            )
            self._here = here
        for level in here.levels:
            level.look_again()

    def _find_levels_in_trouble(self, trouble: OSError) -> None:
        """Look at once where the process stands: the group of a file that cannot be read may be gone."""
        vanished, now = isinstance(trouble, FileNotFoundError), time.monotonic()
        if not vanished:
            self._troubles.note(trouble, "what could be read last counts")
        # A removed group answers ENODEV. All else may go on for ever, and shall not cost a search in each reading.
        if not vanished and trouble.errno != errno.ENODEV and now - self._troubled_at < _LOOK_AGAIN_SECONDS:
            return
        self._troubled_at = now
        try:
            self._find_levels(vanished=vanished)
        except OSError as error:
            self._troubles.note(error, "the cgroups that are known go on to count")

    # ----- what limits it

    def _level_charges(self, most_bytes: int | None, process: ProcessReading) -> list[Charge]:
        own = process.private_bytes if self._here is not None and self._here.certain else 0
        try:
            found = [charge for level in self._levels() if (charge := level.charge(most_bytes, own)) is not None]
        except OSError as error:
            self._find_levels_in_trouble(error)
            found = self._last_level_charges(most_bytes, process)
        self._last_charges = found
        return found.copy()

    def _last_level_charges(self, most_bytes: int | None, process: ProcessReading) -> list[Charge]:
        own = process.private_bytes if self._here is not None and self._here.certain else 0
        found = []
        for level in self._levels():
            try:
                charge = level.last_charge(most_bytes, own)
            except PermissionError as error:
                self._troubles.note(error, "this limit is not seen; memguard goes by the others")
            except OSError as error:
                if self._last_charges is None:
                    raise _unreadable(error) from error
                return self._last_charges  # of where it stood before
            else:
                found += [] if charge is None else [charge]
        return found

    def _level_limits(self) -> list[tuple[int, str]]:
        try:
            return [limit for level in self._levels() if (limit := level.limit()) is not None]
        except OSError as error:
            self._find_levels_in_trouble(error)
        found = []
        for level in self._levels():
            try:
                limit = level.last_limit()
            except PermissionError as error:
                self._troubles.note(error, "this limit is not seen; memguard goes by the others")
            except OSError as error:
                raise _unreadable(error) from error
            else:
                found += [] if limit is None else [limit]
        return found

    def _rlimit_charges(self, process: ProcessReading) -> list[Charge]:
        limits = self._rlimits()
        if not limits:
            return []
        used = {"as": process.address_space_bytes, "data": process.data_bytes}

        def not_free(name: str) -> Callable[[], int]:
            # These limits count addresses. What the allocator holds free needs none anew, trimmed or not.
            return lambda: max(0, used[name] - (self._held_free() or 0))

        return [Charge(size, used[name], f"rlimit {name}", not_free(name)) for name, size in self._rlimits().items()]

    def _rlimits(self) -> dict[str, int]:
        if self._root is not None:
            return limits_of_file(self._root / "proc/self/limits")
        # Without /proc there is no figure to hold against them.
        return _rlimit.own_limits() if self._has_procfs else {}

    def _read_process(self) -> ProcessReading:
        return self._process.read() if self._has_procfs else ProcessReading(*_portably("process_bytes"))

    def _read_host(self) -> tuple[int, int] | None:
        return self._host.read() if self._has_procfs else _portably("host_bytes")


def _portably(figure: Literal["process_bytes", "host_bytes"]) -> tuple[int, int]:
    """
    Return a *figure* of psutil's.

    Raises:
        SamplingError: It is not to be had.
    """
    try:
        from memguard.sampling import _portable  # noqa: PLC0415 - psutil loads only where it is needed

        found: tuple[int, int] = getattr(_portable, figure)()
    except Exception as error:
        raise SamplingError(f"psutil does not give {figure}: {error}") from error
    return found


def _nothing() -> None:
    """Nobody says what the allocator of another process holds."""


def _unreadable(error: OSError) -> SamplingError:
    return SamplingError(f"a limit of this process can be seen, but not be read now: {error}")


def _tightest(charges: list[Charge]) -> tuple[int, int, str]:
    """
    Return limit, use and source of the one with the least room; of equals the first.

    What is used of a limit is asked only where it may decide: no more is used than is charged, so whatever has more
    room than the best even if all that is charged is used cannot be better.
    """
    ordered = sorted((each.limit_bytes - each.usage_bytes, order) for order, each in enumerate(charges))
    best: tuple[int, int, int] | None = None
    for least_room, order in ordered:
        if best is not None and least_room > best[0]:
            break
        charge = charges[order]
        used = charge.usage_bytes if charge.used_bytes is None else charge.used_bytes()
        found = charge.limit_bytes - used, order, used
        best = found if best is None else min(best, found)
    assert best is not None, "there was one"
    charge = charges[best[1]]
    return charge.limit_bytes, best[2], charge.source


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
