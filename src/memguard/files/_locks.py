"""
Locks on bytes of a file, between processes and between threads: they belong to the open file, and the kernel frees them
when it is closed, however the process ends.

See:
    ``man 2 fcntl``, open file description locks (Linux 3.15). Where there are none, other processes are not seen.
"""

from __future__ import annotations

import errno
import importlib
import struct
from typing import Any


def _fcntl() -> Any:
    """Return the module, which Windows lacks, if it has these locks."""
    try:
        module = importlib.import_module("fcntl")
    except ImportError:
        return None
    return module if hasattr(module, "F_OFD_SETLK") else None


_module = _fcntl()

_FLOCK = "hhqqi"


def lock_bytes(number: int, start: int, *, shared: bool = False, wait: bool = True) -> bool:
    """
    Lock one byte of an open file; tell whether it is locked now.

    Args:
        number: The descriptor; open for writing unless *shared*.
        start: Which byte; it need not exist.
        shared: Let others share it.
        wait: Wait for it, in this thread.

    Raises:
        OSError: The file system has no locks.
    """
    if _module is None:
        return True
    kind = _module.F_RDLCK if shared else _module.F_WRLCK
    command = _module.F_OFD_SETLKW if wait else _module.F_OFD_SETLK
    try:
        _module.fcntl(number, command, struct.pack(_FLOCK, kind, 0, start, 1, 0))
    except OSError as error:
        if not wait and error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
