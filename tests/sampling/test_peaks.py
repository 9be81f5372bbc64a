"""
Peaks of blocks that begin and end at any moment, in any thread, with any meter.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import os
import random
import signal
import sys
import threading
import tracemalloc
import weakref

import pytest

from memguard import measure_peak
from memguard.sampling import _files as files
from memguard.sampling import _peak, measure_cheaply
from memguard.sampling._notes import Notes
from memguard.sampling._peak import _Blocks, _KernelMark, _SampledMark

MIB = 1024**2


def touch(nbytes):
    """Memory that is new and not malloc's, so that free pages of an arena cannot stand in for it."""
    block = mmap.mmap(-1, nbytes)
    block[::4096] = b"x" * len(range(0, nbytes, 4096))
    return block


linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's mark")
signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such signals here")


class Mark:
    """A mark that is set by hand; notes what is asked of it."""

    name = "kernel"

    def __init__(self):
        self.current = self.peak = 0
        self.running = 0
        self.broken: OSError | None = None
        self.on_read = None

    def start(self):
        self.running = 1

    def stop(self):
        self.running = 0

    def use(self, now, peak=0):
        self.current, self.peak = now, max(self.peak, now, peak)

    def read(self):
        if self.broken is not None:
            raise self.broken
        seen = self.current, self.peak
        if self.on_read is not None:
            meanwhile, self.on_read = self.on_read, None
            meanwhile()
        return seen

    def reset(self):
        self.peak = self.current

    def forget_threads(self):
        pass


@pytest.fixture
def mark(monkeypatch):
    mark = Mark()
    monkeypatch.setattr(_peak, "_all_blocks", {"kernel": _Blocks(mark)})
    monkeypatch.setattr(_KernelMark, "works", staticmethod(lambda: True))
    return mark


@pytest.fixture(autouse=True)
def _the_kernel_is_asked_anew():
    known = _KernelMark._known
    yield
    _KernelMark._known = known


def blocks():
    return _peak._all_blocks["kernel"]


def test_each_block_gets_the_highest_since_it_began(mark):
    mark.use(10)
    with measure_cheaply() as outer:
        mark.use(15, peak=90)
        with measure_cheaply() as inner:
            mark.use(20, peak=50)
        with measure_cheaply() as idle:
            pass
        mark.use(12)

    assert [each.peak_bytes for each in (outer, inner, idle)] == [80, 35, 0]
    assert [each.kept_bytes for each in (outer, inner, idle)] == [2, 5, 0]


def test_a_block_that_interrupts_the_beginning_of_another_is_told_apart(mark):
    """A finalizer or a signal handler that measures, between the reading of the mark and what is done with it."""
    mark.use(10, peak=500)
    inner = measure_cheaply()

    def meanwhile():
        with inner:
            mark.use(10, peak=60)

    mark.on_read = meanwhile
    with measure_cheaply() as outer:
        mark.use(10, peak=70)

    assert (inner.peak_bytes, outer.peak_bytes) == (50, 60)
    assert not mark.running


def test_a_block_that_begins_while_another_ends_is_told_apart(mark):
    mark.use(10)
    late = measure_cheaply()
    with measure_cheaply() as early:
        mark.use(10, peak=500)
        mark.on_read = late.__enter__
    late.__exit__(None, None, None)

    assert early.peak_bytes == 490
    assert late.peak_bytes == 0


def test_an_exception_in_the_middle_of_a_beginning_leaves_nothing_open(mark):
    def interrupt():
        raise KeyboardInterrupt

    mark.on_read = interrupt
    with pytest.raises(KeyboardInterrupt), measure_cheaply():
        pass

    assert (len(blocks()._open), mark.running) == (0, 0)


def test_an_exception_in_the_middle_of_an_end_leaves_nothing_open(mark):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), measure_cheaply():
        mark.on_read = interrupt

    assert (len(blocks()._open), mark.running) == (0, 0)


def test_a_block_that_dies_without_an_end_is_forgotten(mark):
    block = measure_cheaply()
    block.__enter__()
    gone = weakref.ref(block)

    del block
    gc.collect()

    assert gone() is None
    assert (len(blocks()._open), mark.running) == (0, 0)


def test_of_many_open_blocks_each_knows_its_own_highest(mark):
    """Against the plain rule, with notes that fall for long, so that most of them answer nobody."""
    chance = random.Random(3)
    level, opened, ended = 10**6, [], []
    for step in range(2000):
        level -= chance.randint(0, 3)
        if step % 7 == 0:
            level += chance.randint(0, 400)
        mark.use(level)
        for _, seen in opened:
            seen[0] = max(seen[0], level)
        if chance.random() < 0.3:
            block = measure_cheaply().__enter__()
            opened.append((block, [level]))
        elif opened and chance.random() < 0.3:
            ended.append(opened.pop(chance.randrange(len(opened))))
            ended[-1][0].__exit__(None, None, None)

    assert [block.peak_bytes for block, _ in ended] == [seen[0] - block.before_bytes for block, seen in ended]
    head = blocks()._notes._head
    assert head.length <= 64 + 2 * len(opened)
    for block, _ in opened:
        block.__exit__(None, None, None)


def test_notes_that_come_late_are_put_in_order():
    notes = Notes()
    for ticket, peak in [(1, 50), (4, 20), (3, 30), (2, 10), (6, 5), (5, 40)]:
        notes.add(ticket, peak, 9, list)

    assert [notes.highest(since) for since in range(1, 8)] == [50, 40, 40, 40, 40, 5, 0]


@pytest.mark.parametrize("where", ["start", "end"])
def test_where_the_kernel_refuses_while_it_runs_another_meter_measures(mark, where):
    error = PermissionError(errno.EACCES, "no")
    mark.broken = error if where == "start" else None
    with measure_cheaply() as cheap:
        mark.broken = error
        kept = touch(16 * MIB)

    assert cheap.meter == "sampled"
    assert cheap.peak_bytes >= (14 * MIB if where == "start" else 0)
    assert kept
    mark.broken = None
    with measure_cheaply() as again:
        pass
    assert again.meter == "kernel"


def test_what_was_seen_before_the_kernel_refused_counts(mark):
    mark.use(2**40)
    with measure_cheaply() as outer:
        mark.use(2**40, peak=2**41)
        with measure_cheaply():
            pass
        mark.broken = OSError(errno.EMFILE, "no")

    assert (outer.meter, outer.peak_bytes) == ("sampled", 2**40)


def test_a_peak_that_the_kernel_refuses_is_tracemalloc_s(mark):
    mark.broken = OSError(errno.EMFILE, "no")
    with measure_peak() as peak:
        block = bytearray(8 * MIB)
        del block

    assert peak.meter == "tracemalloc"
    assert 7 * MIB < peak.peak_bytes < 9 * MIB
    assert not tracemalloc.is_tracing()


@linux
def test_a_mark_that_can_be_read_but_no_longer_be_reset_is_right_to_blocks_that_are_open(monkeypatch):
    with measure_peak(meter="kernel") as outer:
        block = bytearray(32 * MIB)
        del block
        monkeypatch.setattr(_peak, "write_once", refuse)
        with measure_cheaply() as inner:
            pass

    assert outer.meter == "kernel"
    assert outer.peak_bytes > 30 * MIB
    assert inner.meter == "sampled"


def refuse(*_):
    raise PermissionError(errno.EACCES, "no")


@linux
@pytest.mark.parametrize(
    ("number", "asked"), [(errno.EMFILE, 3), (errno.EACCES, 1)], ids=["a want that may pass", "a right that is missing"]
)
def test_the_kernel_is_asked_again_only_where_it_may_say_something_else(monkeypatch, number, asked):
    calls = []

    def fail(*_):
        calls.append(1)
        raise OSError(number, "no")

    _KernelMark._known = None
    monkeypatch.setattr(_peak, "write_once", fail)

    assert [_KernelMark.works() for _ in range(3)] == [False] * 3
    assert len(calls) == asked


@linux
def test_a_status_that_does_not_tell_the_peak_is_no_zero(tmp_path):
    mark = _KernelMark()
    mark._status = files.KeptFile(tmp_path / "status")
    (tmp_path / "status").write_text("Name: x\nVmRSS: 5 kB\n")

    with pytest.raises(OSError, match="VmHWM"):
        mark.read()
    mark._status.close()


GIVE_UP = """
import os, sys, memguard, tracemalloc
from memguard.sampling import measure_cheaply
monitor = memguard.MemoryMonitor()
with monitor.track("before"): pass
outer, tracked = measure_cheaply(), monitor.track("around")
outer.__enter__(); tracked.__enter__()
os.setgid(65534); os.setuid(65534)
@monitor.track("after")
def job(): return 42
assert job() == 42
with memguard.measure_peak() as peak: block = bytearray(1 << 24)
tracked.__exit__(None, None, None); outer.__exit__(None, None, None)
print(outer.meter, peak.meter, peak.peak_bytes >= 1 << 24, sorted(monitor.operations), memguard.memory_usage().rss_bytes > 0)
"""


@linux
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to give privileges up")
def test_privileges_that_are_given_up_change_the_meter_and_nothing_else():
    import subprocess

    out = subprocess.run([sys.executable, "-c", GIVE_UP], capture_output=True, text=True, timeout=60, check=False)

    assert out.stdout == "kernel tracemalloc True ['after', 'around', 'before'] True\n", out.stderr


def test_a_trace_that_somebody_else_ends_is_no_error():
    with measure_peak(meter="tracemalloc") as peak:
        block = bytearray(8 * MIB)
        tracemalloc.stop()

    assert peak.peak_bytes >= 0
    assert block
    with measure_peak(meter="tracemalloc") as again:
        block = bytearray(8 * MIB)
    assert again.peak_bytes > 7 * MIB
    assert not tracemalloc.is_tracing()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()], ids=repr)
def test_where_no_thread_can_be_started_the_ends_of_blocks_are_seen(monkeypatch, error):
    def start(run, arguments):
        raise error

    mark = _SampledMark()
    monkeypatch.setattr(_peak, "_all_blocks", {"sampled": _Blocks(mark)})
    with monkeypatch.context() as patched:
        patched.setattr(_peak, "start_new_thread", start)
        expected = (
            pytest.raises(KeyboardInterrupt) if isinstance(error, KeyboardInterrupt) else contextlib.nullcontext()
        )
        with expected, measure_peak(meter="sampled") as peak:
            kept = touch(16 * MIB)
            assert kept

    if not isinstance(error, KeyboardInterrupt):
        assert peak.peak_bytes >= 14 * MIB
    with measure_peak(meter="sampled"):
        assert mark._end is not None
    assert mark._end is None


@linux
def test_without_a_descriptor_no_growth_is_made_up(monkeypatch):
    """A size that is not known at the start, and is at the end, must not look like growth."""

    def fail(*_, **__):
        raise OSError(errno.EMFILE, "no")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "pread", fail)
        patched.setattr("memguard.sampling._portable.process_bytes", fail)
        peak = measure_cheaply().__enter__()
    peak.__exit__(None, None, None)

    assert peak.meter == "sampled"
    assert peak.before_bytes > 0
    assert peak.peak_bytes < 8 * MIB


def test_where_python_refuses_tracemalloc_the_resident_size_is_sampled(monkeypatch):
    """As an interpreter beside the main one does from Python 3.13 on."""
    monkeypatch.setitem(sys.modules, "tracemalloc", None)
    monkeypatch.setattr(_peak, "_all_blocks", {})

    with measure_peak(meter="tracemalloc") as peak:
        pass

    assert peak.meter == "sampled"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("meter", ["kernel", "tracemalloc", "sampled"])
def test_a_forked_child_ends_its_own_blocks_and_forgets_those_of_other_threads(meter):
    if meter == "kernel" and not _KernelMark.works():
        pytest.skip("the kernel here keeps no peak that can be reset")
    entered, leave = threading.Event(), threading.Event()
    allocate = (lambda: bytearray(24 * MIB)) if meter == "tracemalloc" else (lambda: touch(24 * MIB))

    def elsewhere():
        with measure_peak(meter=meter):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert entered.wait(30)
    with measure_peak(meter=meter) as mine:
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            block = allocate()
            mine.__exit__(None, None, None)
            # What it did not inherit, such as pages of files, was resident when the block began.
            good = mine.peak_bytes >= 0 and not _peak._all_blocks[meter]._open and not tracemalloc.is_tracing()
            with measure_peak(meter=meter) as another:
                blocks = block, allocate()
            os._exit(0 if good and another.peak_bytes > 22 * MIB and blocks else 1)
    leave.set()
    thread.join(30)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@signals
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("meter", ["kernel", "tracemalloc", "sampled"])
def test_signals_that_measure_and_raise_leave_everything_balanced(meter, monkeypatch):
    if meter == "kernel" and not _KernelMark.works():
        pytest.skip("the kernel here keeps no peak that can be reset")
    monkeypatch.setattr(_peak, "_all_blocks", {})
    count, armed = [0], [False]

    class Interrupt(Exception):
        pass

    def handler(number, frame):
        with measure_peak(meter=meter):
            count[0] += 1
        raises, armed[0] = armed[0], False
        if count[0] < 300:  # once more, only now: on a slow machine it would interrupt itself without end
            signal.setitimer(signal.ITIMER_REAL, 0.0003)
        if raises:
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        while count[0] < 300:
            try:
                armed[0] = count[0] % 2 == 1
                with measure_peak(meter=meter), measure_peak(meter=meter):
                    pass
                armed[0] = False
            except Interrupt:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()

    assert _peak._all_blocks[meter]._open == {}
    assert not tracemalloc.is_tracing()


def test_finalizers_that_measure_while_others_measure_hang_nothing():
    class Measures:
        def __init__(self):
            self.me = self

        def __del__(self):
            with measure_cheaply():
                pass

    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for _ in range(300):
            with measure_cheaply():
                Measures()
    finally:
        gc.set_threshold(*threshold)
    gc.collect()

    assert all(not found._open for found in _peak._all_blocks.values())


def test_threads_that_measure_at_once_leave_nothing_open():
    barrier = threading.Barrier(6)

    def work():
        barrier.wait(30)
        for _ in range(200):
            with measure_cheaply(), measure_peak(meter="sampled"):
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert all(not found._open for found in _peak._all_blocks.values())
