"""
One suite that every class of the cache passes: what a cache is configured for changes how it stores, not what it does.
"""

from __future__ import annotations

import collections
import copy
import pickle
import random

import pytest

from memguard import LRUCache
from memguard.caching import _direct as direct
from memguard.testing import FakeClock

ROOM = 5
LIFE = 100.0


def weight(value):
    return value % 7 + 1


def hear(key, value, reason):
    """Do nothing: a callback that can be pickled."""


class General(LRUCache):
    """A subclass of the program's own is not specialised."""


def made(name, **more):
    """Return a cache of the class *name*, all with room for five entries."""
    clock = FakeClock()
    options = {"max_entries": ROOM, "timer": clock} | more
    kinds = {
        "counted": (LRUCache, {}, direct.Counted),
        "weighed": (LRUCache, {"sizeof": weight}, direct.Weighed),
        "weighed by bytes": (LRUCache, {"max_bytes": 1000, "sizeof": weight}, direct.Weighed),
        "with a callback": (LRUCache, {"on_evict": hear}, direct.Direct),
        "timed": (LRUCache, {"ttl": LIFE}, direct.Timed),
        "timed and weighed": (LRUCache, {"ttl": LIFE, "sizeof": weight}, direct.Timed),
        "sliding": (LRUCache, {"ttl": LIFE, "update_age_on_get": True}, direct.Timed),
        "general": (General, {}, General),
        "general and weighed": (General, {"sizeof": weight}, General),
        "general and timed": (General, {"ttl": LIFE}, General),
    }
    kind, wanted, specialised = kinds[name]
    cache = kind(**(wanted | options))
    expected = direct.Direct if "on_evict" in more and specialised in (direct.Counted, direct.Weighed) else specialised
    assert type(cache) is (LRUCache if direct.FREE_THREADED and kind is LRUCache else expected)
    return cache, clock


NAMES = [
    "counted",
    "weighed",
    "weighed by bytes",
    "with a callback",
    "timed",
    "timed and weighed",
    "sliding",
    "general",
    "general and weighed",
    "general and timed",
]
each_class = pytest.mark.parametrize("name", NAMES)


def sums_are_right(cache):
    inside = cache._entries
    there = inside.there()
    return (inside.count, inside.total_bytes) == (len(there), sum(entry.size for entry in there))


@each_class
def test_it_does_what_the_simplest_model_does(name):  # noqa: PLR0912
    cache, _ = made(name)
    model = collections.OrderedDict()
    hits = misses = evictions = 0
    dice = random.Random(name)
    for step in range(4000):
        key = dice.randrange(9)
        match dice.randrange(12):
            case 0 | 1 | 2 | 3:
                if key not in model and len(model) == ROOM:
                    model.popitem(last=False)
                    evictions += 1
                cache[key] = model[key] = step
                model.move_to_end(key)
            case 4 | 5 | 6:
                assert cache.get(key) == model.get(key)
                hits, misses = hits + (key in model), misses + (key not in model)
                if key in model:
                    model.move_to_end(key)
            case 7:
                if key in model:
                    assert cache[key] == model[key]
                    model.move_to_end(key)
                    hits += 1
                else:
                    with pytest.raises(KeyError):
                        cache[key]
                    misses += 1
            case 8:
                assert cache.pop(key, None) == model.pop(key, None)
            case 9:
                assert (key in cache, cache.peek(key)) == (key in model, model.get(key))
            case 10 if model and dice.random() < 0.2:
                assert cache.popitem() == model.popitem(last=False)
            case 11 if dice.random() < 0.05:
                cache.clear()
                model.clear()
        assert len(cache) == len(model)
        assert sums_are_right(cache)
        if step % 10 == 0:
            assert list(cache.items()) == list(model.items())
    counts = cache.statistics()
    assert (counts.hits, counts.misses, counts.evictions, counts.entries) == (hits, misses, evictions, len(model))


@each_class
def test_the_order_after_reads_decides_what_goes(name):
    cache, _ = made(name)
    for key in range(ROOM):
        cache[key] = key
    for key in (3, 0, 4):
        assert cache.get(key) == key
    assert cache[1] == 1
    order = [2, 3, 0, 4, 1]

    for new, gone in zip("vwxyz", order, strict=True):
        assert gone in cache
        cache[new] = 1
        assert gone not in cache
        assert len(cache) == ROOM


@each_class
def test_a_value_that_is_stored_again_is_the_newest_and_counted_once(name):
    cache, _ = made(name)
    for key in range(ROOM):
        cache[key] = key
    cache[0] = 6

    assert list(cache) == [1, 2, 3, 4, 0]
    assert sums_are_right(cache)
    cache["new"] = 1
    assert list(cache) == [2, 3, 4, 0, "new"]


@each_class
def test_keys_of_any_kind_are_found_and_go_in_order(name):
    class Key:
        def __init__(self, number):
            self.number = number

        def __hash__(self):
            return hash(self.number)

        def __eq__(self, other):
            return self.number == (other.number if isinstance(other, Key) else other)

    cache, _ = made(name)
    cache["plain"] = 1
    cache[7] = 2
    assert cache.get(Key(7)) == 2
    cache[Key(7)] = 3
    cache[Key(8)] = 4
    cache[(1, Key(9))] = 5
    assert (cache[7], cache[8], cache.get((1, 9)), len(cache)) == (3, 4, 5, 4)
    assert cache.pop(8) == 4
    for number in range(ROOM):
        cache[Key(number)] = number
    assert list(cache) == list(range(ROOM))
    assert sums_are_right(cache)


@each_class
def test_a_key_whose_hash_changes_does_not_eat_the_bound(name):
    class Key:
        hashed = 1

        def __hash__(self):
            return self.hashed

    cache, _ = made(name)
    keys = [Key() for _ in range(ROOM)]
    for key in keys:
        cache[key] = 1
    for number, key in enumerate(keys):
        key.hashed = 100 + number
    for number in range(50):
        cache[number] = number

    assert list(cache) == list(range(45, 50))
    assert len(cache._entries.data) == ROOM
    assert sums_are_right(cache)


@each_class
def test_the_callback_hears_once_of_each_entry_that_goes(name):
    told = []
    cache, _ = made(name, on_evict=lambda key, value, reason: told.append((key, value, reason)))
    for key in range(ROOM + 2):
        cache[key] = key
    cache[4] = 9
    del cache[5]
    cache.clear()

    assert told == [
        (0, 0, "entries"),
        (1, 1, "entries"),
        (4, 4, "replaced"),
        (5, 5, "deleted"),
        *[(key, key, "deleted") for key in (2, 3)],
        *[(4, 9, "deleted"), (6, 6, "deleted")],
    ]


@each_class
def test_ages_count_from_the_first_that_is_given_on(name):
    cache, clock = made(name)
    cache["before"] = 1
    cache.set("short", 2, ttl=5)
    clock.advance(5)

    assert "short" not in cache
    assert cache.get("short") is None
    assert cache.get("before") == 1
    assert list(cache) == ["before"]
    assert sums_are_right(cache)


@each_class
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_is_the_same_and_goes_its_own_way(name, copied):
    cache, clock = made(name)
    cache.update({key: key for key in range(ROOM)})
    cache.get(0)
    twin = copied(cache)

    assert (type(twin), list(twin.items())) == (type(cache), list(cache.items()))
    assert twin.total_bytes == cache.total_bytes
    twin["new"] = 1
    assert ("new" in cache, 1 in cache, 1 in twin) == (False, True, False)
    assert sums_are_right(twin)


@each_class
def test_sieve_keeps_what_was_read_since_it_was_looked_at(name):
    cache, _ = made(name, policy="sieve")
    assert cache.policy == "sieve"
    for key in range(ROOM):
        cache[key] = key
    cache.get(0), cache.get(2)

    cache["a"] = 1  # 0 was read and is kept; 1 goes
    assert sorted(map(str, cache)) == ["0", "2", "3", "4", "a"]
    cache["b"] = 1  # 2 was read and is kept; 3 goes
    cache["c"] = 1
    cache["d"] = 1  # none of 4, a was read
    assert sorted(map(str, cache)) == ["0", "2", "b", "c", "d"]
    for key in "bcd":
        cache.get(key)
    cache["e"] = 1  # once around: 0 was not read again
    assert 0 not in cache
    assert sums_are_right(cache)


@each_class
def test_sieve_holds_its_bound_and_its_sums_whatever_happens(name):
    cache, _ = made(name, policy="sieve")
    dice = random.Random(name)
    for step in range(4000):
        key = dice.randrange(9)
        match dice.randrange(6):
            case 0 | 1 | 2:
                cache[key] = step
                assert cache.peek(key) == step
            case 3 | 4:
                cache.get(key)
            case 5:
                cache.pop(key, None)
        assert len(cache) <= ROOM
        assert sums_are_right(cache)


def test_sieve_is_what_its_authors_describe():
    """Beside a list that is gone through by a hand, entry by entry."""
    cache, room = LRUCache(20, policy="sieve"), 20
    line, read, hand = [], set(), 0  # the oldest first
    dice = random.Random(1)
    for _ in range(20_000):
        key = round(dice.paretovariate(0.7))
        if cache.get(key) is not None:
            assert key in line
            read.add(key)
            continue
        assert key not in line
        if len(line) == room:
            while line[hand] in read:
                read.discard(line[hand])
                hand = (hand + 1) % room
            line.pop(hand)
            hand = hand % len(line) if hand < len(line) else len(line)
        line.append(key)
        if hand == len(line):
            hand = 0
        cache[key] = 1
    assert sorted(cache) == sorted(line)


def test_a_policy_is_one_of_two():
    with pytest.raises(ValueError, match="'lru' or 'sieve', got 'mru'"):
        LRUCache(5, policy="mru")
