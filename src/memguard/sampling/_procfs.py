"""
This process and this machine, from ``/proc``.

See:
    ``man 5 proc``: statm counts pages; meminfo and status count kB of 1024 bytes.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from memguard.errors import SamplingError
from memguard.sampling._files import KeptFile, MaybeFile, Troubles

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_LIMITS = {
    "as": re.compile(rb"^Max address space +(\d+)", re.MULTILINE),
    "data": re.compile(rb"^Max data size +(\d+)", re.MULTILINE),
}


class ProcessReading(NamedTuple):
    """
    Sizes of this process, in bytes.

    Attributes:
        rss_bytes: Resident.
        anon_bytes: The part of it that no file backs, shared memory included.
        address_space_bytes: All addresses it has, as RLIMIT_AS counts them; 0 where nobody says.
        data_bytes: Private and writable ones, as RLIMIT_DATA counts them, touched or not; 0 where nobody says.
        private_bytes: Resident, backed by no file and shared with nobody: charged to this process's own cgroup.
    """

    rss_bytes: int
    anon_bytes: int
    address_space_bytes: int = 0
    data_bytes: int = 0
    private_bytes: int = 0


class ProcessFiles:
    """
    What ``/proc/self`` says of this process.

    Args:
        root: A directory that stands for ``/``.
        troubles: Is told what could not be read.
    """

    def __init__(self, root: Path, troubles: Troubles) -> None:
        self._statm = KeptFile(root / "proc/self/statm", most_bytes=256, vouched=True)
        self._status = KeptFile(root / "proc/self/status", vouched=True)
        self._troubles = troubles
        self._last: ProcessReading | None = None
        self._shmem_bytes = 0

    def vouch(self) -> None:
        """Find out whether kept descriptors were closed by somebody else. Before each reading, for all files of it."""
        self._statm.vouch()

    def read(self) -> ProcessReading:
        """
        Return the sizes of this process; where they cannot be read, the last ones.

        Raises:
            SamplingError: statm is missing or garbled, or cannot be read and never could.
        """
        try:
            text = self._statm.read()
        except FileNotFoundError as error:
            raise self._unknown(error) from error
        except OSError as error:
            if self._last is None:
                raise self._unknown(error) from error
            self._troubles.note(error, "this process counts with its last known size")
            return self._last
        try:
            size, resident, shared, _text, _lib, data = map(int, text.split(None, 6)[:6])
        except ValueError as error:
            raise self._unknown(error) from error
        # "shared" counts file pages and shared memory; only the former can be dropped.
        private = (resident - shared) * _PAGE_BYTES
        rss, anon = resident * _PAGE_BYTES, private
        if shared * _PAGE_BYTES > _SHARED_WORTH_A_LOOK:
            anon = min(rss, anon + self._read_shmem())
        self._last = reading = ProcessReading(rss, anon, size * _PAGE_BYTES, data * _PAGE_BYTES, private)
        return reading

    def _unknown(self, error: Exception) -> SamplingError:
        return SamplingError(f"{self._statm.path} does not give this process's size: {error}")

    def _read_shmem(self) -> int:
        try:
            self._shmem_bytes = kilobytes(self._status.read(), b"RssShmem:") or 0
        except FileNotFoundError:
            self._shmem_bytes = 0
        except OSError as error:
            self._troubles.note(error, "shared memory counts as it was last")
        return self._shmem_bytes

    def close(self) -> None:
        """Close the kept descriptors."""
        self._statm.close()
        self._status.close()


# Below this the libraries that every Python maps explain "shared"; status costs four times what statm does.
_SHARED_WORTH_A_LOOK = 64 * 1024 * 1024


class HostFiles:
    """
    What ``/proc/meminfo`` says of the machine, and OpenZFS of its cache.

    ZFS keeps what it read in the ARC, which is neither in "Cached" nor in MemAvailable, and gives it back under
    pressure down to ``c_min``.

    Args:
        root: A directory that stands for ``/``.
        troubles: Is told what could not be read.

    See:
        ``man 5 proc_meminfo``; module/zfs/arc.c (``arc_available_memory``) and ``man 4 zfs``, zfs_arc_min.
    """

    def __init__(self, root: Path, troubles: Troubles) -> None:
        self._meminfo = KeptFile(root / "proc/meminfo", vouched=True)
        self._arcstats = MaybeFile(root / "proc/spl/kstat/zfs/arcstats", vouched=True)
        self._troubles = troubles
        self._last: tuple[int, int] | None = None

    def read(self) -> tuple[int, int] | None:
        """
        Return (total, used) bytes; None where meminfo is missing or says nothing that can be true.

        Raises:
            SamplingError: It cannot be read and never could.
        """
        try:
            text = self._meminfo.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._troubles.note(error, "the machine counts as it was last")
            if self._last is None and not isinstance(error, PermissionError):
                raise SamplingError(f"{self._meminfo.path} does not give the machine's size: {error}") from error
            return self._last
        size = _sizes(text)
        if size is None:
            return None
        total, available = size
        self._last = reading = total, max(0, total - available - self._arc_bytes())
        return reading

    def look_again(self) -> None:
        """Look anew for files that were not there."""
        self._arcstats.look_again()

    def _arc_bytes(self) -> int:
        """Return what the ARC would give back."""
        try:
            text = self._arcstats.read()
        except OSError as error:
            self._troubles.note(error, "the cache of ZFS counts as use")
            return 0
        if not text:
            return 0
        return max(0, _kstat(text, b"size") - _kstat(text, b"c_min"))

    def close(self) -> None:
        """Close the kept descriptors."""
        self._meminfo.close()
        self._arcstats.close()


def _sizes(meminfo: bytes) -> tuple[int, int] | None:
    """Return (total, available) bytes; None where the total is missing or zero."""
    first = meminfo.split(None, 8)
    if len(first) > 7 and first[0] == b"MemTotal:" and first[6] == b"MemAvailable:":  # as it is since Linux 3.14
        total, available = int(first[1]) * 1024, int(first[7]) * 1024
    else:
        total = kilobytes(meminfo, b"MemTotal:") or 0
        told = kilobytes(meminfo, b"MemAvailable:")
        parts = (kilobytes(meminfo, key) or 0 for key in (b"MemFree:", b"Buffers:", b"Cached:"))
        available = sum(parts) if told is None else told  # before that, and in some containers
    return (total, available) if total else None


def _kstat(text: bytes, name: bytes) -> int:
    """Return the value of the line "name type data" that begins with *name*; 0 where there is none."""
    start = text.find(b"\n" + name + b" ")
    fields = text[start + 1 : start + 120].split(None, 3)
    return int(fields[2]) if start >= 0 and len(fields) > 2 and fields[2].isdigit() else 0


def kilobytes(text: bytes, key: bytes) -> int | None:
    """Return the bytes of the line that begins with *key*; None where there is no such line."""
    start = 0 if text.startswith(key) else text.find(b"\n" + key) + 1
    if start == 0 and not text.startswith(key):
        return None
    fields = text[start + len(key) : start + len(key) + 40].split(None, 1)
    return int(fields[0]) * 1024 if fields and fields[0].isdigit() else None


_own_statm = KeptFile(Path("/proc/self/statm"), most_bytes=256)


def resident_bytes() -> int:
    """Return the resident size of this process, by whatever tells it; 0 where nothing does."""
    try:
        return int(_own_statm.read().split(None, 2)[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError, AttributeError):  # no /proc, or no pread: Windows
        pass
    try:
        from memguard.sampling import _portable  # noqa: PLC0415 - psutil loads only where it is needed

        return _portable.process_bytes()[0]
    except Exception:
        return _largest_resident_bytes()


def _largest_resident_bytes() -> int:
    """Return the largest resident size that this process ever had: without a descriptor nothing better is known."""
    try:
        import resource  # noqa: PLC0415 - not everywhere
    except ImportError:
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def status_bytes(pid: int, key: str) -> int | None:
    """Return the line *key* (``"VmRSS"``, ``"VmData"``) of a process's status, in bytes; None where it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    return kilobytes(text, f"{key}:".encode())


def limits_of_file(path: Path) -> dict[str, int]:
    """
    Return the finite limits ("as", "data") that a ``/proc/PID/limits`` at *path* sets, in bytes; none without one.

    Raises:
        SamplingError: It cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SamplingError(f"{path} does not give the limits of a process: {error}") from error
    found = ((name, pattern.search(text)) for name, pattern in _LIMITS.items())
    return {name: int(match[1]) for name, match in found if match}
