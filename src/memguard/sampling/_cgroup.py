"""
Where this process stands in the cgroup hierarchy, and what each level there allows and uses.

Finding the levels is pure: texts of ``/proc/self/cgroup`` and ``/proc/self/mountinfo`` in, directories out. The rules
are those that the JDK, automemlimit and proclimits agree on.

See:
    https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html; ``man 5 proc`` for mountinfo.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from memguard.sampling._files import KeptFile

# v1 writes "no limit" as the largest multiple of the page size below 2**63; pages are 4 to 64 KiB.
_NO_LIMIT_V1 = 2**63 - 2**16
_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mounted cgroup hierarchy that may hold the memory controller."""

    version: int
    root: str
    point: str


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where the memory controller keeps this process.

    Attributes:
        version: 1 or 2.
        directories: From the process's own cgroup up to the mount point.
        names: The cgroup path of each, as the kernel writes it.
        hides_ancestors: Whether levels exist above the mount point that cannot be seen.
        certain: False where the process's path leads outside the mount and the mount point stands in for it.
    """

    version: int
    directories: tuple[Path, ...]
    names: tuple[str, ...]
    hides_ancestors: bool
    certain: bool


class LevelReading(NamedTuple):
    """What one cgroup level allows and uses, in bytes."""

    limit_bytes: int
    used_bytes: int
    source: str


def parse_membership(text: str) -> dict[int, str]:
    """
    Return this process's path by cgroup version, from ``/proc/self/cgroup``.

    Paths hold colons under containerd, so only the first two separate.
    """
    paths: dict[int, str] = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        number, controllers, path = fields
        if number == "0" and not controllers:
            paths[2] = path
        elif "memory" in controllers.split(","):
            paths[1] = path
    return paths


def parse_mounts(text: str) -> list[Mount]:
    """Return the mounts of ``/proc/self/mountinfo`` that may hold the memory controller, in order."""
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not separator or len(before) < 6 or len(after) < 3:
            continue
        version = _version(after[0], after[-1], _unescape(before[4]))
        if version:
            mounts.append(Mount(version, _unescape(before[3]), _unescape(before[4])))
    return mounts


def _version(fstype: str, super_options: str, point: str) -> int:
    if fstype == "cgroup2":
        return 2
    if fstype == "cgroup" and "memory" in super_options.split(","):
        return 1
    # LXC shows containers a v1 hierarchy through FUSE, one mount a controller.
    if fstype == "fuse.lxcfs" and "memory" in PurePosixPath(point).name.split(","):
        return 1
    return 0


def _unescape(text: str) -> str:
    r"""Undo the kernel's \040 \011 \012 \134 in one pass, so that an escaped backslash stays one."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def find_place(membership: str, mountinfo: str, root: Path) -> Place | None:
    """
    Return where the memory controller keeps this process, or None where there is none.

    Args:
        membership: Text of ``/proc/self/cgroup``.
        mountinfo: Text of ``/proc/self/mountinfo``.
        root: A directory that stands for ``/``.
    """
    paths = parse_membership(membership)
    mounts = parse_mounts(mountinfo)
    # A hybrid host mounts cgroup2 without the memory controller: the files decide, not the mount.
    for version, probes in ((2, ("memory.current", "memory.max")), (1, ("memory.limit_in_bytes",))):
        if version not in paths:
            continue
        for place in _candidates(version, paths[version], mounts, root):
            if any((level / probe).exists() for level in place.directories for probe in probes):
                return place
    return None


def own_place(root: Path = Path("/")) -> Place | None:
    """Return where the memory controller keeps this process now; None where there is none, or no ``/proc``."""
    try:
        membership = (root / "proc/self/cgroup").read_text(errors="surrogateescape")
        mountinfo = (root / "proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return None
    return find_place(membership, mountinfo, root)


def _candidates(version: int, own: str, mounts: list[Mount], root: Path) -> Iterable[Place]:
    """Yield the places that *own* may mean, the likeliest first."""
    fitting = sorted(
        (mount for mount in mounts if mount.version == version),
        key=lambda mount: not (mount.point + "/").startswith("/sys/fs/cgroup/"),
    )
    for mount in fitting:
        below = _below(mount.root, own)
        if below is not None and _directory(mount, below, root).is_dir():
            yield _place(mount, below, root, certain=True)
    # The path names nothing that is mounted: the process was moved out of its namespace, or the mount is another
    # namespace's. The mount point is then all that can be seen.
    for mount in fitting:
        yield _place(mount, (), root, certain=False)


def _below(mount_root: str, own: str) -> tuple[str, ...] | None:
    """Return the components of *own* under *mount_root*; None where it is not under it."""
    top, path = PurePosixPath(mount_root).parts, PurePosixPath(own).parts
    if ".." in path or ".." in top or path[: len(top)] != top:
        return None
    return path[len(top) :]


def _directory(mount: Mount, below: tuple[str, ...], root: Path) -> Path:
    return root.joinpath(mount.point.lstrip("/"), *below)


def _place(mount: Mount, below: tuple[str, ...], root: Path, *, certain: bool) -> Place:
    depths = range(len(below), -1, -1)
    return Place(
        version=mount.version,
        directories=tuple(_directory(mount, below[:depth], root) for depth in depths),
        names=tuple(str(PurePosixPath(mount.root, *below[:depth])) for depth in depths),
        hides_ancestors=mount.root != "/",
        certain=certain,
    )


class LevelFiles:
    """
    One cgroup level: its limit and use, re-read at each call on kept descriptors.

    Used is usage minus *clean* page cache. Dirty pages cannot be dropped before they are written, so a process that
    counts on them is killed; active file pages can, so a file read twice is not use.
    """

    def __init__(self, version: int, directory: Path, name: str, *, hides_ancestors: bool = False) -> None:
        self.directory = directory
        self._hides_ancestors = hides_ancestors
        self._source = f"cgroup v{version} {name}"
        if version == 2:
            self._usage = _number_file(directory / "memory.current")
            self._limits = {self._source: _number_file(directory / "memory.max")}
            self._limits[f"{self._source} memory.high"] = _number_file(directory / "memory.high")
            self._keys = (b"active_file ", b"inactive_file ", b"file_dirty ", b"file_writeback ")
        else:
            self._usage = _number_file(directory / "memory.usage_in_bytes")
            self._limits = {self._source: _number_file(directory / "memory.limit_in_bytes")}
            self._keys = (
                b"total_active_file ",
                b"total_inactive_file ",
                b"total_dirty ",
                b"total_writeback ",
            )
        self._stat = KeptFile(directory / "memory.stat")

    def limit(self) -> tuple[int, str] | None:
        """Return the tightest limit of this level and its source; None where it sets none."""
        found: tuple[int, str] | None = None
        for source, file in self._limits.items():
            limit = _limit_bytes(_read(file))
            if limit is not None and (found is None or limit < found[0]):
                found = limit, source
        if self._hides_ancestors:
            # v1 tells the smallest limit over all ancestors, also of those above the mount.
            hidden = _stat_value(b"\n" + _read(self._stat) + b"\n", b"hierarchical_memory_limit ")
            if hidden is not None and hidden < (found[0] if found else _NO_LIMIT_V1):
                found = hidden, f"{self._source} hierarchical_memory_limit"
        return found

    def used_bytes(self) -> int | None:
        """Return what cannot be reclaimed here; None where the level does not count."""
        usage = _number(_read(self._usage))
        if usage is None:
            return None
        stat = b"\n" + _read(self._stat) + b"\n"
        active, inactive, dirty, writeback = (_stat_value(stat, key) or 0 for key in self._keys)
        return usage - min(usage, max(0, active + inactive - dirty - writeback))

    def read(self, most_bytes: int | None) -> LevelReading | None:
        """Return limit and use; None where nothing below *most_bytes* (the machine) binds here."""
        limit = self.limit()
        if limit is None or (most_bytes is not None and limit[0] >= most_bytes):
            return None
        used = self.used_bytes()
        return None if used is None else LevelReading(limit[0], used, limit[1])

    def close(self) -> None:
        """Close the kept descriptors."""
        for file in (self._usage, self._stat, *self._limits.values()):
            file.close()


def level_files(place: Place) -> list[LevelFiles]:
    """Return the levels of *place*, the process's own first."""
    top = len(place.directories) - 1
    return [
        LevelFiles(
            place.version,
            directory,
            name,
            # Counted at the top: what it uses is the nearest that can be seen to the hidden ancestor's use.
            hides_ancestors=place.version == 1 and place.hides_ancestors and depth == top,
        )
        for depth, (directory, name) in enumerate(zip(place.directories, place.names, strict=True))
    ]


def _number_file(path: Path) -> KeptFile:
    return KeptFile(path, most_bytes=64)


def _read(file: KeptFile) -> bytes:
    """Read *file*; a missing file is an empty one: root cgroups lack some, kernels others."""
    try:
        return file.read()
    except OSError:
        return b""


def _number(text: bytes) -> int | None:
    text = text.strip()
    return int(text) if text.isdigit() else None


def _limit_bytes(text: bytes) -> int | None:
    limit = _number(text)
    return None if limit is None or limit >= _NO_LIMIT_V1 else limit


def _stat_value(stat: bytes, key: bytes) -> int | None:
    start = stat.find(b"\n" + key)
    if start < 0:
        return None
    start += len(key) + 1
    try:
        return int(stat[start : stat.find(b"\n", start)])
    except ValueError:
        return None
