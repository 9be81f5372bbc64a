"""
The machine that runs the tests, for real.
"""

from __future__ import annotations

import mmap
import os
import runpy
import subprocess
import sys
import threading
import tracemalloc

import psutil
import pytest

from memguard import SamplingError, measure_peak, memory_limit, memory_usage
from memguard.sampling import Machine, _portable, _rlimit
from memguard.sampling._files import KeptFile
from memguard.testing import FakeClock, ScriptedSampler, check_sampler

MIB = 1024**2
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("sampler", [memory_usage, ScriptedSampler([0.5, 0.6])], ids=["machine", "script"])
def test_samplers_keep_their_promise(sampler):
    check_sampler(sampler)


def test_the_resident_size_is_psutils():
    ours, theirs = memory_usage().rss_bytes, psutil.Process().memory_info().rss

    assert abs(ours - theirs) < 8 * MIB


def test_the_limit_is_at_most_the_machine():
    assert 0 < memory_limit().bytes <= psutil.virtual_memory().total


def test_psutil_stands_in_where_there_is_no_proc(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(machine, "_has_procfs", False)

    usage = machine()

    assert usage.source == "host" or usage.source.startswith("cgroup")
    assert abs(usage.rss_bytes - psutil.Process().memory_info().rss) < 8 * MIB
    assert _portable.host_bytes()[0] == psutil.virtual_memory().total
    machine.close()


def test_what_psutil_does_not_tell_is_our_error(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(machine, "_has_procfs", False)
    monkeypatch.setattr(_portable, "_process", lambda: psutil.Process(-1))

    with pytest.raises(SamplingError, match="psutil does not give process_bytes"):
        machine()
    machine.close()


@linux
def test_what_the_process_holds_free_is_room_under_an_rlimit_also_after_a_trim():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, -1))\n"
        "import memguard\n"
        "blocks = [bytearray(100_000) for _ in range(3000)]\n"
        "pinned, full = blocks.pop(), memguard.memory_usage().used_bytes\n"
        "blocks.clear()\n"
        "memguard.release_memory()\n"
        "print(memguard.allocator_usage().name, full - memguard.memory_usage().used_bytes > 200 << 20)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    if not out.stdout.startswith("glibc"):
        pytest.skip(f"the allocator here does not say what it holds free: {out.stdout}")
    assert out.stdout == "glibc True\n"


@linux
def test_an_rlimit_of_this_process_is_seen():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (200 << 20, -1));"
        "import memguard; u = memguard.memory_usage(); print(u.source, u.limit_bytes, u.used_bytes < u.limit_bytes)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert out.stdout.strip() == f"rlimit data {200 * MIB} True"


@linux
def test_a_forked_child_reads_itself_and_not_its_parent():
    machine = Machine()
    machine()
    ballast = bytearray(64 * MIB)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        more = bytearray(64 * MIB)
        own = psutil.Process().memory_info().rss
        os.write(writer, b"same" if abs(machine().rss_bytes - own) < 8 * MIB else b"other")
        os._exit(len(more) & 0)
    os.waitpid(child, 0)
    os.close(writer)

    assert os.read(reader, 10) == b"same"
    os.close(reader)
    machine.close()
    del ballast


@linux
def test_a_kept_descriptor_whose_number_was_reused_is_neither_read_nor_closed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "theirs").write_text("theirs")
    kept = KeptFile(tmp_path / "mine")
    kept.read()
    number = kept._slot["fd"].number
    os.close(number)
    theirs = os.open(tmp_path / "theirs", os.O_RDONLY)
    assert theirs == number

    assert kept.read() == b"mine"
    kept.close()
    assert os.read(theirs, 10) == b"theirs"
    os.close(theirs)


@linux
def test_a_kept_descriptor_that_somebody_closed_is_opened_again(tmp_path):
    (tmp_path / "mine").write_text("mine")
    kept = KeptFile(tmp_path / "mine")
    kept.read()
    os.close(kept._slot["fd"].number)

    assert kept.read() == b"mine"
    kept.close()
    kept.close()


@linux
def test_threads_that_open_at_once_keep_one_descriptor(tmp_path):
    (tmp_path / "mine").write_text("mine")
    before = len(os.listdir("/proc/self/fd"))
    kept = KeptFile(tmp_path / "mine")
    barrier = threading.Barrier(8)

    def read():
        barrier.wait(30)
        for _ in range(100):
            kept.read()

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(os.listdir("/proc/self/fd")) == before + 1
    kept.close()


def allocate(size: int) -> None:
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])


@pytest.mark.parametrize("meter", ["kernel", "tracemalloc"] if sys.platform == "linux" else ["tracemalloc"])
def test_the_peak_of_a_block_is_what_it_held_at_most(meter):
    with measure_peak(meter=meter) as peak:
        allocate(32 * MIB)

    assert peak.meter == meter
    assert 30 * MIB < peak.peak_bytes < 40 * MIB
    assert peak.kept_bytes < 8 * MIB
    assert peak.seconds > 0


def test_the_sampled_peak_is_at_least_what_stays():
    # A mapping: never pages that the allocator had.
    with mmap.mmap(-1, 16 * MIB) as kept, measure_peak(meter="sampled") as peak:
        for _ in range(16):
            kept.write(os.urandom(MIB))

    assert peak.meter == "sampled"
    assert peak.peak_bytes >= 14 * MIB


def test_nested_blocks_do_not_take_each_others_peak():
    with measure_peak(meter="tracemalloc") as outer:
        allocate(24 * MIB)
        with measure_peak(meter="tracemalloc") as inner:
            allocate(8 * MIB)
        with measure_peak(meter="tracemalloc") as idle:
            pass

    assert 24 * MIB <= outer.peak_bytes < 26 * MIB
    assert 8 * MIB <= inner.peak_bytes < 10 * MIB
    assert idle.peak_bytes < MIB
    assert not tracemalloc.is_tracing()


def test_a_trace_that_somebody_else_began_goes_on():
    tracemalloc.start()
    with measure_peak(meter="tracemalloc"):
        pass

    assert tracemalloc.is_tracing()
    tracemalloc.stop()


def test_a_measurement_is_for_one_block():
    peak = measure_peak()
    with peak:
        pass

    with pytest.raises(RuntimeError, match="used already"):
        peak.__enter__()
    with pytest.raises(RuntimeError, match="never entered"):
        measure_peak().__exit__(None, None, None)


def test_where_the_kernel_keeps_no_peak_tracemalloc_measures(monkeypatch):
    monkeypatch.setattr("memguard.sampling._peak._KernelMark.works", staticmethod(lambda: False))

    with measure_peak() as peak:
        allocate(MIB)

    assert peak.meter == "tracemalloc"
    with pytest.raises(ValueError, match="keeps no peak"):
        measure_peak(meter="kernel")


def test_an_unknown_meter_is_refused():
    with pytest.raises(ValueError, match="no meter 'guess'"):
        measure_peak(meter="guess")


def test_the_fake_clock_does_not_go_back():
    with pytest.raises(ValueError, match="-1"):
        FakeClock().advance(-1)


def test_a_script_needs_a_reading():
    with pytest.raises(ValueError, match="at least one"):
        ScriptedSampler([])


def test_windows_has_no_such_limits(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")

    assert runpy.run_path(_rlimit.__file__)["own_limits"]() == {}
