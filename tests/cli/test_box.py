from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import memguard.cli._box as boxes
from memguard.cli._box import _GroupBox, _make_directory, _parent, _processes, _remove, make_box
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


def test_the_limit_of_a_v2_group_is_not_softened_by_swap(tmp_path):
    for name in ("memory.max", "memory.swap.max"):
        (tmp_path / name).touch()

    _GroupBox(64 * MIB, 2, tmp_path).limit()

    assert (tmp_path / "memory.max").read_text() == str(64 * MIB)
    assert (tmp_path / "memory.swap.max").read_text() == "0"


def test_a_v2_group_whose_kernel_counts_no_swap_is_limited_all_the_same(tmp_path):
    (tmp_path / "memory.max").touch()

    _GroupBox(64 * MIB, 2, tmp_path).limit()

    assert (tmp_path / "memory.max").read_text() == str(64 * MIB)


def test_a_group_says_how_many_the_kernel_killed_and_the_most_it_was_charged(tmp_path):
    (tmp_path / "memory.events").write_text("oom 3\noom_kill 2\n")
    (tmp_path / "memory.peak").write_text("12345\n")
    box = _GroupBox(64 * MIB, 2, tmp_path)

    assert (box.oom_kills(), box.peak_bytes()) == (2, 12345)


def test_what_the_kernel_does_not_count_is_unknown_and_not_zero(tmp_path):
    with make_box(64 * MIB, kind="rlimit") as limit:
        for box in (limit, _GroupBox(64 * MIB, 2, tmp_path)):
            assert (box.oom_kills(), box.peak_bytes()) == (None, None)


def test_a_group_that_no_process_can_join_is_none(tmp_path):
    with pytest.raises(OSError, match="no process can join"):
        _GroupBox(64 * MIB, 2, tmp_path / "gone").try_to_join()


def test_nothing_is_left_of_a_group_that_cannot_be_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(boxes, "own_place", lambda: a_place(1, tmp_path))

    with make_box(64 * MIB) as box:
        assert box.kind == "RLIMIT_DATA"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_by_chance_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(boxes, "_numbers", iter([1, 2]))
    monkeypatch.setattr(boxes, "_mine", set())
    (tmp_path / f"memguard-box-{os.getpid()}-1").mkdir()

    made = _make_directory(tmp_path)

    assert made.name == f"memguard-box-{os.getpid()}-2"
    assert boxes._mine == {made}


def test_a_directory_that_cannot_be_made_is_nobodys(tmp_path, monkeypatch):
    monkeypatch.setattr(boxes, "_mine", set())

    with pytest.raises(FileNotFoundError):
        _make_directory(tmp_path / "gone")

    assert boxes._mine == set()


def test_a_group_that_cannot_be_removed_says_so(tmp_path, monkeypatch):
    (tmp_path / "still").touch()
    monkeypatch.setattr(boxes, "_mine", {tmp_path})
    monkeypatch.setattr(boxes, "_REMOVE_SECONDS", 0)

    with pytest.raises(OSError, match="cannot be removed"):
        _GroupBox(64 * MIB, 2, tmp_path).close()


def test_a_group_that_is_gone_counts_as_removed(tmp_path):
    assert _remove(tmp_path / "gone")


def test_a_process_that_cannot_be_named_from_here_is_left_alone(tmp_path):
    """
    0 would mean one's own group to kill(2).
    """
    (tmp_path / "cgroup.procs").write_text("0\n17\n")

    assert _processes(tmp_path) == [17]


def test_the_box_of_somebody_elses_living_process_stays(tmp_path, monkeypatch):
    def forbidden(pid, number):
        raise PermissionError

    monkeypatch.setattr(boxes.os, "kill", forbidden)
    theirs = tmp_path / "memguard-box-1-1"
    theirs.mkdir()

    boxes._clear_leftovers(tmp_path)

    assert theirs.exists()


def test_without_a_shell_there_is_no_box(monkeypatch):
    monkeypatch.setattr(boxes, "_SHELL", "/no/such/shell")

    with pytest.raises(OSError, match="missing here"):
        make_box(64 * MIB)
