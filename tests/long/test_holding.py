"""
What a bounded cache really holds: resident memory beside its bound, a process beside its limit, sums beside entries.

Long because real memory is filled, in fresh processes, again and again.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memguard import LRUCache
from memguard.cli._box import make_box

pytestmark = pytest.mark.long("holding")
MIB = 1024**2
HOLDING = Path(__file__).with_name("holding.py")
FILLING = Path(__file__).parent.parent / "real" / "filling.py"
KINDS = [
    "dicts",
    "dataclasses",
    "strings of 20",
    "strings of 1000",
    "bytes of 10 kB",
    "lists of dicts",
    "arrays",
    "tuples",
    "sets",
    "nested JSON",
]


def measured(*arguments):
    command = [sys.executable, str(HOLDING), *map(str, arguments)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    grown, entries = map(int, out.stdout.split())
    return grown, entries


def test_a_cache_of_50_mib_takes_38_to_62_of_resident_memory():
    grown = {}
    for kind in KINDS:
        for keys, ttl in (("int", 0), ("str", 0), ("int", 600)):
            grown[kind, keys, ttl], entries = measured("bound", kind, keys, ttl)
            print(
                f"{kind:<16} {keys} keys, ttl {ttl:>3}: {grown[kind, keys, ttl] / MIB:5.1f} MiB, {entries:>7} entries"
            )

    assert {name: nbytes for name, nbytes in grown.items() if not 38 * MIB <= nbytes <= 62 * MIB} == {}


@pytest.mark.parametrize("way", ["reserve", "plain", "threads"])
@pytest.mark.parametrize("each", [10_000, MIB])
def test_a_process_that_fills_its_cache_without_end_is_not_killed_and_nothing_is_refused(way, each):
    for _ in range(5):
        with make_box(300 * MIB, kind="cgroup") as box:
            command = box.command([sys.executable, str(FILLING), way, str(each), str(2048 * MIB)])
            out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            print(f"{way} {each}: {out.stdout.strip()}, peak {box.peak_bytes() // MIB} MiB")
            assert (out.returncode, out.stdout.split(",")[0], box.oom_kills()) == (0, "refused 0", 0), out.stderr


def weigh(value):
    if value == 13:
        raise ArithmeticError
    return value


def tell(key, value, reason):
    if key % 7 == 0:
        raise LookupError


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_bytes": 5000, "sizeof": weigh}, id="bytes"),
        pytest.param({"max_entries": 40, "max_bytes": 5000, "sizeof": weigh}, id="both"),
        pytest.param({"max_bytes": 5000, "sizeof": weigh, "ttl": 0.02}, id="age"),
        pytest.param({"max_bytes": 5000, "sizeof": weigh, "ttl": 0.02, "update_age_on_get": True}, id="sliding"),
        pytest.param({"max_bytes": 5000, "sizeof": weigh, "on_evict": tell}, id="callback"),
        pytest.param({"max_bytes": 5000, "sizeof": weigh, "max_entry_bytes": 150}, id="entries' own bound"),
        pytest.param({"max_entries": 40}, id="entries"),
        pytest.param({"max_entries": 40, "ttl": 0.02, "on_evict": tell}, id="entries, age and callback"),
    ],
)
def test_sums_and_bounds_hold_after_200_000_operations_of_8_threads(options, caplog):
    cache = LRUCache(**options)
    wrong = []

    def operate(seed):
        chance = random.Random(seed)
        for _ in range(25_000):
            key, what = chance.randrange(100), chance.random()
            try:
                if what < 0.5:
                    cache[key] = chance.randrange(300)
                elif what < 0.8:
                    cache.get(key)
                elif what < 0.88:
                    cache.pop(key, None)
                elif what < 0.9:
                    cache.set(key, 5, ttl=chance.choice((None, 0.001, 10)))
                elif what < 0.93:
                    cache.resize(max_bytes=chance.randrange(3000, 5001)) if cache.max_bytes else cache.resize(30)
                elif what < 0.95:
                    cache.shrink(fraction=chance.random() / 3)
                elif what < 0.97:
                    cache.expire()
                elif what < 0.98:
                    cache.clear()
                else:
                    list(cache.items())
            except ArithmeticError:
                pass
            if cache.max_bytes is not None and cache._entries.total_bytes > 5000 + 8 * 300:
                wrong.append(cache._entries.total_bytes)

    threads = [threading.Thread(target=operate, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    caplog.clear()

    inside = cache._entries
    assert wrong == []
    there = inside.there()
    assert inside.count == len(there) == len(inside.data)
    if inside.max_bytes < 10**9:
        assert sum(entry.size for entry in there) == inside.total_bytes <= inside.max_bytes
    assert inside.count <= inside.max_entries


def test_a_million_entries_take_no_more_than_those_of_cachetools():
    pairs = {
        "LRUCache": "cachetools.LRUCache",
        "LRUCache, sizeof": "cachetools.LRUCache, getsizeof",
        "LRUCache, ttl": "cachetools.TTLCache",
    }
    each = {name: measured("entries", name, 1_000_000)[0] / 1e6 for pair in pairs.items() for name in pair}
    print("\n".join(f"{name:<32} {nbytes:6.1f} bytes an entry" for name, nbytes in each.items()))

    assert {ours: each[ours] for ours, theirs in pairs.items() if each[ours] > each[theirs]} == {}
