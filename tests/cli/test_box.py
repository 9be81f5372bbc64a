from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memguard.cli._box import _parent, make_box
from memguard.sampling import Place, own_place

MIB = 1024**2
ALLOCATE = "import sys; x = b'x' * (int(sys.argv[1]) << 20); print(len(x) >> 20)"


def run(box, megabytes):
    argv = [sys.executable, "-c", ALLOCATE, str(megabytes)]
    return subprocess.run(box.command(argv), capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def group():
    try:
        box = make_box(64 * MIB, kind="cgroup")
    except OSError as error:
        pytest.skip(f"this user may not make a memory cgroup here: {error}")
    with box:
        yield box


def test_a_child_within_the_limit_of_a_group_finishes(group):
    assert run(group, 16).stdout == "16\n"
    assert group.oom_kills() in (0, None)


def test_a_child_past_the_limit_of_a_group_is_killed_by_the_kernel(group):
    assert run(group, 128).returncode == -9
    assert group.oom_kills() in (1, None)


def test_the_charge_of_a_group_covers_its_children(group):
    code = "import sys; x = b'x' * (32 << 20); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        group.command([sys.executable, "-c", code]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        assert 32 * MIB < group.used_bytes(child.pid) <= 64 * MIB
        child.stdin.close()
        child.wait(60)


def test_closing_a_group_kills_what_runs_in_it_and_removes_its_directory(group):
    code = "import time; print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen(group.command([sys.executable, "-c", code]), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"

        group.close()

        assert child.wait(60) == -9
    assert not group.directory.exists()


def test_closing_twice_is_fine(group):
    group.close()
    group.close()


def test_the_box_of_a_dead_owner_is_removed_when_the_next_is_made(group):
    owner = subprocess.Popen([sys.executable, "-c", ""])
    owner.wait(60)
    leftover = group.directory.parent / f"memguard-box-{owner.pid}-1"
    leftover.mkdir()

    with make_box(64 * MIB, kind="cgroup"):
        assert not leftover.exists()


def test_the_box_of_a_living_owner_stays(group):
    theirs = group.directory.parent / f"memguard-box-{os.getppid()}-999999"
    theirs.mkdir()
    try:
        with make_box(64 * MIB, kind="cgroup"):
            assert theirs.exists()
            assert group.directory.exists()
    finally:
        theirs.rmdir()


def test_an_own_box_of_an_earlier_process_with_our_number_is_removed(group):
    leftover = group.directory.parent / f"memguard-box-{os.getpid()}-999999"
    leftover.mkdir()

    with make_box(64 * MIB, kind="cgroup"):
        assert not leftover.exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: RLIMIT_DATA may not be enforced")
def test_under_rlimit_a_child_past_the_limit_gets_a_memory_error():
    with make_box(64 * MIB, kind="rlimit") as box:
        result = run(box, 128)

    assert box.kind == "RLIMIT_DATA"
    assert result.returncode == 1
    assert "MemoryError" in result.stderr


def test_under_rlimit_a_child_within_the_limit_finishes():
    with make_box(64 * MIB, kind="rlimit") as box:
        assert run(box, 16).stdout == "16\n"
        assert box.oom_kills() is None


def test_under_rlimit_the_size_of_an_ended_process_is_unknown():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(60)

    with make_box(64 * MIB, kind="rlimit") as box:
        assert box.used_bytes(child.pid) is None


def test_where_no_group_may_be_made_the_limit_is_the_processs_own(monkeypatch):
    monkeypatch.setattr("memguard.cli._box.own_place", lambda: None)

    with make_box(64 * MIB) as box:
        assert box.kind == "RLIMIT_DATA"


def test_who_insists_on_a_group_gets_it_or_an_error(monkeypatch):
    monkeypatch.setattr("memguard.cli._box.own_place", lambda: None)

    with pytest.raises(OSError, match="no memory cgroup"):
        make_box(64 * MIB, kind="cgroup")


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        make_box(0)


def test_without_proc_there_is_no_place(tmp_path):
    assert own_place(tmp_path) is None


def a_place(version, *directories):
    return Place(version, directories, tuple(map(str, directories)), hides_ancestors=False, certain=True)


def test_a_v1_box_lies_below_the_processs_own_group(tmp_path):
    assert _parent(a_place(1, tmp_path / "own", tmp_path)) == tmp_path / "own"


def test_a_v2_box_lies_below_the_nearest_ancestor_that_hands_the_controller_down(tmp_path):
    own = tmp_path / "slice" / "own"
    own.mkdir(parents=True)
    (own / "cgroup.subtree_control").write_text("\n")
    (own.parent / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")

    assert _parent(a_place(2, own, own.parent, tmp_path)) == own.parent


def test_where_no_v2_ancestor_hands_the_controller_down_there_is_no_group(tmp_path):
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")

    with pytest.raises(OSError, match="hands the memory controller down"):
        _parent(a_place(2, tmp_path / "own", tmp_path))
