from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from memguard import LeakReporter, MemoryMonitor, report_on_signal, take_snapshot
from memguard.attribution import MemoryParts
from memguard.attribution._census import take_census
from memguard.attribution._parts import kind_of_growth
from memguard.attribution._sites import trace_sites
from memguard.testing import FakeClock, ScriptedSampler

PROGRAM = Path(__file__).with_name("leaking_program.py")
MIB = 1024**2
LONG = 60.0
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the counters are those of Linux and glibc")


class Thing:
    def __init__(self, number):
        self.number = number


# ----- the kind of growth


def parts(*, rss=100, anon=80, file=15, shared=5, blocks=100_000, in_use=40, kept=10):
    return MemoryParts(rss * MIB, anon * MIB, file * MIB, shared * MIB, blocks, in_use * MIB, kept * MIB)


@pytest.mark.parametrize(
    ("after", "kind"),
    [
        pytest.param(parts(), "none", id="nothing"),
        pytest.param(parts(anon=100, blocks=300_000), "python objects", id="small objects"),
        pytest.param(parts(anon=120, blocks=200_000, in_use=70), "python objects", id="objects with lists"),
        pytest.param(parts(anon=120, blocks=100_100, in_use=80), "native", id="large buffers"),
        pytest.param(parts(anon=120, in_use=45, kept=45), "freed but kept", id="kept by malloc"),
        pytest.param(parts(anon=120), "mapped or fragmented", id="mappings"),
        pytest.param(parts(file=60), "file mapped", id="file pages"),
        pytest.param(parts(shared=60), "shared", id="shared memory"),
    ],
)
def test_the_kind_of_growth_is_told_from_counters(after, kind):
    assert kind_of_growth(parts(), after) == kind


def test_where_the_machine_says_little_the_kind_is_what_can_be_said():
    before = MemoryParts(100 * MIB, 100 * MIB, None, None, 100_000, None, None)
    after = MemoryParts(140 * MIB, 140 * MIB, None, None, 400_000, None, None)

    assert kind_of_growth(before, after) == "python objects"
    assert kind_of_growth(before, before) == "none"


@linux_only
@pytest.mark.parametrize(
    ("leak", "kind", "top"),
    [
        ("sessions", "python objects", "__main__.Session"),
        ("texts", "python objects", "builtins.str"),
        ("rows", "python objects", "builtins.dict"),
        ("cache", "python objects", "builtins.str"),
        ("buffers", "native", None),
        ("mappings", "mapped or fragmented", None),
        ("segments", "shared", None),
        ("files", "file mapped", None),
        ("freed", "freed but kept", None),
    ],
)
def test_a_real_leak_is_named_by_kind_and_type(leak, kind, top, tmp_path):
    big = tmp_path / "big"
    big.write_bytes(b"x" * 20 * MIB)

    out = subprocess.run(
        [sys.executable, str(PROGRAM), leak, str(big)], capture_output=True, text=True, timeout=LONG, check=True
    )

    said = json.loads(out.stdout)
    assert said["kind"] == kind, said["text"]
    if top:
        assert said["top"] == top, said["text"]
        assert said["holders"][0] == ("__main__.CACHE" if leak == "cache" else "__main__.KEPT")
    assert said["text"].splitlines()[-1].startswith("next: ")


# ----- types and containers


def test_types_that_grew_are_counted_and_named():
    before = take_snapshot(exact=True)
    kept = [Thing(number) for number in range(5000)]
    report = take_snapshot(exact=True).compare(before)

    top = report.types[0]
    assert top.name == f"{__name__}.Thing"
    assert top.count == len(kept)
    assert not report.estimated


def test_a_sample_comes_close_to_the_count():
    kept = [Thing(number) for number in range(300_000)]

    census = take_census()

    assert census.stride > 1
    assert abs(census.counts[f"{__name__}.Thing"] - len(kept)) < 0.05 * len(kept)


def test_a_sample_sees_every_part_of_each_record():
    """Records of three objects, fifteen apart: a sample of every fifteenth would see one of the three only."""
    lists_before = take_census().counts["builtins.list"]
    kept = [Thing([number]) for number in range(250_000)]

    counts = take_census().counts

    assert abs(counts[f"{__name__}.Thing"] - len(kept)) < 0.05 * len(kept)
    assert abs(counts["builtins.list"] - lists_before - len(kept)) < 0.1 * len(kept)


def test_what_strays_in_a_sample_is_not_called_growth():
    kept = [Thing([number]) for number in range(250_000)]
    before = take_snapshot()

    report = take_snapshot().compare(before)

    assert [each.name for each in report.types if each.count > 2000] == []
    assert kept


HELD = []
TEXTS = {}


def test_text_is_found_in_the_container_that_holds_it():
    before = take_snapshot()
    TEXTS.update((f"key {number}", f"value {number}") for number in range(50_000))
    try:
        report = take_snapshot().compare(before)
    finally:
        TEXTS.clear()

    texts = next(each for each in report.types if each.name == "builtins.str")
    assert abs(texts.count - 100_000) < 10_000
    assert report.containers[0].container.holder == f"{__name__}.TEXTS"
    assert report.containers[0].count == pytest.approx(50_000, abs=1000)


def test_a_container_is_called_by_where_it_hangs():
    before = take_snapshot()
    HELD.extend(range(100_000))
    try:
        report = take_snapshot().compare(before)
    finally:
        HELD.clear()

    assert f"{__name__}.HELD" in [each.container.holder for each in report.containers]
    assert f"{__name__}.HELD: +" in str(report)


class Registry:
    entries: list = []  # noqa: RUF012

    def __init__(self):
        self.mine = list(range(90_000))


@pytest.mark.parametrize("holder", ["mine", "entries"])
def test_containers_of_objects_and_classes_have_names_too(holder):
    registry = Registry()
    Registry.entries.extend(range(80_000))
    try:
        names = [each.holder for each in take_census().containers]
    finally:
        Registry.entries.clear()

    assert registry.mine
    assert f"{__name__}.Registry.{holder}" in names


def test_a_type_whose_size_cannot_be_asked_does_no_harm():
    class Broken:
        def __sizeof__(self):
            raise RuntimeError

    kept = [Broken() for _ in range(300)]

    assert any("Broken" in name for name in take_census(exact=True).counts)
    assert kept


ALONE = """
import gc
from memguard.attribution._census import take_census

class Owner:
    def __init__(self, shared, own):
        self.shared, self.own = shared, own

shared = [list(range(2000)) for _ in range(30)]
owners = [Owner(shared[number % 30], dict.fromkeys(range(5))) for number in range(3000)]
others = [[number] for number in range(60_000)]
gc.collect()
gc.disable()
before = len(gc.get_objects())
census = take_census()
print(len(gc.get_objects()) - before, gc.collect())
assert "__main__.Owner.shared" in {each.holder for each in census.containers}
"""


def test_a_census_leaves_nothing_for_the_collector_and_makes_no_dicts_of_thousands_of_objects():
    out = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60, check=False)

    assert out.returncode == 0, out.stderr
    more, garbage = map(int, out.stdout.split())
    assert (more < 200, garbage) == (True, 0)


def test_a_snapshot_holds_no_object():
    import gc
    import weakref

    thing = Thing(1)
    gone = weakref.ref(thing)
    snapshot = take_snapshot(exact=True)
    del thing
    gc.collect()

    assert gone() is None
    assert snapshot.counts


def test_snapshots_are_compared_new_with_old():
    old = take_snapshot()
    new = take_snapshot()

    with pytest.raises(ValueError, match=r"new.compare\(old\)"):
        old.compare(new)
    with pytest.raises(TypeError, match="got 5"):
        new.compare(5)


# ----- lines


def test_the_lines_that_allocate_are_named_and_tracing_is_stopped():
    kept = []

    def wait(seconds):
        kept.extend(bytearray(1000) for _ in range(1000))
        tracemalloc.get_traced_memory()

    sites = trace_sites(0.001, wait=wait)

    assert sites[0].where.startswith(__file__)
    assert sites[0].size_bytes >= 1_000_000
    assert not tracemalloc.is_tracing()


def test_a_window_can_keep_the_callers_as_well():
    kept = []
    sites = trace_sites(0.001, frames=3, wait=lambda _: kept.extend(bytearray(1000) for _ in range(100)))

    assert " < " in sites[0].where


def test_tracing_is_stopped_also_where_the_wait_fails():
    def wait(seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace_sites(1.0, wait=wait)

    assert not tracemalloc.is_tracing()


def test_somebody_else_s_tracing_is_left_alone():
    tracemalloc.start(1)
    try:
        assert trace_sites(0.001) == ()
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("options", "words"), [({"trace_seconds": -1}, "-1"), ({"frames": 0}, "0")])
def test_nonsense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        take_snapshot(**options)


def test_a_snapshot_may_trace():
    kept = []
    filling = threading.Thread(target=lambda: kept.extend(bytearray(1000) for _ in range(100)))
    before = take_snapshot()
    filling.start()
    report = take_snapshot(trace_seconds=0.01).compare(before)
    filling.join(LONG)

    assert not tracemalloc.is_tracing()
    assert str(report)


# ----- reports


def leaking_monitor():
    clock = FakeClock()
    sizes = [(100 + n) * MIB for n in range(400)]
    return MemoryMonitor(sampler=ScriptedSampler(sizes, clock=clock), clock=clock), clock


def test_a_leak_is_followed_by_a_report_of_what_grew_since_it_was_suspected(caplog):
    monitor, clock = leaking_monitor()
    reports = []
    reporter = LeakReporter(monitor, on_report=reports.append)
    kept = []

    for _ in range(400):
        monitor.tick()
        kept.extend(Thing(number) for number in range(20))
        clock.advance(60)
    reporter.close()

    assert len(reports) == 1
    assert reports[0].types[0].name == f"{__name__}.Thing"
    assert "memguard: what grew" in caplog.text


def test_a_closed_reporter_says_nothing():
    monitor, clock = leaking_monitor()
    reports = []
    LeakReporter(monitor, on_report=reports.append).close()

    for _ in range(400):
        monitor.tick()
        clock.advance(60)

    assert reports == []
    with pytest.raises(ValueError, match="-1"):
        LeakReporter(monitor, trace_seconds=-1)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="no SIGUSR2 here")
def test_a_signal_brings_a_report():
    texts, come = [], threading.Event()

    def write(text):
        texts.append(text)
        come.set()

    former = signal.getsignal(signal.SIGUSR2)
    restore = report_on_signal(write=write)
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert come.wait(LONG)
    finally:
        restore()

    assert texts[0].startswith("Growth of ")
    assert signal.getsignal(signal.SIGUSR2) is former


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="no SIGUSR2 here")
def test_a_signal_s_report_is_logged_unless_told_otherwise(caplog):
    restore = report_on_signal()
    try:
        with caplog.at_level(logging.WARNING, "memguard"):
            os.kill(os.getpid(), signal.SIGUSR2)
            for thread in threading.enumerate():
                if thread.name == "memguard-report":
                    thread.join(LONG)
    finally:
        restore()

    assert "memguard: what grew" in caplog.text
