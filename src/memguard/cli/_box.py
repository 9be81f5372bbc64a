"""
A box with a hard memory limit that the kernel enforces, for child processes.

A memory cgroup where this user may make one, otherwise RLIMIT_DATA; :attr:`Box.kind` says which. The box limits and
counts. It starts nothing: whoever uses it starts ``box.command(...)`` and waits for it.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from memguard.sampling import LevelFiles, Place, own_place, status_bytes

BoxKind: TypeAlias = Literal["auto", "cgroup", "rlimit"]

_SHELL = "/bin/sh"
_NAME = re.compile(r"memguard-box-(\d+)-\d+")
_REMOVE_SECONDS = 10.0
"""How long to retry: the kernel needs a moment between the end of the last process and an empty group."""

_numbers = itertools.count(1)
_mine: set[Path] = set()


class Box(abc.ABC):
    """
    A hard limit for child processes. A context manager: at its end what still runs in it is killed.

    Attributes:
        kind: ``"memory cgroup v1"``, ``"memory cgroup v2"`` or ``"RLIMIT_DATA"``.
        limit_bytes: What the kernel enforces: on all processes in the box together; under RLIMIT_DATA, on each.
    """

    kind: str

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes

    @abc.abstractmethod
    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs *argv* inside the box."""

    @abc.abstractmethod
    def used_bytes(self, pid: int) -> int | None:
        """
        Return what counts against the limit now; None where nothing is left to count.

        Args:
            pid: The process to look at where the limit is its own; a group counts all that is in it.
        """

    @abc.abstractmethod
    def oom_kills(self) -> int | None:
        """Return how many processes the kernel killed for this limit; None where it does not count."""

    def peak_bytes(self) -> int | None:
        """Return the most that was ever charged to the box, page cache included; None where nobody kept it."""
        return None

    def close(self) -> None:  # noqa: B027 - a limit that ends with its process leaves nothing to remove
        """Kill what still runs in the box and remove it. Closing twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def make_box(limit_bytes: int, *, kind: BoxKind = "auto") -> Box:
    """
    Make a box: ``with make_box(256 * 1024**2) as box: subprocess.run(box.command([...]))``.

    Args:
        limit_bytes: The hard limit; the kernel rounds it down to whole pages.
        kind: ``"cgroup"`` and ``"rlimit"`` insist on that way; ``"auto"`` takes a cgroup where it can.

    Raises:
        OSError: No box of this kind can be made here.
        ValueError: The limit is not positive.
    """
    if limit_bytes <= 0:
        raise ValueError(f"a box needs a limit above 0 bytes, got {limit_bytes}")
    if not Path(_SHELL).exists():
        raise OSError(f"a box needs {_SHELL}, which is missing here")
    if kind == "rlimit":
        return _RlimitBox(limit_bytes)
    try:
        return _make_group(limit_bytes)
    except OSError:
        if kind == "cgroup":
            raise
        return _RlimitBox(limit_bytes)


class _RlimitBox(Box):
    """RLIMIT_DATA: private writable memory of one process. Past it malloc fails, which Python calls MemoryError."""

    kind = "RLIMIT_DATA"

    def command(self, argv: Sequence[str]) -> list[str]:
        # The unit of ulimit is 1024 bytes. Soft and hard: the child cannot lift it.
        kilobytes = str(max(1, self.limit_bytes // 1024))
        return [_SHELL, "-c", 'ulimit -d "$0" && exec "$@"', kilobytes, *argv]

    def used_bytes(self, pid: int) -> int | None:
        return status_bytes(pid, "VmData")

    def oom_kills(self) -> int | None:
        return None


class _GroupBox(Box):
    """A memory cgroup of its own."""

    def __init__(self, limit_bytes: int, version: int, directory: Path) -> None:
        super().__init__(limit_bytes)
        self.kind = f"memory cgroup v{version}"
        self.directory = directory
        self._version = version
        self._files = LevelFiles(version, directory, directory.name)

    def limit(self) -> None:
        """Set the limit, and keep swap from softening it."""
        if self._version == 2:
            _write(self.directory / "memory.max", self.limit_bytes)
            with contextlib.suppress(OSError):  # missing where the kernel counts no swap
                _write(self.directory / "memory.swap.max", 0)
        else:
            _write(self.directory / "memory.limit_in_bytes", self.limit_bytes)
            with contextlib.suppress(OSError):  # likewise
                _write(self.directory / "memory.memsw.limit_in_bytes", self.limit_bytes)

    def try_to_join(self) -> None:
        """
        Let a process join and end.

        Raises:
            OSError: This user may make the group, but not move a process into it (v2 delegation).
        """
        command = self.command(["true"])
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
        if result.returncode != 0:
            raise OSError(f"no process can join {self.directory}: {result.stderr.strip()}")

    def command(self, argv: Sequence[str]) -> list[str]:
        return [_SHELL, "-c", 'echo $$ > "$0" && exec "$@"', str(self.directory / "cgroup.procs"), *argv]

    def used_bytes(self, pid: int) -> int | None:  # noqa: ARG002 - the group counts all of its processes
        return self._files.used_bytes()

    def oom_kills(self) -> int | None:
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        try:
            lines = (self.directory / name).read_text().splitlines()
        except OSError:
            return None
        counts = dict(line.split(" ", 1) for line in lines if " " in line)
        return int(counts["oom_kill"]) if "oom_kill" in counts else None

    def peak_bytes(self) -> int | None:
        name = "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"
        try:
            return int((self.directory / name).read_text())
        except OSError:
            return None

    def close(self) -> None:
        if self.directory not in _mine:
            return
        self._files.close()
        deadline = time.monotonic() + _REMOVE_SECONDS
        while not _remove(self.directory):
            if time.monotonic() > deadline:
                raise OSError(f"{self.directory} cannot be removed: {_processes(self.directory)} still run in it")
            time.sleep(0.005)
        _mine.discard(self.directory)


def _make_group(limit_bytes: int) -> _GroupBox:
    place = own_place()
    if place is None:
        raise OSError("there is no memory cgroup here")
    parent = _parent(place)
    _clear_leftovers(parent)
    box = _GroupBox(limit_bytes, place.version, _make_directory(parent))
    try:
        box.limit()
        box.try_to_join()
    except BaseException:
        box.close()
        raise
    return box


def _parent(place: Place) -> Path:
    """
    Return the directory to make a group in.

    A v2 group that holds processes cannot hold groups that are limited ("no internal processes"), so there it is the
    nearest ancestor that hands the memory controller down.
    """
    if place.version == 1:
        return place.directories[0]
    for directory in place.directories:
        try:
            controllers = (directory / "cgroup.subtree_control").read_text().split()
        except OSError:
            continue
        if "memory" in controllers and os.access(directory, os.W_OK):
            return directory
    raise OSError("no cgroup above this process hands the memory controller down to a group that this user may make")


def _make_directory(parent: Path) -> Path:
    while True:
        directory = parent / f"memguard-box-{os.getpid()}-{next(_numbers)}"
        # Before it exists, so that another thread's clearing does not take it for a leftover.
        _mine.add(directory)
        try:
            directory.mkdir()
        except FileExistsError:
            # Of an owner in another pid namespace: its number is ours by chance.
            _mine.discard(directory)
        except OSError:
            _mine.discard(directory)
            raise
        else:
            return directory


def _clear_leftovers(parent: Path) -> None:
    """Remove the boxes of owners that were killed before they could."""
    for directory in parent.glob("memguard-box-*"):
        match = _NAME.fullmatch(directory.name)
        if match is None or directory in _mine:
            continue
        owner = int(match[1])
        # Our own number on a box that is not ours: of an earlier process that had it.
        if owner == os.getpid() or not _is_alive(owner):
            _remove(directory)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(directory: Path) -> bool:
    """Kill what runs in *directory* and try to remove it; tell whether it is gone."""
    for pid in _processes(directory):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _processes(directory: Path) -> list[int]:
    return list(_read_pids(directory / "cgroup.procs"))


def _read_pids(path: Path) -> Iterator[int]:
    try:
        text = path.read_text()
    except OSError:
        return
    for line in text.split():
        # 0 stands for a process that this pid namespace cannot name; to kill(2) it means one's own group.
        if line.isdigit() and int(line) > 0:
            yield int(line)


def _write(path: Path, value: int) -> None:
    # Unbuffered: the error of the write itself, not one of a close later.
    number = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(number, str(value).encode())
    finally:
        os.close(number)
