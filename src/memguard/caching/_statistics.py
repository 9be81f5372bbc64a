"""
What a cache counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

EvictionReason: TypeAlias = Literal["size", "entries", "expired", "replaced", "pressure", "deleted"]
"""
Why an entry left: too many bytes, too many entries, too old, another value in its place, memory was short, or somebody
removed it.
"""


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """
    Counts since the cache was made.

    Attributes:
        hits: Lookups that found a value.
        misses: Lookups that did not.
        evictions: Entries that were dropped to make room, or because memory was short.
        expirations: Entries that were dropped for their age.
        rejected: Values that were not stored because they are larger than an entry may be.
        entries: Held now.
        total_bytes: Held now; estimated from a sample where the cache does not count bytes.
        max_entries: The bound on entries; None for none.
        max_bytes: The bound on bytes; None for none.
    """

    hits: int
    misses: int
    evictions: int
    expirations: int
    rejected: int
    entries: int
    total_bytes: int
    max_entries: int | None
    max_bytes: int | None

    @property
    def hit_ratio(self) -> float:
        """Hits of all lookups, 0 to 1; 0.0 before the first."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0
