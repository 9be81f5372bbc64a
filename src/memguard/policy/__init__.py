"""
Decisions as pure functions and values: thresholds and levels, the circuit, the floor below reservations, the pace of
readings, and whether memory leaks.

Nothing here measures, waits, starts a thread or reads a clock.
"""

from memguard.policy._batch import AdaptiveBatchSize
from memguard.policy._cadence import reading_interval
from memguard.policy._chunks import ChunkSize, slice_size
from memguard.policy._circuit import Circuit, State, next_circuit
from memguard.policy._cost import Features, FunctionCost, cost_bytes, features, is_overrun, tolerance_bytes
from memguard.policy._floor import Floor, next_floor, top_bytes
from memguard.policy._leak_detector import LeakDetector
from memguard.policy._leak_result import LeakDetectionResult
from memguard.policy._leaks import detect_leak
from memguard.policy._lines import LineBytes, Lines, next_level
from memguard.policy._watch import MinuteGrowth, WatchLines

__all__ = [
    "AdaptiveBatchSize",
    "ChunkSize",
    "Circuit",
    "Features",
    "Floor",
    "FunctionCost",
    "LeakDetectionResult",
    "LeakDetector",
    "LineBytes",
    "Lines",
    "MinuteGrowth",
    "State",
    "WatchLines",
    "cost_bytes",
    "detect_leak",
    "features",
    "is_overrun",
    "next_circuit",
    "next_floor",
    "next_level",
    "reading_interval",
    "slice_size",
    "tolerance_bytes",
    "top_bytes",
]
