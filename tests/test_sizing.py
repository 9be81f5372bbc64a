"""
What a value costs, beside what tracemalloc saw when it was made.
"""

from __future__ import annotations

import array
import collections
import ctypes
import datetime as dt
import decimal
import gc
import io
import json
import mmap
import random
import string
import subprocess
import sys
import time
import tracemalloc
import types
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from memguard import deep_sizeof

MIB = 1024**2

CHANCE = random.Random(1)
COPIES = 30


def text(length: int) -> str:
    return "".join(CHANCE.choices(string.ascii_letters, k=length))


def record(number: int = 5) -> dict[str, Any]:
    return {
        "id": number + 1000,
        "name": text(12),
        "email": text(20),
        "age": number % 90,
        "score": CHANCE.random(),
        "active": True,
        "tags": None,
        "city": text(8),
        "balance": CHANCE.random(),
    }


def wide_record(number: int) -> dict[str, Any]:
    return {**{f"field {at}": number + at + 1000 for at in range(39)}, "text": text(2000)}


def dated(number: int) -> dict[str, Any]:
    whole = decimal.Decimal(number * 1001) / 7
    times = [dt.datetime(2026, 1, 1 + number % 28, hour, tzinfo=dt.UTC) for hour in range(5)]
    return {"id": uuid.UUID(int=number), "sum": whole, "times": times, "day": dt.date(2026, 1, 1 + number % 28)}


@dataclass
class Point:
    id: int
    name: str
    score: float
    city: str = "Rome"


@dataclass(slots=True)
class Slotted:
    id: int
    name: str
    score: float
    city: str = "Rome"


class Model:
    """As pydantic lays out its own."""

    __slots__ = ("__dict__", "extra", "fields_set")

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)
        self.fields_set = set(values)
        self.extra = None


class Node:
    def __init__(self, parent: Node | None = None) -> None:
        self.parent = parent
        self.children: list[Node] = []


Named = collections.namedtuple("Named", "id name score")  # noqa: PYI024 - as most are written


def tree() -> Node:
    root = Node()
    root.children = [Node(root) for _ in range(200)]
    return root


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"child": value, "name": text(10)}
    return value


def cycle() -> list[Any]:
    value: list[Any] = [text(30)]
    value.append(value)
    return value


ONE = json.dumps(record())
MANY = json.dumps([record(number) for number in range(500)])
DEEP = json.dumps({"users": [{"at": record(n), "past": [CHANCE.random() for _ in range(20)]} for n in range(100)]})

SHAPES: dict[str, Callable[[], object]] = {
    "a record": record,
    "a list of records": lambda: [record(number) for number in range(500)],
    "a dict of records": lambda: {text(12): record(number) for number in range(200)},
    "a list of wide records": lambda: [wide_record(number) for number in range(300)],
    "records that share one": lambda: [{"id": n + 1000, "of": CONFIGURATION} for n in range(5000)],
    "JSON": lambda: json.loads(ONE),
    "a list from JSON": lambda: json.loads(MANY),
    "nested JSON": lambda: json.loads(DEEP),
    "dated records": lambda: [dated(number) for number in range(1000)],
    "a page": lambda: {"items": [record(number) for number in range(20)], "total": 12345, "next": text(30)},
    "a dataclass": lambda: Point(id(object()), text(12), CHANCE.random(), text(8)),
    "a dataclass with slots": lambda: Slotted(id(object()), text(12), CHANCE.random(), text(8)),
    "a list of dataclasses": lambda: [Point(n + 1000, text(12), CHANCE.random()) for n in range(500)],
    "a list with slots": lambda: [Slotted(n + 1000, text(12), CHANCE.random()) for n in range(500)],
    "a model": lambda: Model(**record()),
    "a named tuple": lambda: Named(id(object()), text(12), CHANCE.random()),
    "named tuples": lambda: [Named(n + 1000, text(12), CHANCE.random()) for n in range(500)],
    "a tree with parents": tree,
    "a short string": lambda: text(20),
    "a long string": lambda: text(1000),
    "bytes": lambda: bytes(100_001),
    "a bytearray": lambda: bytearray(100_000),
    "a view of bytes": lambda: memoryview(bytes(100_000))[10:20],
    "an array": lambda: array.array("d", range(10_000)),
    "a deque": lambda: collections.deque(text(10) for _ in range(1000)),
    "a set": lambda: {text(10) for _ in range(2000)},
    "a small set": lambda: {text(10) for _ in range(20)},
    "a dict of ints": lambda: {number + 1000: CHANCE.random() for number in range(100_000)},
    "a dict of strings": lambda: {text(12): text(10) for _ in range(1000)},
    "an ordered dict": lambda: collections.OrderedDict((text(8), number + 1000) for number in range(40)),
    "a defaultdict": lambda: collections.defaultdict(list, {text(5): [number + 1000] for number in range(20)}),
    "lists in a dict": lambda: {text(8): [CHANCE.random() for _ in range(30)] for _ in range(100)},
    "floats": lambda: [CHANCE.random() for _ in range(10_000)],
    "a matrix": lambda: [[CHANCE.random() for _ in range(120)] for _ in range(120)],
    "a cube": lambda: [[[CHANCE.random() for _ in range(25)] for _ in range(25)] for _ in range(25)],
    "two kinds in turn": lambda: [each for n in range(640) for each in (n + 1000, text(200))],
    "first one kind, then another": lambda: [text(10)] * 1000 + [record(number) for number in range(500)],
    "one string again and again": lambda: [text(1000)] * 1000,
    "one record again and again": lambda: [record()] * 1000,
    "nested 50 deep": lambda: nested(50),
    "a cycle": cycle,
}
CONFIGURATION = {"text": text(50_000)}  # what is held from outside is counted, once


def made(make: Callable[[], object], copies: int) -> tuple[float, object]:
    """Return the bytes that one takes, as allocators round them, and one."""
    kept = [make() for _ in range(copies)]  # the first instances of a class are larger
    gc.collect()
    values: list[object] = [None] * copies
    tracemalloc.start()
    try:
        for number in range(copies):
            values[number] = make()
        gc.collect()
        traces = tracemalloc.take_snapshot().traces._traces  # type: ignore[attr-defined]
    finally:
        tracemalloc.stop()
    assert len(kept) == copies
    return sum((trace[1] + 15) & -16 for trace in traces) / copies, values[0]


# Long: once, in a whole run on 3.13, it was 10.4 % off, and never by itself. The cause is not known.
UNSTEADY = {"a tree with parents"}


@pytest.mark.parametrize(
    "shape", [pytest.param(each, marks=[pytest.mark.long("holding")] if each in UNSTEADY else []) for each in SHAPES]
)
def test_the_estimate_is_within_a_tenth_of_what_was_allocated(shape):
    make = SHAPES[shape]
    value = make()
    nbytes, value = made(make, COPIES if deep_sizeof(value) < 20_000 else 1)
    if shape == "records that share one":
        nbytes += deep_sizeof(CONFIGURATION)

    assert deep_sizeof(value) == pytest.approx(nbytes, rel=0.1, abs=32)


def arrays() -> dict[str, Callable[[Any], object]]:
    return {
        "numbers": lambda np: np.arange(10_000) * 1.5,
        "a few numbers": lambda np: np.arange(10) * 1.5,
        "a view": lambda np: (np.arange(10_000) * 1.5)[:16],
        "transposed": lambda np: np.ones((100, 100)).T,
        "over bytes": lambda np: np.frombuffer(bytes(100_000), dtype="u1")[:10],
        "objects": lambda np: np.array([text(10) for _ in range(1000)], dtype=object),
        "lists": lambda np: np.array([{"a": [text(5)]} for _ in range(100)], dtype=object),
        "strings": lambda np: np.array([text(20) for _ in range(1000)]),
        "scalars": lambda np: [np.float64(CHANCE.random()) for _ in range(500)],
        "masked": lambda np: np.ma.masked_array(np.ones(10_000), np.zeros(10_000, bool)),
        "in a dict": lambda np: {"a": np.ones(1000), "b": np.ones(1000), "name": text(5)},
    }


# Long, these two: what they need takes longer to install than all the rest.
@pytest.mark.long("holding")
@pytest.mark.parametrize("shape", arrays())
def test_arrays_count_with_what_they_keep_alive(shape):
    np = pytest.importorskip("numpy")
    nbytes, value = made(lambda: arrays()[shape](np), 5)

    assert deep_sizeof(value) == pytest.approx(nbytes, rel=0.1, abs=128)


def tables() -> dict[str, Callable[[Any], object]]:
    return {
        "numbers": lambda pd: pd.DataFrame({"a": [n * 1.5 for n in range(5000)], "b": list(range(5000))}),
        "three rows": lambda pd: pd.DataFrame({"a": [1, 2, 3], "b": [1.0, 2.0, 3.0]}),
        "strings": lambda pd: pd.DataFrame({"a": pd.Series([text(12) for _ in range(5000)], dtype=object)}),
        "rows of a larger one": lambda pd: pd.DataFrame({"a": [n * 1.5 for n in range(20_000)]}).iloc[:10],
        "categories": lambda pd: pd.DataFrame({"a": pd.Categorical([text(1) for _ in range(10_000)])}),
        "a series": lambda pd: pd.Series([n * 1.5 for n in range(5000)]),
        "an index": lambda pd: pd.Index([text(5) for _ in range(1000)], dtype=object),
    }


@pytest.mark.long("holding")
@pytest.mark.parametrize("shape", tables())
def test_tables_count_with_their_index_and_what_they_keep_alive(shape):
    pd = pytest.importorskip("pandas")
    nbytes, value = made(lambda: tables()[shape](pd), 3)

    assert deep_sizeof(value) == pytest.approx(nbytes, rel=0.1, abs=4096)


def test_neither_numpy_nor_pandas_is_imported():
    code = "import sys, memguard; memguard.deep_sizeof([object()]); print({'numpy', 'pandas'} & set(sys.modules))"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "set()"


# ----- bounds


def test_a_list_nested_100_000_deep_is_no_recursion():
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]

    assert deep_sizeof(value) > 50_000
    while value:  # or freeing it recurses
        value = value.pop()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: list(range(1_000_000)), id="long"),
        pytest.param(lambda: dict.fromkeys(range(1_000_000)), id="many keys"),
        pytest.param(lambda: [[[[0.5] * 40] * 1 for _ in range(40)] for _ in range(1000)], id="broad"),
        pytest.param(lambda: [{n: [n] for n in range(100)} for _ in range(1000)], id="broad dicts"),
    ],
)
def test_time_is_bounded_whatever_the_length(make):
    value = make()
    seconds = []
    for _ in range(3):
        began = time.process_time()
        deep_sizeof(value)
        seconds.append(time.process_time() - began)

    assert min(seconds) < 0.1  # milliseconds; the rest is for a busy machine


def test_no_more_than_max_objects_are_looked_at():
    looked = []

    class Loud:
        def __sizeof__(self):
            looked.append(self)
            return 1000

    value = [[Loud() for _ in range(100)] for _ in range(100)]

    assert deep_sizeof(value, max_objects=500) == pytest.approx(100 * 100 * 1000, rel=0.5)
    assert len(looked) <= 500


def test_max_objects_is_1_or_more():
    with pytest.raises(ValueError, match="max_objects"):
        deep_sizeof([1], max_objects=0)


def test_one_object_is_enough_for_an_answer():
    assert deep_sizeof([text(100), text(100)], max_objects=1) > 0


def test_the_same_value_has_the_same_size_each_time():
    value = [record(number) for number in range(3000)]

    assert deep_sizeof(value) == deep_sizeof(value)


def test_looking_makes_no_instance_larger():
    points = [Point(number, text(10), 0.5) for number in range(100)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for point in points:
            deep_sizeof(point)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert grown < 100 * 32


# ----- what counts, and what does not


def test_what_is_shared_counts_once():
    whole = [text(1000)] * 2

    assert deep_sizeof(whole) < deep_sizeof(whole[0]) + 200


def test_names_that_others_hold_too_do_not_count():
    names = [text(50) for _ in range(10)]

    assert deep_sizeof(dict.fromkeys(names)) < deep_sizeof(dict.fromkeys(text(50) for _ in range(10))) - 500


def test_what_is_there_anyway_does_not_count():
    import enum
    import logging

    class Colour(enum.Enum):
        RED = 1

    class Service:
        def __init__(self) -> None:
            self.colour, self.log, self.kind, self.call = Colour.RED, logging.getLogger("x"), Service, text

    assert deep_sizeof(Service()) < 200


class Broken:
    def __init__(self) -> None:
        self.text = text(1000)

    def __sizeof__(self):
        raise RuntimeError


class Negative(Broken):
    def __sizeof__(self):
        return -1


class NoNumber(Broken):
    def __sizeof__(self):
        return "large"


@pytest.mark.parametrize("kind", [Broken, Negative, NoNumber])
def test_a_broken_sizeof_is_passed_over(kind):
    assert deep_sizeof([kind()]) == pytest.approx(1250, rel=0.1)


class List(list):
    def __len__(self):
        raise RuntimeError

    def __iter__(self):
        raise RuntimeError


class Dict(dict):
    def __iter__(self):
        raise RuntimeError

    def __sizeof__(self):
        raise RuntimeError


@pytest.mark.parametrize("value", [List([text(1000)]), Dict(a=text(1000))])
def test_containers_that_cannot_be_iterated_count_nevertheless(value):
    assert 1000 < deep_sizeof(value) < 1500


def test_a_proxy_is_not_woken():
    class Proxy:
        @property
        def __class__(self):
            raise RuntimeError("not bound")

    assert deep_sizeof([Proxy()]) < 300


def test_a_released_view_has_a_size():
    view = memoryview(bytes(1000))
    view.release()

    assert deep_sizeof(view) < 500


def test_attributes_of_a_list_of_one_s_own_kind_count():
    class Page(list):
        pass

    page = Page([1000])
    page.text = text(1000)

    assert 1000 < deep_sizeof(page) < 1600


def outside():
    """What holds memory that Python's own sizes do not show, and the bytes of each."""
    text = io.StringIO()
    text.write("x" * MIB)
    mapped = mmap.mmap(-1, MIB)
    made = types.SimpleNamespace(buffer=ctypes.create_string_buffer(MIB))
    structure = type("Record", (ctypes.Structure,), {"_fields_": [("bytes", ctypes.c_char * MIB)]})
    return {
        "text that was added to": (text, MIB),
        "text that is read": (io.StringIO("x" * MIB), 4 * MIB),
        "mapped memory": (mapped, MIB),
        "an array of C": ((ctypes.c_char * MIB)(), MIB),
        "a structure of C": (structure(), MIB),
        "a buffer of C in an object": (made, MIB),
        "numbers of C": ((ctypes.c_double * (MIB // 8))(), MIB),
    }


@pytest.mark.parametrize("name", outside())
def test_memory_outside_of_python_counts(name):
    value, nbytes = outside()[name]

    assert 0.95 * nbytes < deep_sizeof(value) < 1.1 * nbytes


def test_to_size_a_text_does_not_move_in_it():
    text = io.StringIO("abcdef")
    text.seek(2)
    deep_sizeof(text)

    assert text.read() == "cdef"


def test_a_kind_of_one_s_own_that_comes_from_a_library_s_counts_like_the_library_s():
    base = type("Tensor", (), {"__module__": "torch", "nbytes": MIB})
    mine = type("Mine", (type("Between", (base,), {"__module__": "between"}),), {"__module__": "mine"})

    assert deep_sizeof(mine()) == deep_sizeof(base()) == MIB


def test_a_class_that_says_nothing_of_its_module_has_a_size():
    class Meta(type):
        @property
        def __module__(cls):
            raise RuntimeError("no")

    class Odd(metaclass=Meta):
        pass

    nameless = {}
    exec("Nameless = type('Nameless', (), {})", {"__builtins__": {"type": type}}, nameless)

    assert 0 < deep_sizeof(Odd()) < 1000
    assert 0 < deep_sizeof(nameless["Nameless"]()) < 1000


def test_a_container_that_changes_meanwhile_has_a_size():
    class Changing(dict):
        pass

    live = Changing({number: str(number) for number in range(100)})

    def change(phase, info):
        live[len(live)] = "new"

    gc.callbacks.append(change)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        assert deep_sizeof(live) > 0
        assert deep_sizeof({"inside": live}) > 0
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(change)


class Labelled(io.BytesIO):
    """One with an attribute."""


def test_the_buffer_of_a_bytes_file_counts_once():
    plain, labelled = io.BytesIO(), Labelled()
    for file in (plain, labelled):
        file.write(bytes(1_000_000))  # given at once, the bytes would be those of the caller as long as it has them
    labelled.more = bytes(1_000_000)

    assert deep_sizeof(plain) == pytest.approx(1_000_000, rel=0.15)
    assert deep_sizeof(labelled) == pytest.approx(2_000_000, rel=0.15)
