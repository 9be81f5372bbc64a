"""Leaks one thing, KIND, between two snapshots; prints the kind and the type at the top of the report, as JSON."""

import json
import mmap
import sys
import threading

from memguard import take_snapshot


class Session:
    def __init__(self, number):
        self.user = f"user {number}"
        self.data = {"number": number, "tags": [number] * 20}


def sessions(kept):
    kept.extend(Session(number) for number in range(20_000))


def texts(kept):
    kept.extend(f"a text of some length, and no other like it: {number}" for number in range(200_000))


CACHE = {}


def cache(kept):
    CACHE.update((f"key {number}", f"value {number}" * 4) for number in range(100_000))


def rows(kept):
    kept.extend({"id": number, "name": str(number), "more": number} for number in range(60_000))


def buffers(kept):
    kept.extend(bytearray(1024 * 1024) for _ in range(40))


def mappings(kept):
    for _ in range(20):
        block = mmap.mmap(-1, 1024 * 1024, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block[::4096] = b"x" * 256
        kept.append(block)


def segments(kept):
    block = mmap.mmap(-1, 20 * 1024 * 1024)
    block[::4096] = b"x" * (20 * 256)
    kept.append(block)


def files(kept):
    file = open(sys.argv[2], "rb")  # noqa: SIM115
    block = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    kept.append((block, sum(block[::4096])))


def freed(kept):
    """Blocks of 100 kB, every 50th of which stays and pins the rest."""
    blocks = [bytearray(100_000) for _ in range(400)]
    kept.extend(blocks[49::50])


def threads(kept):
    gate = threading.Event()
    for _ in range(20):
        thread = threading.Thread(target=gate.wait, daemon=True)
        thread.start()
        kept.append(thread)


KEPT = []
before = take_snapshot()
globals()[sys.argv[1]](KEPT)
report = take_snapshot().compare(before)
top = report.types[0].name if report.types else None
holders = [each.container.holder for each in report.containers]
print(json.dumps({"kind": report.kind, "top": top, "holders": holders, "text": str(report)}))
