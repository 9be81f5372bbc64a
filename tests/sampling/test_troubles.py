"""
Files that cannot be read: a failed measurement costs neither the work nor the limit.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest
from trees import MIB, Tree

from memguard import SamplingError, memory_limit, memory_usage
from memguard.sampling import LevelFiles, Machine
from memguard.sampling import _files as files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

V1 = "/ /sys/fs/cgroup/memory cgroup rw,memory"
V2 = "/ /sys/fs/cgroup cgroup2 rw"
FILES = ["cgroup", "mountinfo", "statm", "meminfo", "memory.max", "memory.current", "memory.stat"]
TROUBLES = [errno.EMFILE, errno.ENFILE, errno.ENOTCONN, errno.ENODEV, errno.EIO, errno.EACCES, errno.ENOMEM]


@pytest.fixture
def tree(tmp_path):
    tree = Tree(tmp_path)
    tree.cgroup("0::/a", V2)
    tree.v2("sys/fs/cgroup/a", limit=512 * MIB, usage=450 * MIB, inactive_file=50 * MIB)
    return tree


@pytest.fixture
def machine(tree):
    machine = Machine(tree.root)
    yield machine
    machine.close()


@pytest.fixture(autouse=True)
def always_looks_again(monkeypatch):
    monkeypatch.setattr("memguard.sampling._machine._LOOK_AGAIN_SECONDS", 0.0)


@pytest.fixture
def trouble(monkeypatch):
    """A dict of "end of the path: errno": such files can be neither opened nor read, kept descriptors included."""
    broken: dict[str, int] = {}
    really_open, really_pread = os.open, os.pread

    def check(path):
        for end, number in broken.items():
            if str(path).endswith(end):
                raise OSError(number, os.strerror(number), str(path))

    def open_(path, *arguments, **options):
        check(path)
        return really_open(path, *arguments, **options)

    def pread(number, *arguments):
        if broken:
            check(os.readlink(f"/proc/self/fd/{number}"))
        return really_pread(number, *arguments)

    def read_once(path):
        check(path)
        return path.read_bytes()

    monkeypatch.setattr(files.os, "open", open_)
    monkeypatch.setattr(files.os, "pread", pread)
    monkeypatch.setattr("memguard.sampling._machine.read_once", read_once)
    return broken


def told(usage):
    return usage.source, usage.limit_bytes, usage.used_bytes, usage.rss_bytes


@pytest.mark.parametrize(
    "file",
    [
        "proc/self/cgroup",
        "proc/self/mountinfo",
        "proc/self/statm",
        "proc/meminfo",
        "a/memory.max",
        "a/memory.high",
        "a/memory.current",
        "a/memory.stat",
    ],
)
@pytest.mark.parametrize("number", TROUBLES, ids=errno.errorcode.get)
def test_what_cannot_be_read_stays_what_it_was_and_is_logged_once(machine, trouble, caplog, file, number):
    before = told(machine())

    trouble[file] = number
    during = [told(machine()) for _ in range(3)]
    limits = {machine.limit() for _ in range(2)}
    trouble.clear()

    assert during == [before] * 3
    assert [limit.source for limit in limits] == ["cgroup v2 /a"]
    assert told(machine()) == before
    assert caplog.text.count("a measurement failed") == 1


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOTCONN], ids=errno.errorcode.get)
def test_what_could_never_be_read_is_an_error_until_it_can(machine, trouble, file, number):
    trouble[file] = number
    for _ in range(2):
        with pytest.raises(SamplingError):
            machine()
    trouble.clear()

    assert machine().source == "cgroup v2 /a"


def test_a_limit_that_could_never_be_read_is_an_error_until_it_can(machine, trouble):
    trouble["memory.max"] = errno.ENFILE
    with pytest.raises(SamplingError, match=r"can be seen, but not be read now.*memory\.max"):
        machine.limit()
    trouble.clear()

    assert machine.limit().bytes == 512 * MIB


@pytest.mark.parametrize(
    ("file", "binds"),
    [
        ("memory.max", ("host", 4096 * MIB)),
        ("memory.current", ("cgroup v2 /a", 30 * MIB)),
        ("memory.stat", ("cgroup v2 /a", 450 * MIB)),
        ("mountinfo", ("host", 4096 * MIB)),
    ],
)
def test_what_is_forbidden_from_the_start_is_passed_over_and_said_once(machine, trouble, caplog, file, binds):
    """It will be forbidden for good: no guard at all would be worse than one that knows the rest."""
    trouble[file], (source, used) = errno.EACCES, binds

    assert [machine().used_bytes for _ in range(3)] == [used] * 3
    assert machine().source == source
    assert machine.limit().source == ("host" if source == "host" else "cgroup v2 /a")
    assert caplog.text.count("Permission denied") == 1


def test_what_is_forbidden_to_look_for_is_not_absent(tree, monkeypatch):
    machine = Machine(tree.root)
    before = told(machine())
    stat = type(tree.root).stat

    def forbidden(path, **options):
        if "cgroup" in str(path):
            raise PermissionError(errno.EACCES, "no", str(path))
        return stat(path, **options)

    monkeypatch.setattr(type(tree.root), "stat", forbidden)
    tree.write("proc/self/mountinfo", (tree.root / "proc/self/mountinfo").read_text() + "\n")

    assert told(machine()) == before
    machine.close()


def test_a_move_is_followed_at_once_where_the_old_group_is_gone(tree, machine, monkeypatch):
    machine()
    monkeypatch.setattr("memguard.sampling._machine._LOOK_AGAIN_SECONDS", 3600.0)
    machine.close()  # a descriptor of a removed group answers ENODEV, one of a plain file goes on
    tree.v2("sys/fs/cgroup/b", limit=100 * MIB, usage=99 * MIB)
    tree.write("proc/self/cgroup", "0::/b\n")
    shutil.rmtree(tree.root / "sys/fs/cgroup/a")

    assert machine().source == "cgroup v2 /b"
    assert machine.limit().bytes == 100 * MIB


def test_a_removed_group_s_descriptor_is_no_reason_to_forget_the_limit(tree, machine, trouble, monkeypatch):
    machine()
    monkeypatch.setattr("memguard.sampling._machine._LOOK_AGAIN_SECONDS", 3600.0)
    tree.v2("sys/fs/cgroup/b", limit=100 * MIB, usage=99 * MIB)
    tree.write("proc/self/cgroup", "0::/b\n")
    trouble["a/memory.max"] = errno.ENODEV

    assert machine().source == "cgroup v2 /b"


def test_after_a_move_into_a_group_that_cannot_be_read_the_old_figures_stand(tree, machine, trouble):
    before = told(machine())
    tree.v2("sys/fs/cgroup/b", limit=100 * MIB, usage=99 * MIB)
    tree.write("proc/self/cgroup", "0::/b\n")
    trouble["b/memory.max"] = errno.EIO

    assert told(machine()) == before
    trouble.clear()
    assert machine().source == "cgroup v2 /b"


def test_a_place_that_vanishes_is_sought_anew(tree, machine):
    machine()
    machine.close()
    shutil.rmtree(tree.root / "sys/fs/cgroup/a")
    tree.v2("sys/fs/cgroup", limit=300 * MIB)

    assert machine().limit_bytes == 300 * MIB


def test_a_limit_that_is_taken_away_no_longer_binds(tree, machine):
    machine()
    machine.close()
    (tree.root / "sys/fs/cgroup/a/memory.max").unlink()

    assert machine().source == "host"


def test_a_limit_file_that_appears_binds(tree, machine):
    (tree.root / "sys/fs/cgroup/a/memory.max").rename(tree.root / "aside")
    before = machine().source
    (tree.root / "aside").rename(tree.root / "sys/fs/cgroup/a/memory.max")

    assert (before, machine().source) == ("host", "cgroup v2 /a")


def test_a_controller_that_is_enabled_later_is_seen(tree, machine):
    (tree.root / "sys/fs/cgroup/a").rename(tree.root / "aside")
    (tree.root / "sys/fs/cgroup/a").mkdir()
    before = machine().source
    (tree.root / "sys/fs/cgroup/a").rmdir()
    (tree.root / "aside").rename(tree.root / "sys/fs/cgroup/a")

    assert (before, machine().source) == ("host", "cgroup v2 /a")


def test_a_hierarchy_that_is_mounted_later_is_seen(tree, machine):
    mounts = (tree.root / "proc/self/mountinfo").read_text()
    tree.write("proc/self/mountinfo", "")
    before = machine().source
    tree.write("proc/self/mountinfo", mounts)

    assert (before, machine().source) == ("host", "cgroup v2 /a")


def test_without_cgroup_files_in_proc_the_rest_binds(tree, machine):
    (tree.root / "proc/self/cgroup").unlink()

    assert machine().source == "host"


def test_a_log_handler_that_fails_does_not_cost_the_reading(machine, trouble, monkeypatch):
    before = told(machine())

    def broken(*_, **__):
        raise RuntimeError("no space left for logs")

    monkeypatch.setattr("memguard.logs._logger.log", broken)
    trouble["memory.current"] = errno.EIO

    assert told(machine()) == before


@pytest.mark.parametrize("version", [1, 2])
def test_a_level_by_itself_tells_what_it_told_last(tree, trouble, version):
    tree.v1("sys/fs/cgroup/a", limit=512 * MIB, usage=450 * MIB)
    level = LevelFiles(version, tree.root / "sys/fs/cgroup/a", "a")
    trouble["sys/fs/cgroup/a/memory.current"] = trouble["memory.usage_in_bytes"] = errno.EMFILE
    assert level.used_bytes() is None
    trouble.clear()
    before = level.used_bytes()
    trouble["sys/fs/cgroup/a/memory.current"] = trouble["memory.usage_in_bytes"] = errno.EMFILE

    assert level.used_bytes() == before > 0
    level.close()


def test_a_level_that_is_gone_tells_nothing(tree):
    level = LevelFiles(2, tree.root / "sys/fs/cgroup/a", "a")
    level.used_bytes()
    level.close()
    shutil.rmtree(tree.root / "sys/fs/cgroup/a")

    assert level.used_bytes() is None
    level.close()


def test_limits_that_cannot_be_read_are_an_error(tree):
    tree.write("proc/self/limits/not-a-file", "")

    with pytest.raises(SamplingError, match="limits"):
        memory_usage(root=tree.root)


FEW_DESCRIPTORS = """
import os, resource, sys
from pathlib import Path
from memguard import SamplingError
from memguard.sampling import Machine
root, left, lowest = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "lowest"
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True: held.append(os.open("/dev/null", os.O_RDONLY))
except OSError: pass
for _ in range(left): os.close(held.pop(0 if lowest else -1))
machine = Machine(root)
for _ in range(3):
    try: print(machine().source)
    except SamplingError as error: print("no answer")
if left:
    os.close(os.open("/dev/null", os.O_RDONLY))
    print("one left")
for number in held: os.close(number)
print(machine().source)
"""


@pytest.mark.parametrize("which", ["lowest", "highest"])
@pytest.mark.parametrize("left", [0, 1, 2, 3, 5])
def test_the_limit_is_found_with_one_descriptor_which_is_never_kept(tree, left, which):
    out = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, str(tree.root), str(left), which],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    found = ["cgroup v2 /a"] * 3 + ["one left"] if left else ["no answer"] * 3
    assert out.stdout.splitlines() == [*found, "cgroup v2 /a"], out.stderr


# ----- descriptors that somebody else closed

CLOSED_WHOLESALE = """
import os, sys
from pathlib import Path
from memguard.sampling import Machine
root = Path(sys.argv[1])
machines = [Machine(root), Machine(root), Machine(root)]
before = [machine() for machine in machines]
os.closerange(3, 256)
theirs = {os.open(__file__ if "__file__" in globals() else "/proc/self/exe", os.O_RDONLY) for _ in range(int(sys.argv[2]))}
identities = {number: os.fstat(number).st_ino for number in theirs}
after = [machine() for machine in reversed(machines) for _ in range(2)]
machines[1].close()
again = machines[0](), machines[2]()
for machine in machines: machine.close()
strip = lambda usage: (usage.source, usage.limit_bytes, usage.used_bytes, usage.rss_bytes)
print(len({strip(usage) for usage in [*before, *after, *again]}))
print({number: os.fstat(number).st_ino for number in theirs} == identities)
"""


@pytest.mark.parametrize("theirs", [0, 2, 7, 40])
def test_after_all_descriptors_were_closed_nobody_else_s_is_read_or_closed(tree, theirs):
    out = subprocess.run(
        [sys.executable, "-c", CLOSED_WHOLESALE, str(tree.root), str(theirs)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert out.stdout.split() == ["1", "True"], out.stderr


def test_a_reading_looks_at_one_descriptor_for_all(machine, monkeypatch):
    machine()
    monkeypatch.setattr("memguard.sampling._machine._LOOK_AGAIN_SECONDS", 3600.0)
    looked = []
    fstat = os.fstat
    monkeypatch.setattr(files.os, "fstat", lambda number: looked.append(number) or fstat(number))

    machine()

    assert len(looked) == 1


def test_two_who_have_the_same_file_open_do_not_take_each_other_s_number(tmp_path):
    (tmp_path / "file").write_text("mine")
    first, second = files.KeptFile(tmp_path / "file"), files.KeptFile(tmp_path / "file")
    first.read()
    number = first._slot["fd"].number
    os.close(number)
    second.read()
    assert second._slot["fd"].number == number

    first.close()

    assert os.pread(number, 10, 0) == b"mine"
    assert first.read() == second.read() == b"mine"
    first.close()
    second.close()


def test_a_file_that_turns_into_a_part_of_nothing_is_gone(tmp_path):
    (tmp_path / "a").write_text("now a file")

    with pytest.raises(FileNotFoundError):
        files.KeptFile(tmp_path / "a/b").read()


def test_without_a_memory_controller_the_machine_is_the_limit(tree):
    shutil.rmtree(tree.root / "sys/fs/cgroup/a")

    assert memory_limit(root=tree.root).source == "host"
