"""
Reads the command line and hands over to the command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from memguard.sampling import memory_limit, memory_usage
from memguard.units import format_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* (those of the process if None) name; return the exit status."""
    parser = argparse.ArgumentParser(prog="memguard", description="Memory of this process and its limit.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="show the limit, where it comes from, and the room that is left")
    options = parser.parse_args(arguments)
    assert options.command == "info"
    return info()


def info() -> int:
    """Print what binds this process."""
    usage, limit = memory_usage(), memory_limit()
    print(f"tightest limit  {format_bytes(limit.bytes)} ({limit.source})")
    print(
        f"level that binds {usage.source}: {format_bytes(usage.used_bytes)} of {format_bytes(usage.limit_bytes)} used"
    )
    print(f"room left       {format_bytes(usage.headroom_bytes)}")
    print(f"this process    {format_bytes(usage.rss_bytes)} resident, {format_bytes(usage.anon_bytes)} anonymous")
    return 0
