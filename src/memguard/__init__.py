"""
Keeps Python processes from being killed for memory.

Names load when they are first used, so ``import memguard`` costs next to nothing. The first use of a name loads its
module, which takes milliseconds: use it once before an event loop is busy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memguard.errors import MemguardError as MemguardError
    from memguard.errors import SamplingError as SamplingError
    from memguard.sampling import PeakMeasurement as PeakMeasurement
    from memguard.sampling import measure_peak as measure_peak
    from memguard.sampling import memory_limit as memory_limit
    from memguard.sampling import memory_usage as memory_usage
    from memguard.units import ByteSize as ByteSize
    from memguard.units import Threshold as Threshold
    from memguard.units import format_bytes as format_bytes
    from memguard.units import parse_bytes as parse_bytes
    from memguard.values import MemoryLimit as MemoryLimit
    from memguard.values import MemoryUsage as MemoryUsage

__version__ = "0.1.0"

# Where each public name lives. A test holds this table against the imports above.
_HOMES = {
    "memguard.errors": ("MemguardError", "SamplingError"),
    "memguard.sampling": ("PeakMeasurement", "measure_peak", "memory_limit", "memory_usage"),
    "memguard.units": ("ByteSize", "Threshold", "format_bytes", "parse_bytes"),
    "memguard.values": ("MemoryLimit", "MemoryUsage"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: PLE0604 - one table for both
    "__version__",
    *_HOME_OF,
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'memguard' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
