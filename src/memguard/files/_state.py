"""
What the uploads of a store have in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memguard.files._running_checksum import RunningChecksums
from memguard.files._slots import Slots
from memguard.values import Gate


@dataclass(frozen=True, slots=True)
class StoreState:
    """
    What the uploads of a store have in common.

    Attributes:
        root: The store's folder.
        durable: Whether what is published is to survive the machine.
        durable_chunks: Whether each chunk is, once it is acknowledged.
        drops: Whether to keep the page cache low.
        boot: Tells this boot of the machine from others.
        breaker: Asked before each chunk; None for the default one.
        slots: The places for chunks that are being written.
        checksums: Those that run along.
    """

    root: Path
    durable: bool
    durable_chunks: bool
    drops: bool
    boot: str
    breaker: Gate | None
    slots: Slots
    checksums: RunningChecksums
