"""
What `no_memory_leak` calls a leak, and what not.
"""

from __future__ import annotations

import pytest

from memguard.pytest_plugin._repeat import Counters, Round, judge

pytest_plugins = ["pytester"]

LEAKS = """
import contextvars, ctypes, gc, itertools, threading, weakref
import pytest

pytestmark = pytest.mark.no_memory_leak
KEPT, SMALL, CACHE, NUMBERS = [], [], {}, itertools.count(1000)


class Event:
    def __init__(self):
        self.listeners = []


EVENT, LOCAL, VAR, OWNERS = Event(), threading.local(), contextvars.ContextVar("var", default=()), []


def test_numbers_in_a_list():
    KEPT.append(next(NUMBERS))


def test_small_numbers_in_a_list():
    SMALL.append(1)


def test_text_in_a_list():
    KEPT.append(f"line {next(NUMBERS)}")


def test_dicts_in_a_list():
    KEPT.append({"number": 1})


def test_a_cache_without_a_bound():
    CACHE[next(NUMBERS)] = "value"


def test_cycles_while_the_collector_is_off():
    gc.disable()  # the test's own doing: nobody will ever collect them

    def closure():
        return closure


def test_buffers():
    KEPT.append(bytearray(50_000))


def test_native_memory():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc(1000)


def test_listeners_that_are_never_removed():
    EVENT.listeners.append(lambda: None)


def test_attributes_of_a_thread():
    LOCAL.__dict__.setdefault("seen", set()).add(next(NUMBERS))


def test_a_context_variable_that_grows():
    VAR.set((VAR.get(), "another"))


def test_generators_that_are_not_finished():
    numbers = iter(i for i in range(3))
    next(numbers)
    KEPT.append(numbers)


def test_callbacks_of_weak_references():
    owner = Event()
    OWNERS.append(weakref.ref(owner, lambda ref: None))
"""

CLEAN = """
import contextvars, functools, gc, json, logging, random, re, sys, threading, warnings, weakref
import pytest

pytestmark = pytest.mark.no_memory_leak
CALLS, RANDOM, BOUNDED, LIVE = [0], random.Random(1), {}, weakref.WeakSet()


class Node:
    pass


@functools.lru_cache(512)
def cached(number):
    return str(number) * 3


def number():
    CALLS[0] = (CALLS[0] + 1) % 10_000
    return CALLS[0]


def test_an_lru_cache_that_fills():
    cached(number())


def test_the_cache_of_re():
    re.compile(f"x{number()}")


def test_a_cache_of_random_keys_with_a_bound():
    BOUNDED[RANDOM.randrange(10_000) + 1000] = "value"
    while len(BOUNDED) > 256:
        BOUNDED.pop(next(iter(BOUNDED)))


def test_few_random_keys():
    BOUNDED[-RANDOM.randrange(500)] = "value"


def test_cycles_that_are_collected():
    node = Node()
    node.me = node


def test_large_buffers():
    assert len(bytearray(3_000_000)) + len(b"x" * 100_000)


def test_json_there_and_back():
    assert json.loads(json.dumps({"rows": [{"id": i, "name": f"n{i}"} for i in range(50)]}))


def test_sorting():
    assert sorted(range(2000), reverse=True)


def test_interned_text():
    assert sys.intern(f"name {number() % 50}")


def test_a_thread_that_ends():
    thread = threading.Thread(target=cached, args=(1,))
    thread.start()
    thread.join()


def test_weak_references():
    LIVE.add(Node())


def test_generators_and_errors():
    def numbers():
        yield from range(10)

    next(numbers())
    with pytest.raises(ZeroDivisionError):
        1 / 0


def test_a_log_and_warnings():
    logging.getLogger("test").error("pytest keeps this for its report")
    warnings.warn(f"and this {number()}", UserWarning)


def test_a_context_that_ends():
    contextvars.copy_context().run(len, "text")
"""


def test_leaking_functions_fail_and_clean_ones_pass(pytester):
    pytester.makepyfile(test_leaks=LEAKS, test_clean=CLEAN)

    leaks = pytester.runpytest_subprocess("test_leaks.py", "-q")
    clean = pytester.runpytest_subprocess("test_clean.py", "-q")

    leaks.assert_outcomes(failed=LEAKS.count("def test_"))
    clean.assert_outcomes(passed=CLEAN.count("def test_"))


def rounds(*growth, calls=(100, 150, 225)):
    return [Round(number, Counters(blocks, nbytes)) for number, (blocks, nbytes) in zip(calls, growth, strict=True)]


@pytest.mark.parametrize(
    ("growth", "leak"),
    [
        pytest.param([(100, 0), (150, 0), (225, 0)], True, id="one block a call"),
        pytest.param([(0, 800), (0, 1000), (0, 2000)], True, id="a list's 8 bytes a call, in steps"),
        pytest.param([(10, 0), (15, 0), (23, 0)], True, id="one block in ten calls"),
        pytest.param([(100, 0), (90, 0), (40, 0)], False, id="it fades"),
        pytest.param([(100, 0), (0, 5000), (225, 0)], False, id="now blocks, now bytes"),
        pytest.param([(3, 0), (3, 0), (3, 0)], False, id="a few blocks a round"),
        pytest.param([(0, -9), (0, 300), (0, 1)], False, id="noise of malloc"),
    ],
)
def test_growth_that_persists_is_a_leak(growth, leak):
    assert judge(rounds(*growth)) is leak
