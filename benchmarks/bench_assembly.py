"""
Parts to one file: `assemble` beside `cat` and what else people write; and uploads, from arrival to the published file.

Nothing waits for the disk unless it says so ("durable"), as `cat` does not. What is read was just written, so it comes
from the page cache. Parts arrive from memory, in random order.

In a container of 64 MiB, where the kernel lets one be made, parts are read from the disk; ours are durable there and
include the start of the interpreter.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measuring import Measure, Report, in_turns, paired, read_options

import memguard
from memguard.cli._box import make_box

PART_BYTES = 2 * 1024**2
MIB = 1024**2


def block_of(index: int, block: bytearray) -> bytearray:
    """Return the part *index*, in place."""
    block[:8] = index.to_bytes(8, "big")
    return block


def processor_seconds() -> float:
    """Return what this process and its children have used so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Ground:
    """
    A folder with parts, and what is measured on it.

    Attributes:
        processor: Seconds of the processor, children included, by contender.
        peaks: MiB of growth, by contender.
        finishing: Milliseconds that `finish()` took, by contender.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self.folder = folder
        self.dest = folder / "whole"
        self.arriving = folder / "arriving"
        self.parts = [folder / "parts" / f"{index:03}" for index in range(count)]
        (folder / "parts").mkdir()
        self.block = bytearray(random.Random(1).randbytes(PART_BYTES))
        for index, part in enumerate(self.parts):
            part.write_bytes(block_of(index, self.block))
        self.crcs = [f"crc32:{zlib.crc32(part.read_bytes()):08x}" for part in self.parts]
        self.sha256 = "sha256:" + self._shell('cat "$@" | sha256sum').split()[0]
        self.processor: dict[str, list[float]] = defaultdict(list)
        self.peaks: dict[str, list[float]] = defaultdict(list)
        self.finishing: dict[str, list[float]] = defaultdict(list)

    def _shell(self, script: str) -> str:
        return subprocess.run(
            ["/bin/sh", "-c", script, str(self.dest), *map(str, self.parts)], check=True, capture_output=True, text=True
        ).stdout

    def measure(self, name: str, work: Callable[[], object]) -> Measure:
        """Return what measures the seconds of *work*, and on the side what else it takes."""

        def once() -> float:
            gc.collect()
            os.sync()  # what the contender before left to the disk is not this one's
            before = processor_seconds()
            with memguard.measure_peak() as used:
                began = time.perf_counter()
                work()
                seconds = time.perf_counter() - began
            self.processor[name].append(processor_seconds() - before)
            self.peaks[name].append(used.peak_bytes / MIB)
            if self.dest.stat().st_size != self.count * PART_BYTES:
                raise RuntimeError(f"{name} made {self.dest.stat().st_size} bytes")
            self.dest.unlink()
            shutil.rmtree(self.arriving, ignore_errors=True)
            return seconds

        return once

    # ----- parts that are there

    def cat(self) -> None:
        """As in a shell script."""
        self._shell('cat "$@" > "$0"')

    def cat_and_hash(self) -> None:
        """As in a shell script that checks."""
        self._shell('cat "$@" > "$0" && sha256sum "$0"')

    def join(self) -> None:
        """As most people write it first."""
        self.dest.write_bytes(b"".join([part.read_bytes() for part in self.parts]))

    def copyfileobj(self) -> None:
        """As those write it who know better."""
        with self.dest.open("wb") as whole:
            for part in self.parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole)

    def assemble(self) -> None:
        """With memguard."""
        memguard.assemble(self.parts, self.dest, durable=False)

    def assemble_sha256(self) -> None:
        """With memguard, the whole verified."""
        memguard.assemble(self.parts, self.dest, durable=False, checksum=self.sha256)

    def assemble_crc32(self) -> None:
        """With memguard, each part verified."""
        memguard.assemble(self.parts, self.dest, durable=False, part_checksums=self.crcs)

    # ----- parts that arrive

    def _order(self) -> list[int]:
        order = list(range(self.count))
        random.shuffle(order)
        return order

    def _write_parts(self) -> list[str]:
        self.arriving.mkdir()
        names = [str(self.arriving / f"{index:03}") for index in range(self.count)]
        for index in self._order():
            Path(names[index]).write_bytes(block_of(index, self.block))
        return names

    def parts_then_cat(self) -> None:
        """Write each part as it comes, then `cat`."""
        names = self._write_parts()
        subprocess.run(["/bin/sh", "-c", 'cat "$@" > "$0"', str(self.dest), *names], check=True)

    def parts_then_cat_and_hash(self) -> None:
        """Write each part as it comes, then `cat`, then look whether it is right."""
        names = self._write_parts()
        subprocess.run(
            ["/bin/sh", "-c", 'cat "$@" > "$0" && sha256sum "$0"', str(self.dest), *names],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def upload(self, name: str, *, senders: int = 1, sha256: bool = False, **options: object) -> Callable[[], None]:
        """Return what uploads all, each chunk with its CRC, and publishes."""

        def work() -> None:
            store = memguard.UploadStore(self.arriving, breaker=memguard.UNGUARDED, **options)  # type: ignore[arg-type]
            blocks = [bytearray(self.block) for _ in range(senders)] if senders > 1 else [self.block]
            sizes = {"total_bytes": self.count * PART_BYTES, "chunk_bytes": PART_BYTES}
            with store.create("whole", checksum=self.sha256 if sha256 else None, **sizes) as upload:
                order = list(range(self.count)) if sha256 else self._order()

                def send(block: bytearray) -> None:
                    while order:
                        try:
                            index = order.pop(0)
                        except IndexError:
                            return
                        upload.write_chunk(index, block_of(index, block), checksum=self.crcs[index])

                if senders == 1:
                    send(self.block)
                else:
                    with ThreadPoolExecutor(senders) as pool:
                        list(pool.map(send, blocks))
                began = time.perf_counter()
                upload.finish(self.dest)
                self.finishing[name].append((time.perf_counter() - began) * 1000)

        return work


IN_CONTAINER = """
import os, sys
import memguard
how, dest, *parts = sys.argv[1:]
if how == "upload":
    store = memguard.UploadStore(dest + ".store", breaker=memguard.UNGUARDED)
    sizes = [os.stat(part).st_size for part in parts]
    with store.create("whole", total_bytes=sum(sizes), chunk_bytes=sizes[0]) as upload:
        for index, part in enumerate(parts):
            with open(part, "rb", buffering=0) as file:
                upload.write_chunk(index, file)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        upload.finish(dest)
    store.remove_stale(older_than=0)
else:
    memguard.assemble(parts, dest, checksum=how if ":" in how else None)
"""


class Container:
    """
    The same in a container of 64 MiB.

    Attributes:
        peaks: MiB of all that counted against it, by contender.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.peaks: dict[str, list[float]] = defaultdict(list)

    def measure(self, name: str, *command: str) -> Measure:
        """Return what measures the seconds of *command*, which is given where the whole and the parts are."""

        def once() -> float:
            ground = self._ground
            os.sync()
            for part in ground.parts:
                forget(part)
            with make_box(64 * MIB, kind="cgroup") as box:
                argv = box.command([*command, str(ground.dest), *map(str, ground.parts)])
                began = time.perf_counter()
                subprocess.run(argv, check=True, capture_output=True)
                seconds = time.perf_counter() - began
                self.peaks[name].append(box.peak_bytes() / MIB)
            ground.dest.unlink()
            return seconds

        return once


def forget(path: Path) -> None:
    """Let the kernel drop the pages of a file."""
    number = os.open(path, os.O_RDONLY)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(number)


def report_container(report: Report, ground: Ground, rounds: int) -> None:
    """Measure what the page cache takes of a container, and whether that takes longer."""
    container = Container(ground)
    ours = [sys.executable, "-c", IN_CONTAINER]
    contenders = {
        "cat": container.measure("cat", "/bin/sh", "-c", 'cat "$@" > "$0"'),
        "assemble": container.measure("assemble", *ours, "plain"),
        "assemble, sha256": container.measure("assemble, sha256", *ours, ground.sha256),
        "Upload, crc32": container.measure("Upload, crc32", *ours, "upload"),
    }
    label = f"{ground.count} x 2 MB in 64 MiB"
    try:
        got = in_turns(contenders, rounds)
    except OSError as error:
        report.note(label, f"not measured, no memory cgroup can be made here: {error}")
        return
    for name, values in got.items():
        report.add(
            f"{label}: {name}",
            [value * 1000 for value in values],
            "ms",
            versus="" if name == "cat" else f"{label}: cat",
        )
        report.add(f"{label}: peak, {name}", container.peaks[name][1:], "MiB")
    for name in list(contenders)[1:]:
        as_ratio = paired(got[name], got["cat"], lambda ours, theirs: ours / theirs)
        report.target(f"{label}, {name} beside cat", as_ratio, "x", 1)
        report.target(f"{label}, peak of {name}", max(container.peaks[name][1:]), "MiB", 20)


def report_assembly(report: Report, ground: Ground, rounds: int) -> None:
    """Measure parts that are there."""
    label = f"{ground.count} x 2 MB"
    contenders = {
        "cat": ground.cat,
        "cat, then sha256sum": ground.cat_and_hash,
        "read all, join, write": ground.join,
        "shutil.copyfileobj": ground.copyfileobj,
        "assemble": ground.assemble,
        "assemble, part crc32": ground.assemble_crc32,
        "assemble, sha256": ground.assemble_sha256,
    }
    got = in_turns({name: ground.measure(name, work) for name, work in contenders.items()}, rounds)
    for name, values in got.items():
        versus = "" if name == "cat" else f"{label}: cat"
        report.add(f"{label}: {name}", [value * 1000 for value in values], "ms", versus=versus)
    add_sides(report, ground, label, [name for name in contenders if not name.startswith("cat")])
    as_ratio = paired(got["assemble"], got["cat"], lambda ours, theirs: ours / theirs)
    report.target(f"{label}, assemble beside cat", as_ratio, "x", 1.05)
    as_ratio = paired(got["assemble, sha256"], got["cat, then sha256sum"], lambda ours, theirs: ours / theirs)
    report.target(f"{label}, assemble with sha256 beside cat, then sha256sum", as_ratio, "x", 0.35)
    most = max(max(ground.peaks[name][1:]) for name in contenders if name.startswith("assemble"))
    report.target(f"{label}, peak growth of assemble", most, "MiB", 1)


def report_uploads(report: Report, ground: Ground, rounds: int) -> None:
    """Measure parts that arrive, until the file is published."""
    label = f"{ground.count} x 2 MB"
    options: dict[str, dict[str, object]] = {
        "Upload, crc32": {"durability": "none"},
        "Upload, crc32, two senders": {"durability": "none", "senders": 2},
        "Upload, crc32 and sha256 in order": {"durability": "none", "sha256": True},
        "Upload, crc32, durable": {},
        "Upload, crc32, durable, cache dropped": {"page_cache": "drop"},
    }
    works: dict[str, Callable[[], None]] = {
        "parts, then cat": ground.parts_then_cat,
        "parts, then cat, then sha256sum": ground.parts_then_cat_and_hash,
    }
    works |= {name: ground.upload(name, **given) for name, given in options.items()}  # type: ignore[arg-type]
    got = in_turns({name: ground.measure(name, work) for name, work in works.items()}, rounds)
    for name, values in got.items():
        versus = "" if name == "parts, then cat" else f"{label}: parts, then cat"
        report.add(f"{label}: {name}", [value * 1000 for value in values], "ms", versus=versus)
    for name in options:
        report.add(f"{label}: finish() of {name}", ground.finishing[name][1:], "ms")
    add_sides(report, ground, label, list(works))
    as_ratio = paired(got["Upload, crc32"], got["parts, then cat"], lambda ours, theirs: ours / theirs)
    report.target(f"{label}, Upload with crc32 beside writing parts, then cat", as_ratio, "x", 0.75)
    for name in ("Upload, crc32", "Upload, crc32, durable, cache dropped"):
        middle = sorted(ground.finishing[name][1:])[rounds // 2]
        report.target(f"{label}, finish() of {name}", middle, "ms", 10)
    most = max(ground.peaks["Upload, crc32"][1:])
    report.target(f"{label}, peak growth of an Upload", most, "MiB", 1)


def add_sides(report: Report, ground: Ground, label: str, names: list[str]) -> None:
    """Add what else they took."""
    for name in names:
        report.add(f"{label}: processor, {name}", [value * 1000 for value in ground.processor[name][1:]], "ms")
    for name in names:
        report.add(f"{label}: peak, {name}", ground.peaks[name][1:], "MiB")


def main() -> None:
    """Measure and report."""
    options = read_options(__doc__)
    if not sys.platform.startswith("linux"):
        raise SystemExit("bench_assembly.py: cat and sha256sum are those of Linux")
    report = Report("assembly", options)
    for count, rounds in [(50, 9), (500, 5)]:
        with tempfile.TemporaryDirectory(prefix="bench-assembly-") as folder:
            ground = Ground(Path(folder), count // 5 if options.quick else count)
            report_assembly(report, ground, 2 if options.quick else rounds)
            report_uploads(report, ground, 2 if options.quick else rounds)
            if count == 500:
                report_container(report, ground, 2 if options.quick else 7)
    report.finish()


if __name__ == "__main__":
    main()
