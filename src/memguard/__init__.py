"""
Keeps Python processes from being killed for memory.

Names load when they are first used, so ``import memguard`` costs next to nothing. The first use of a name loads its
module, which takes milliseconds: use it once before an event loop is busy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memguard.attribution import GrowthReport as GrowthReport
    from memguard.attribution import LeakReporter as LeakReporter
    from memguard.attribution import Snapshot as Snapshot
    from memguard.attribution import report_on_signal as report_on_signal
    from memguard.attribution import take_snapshot as take_snapshot
    from memguard.breaker import BreakerChange as BreakerChange
    from memguard.breaker import BreakerMode as BreakerMode
    from memguard.breaker import BreakerStatistics as BreakerStatistics
    from memguard.breaker import CostOverrun as CostOverrun
    from memguard.breaker import LearnedCost as LearnedCost
    from memguard.breaker import MemoryCircuitBreaker as MemoryCircuitBreaker
    from memguard.breaker import Reservation as Reservation
    from memguard.breaker import acquire as acquire
    from memguard.breaker import check as check
    from memguard.breaker import configure as configure
    from memguard.breaker import default_breaker as default_breaker
    from memguard.breaker import guard as guard
    from memguard.breaker import reserve as reserve
    from memguard.caching import CachedFunction as CachedFunction
    from memguard.caching import CacheInfo as CacheInfo
    from memguard.caching import CacheStatistics as CacheStatistics
    from memguard.caching import EvictionReason as EvictionReason
    from memguard.caching import LRUCache as LRUCache
    from memguard.caching import cached as cached
    from memguard.errors import AssemblyError as AssemblyError
    from memguard.errors import CacheDeadlockError as CacheDeadlockError
    from memguard.errors import ChecksumMismatchError as ChecksumMismatchError
    from memguard.errors import ChunksRefusedError as ChunksRefusedError
    from memguard.errors import InsufficientDiskError as InsufficientDiskError
    from memguard.errors import MemguardError as MemguardError
    from memguard.errors import MemoryCircuitBreakerError as MemoryCircuitBreakerError
    from memguard.errors import MissingChunksError as MissingChunksError
    from memguard.errors import ReservationTooLargeError as ReservationTooLargeError
    from memguard.errors import SamplingError as SamplingError
    from memguard.errors import UnsafeNameError as UnsafeNameError
    from memguard.errors import UploadConflictError as UploadConflictError
    from memguard.errors import UploadNotFoundError as UploadNotFoundError
    from memguard.files import AssembledFile as AssembledFile
    from memguard.files import Upload as Upload
    from memguard.files import UploadStatistics as UploadStatistics
    from memguard.files import UploadStore as UploadStore
    from memguard.files import assemble as assemble
    from memguard.monitor import MemoryAlert as MemoryAlert
    from memguard.monitor import MemoryMonitor as MemoryMonitor
    from memguard.monitor import OperationStatistics as OperationStatistics
    from memguard.monitor import read_samples as read_samples
    from memguard.monitor import write_samples as write_samples
    from memguard.policy import AdaptiveBatchSize as AdaptiveBatchSize
    from memguard.policy import LeakDetectionResult as LeakDetectionResult
    from memguard.policy import LeakDetector as LeakDetector
    from memguard.policy import detect_leak as detect_leak
    from memguard.relief import AllocatorUsage as AllocatorUsage
    from memguard.relief import ReliefReport as ReliefReport
    from memguard.relief import ReliefStep as ReliefStep
    from memguard.relief import allocator_usage as allocator_usage
    from memguard.relief import limit_arenas as limit_arenas
    from memguard.relief import release_memory as release_memory
    from memguard.sampling import PeakMeasurement as PeakMeasurement
    from memguard.sampling import measure_peak as measure_peak
    from memguard.sampling import memory_limit as memory_limit
    from memguard.sampling import memory_usage as memory_usage
    from memguard.signals import Signal as Signal
    from memguard.sizing import deep_sizeof as deep_sizeof
    from memguard.streams import ChunkReport as ChunkReport
    from memguard.streams import LoopPacer as LoopPacer
    from memguard.streams import achunked as achunked
    from memguard.streams import aprocess_in_chunks as aprocess_in_chunks
    from memguard.streams import chunked as chunked
    from memguard.streams import process_in_chunks as process_in_chunks
    from memguard.streams import yield_to_loop as yield_to_loop
    from memguard.units import ByteSize as ByteSize
    from memguard.units import Threshold as Threshold
    from memguard.units import format_bytes as format_bytes
    from memguard.units import parse_bytes as parse_bytes
    from memguard.values import UNGUARDED as UNGUARDED
    from memguard.values import Gate as Gate
    from memguard.values import Hold as Hold
    from memguard.values import Level as Level
    from memguard.values import MemoryLimit as MemoryLimit
    from memguard.values import MemoryUsage as MemoryUsage
    from memguard.values import Progress as Progress

__version__ = "0.1.0"

# Where each public name lives. A test holds this table against the imports above.
_HOMES = {
    "memguard.attribution": (
        "GrowthReport",
        "LeakReporter",
        "Snapshot",
        "report_on_signal",
        "take_snapshot",
    ),
    "memguard.breaker": (
        "BreakerChange",
        "BreakerMode",
        "BreakerStatistics",
        "CostOverrun",
        "LearnedCost",
        "MemoryCircuitBreaker",
        "Reservation",
        "acquire",
        "check",
        "configure",
        "default_breaker",
        "guard",
        "reserve",
    ),
    "memguard.caching": (
        "CacheInfo",
        "CacheStatistics",
        "CachedFunction",
        "EvictionReason",
        "LRUCache",
        "cached",
    ),
    "memguard.errors": (
        "AssemblyError",
        "CacheDeadlockError",
        "ChecksumMismatchError",
        "ChunksRefusedError",
        "InsufficientDiskError",
        "MemguardError",
        "MemoryCircuitBreakerError",
        "MissingChunksError",
        "ReservationTooLargeError",
        "SamplingError",
        "UnsafeNameError",
        "UploadConflictError",
        "UploadNotFoundError",
    ),
    "memguard.files": (
        "AssembledFile",
        "Upload",
        "UploadStatistics",
        "UploadStore",
        "assemble",
    ),
    "memguard.monitor": (
        "MemoryAlert",
        "MemoryMonitor",
        "OperationStatistics",
        "read_samples",
        "write_samples",
    ),
    "memguard.policy": (
        "AdaptiveBatchSize",
        "LeakDetectionResult",
        "LeakDetector",
        "detect_leak",
    ),
    "memguard.relief": (
        "AllocatorUsage",
        "ReliefReport",
        "ReliefStep",
        "allocator_usage",
        "limit_arenas",
        "release_memory",
    ),
    "memguard.sampling": (
        "PeakMeasurement",
        "measure_peak",
        "memory_limit",
        "memory_usage",
    ),
    "memguard.signals": ("Signal",),
    "memguard.sizing": ("deep_sizeof",),
    "memguard.streams": (
        "ChunkReport",
        "LoopPacer",
        "achunked",
        "aprocess_in_chunks",
        "chunked",
        "process_in_chunks",
        "yield_to_loop",
    ),
    "memguard.units": (
        "ByteSize",
        "Threshold",
        "format_bytes",
        "parse_bytes",
    ),
    "memguard.values": (
        "UNGUARDED",
        "Gate",
        "Hold",
        "Level",
        "MemoryLimit",
        "MemoryUsage",
        "Progress",
    ),
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
