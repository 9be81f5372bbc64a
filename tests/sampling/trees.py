"""
Builds small trees of plain files that stand for a machine.
"""

from __future__ import annotations

from pathlib import Path

MIB = 1024**2
NO_LIMIT = 9223372036854771712


class Tree:
    """A directory standing for "/", with a machine of 8 GiB, 4 GiB of it free, and a process of 40 MiB."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/self/statm", "25600 10240 2560 700 0 12800 0\n")
        self.write("proc/self/status", "VmRSS:\t   40960 kB\nRssShmem:\t       0 kB\n")
        self.meminfo(total=8192 * MIB, available=4096 * MIB)

    def write(self, path: str, text: object) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text))

    def meminfo(self, *, total: int, available: int) -> None:
        self.write(
            "proc/meminfo",
            f"MemTotal:       {total // 1024} kB\nMemFree:  1 kB\nMemAvailable:   {available // 1024} kB\n",
        )

    def cgroup(self, membership: str, *mounts: str) -> None:
        """*mounts*: "root point fstype super_options"."""
        lines = []
        for number, mount in enumerate(mounts, start=30):
            root, point, fstype, options = mount.split(" ")
            lines.append(f"{number} 23 0:{number} {root} {point} rw,relatime shared:4 - {fstype} none {options}")
        self.write("proc/self/cgroup", membership + "\n")
        self.write("proc/self/mountinfo", "\n".join(lines) + "\n")

    def v1(
        self,
        path: str,
        *,
        limit: int = NO_LIMIT,
        usage: int = 0,
        hierarchical: int = NO_LIMIT,
        **stat: int,
    ):
        base = f"{path}/memory"
        self.write(f"{base}.limit_in_bytes", f"{limit}\n")
        self.write(f"{base}.usage_in_bytes", f"{usage}\n")
        stat = {"hierarchical_memory_limit": hierarchical} | {f"total_{k}": v for k, v in stat.items()}
        self.write(f"{base}.stat", "".join(f"{k} {v}\n" for k, v in stat.items()))

    def v2(self, path: str, *, limit: object = "max", high: object = "max", usage: int = 0, **stat: int):
        base = f"{path}/memory"
        self.write(f"{base}.max", f"{limit}\n")
        self.write(f"{base}.high", f"{high}\n")
        self.write(f"{base}.current", f"{usage}\n")
        self.write(f"{base}.stat", "".join(f"{k} {v}\n" for k, v in stat.items()))
