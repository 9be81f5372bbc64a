"""
Where this process stands in the cgroup hierarchy, and what each level there allows and uses.

Finding the levels is pure: texts of ``/proc/self/cgroup`` and ``/proc/self/mountinfo`` in, directories out. The rules
are those that the JDK, automemlimit and proclimits agree on.

See:
    https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html; ``man 5 proc`` for mountinfo.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from memguard.sampling._files import MaybeFile, Troubles

# v1 writes "no limit" as the largest multiple of the page size below 2**63; pages are 4 to 64 KiB.
_NO_LIMIT_V1 = 2**63 - 2**16
# What of memory.stat can be had again.
_CACHE = {
    1: (b"total_active_file ", b"total_inactive_file "),
    2: (b"active_file ", b"inactive_file ", b"slab_reclaimable "),
}
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

    Raises:
        OSError: It cannot be told now.
    """
    paths = parse_membership(membership)
    mounts = parse_mounts(mountinfo)
    # A hybrid host mounts cgroup2 without the memory controller: the files decide, not the mount.
    looks = _Looks()
    for version, probes in ((2, ("memory.current", "memory.max")), (1, ("memory.limit_in_bytes",))):
        if version not in paths:
            continue
        for place in _candidates(version, paths[version], mounts, root, looks.find):
            if any(looks.find(level / probe) for level in place.directories for probe in probes):
                return place
    looks.check()
    return None


def own_place(root: Path = Path("/")) -> Place | None:
    """Return where the memory controller keeps this process now; None where there is none, or it cannot be seen."""
    try:
        membership = (root / "proc/self/cgroup").read_text(errors="surrogateescape")
        mountinfo = (root / "proc/self/mountinfo").read_text(errors="surrogateescape")
        return find_place(membership, mountinfo, root)
    except OSError:
        return None


class _Looks:
    """Looks for files; what is forbidden is passed over, but not forgotten: it may be what was sought."""

    def __init__(self) -> None:
        self._forbidden: PermissionError | None = None

    def find(self, path: Path) -> bool:
        """Tell whether *path* exists."""
        try:
            path.stat()
        except PermissionError as error:
            self._forbidden = error
            return False
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        return True

    def check(self) -> None:
        """Raise if something was forbidden."""
        if self._forbidden is not None:
            raise self._forbidden


def _candidates(
    version: int, own: str, mounts: list[Mount], root: Path, is_there: Callable[[Path], bool]
) -> Iterable[Place]:
    """Yield the places that *own* may mean, the likeliest first."""
    fitting = sorted(
        (mount for mount in mounts if mount.version == version),
        key=lambda mount: not (mount.point + "/").startswith("/sys/fs/cgroup/"),
    )
    for mount in fitting:
        below = _below(mount.root, own)
        if below is not None and is_there(_directory(mount, below, root)):
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


class Charge(NamedTuple):
    """
    What may bind a process, before it is known what of the use can be had again. In bytes.

    Attributes:
        limit_bytes: What may be used.
        usage_bytes: All that is charged: at least what is used.
        source: Where the limit comes from.
        used_bytes: Asked for what is used, of which nothing can be had again; dearer than the rest, and an OSError
            where that cannot be read and never could. None: all of it.
    """

    limit_bytes: int
    usage_bytes: int
    source: str
    used_bytes: Callable[[], int] | None = None


class LevelFiles:
    """
    One cgroup level: its limit and use, re-read at each call on kept descriptors.

    Used is usage minus page cache, clean or dirty, active or not: before the kernel kills for a limit it drops what is
    clean, writes back what is dirty and lets the writers wait. Left out of "file" by the kernel, and so counted as
    used, are shared memory, tmpfs and locked pages. On v2 reclaimable slab (inodes, dentries) is taken off as well.

    A file that does not exist is no trouble: root cgroups lack some, kernels others. One that cannot be read is, and
    so is one that has vanished: then the last figures stand.

    Args:
        version: Of the hierarchy, 1 or 2.
        directory: Where the files are.
        name: The group's path, for people.
        hides_ancestors: Whether levels above this one exist that cannot be seen.
        vouched: As for :class:`~memguard.sampling._files.KeptFile`.
        troubles: Is told where page cache counts as it was last.

    See:
        https://docs.kernel.org/admin-guide/cgroup-v2.html, "memory.stat"; mm/vmscan.c (``shrink_folio_list``) and
        mm/page-writeback.c (``balance_dirty_pages``) for what happens to dirty pages under a limit.
    """

    def __init__(
        self,
        version: int,
        directory: Path,
        name: str,
        *,
        hides_ancestors: bool = False,
        vouched: bool = False,
        troubles: Troubles | None = None,
    ) -> None:
        self.directory = directory
        self._hides_ancestors = hides_ancestors
        self._source = source = f"cgroup v{version} {name}"
        self._stat_keys = _CACHE[version]
        if version == 2:
            usage, limits = "memory.current", {source: "memory.max", f"{source} memory.high": "memory.high"}
        else:
            usage, limits = "memory.usage_in_bytes", {source: "memory.limit_in_bytes"}
        self._usage = MaybeFile(directory / usage, most_bytes=64, vouched=vouched)
        self._limits = tuple(
            (source, MaybeFile(directory / file, most_bytes=64, vouched=vouched)) for source, file in limits.items()
        )
        self._stat = MaybeFile(directory / "memory.stat", vouched=vouched)
        self._troubles = Troubles() if troubles is None else troubles
        # What could be read last; a limit of None is known, too: there was none.
        self._last_limit: tuple[tuple[int, str] | None] | None = None
        self._last_usage: int | None = None
        self._last_cache_bytes: int | None = None

    def limit(self) -> tuple[int, str] | None:
        """
        Return the tightest limit of this level and its source; None where it sets none.

        Raises:
            OSError: It cannot be read, or has vanished.
        """
        found: tuple[int, str] | None = None
        for source, file in self._limits:
            limit = _limit_bytes(file.read())
            if limit is not None and (found is None or limit < found[0]):
                found = limit, source
        if self._hides_ancestors:
            # v1 tells the smallest limit over all ancestors, also of those above the mount.
            hidden = _stat_value(_lines(self._stat.read()), b"hierarchical_memory_limit ")
            if hidden is not None and hidden < (found[0] if found else _NO_LIMIT_V1):
                found = hidden, f"{self._source} hierarchical_memory_limit"
        self._last_limit = (found,)
        return found

    def last_limit(self) -> tuple[int, str] | None:
        """
        Return :meth:`limit` or, where that cannot be read now, what it was.

        Raises:
            OSError: It never could be read.
        """
        try:
            return self.limit()
        except OSError:
            if self._last_limit is None:
                raise
            return self._last_limit[0]

    def used_bytes(self) -> int | None:
        """Return what cannot be reclaimed here; None where the level does not count, or nobody can say."""
        try:
            usage = self._usage_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            usage = self._last_usage
        try:
            return None if usage is None else self._used_of(usage, 0)
        except OSError:
            return None

    def charge(self, most_bytes: int | None, own_bytes: int = 0) -> Charge | None:
        """
        Return limit and use; None where nothing below *most_bytes* (the machine) binds here.

        Args:
            most_bytes: Limits of this size or more do not bind.
            own_bytes: Anonymous memory of a process that is certainly charged here; not less than that is used.

        Raises:
            OSError: A figure cannot be read, or has vanished.
        """
        limit = self.limit()
        if limit is None or (most_bytes is not None and limit[0] >= most_bytes):
            return None
        return self._charge(limit, self._usage_bytes(), own_bytes)

    def last_charge(self, most_bytes: int | None, own_bytes: int = 0) -> Charge | None:
        """
        Return :meth:`charge`, with the last known figure in place of each that cannot be read now.

        Raises:
            OSError: One could never be read.
        """
        limit = self.last_limit()
        if limit is None or (most_bytes is not None and limit[0] >= most_bytes):
            return None
        try:
            usage = self._usage_bytes()
        except OSError as error:
            usage = self._last_usage
            if usage is not None:
                usage = max(usage, own_bytes)
            elif isinstance(error, PermissionError):
                usage = own_bytes  # for good: at least what this process holds is known
            else:
                raise
        return self._charge(limit, usage, own_bytes)

    def look_again(self) -> None:
        """Look anew for files that were not there: a controller may be enabled while the process runs."""
        for file in (self._usage, self._stat, *(file for _, file in self._limits)):
            file.look_again()

    def close(self) -> None:
        """Close the kept descriptors."""
        for file in (self._usage, self._stat, *(file for _, file in self._limits)):
            file.close()

    def _charge(self, limit: tuple[int, str], usage: int | None, own_bytes: int) -> Charge | None:
        if usage is None:  # a level that does not count does not bind
            return None
        return Charge(limit[0], usage, limit[1], lambda: self._used_of(usage, own_bytes))

    def _usage_bytes(self) -> int | None:
        usage = _number(self._usage.read())
        if usage is not None:
            self._last_usage = usage
        return usage

    def _used_of(self, usage: int, own_bytes: int) -> int:
        # A group may be charged less than its processes hold: what they held when they moved in stays with the old.
        return min(usage, max(0, usage - self._cache_bytes(), own_bytes))

    def _cache_bytes(self) -> int:
        try:
            stat = _lines(self._stat.read())
        except OSError as error:
            known = self._last_cache_bytes
            if known is None and not isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            self._troubles.note(error, "page cache counts as it was last")
            return known or 0
        self._last_cache_bytes = cache = sum(_stat_value(stat, key) or 0 for key in self._stat_keys)
        return cache


def level_files(place: Place, troubles: Troubles) -> list[LevelFiles]:
    """Return the levels of *place*, the process's own first; somebody vouches for their descriptors."""
    top = len(place.directories) - 1
    return [
        LevelFiles(
            place.version,
            directory,
            name,
            # Counted at the top: what it uses is the nearest that can be seen to the hidden ancestor's use.
            hides_ancestors=place.version == 1 and place.hides_ancestors and depth == top,
            vouched=True,
            troubles=troubles,
        )
        for depth, (directory, name) in enumerate(zip(place.directories, place.names, strict=True))
    ]


def _lines(text: bytes) -> bytes:
    """Return *text* so that each of its lines stands between two ends of line."""
    return b"\n" + text + b"\n"


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
