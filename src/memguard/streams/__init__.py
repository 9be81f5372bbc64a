"""
Work in pieces: chunks by count and bytes, an event loop that stays responsive, and jobs that heed the breaker.

Nothing here measures memory; it asks a gate.
"""

from memguard.streams._achunked import achunked
from memguard.streams._aprocess import aprocess_in_chunks
from memguard.streams._chunked import chunked
from memguard.streams._pacer import LoopPacer, yield_to_loop
from memguard.streams._process import process_in_chunks
from memguard.streams._report import ChunkReport

__all__ = [
    "ChunkReport",
    "LoopPacer",
    "achunked",
    "aprocess_in_chunks",
    "chunked",
    "process_in_chunks",
    "yield_to_loop",
]
