"""
This process and this machine, from ``/proc``.

See:
    ``man 5 proc``: statm counts pages; meminfo and status count kB of 1024 bytes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from memguard.errors import SamplingError
from memguard.sampling._files import KeptFile

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_LIMITS = {
    "as": re.compile(rb"^Max address space +(\d+)", re.MULTILINE),
    "data": re.compile(rb"^Max data size +(\d+)", re.MULTILINE),
}


class ProcessReading(NamedTuple):
    """Sizes of this process, in bytes."""

    rss_bytes: int
    anon_bytes: int
    address_space_bytes: int
    data_bytes: int


class ProcessFiles:
    """What ``/proc/self`` says of this process."""

    def __init__(self, root: Path) -> None:
        self._statm = KeptFile(root / "proc/self/statm", most_bytes=256)
        self._status = KeptFile(root / "proc/self/status")

    def read(self) -> ProcessReading:
        """
        Return the sizes of this process.

        Raises:
            SamplingError: statm is missing or garbled.
        """
        try:
            size, resident, shared, _text, _lib, data, *_ = map(int, self._statm.read().split())
        except (OSError, ValueError) as error:
            raise SamplingError(f"{self._statm.path} does not give this process's size: {error}") from error
        rss = resident * _PAGE_BYTES
        # "shared" counts file pages and shared memory; only the former can be dropped.
        anon = (resident - shared) * _PAGE_BYTES
        if shared * _PAGE_BYTES > _SHARED_WORTH_A_LOOK:
            anon += self._shmem_bytes()
        return ProcessReading(rss, min(anon, rss), size * _PAGE_BYTES, data * _PAGE_BYTES)

    def _shmem_bytes(self) -> int:
        try:
            return kilobytes(self._status.read(), b"RssShmem:") or 0
        except OSError:
            return 0

    def close(self) -> None:
        """Close the kept descriptors."""
        self._statm.close()
        self._status.close()


# Below this the libraries that every Python maps explain "shared"; status costs four times what statm does.
_SHARED_WORTH_A_LOOK = 64 * 1024 * 1024


class HostFiles:
    """What ``/proc/meminfo`` says of the machine."""

    def __init__(self, root: Path) -> None:
        self._meminfo = KeptFile(root / "proc/meminfo")

    def read(self) -> tuple[int, int] | None:
        """Return (total, used) bytes; None where meminfo is missing or says nothing that can be true."""
        try:
            text = self._meminfo.read()
        except OSError:
            return None
        total = kilobytes(text, b"MemTotal:")
        if not total:
            return None
        available = kilobytes(text, b"MemAvailable:")
        if available is None:  # before Linux 3.14, and in some containers
            parts = (kilobytes(text, key) or 0 for key in (b"MemFree:", b"Buffers:", b"Cached:"))
            available = sum(parts)
        return total, max(0, total - available)

    def close(self) -> None:
        """Close the kept descriptor."""
        self._meminfo.close()


def kilobytes(text: bytes, key: bytes) -> int | None:
    """Return the bytes of the line that begins with *key*; None where there is no such line."""
    start = 0 if text.startswith(key) else text.find(b"\n" + key) + 1
    if start == 0 and not text.startswith(key):
        return None
    fields = text[start + len(key) : start + len(key) + 40].split(None, 1)
    return int(fields[0]) * 1024 if fields and fields[0].isdigit() else None


def status_bytes(pid: int, key: str) -> int | None:
    """Return the line *key* (``"VmRSS"``, ``"VmData"``) of a process's status, in bytes; None where it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    return kilobytes(text, f"{key}:".encode())


def limits_of_file(path: Path) -> dict[str, int]:
    """Return the finite limits ("as", "data") that a ``/proc/PID/limits`` at *path* sets, in bytes."""
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    found = ((name, pattern.search(text)) for name, pattern in _LIMITS.items())
    return {name: int(match[1]) for name, match in found if match}
