"""
``python -m memguard demo``: one job under one hard limit, the naive way and memguard's.

Starts the children, watches their boxes, checks the output and writes the report. Only the report outlives it.
"""

from __future__ import annotations

import contextlib
import csv as csv_module
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

from memguard.cli._box import Box, BoxKind, make_box
from memguard.cli._demo_check import WrongOutputError, check_output
from memguard.cli._demo_data import HEADLINE_ROWS, write_contacts
from memguard.cli._demo_report import Run, Sample, page, table, text_table
from memguard.units import format_bytes

LEAST_LIMIT_BYTES = 24 * 1024**2
"""Below this the interpreter itself hardly starts."""

_SAMPLE_SECONDS = 0.05
_LINE_SECONDS = 1.0


def demo(
    csv: Path | None = None,
    rows: int = HEADLINE_ROWS,
    limit_bytes: int = 256 * 1024**2,
    report: Path = Path("memguard-demo.html"),
    *,
    box_kind: BoxKind = "auto",
) -> int:
    """
    Run the demo; return 0 when memguard's way finished and its output was right, whatever became of the naive one.

    Args:
        csv: The user's own table; None makes one of *rows* rows.
        rows: How many.
        limit_bytes: The hard limit of each run.
        report: Where the report goes.
        box_kind: What enforces the limit.
    """
    problem = _problem(csv, limit_bytes, report)
    if problem:
        print(f"memguard demo: {problem}", file=sys.stderr)
        return 2
    with _terminated_is_interrupted(), tempfile.TemporaryDirectory(prefix="memguard-demo-", dir=_disk()) as name:
        folder = Path(name)
        source, total = csv, None
        if source is None:
            source, total = folder / "contacts.csv", rows
            print(f"making a table of {rows:,} rows", flush=True)
            write_contacts(source, rows)
        try:
            return _compare(source, total, folder, limit_bytes=limit_bytes, report=report, box_kind=box_kind)
        except OSError as error:
            print(f"memguard demo: {error}", file=sys.stderr)
            return 2


def _problem(csv: Path | None, limit_bytes: int, report: Path) -> str | None:
    """Return what is wrong with the arguments, before minutes are spent on them."""
    if csv is not None and not csv.is_file():
        return f"{csv} is not a file"
    if limit_bytes < LEAST_LIMIT_BYTES:
        least = format_bytes(LEAST_LIMIT_BYTES)
        return f"a limit of {format_bytes(limit_bytes)} is less than Python itself takes; use {least} or more"
    if report.is_dir() or not report.absolute().parent.is_dir():
        return f"the report cannot be written to {report}"
    return None


def _compare(
    source: Path, total: int | None, folder: Path, *, limit_bytes: int, report: Path, box_kind: BoxKind
) -> int:
    runs, kind = [], ""
    targets = {"naive": folder / "naive.json", "memguard": folder / "memguard.csv"}
    for way, target in targets.items():
        with make_box(limit_bytes, kind=box_kind) as box:
            if box.kind != kind:
                kind = box.kind
                print(f"hard limit {format_bytes(limit_bytes)} by {kind}", flush=True)
            runs.append(_run(way, source, target, total, box))
        if way == "naive":
            target.unlink(missing_ok=True)
    naive, ours = runs
    remarks = [remark for run in runs if (remark := _complaint(run))]
    right = False
    if ours.finished:
        right, verdict = _check(source, targets["memguard"])
        remarks.append(verdict)
    if naive.finished:
        remarks.append(
            "The naive way survived: this table fits whole into the limit, all copies of it. That is fine; memguard "
            "is for the day it no longer does. Try a larger one, or a lower --limit."
        )
    print(f"\n{text_table(table(runs))}\n")
    print("\n".join(remarks))
    rows = f"{ours.rows:,} rows, " if ours.finished else ""
    job = f"A CSV table ({rows}{format_bytes(source.stat().st_size)}) normalised and written anew."
    report.write_text(page(runs, limit_bytes, kind=kind, job=job, remarks=remarks), encoding="utf-8")
    print(f"report: {report}")
    return 0 if ours.finished and right else 1


def _check(source: Path, target: Path) -> tuple[bool, str]:
    line = _Line("checking the output")
    try:
        rows = check_output(source, target, lambda done: line.show(f"{done:,} rows"))
    except (WrongOutputError, csv_module.Error) as error:
        return False, f"The output is wrong: {error}"
    finally:
        line.end()
    return True, f"output checked: {rows:,} rows equal an independent computation"


def _complaint(run: Run) -> str:
    """Return what a run said before it failed for another reason than memory."""
    if run.finished or run.fate == "MemoryError" or run.oom_killed:
        return ""
    return f"{run.way}: {run.last_words or run.fate}"


def _run(way: str, source: Path, target: Path, total: int | None, box: Box) -> Run:
    """Do the job one *way* in *box*."""
    argv = [sys.executable, "-m", "memguard.cli._demo_jobs", way, str(source.absolute()), str(target)]
    if total is not None:
        argv += ["--total", str(total)]
    errors = target.with_suffix(".err")
    command = box.command(argv)
    began = time.monotonic()
    with errors.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own words, and a path as one argument
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
        )
    try:
        said, samples = _watch(process, way, box, began)
        status = process.wait()
        seconds = time.monotonic() - began
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    oom_killed = status != 0 and bool(box.oom_kills())
    peak = max((sample.used_bytes for sample in samples), default=0)
    if oom_killed:
        # Between two samples: the kernel kills for nothing less than the limit.
        peak = box.limit_bytes
        samples.append(Sample(seconds, peak))
    return Run(
        way=way,
        status=status,
        oom_killed=oom_killed,
        seconds=seconds,
        peak_bytes=peak,
        grown_bytes=said.get("peak_bytes"),
        rows=said.get("rows", said.get("done", 0)),
        samples=tuple(samples),
        last_words=_last_line(errors),
    )


def _watch(process: subprocess.Popen[bytes], way: str, box: Box, began: float) -> tuple[dict[str, Any], list[Sample]]:
    """Follow a run until it closes its output; return the last that it said, and the samples of its box."""
    assert process.stdout is not None
    samples: list[Sample] = []
    said: dict[str, Any] = {}
    heard = _Hearing(process.stdout)
    line = _Line(way)
    next_at = began
    with heard, contextlib.closing(line):
        while True:
            messages = heard.wait(max(0.0, next_at - time.monotonic()))
            if messages is None:
                return said, samples
            for message in messages:
                said.update(message)
            now = time.monotonic()
            if now < next_at:
                continue
            next_at = now + _SAMPLE_SECONDS
            used = box.used_bytes(process.pid)
            if used is not None:
                samples.append(Sample(now - began, used))
                line.show(_progress(said, used, box.limit_bytes, now - began))


def _progress(said: dict[str, Any], used_bytes: int, limit_bytes: int, seconds: float) -> str:
    done, total = said.get("done", 0), said.get("total")
    share = f" ({100 * done / total:.0f} %)" if total else ""
    return f"{done:,} rows{share}, {format_bytes(used_bytes)} of {format_bytes(limit_bytes)}, {seconds:.1f} s"


class _Hearing:
    """What a child says, as JSON lines, without waiting for it longer than one likes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._number = stream.fileno()
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(stream, selectors.EVENT_READ)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        self._selector.close()

    def wait(self, seconds: float) -> list[dict[str, Any]] | None:
        """Return what was said within *seconds*; None once nothing more will be."""
        if not self._selector.select(seconds):
            return []
        data = os.read(self._number, 65_536)
        if not data:
            return None
        # A killed child may stop amid a line: that line is never complete and never parsed.
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


class _Line:
    """Progress on the terminal: one line rewritten there, a line now and then anywhere else."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rewrites = sys.stdout.isatty()
        self._next_at = 0.0
        self._shown = False

    def show(self, text: str) -> None:
        """Show *text*, if it is time to."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + (_SAMPLE_SECONDS if self._rewrites else _LINE_SECONDS)
        self._shown = True
        if self._rewrites:
            print(f"\r{self._title}: {text}\x1b[K", end="", flush=True)
        else:
            print(f"{self._title}: {text}", flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._rewrites and self._shown:
            print(flush=True)
        self._shown = False

    close = end


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _disk() -> str | None:
    """
    Return a folder for temporary files that are not kept in memory; None for the usual one.

    On a tmpfs the output would count as memory of the job that writes it.
    """
    usual = tempfile.gettempdir()
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return None
    if not is_in_memory(usual, mounts):
        return None
    others = (folder for folder in ("/var/tmp", str(Path.cwd())) if os.access(folder, os.W_OK))  # noqa: S108 - by mkdtemp
    return next((folder for folder in others if not is_in_memory(folder, mounts)), None)


def is_in_memory(folder: str, mountinfo: str) -> bool:
    """Tell whether *folder* lies on a tmpfs, by the text of ``/proc/self/mountinfo``."""
    path = os.path.realpath(folder)
    longest, kind = "", ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = fields[4]
        # Later mounts cover earlier ones of the same point.
        if os.path.commonpath([path, point]) == point and len(point) >= len(longest):
            longest, kind = point, right.split(" ", 1)[0]
    return kind in ("tmpfs", "ramfs")


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what it made is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
