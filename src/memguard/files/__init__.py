"""
Files put together without loading them.

Rooms: the assembly (``_assemble``), copying (``_copying``), publishing (``_publishing``), checksums (``_checksums``)
and the page cache (``_caching``).
"""

from memguard.files._assemble import AssembledFile, assemble

__all__ = [
    "AssembledFile",
    "assemble",
]
