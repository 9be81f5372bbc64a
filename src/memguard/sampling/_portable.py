"""
The figures that psutil gives where there is no ``/proc``: macOS, Windows, the BSDs.

It knows nothing of containers, and of shared pages only where the platform tells.
"""

from __future__ import annotations

import psutil

_process = psutil.Process


def process_bytes() -> tuple[int, int]:
    """Return (resident, anonymous) bytes of this process."""
    memory = _process().memory_info()
    return memory.rss, max(0, memory.rss - getattr(memory, "shared", 0))


def host_bytes() -> tuple[int, int]:
    """Return (total, used) bytes of the machine."""
    memory = psutil.virtual_memory()
    return memory.total, max(0, memory.total - memory.available)
