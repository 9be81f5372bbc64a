"""
Reads the command line and hands over to the command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from memguard.sampling import memory_limit, memory_usage
from memguard.units import format_bytes, parse_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* (those of the process if None) name; return the exit status."""
    parser = argparse.ArgumentParser(prog="memguard", description="Memory of this process and its limit.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="show the limit, where it comes from, and the room that is left")
    _add_demo(commands.add_parser("demo", help="show a job that is killed without memguard and finishes with it"))
    options = parser.parse_args(arguments)
    if options.command == "demo":
        from memguard.cli._demo import demo  # noqa: PLC0415 - `info` must not pay for it

        try:
            return demo(options.csv, options.rows, options.limit, options.report)
        except KeyboardInterrupt:
            # What a shell expects of a command that Ctrl-C ended; whoever pressed it needs no traceback.
            print("\nmemguard demo: interrupted", file=sys.stderr)
            return 130
    assert options.command == "info"
    return info()


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", type=Path, help="a table of your own, any columns; otherwise one is made")
    parser.add_argument("--rows", type=_count, default=219_696, help="rows of the table that is made (%(default)s)")
    parser.add_argument("--limit", type=_size, default=_size("256 MiB"), help="hard limit of each run (256 MiB)")
    parser.add_argument("--report", type=Path, default=Path("memguard-demo.html"), help="where to write (%(default)s)")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows, 1 or more")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
