"""
Every exception that memguard raises on purpose.

Numbers sit in ``args``, the sentence in ``__str__``: so an error survives the trip from a worker process.
"""

from __future__ import annotations


class MemguardError(Exception):
    """The root of memguard's own exceptions."""


class SamplingError(MemguardError):
    """This machine does not give a figure that was asked for; the text says which and why."""
