"""
Trees of plain files stand for machines: where the limit is, what counts against it, which level binds.
"""

from __future__ import annotations

import random

import pytest
from trees import MIB, Tree

from memguard import SamplingError, memory_limit, memory_usage
from memguard.sampling import Machine
from memguard.sampling._cgroup import Charge, find_place, parse_membership, parse_mounts
from memguard.sampling._files import KeptFile
from memguard.sampling._machine import _tightest

V1 = "/ /sys/fs/cgroup/memory cgroup rw,memory"
V2 = "/ /sys/fs/cgroup cgroup2 rw"
HYBRID = "/ /sys/fs/cgroup/unified cgroup2 rw"


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_v1_reads_its_own_nested_directory(tree):
    tree.cgroup("9:name=systemd:/\n4:memory:/jobs/a\n0::/", V1, HYBRID)
    tree.write("sys/fs/cgroup/unified/cgroup.controllers", "hugetlb\n")
    tree.v1("sys/fs/cgroup/memory/jobs/a", limit=512 * MIB, usage=100 * MIB)
    tree.v1("sys/fs/cgroup/memory/jobs")
    tree.v1("sys/fs/cgroup/memory")

    usage = memory_usage(root=tree.root)

    assert (usage.limit_bytes, usage.used_bytes, usage.source) == (
        512 * MIB,
        100 * MIB,
        "cgroup v1 /jobs/a",
    )
    assert (usage.rss_bytes, usage.anon_bytes) == (40 * MIB, 30 * MIB)
    assert memory_limit(root=tree.root).source == "cgroup v1 /jobs/a"


@pytest.mark.parametrize("order", ["3:memory:/a\n0::/b", "0::/b\n3:memory:/a"])
def test_a_hybrid_host_keeps_memory_on_v1_in_whatever_order_its_lines_come(tree, order):
    tree.cgroup(order, V1, HYBRID)
    tree.v1("sys/fs/cgroup/memory/a", limit=MIB * 64)
    (tree.root / "sys/fs/cgroup/unified/b").mkdir(parents=True)

    assert memory_limit(root=tree.root).bytes == 64 * MIB


def test_docker_v1_mounts_its_own_group_as_the_root(tree):
    tree.cgroup("11:memory:/docker/c17e\n0::/", "/docker/c17e /sys/fs/cgroup/memory cgroup rw,memory")
    tree.v1("sys/fs/cgroup/memory", limit=256 * MIB)

    assert memory_limit(root=tree.root).source == "cgroup v1 /docker/c17e"


def test_colons_in_a_containerd_path_are_part_of_it(tree):
    path = "/kubepods.slice:cri-containerd:c17e"
    tree.cgroup(f"5:memory:{path}\n0::/", f"{path} /sys/fs/cgroup/memory cgroup rw,memory")
    tree.v1("sys/fs/cgroup/memory", limit=256 * MIB)

    assert memory_limit(root=tree.root).bytes == 256 * MIB


def test_of_two_memory_mounts_the_one_under_sys_fs_cgroup_counts(tree):
    tree.cgroup("2:memory:/a", "/ /memory cgroup rw,memory", V1)
    tree.v1("memory/a", limit=32 * MIB)
    tree.v1("sys/fs/cgroup/memory/a", limit=64 * MIB)

    assert memory_limit(root=tree.root).bytes == 64 * MIB


def test_escaped_blanks_in_a_mount_point_are_read(tree):
    tree.cgroup("0::/a", "/ /my\\040cgroups cgroup2 rw")
    tree.v2("my cgroups/a", limit=64 * MIB)

    assert memory_limit(root=tree.root).bytes == 64 * MIB


def test_an_escaped_backslash_stays_one():
    assert parse_mounts(r"30 23 0:1 / /a\134040b rw - cgroup2 none rw")[0].point == r"/a\040b"


def test_lxcfs_shows_a_v1_group(tree):
    tree.cgroup("5:memory:/", "/ /sys/fs/cgroup/memory fuse.lxcfs rw,user_id=0")
    tree.v1("sys/fs/cgroup/memory", limit=128 * MIB)

    assert memory_limit(root=tree.root).bytes == 128 * MIB


def test_v2_walks_up_to_a_root_that_has_no_files(tree):
    tree.cgroup("0::/user.slice/user-1000.slice/session-3.scope", V2)
    tree.v2("sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope")
    tree.v2("sys/fs/cgroup/user.slice/user-1000.slice", limit=300 * MIB, usage=MIB)
    tree.v2("sys/fs/cgroup/user.slice", limit=900 * MIB, usage=2 * MIB)

    assert memory_usage(root=tree.root).source == "cgroup v2 /user.slice/user-1000.slice"


def test_a_private_cgroup_namespace_is_its_own_root(tree):
    tree.cgroup("0::/", V2)
    tree.v2("sys/fs/cgroup", limit=200 * MIB)

    assert memory_limit(root=tree.root).source == "cgroup v2 /"


def test_a_process_moved_out_of_its_namespace_goes_by_the_mount_point(tree):
    tree.cgroup("0::/../../system.slice/other.service", V2)
    tree.v2("sys/fs/cgroup", limit=200 * MIB)

    assert memory_limit(root=tree.root).bytes == 200 * MIB
    texts = [(tree.root / "proc/self" / name).read_text() for name in ("cgroup", "mountinfo")]
    place = find_place(*texts, tree.root)
    assert place is not None
    assert not place.certain


def test_a_path_that_names_nothing_goes_by_the_mount_point(tree):
    tree.cgroup("0::/kubepods/pod1/c17e", V2)
    tree.v2("sys/fs/cgroup", limit=200 * MIB)

    assert memory_limit(root=tree.root).bytes == 200 * MIB


def test_without_cgroups_the_machine_is_the_limit(tree):
    usage = memory_usage(root=tree.root)

    assert (usage.limit_bytes, usage.used_bytes, usage.source) == (8192 * MIB, 4096 * MIB, "host")


def test_the_level_with_the_least_room_binds_not_the_tightest(tree):
    """Siblings are charged to the parent: it may be full while the own group is not."""
    tree.cgroup("0::/pod/app", V2)
    tree.v2("sys/fs/cgroup/pod/app", limit=500 * MIB, usage=100 * MIB)
    tree.v2("sys/fs/cgroup/pod", limit=1000 * MIB, usage=950 * MIB)

    assert memory_usage(root=tree.root).source == "cgroup v2 /pod"
    assert memory_limit(root=tree.root).source == "cgroup v2 /pod/app"


def test_a_host_with_less_left_than_the_container_may_take_binds(tree):
    tree.meminfo(total=8192 * MIB, available=50 * MIB)
    tree.cgroup("0::/app", V2)
    tree.v2("sys/fs/cgroup/app", limit=500 * MIB, usage=100 * MIB)

    assert memory_usage(root=tree.root).source == "host"


def test_memory_high_is_a_ceiling(tree):
    tree.cgroup("0::/app", V2)
    tree.v2("sys/fs/cgroup/app", limit=500 * MIB, high=400 * MIB, usage=100 * MIB)

    assert memory_limit(root=tree.root).bytes == 400 * MIB
    assert "memory.high" in memory_usage(root=tree.root).source


def test_a_limit_of_the_machines_size_or_more_does_not_bind(tree):
    tree.cgroup("0::/app", V2)
    tree.v2("sys/fs/cgroup/app", limit=8192 * MIB, usage=100 * MIB)

    assert memory_limit(root=tree.root).source == "host"
    assert memory_usage(root=tree.root).source == "host"


def test_a_limit_of_zero_is_a_limit(tree):
    tree.cgroup("0::/app", V2)
    tree.v2("sys/fs/cgroup/app", limit=0, usage=MIB)

    usage = memory_usage(root=tree.root)

    assert (usage.limit_bytes, usage.fraction, usage.headroom_bytes) == (0, 1.0, 0)


@pytest.mark.parametrize("sentinel", [9223372036854771712, 9223372036854710272, 2**63 - 1])
def test_the_v1_word_for_no_limit_depends_on_the_page_size(tree, sentinel):
    tree.cgroup("4:memory:/a", V1)
    tree.v1("sys/fs/cgroup/memory/a", limit=sentinel)

    assert memory_limit(root=tree.root).source == "host"


def test_v1_tells_of_a_tighter_ancestor_above_the_mount(tree):
    tree.cgroup("4:memory:/docker/c17e", "/docker/c17e /sys/fs/cgroup/memory cgroup rw,memory")
    tree.v1("sys/fs/cgroup/memory", limit=500 * MIB, usage=100 * MIB, hierarchical=300 * MIB)

    assert memory_limit(root=tree.root).bytes == 300 * MIB
    assert memory_usage(root=tree.root).limit_bytes == 300 * MIB


def test_page_cache_is_room_whether_clean_or_dirty(tree):
    """The kernel writes back and throttles, it does not kill: 600 MiB written in a box of 64 MiB were survived."""
    tree.cgroup("4:memory:/a", V1)
    tree.v1(
        "sys/fs/cgroup/memory/a",
        limit=1000 * MIB,
        usage=700 * MIB,
        active_file=200 * MIB,
        inactive_file=400 * MIB,
        dirty=90 * MIB,
        writeback=10 * MIB,
    )

    assert memory_usage(root=tree.root).used_bytes == 100 * MIB


def test_on_v2_slab_that_can_be_reclaimed_is_room_too(tree):
    tree.cgroup("0::/a", V2)
    tree.v2(
        "sys/fs/cgroup/a",
        limit=1000 * MIB,
        usage=700 * MIB,
        active_file=200 * MIB,
        inactive_file=300 * MIB,
        file_dirty=90 * MIB,
        file_writeback=10 * MIB,
        slab_reclaimable=50 * MIB,
        slab_unreclaimable=20 * MIB,
    )

    assert memory_usage(root=tree.root).used_bytes == 150 * MIB


@pytest.mark.parametrize("kind", ["shmem", "unevictable"], ids=["tmpfs and shared memory", "locked pages"])
def test_file_pages_that_cannot_be_dropped_are_used(tree, kind):
    """The kernel counts them in "file", but in neither list of pages that it may take from."""
    tree.cgroup("0::/a", V2)
    tree.v2(
        "sys/fs/cgroup/a",
        limit=1000 * MIB,
        usage=700 * MIB,
        anon=100 * MIB,
        file=600 * MIB,
        active_file=200 * MIB,
        inactive_file=100 * MIB,
        **{kind: 300 * MIB},
    )

    assert memory_usage(root=tree.root).used_bytes == 400 * MIB


def test_more_cache_than_charge_is_not_less_than_nothing(tree):
    tree.cgroup("0::/../b", V2)
    tree.v2("sys/fs/cgroup", limit=1000 * MIB, usage=300 * MIB, inactive_file=400 * MIB)

    assert memory_usage(root=tree.root).used_bytes == 0


def test_what_the_process_itself_holds_is_used_where_it_is_charged(tree):
    tree.cgroup("0::/a", V2)
    tree.v2("sys/fs/cgroup/a", limit=1000 * MIB, usage=300 * MIB, inactive_file=290 * MIB)

    assert memory_usage(root=tree.root).used_bytes == 30 * MIB


def test_what_was_charged_elsewhere_before_a_move_is_not_used_here(tree):
    tree.cgroup("0::/a", V2)
    tree.v2("sys/fs/cgroup/a", limit=1000 * MIB, usage=5 * MIB)

    assert memory_usage(root=tree.root).used_bytes == 5 * MIB


def test_the_cache_of_zfs_is_room_down_to_its_least_size(tree):
    """It is in neither Cached nor MemAvailable."""
    header = "13 1 0x01 123 33456 5047 1234567\nname                            type data\n"
    figures = f"hits                            4    99\nc_min                           4    {200 * MIB}\n"
    size = f"size                            4    {1200 * MIB}\n"
    tree.write("proc/spl/kstat/zfs/arcstats", header + figures + size)

    assert memory_usage(root=tree.root).used_bytes == 3096 * MIB


@pytest.mark.parametrize("text", ["", "nonsense\n", "x\nsize 4 many\nc_min 4 1\n", "x\nsize 4 5\nc_min 4 7\n"])
def test_a_cache_of_zfs_that_says_nothing_of_use_changes_nothing(tree, text):
    tree.write("proc/spl/kstat/zfs/arcstats", text)

    assert memory_usage(root=tree.root).used_bytes == 4096 * MIB


def test_rlimits_bind_against_what_they_count(tree):
    limits = "Max data size             62914560             unlimited            bytes\n"
    tree.write("proc/self/limits", "Limit Soft Hard Units\n" + limits)

    usage = memory_usage(root=tree.root)

    assert (usage.limit_bytes, usage.used_bytes, usage.source) == (
        60 * MIB,
        50 * MIB,
        "rlimit data",
    )


def test_the_address_space_limit_counts_the_address_space(tree):
    tree.write(
        "proc/self/limits",
        "Max address space         125829120            unlimited            bytes\n",
    )

    usage = memory_usage(root=tree.root)

    assert (usage.limit_bytes, usage.used_bytes, usage.source) == (
        120 * MIB,
        100 * MIB,
        "rlimit as",
    )


@pytest.mark.parametrize(
    ("kind", "words"), [("data", "data size    "), ("as", "address space")], ids=["RLIMIT_DATA", "RLIMIT_AS"]
)
def test_addresses_that_the_allocator_holds_free_are_room_where_addresses_are_counted(tree, kind, words):
    tree.write("proc/self/limits", f"Max {words}             {120 * MIB}            unlimited            bytes\n")
    before, after = Machine(tree.root, held_free=lambda: 0), Machine(tree.root, held_free=lambda: 20 * MIB)

    used = [machine().used_bytes for machine in (before, after)]

    assert used[0] - used[1] == 20 * MIB
    assert after().source == f"rlimit {kind}"
    before.close()
    after.close()


@pytest.mark.parametrize(
    ("held", "used"), [(None, 50 * MIB), (500 * MIB, 0)], ids=["nobody says", "more than there is"]
)
def test_whatever_the_allocator_says_addresses_in_use_stay_within_what_there_is(tree, held, used):
    tree.write("proc/self/limits", f"Max data size             {60 * MIB}             unlimited            bytes\n")
    machine = Machine(tree.root, held_free=lambda: held)

    assert machine().used_bytes == used
    machine.close()


def test_the_allocator_is_asked_only_where_such_a_limit_may_bind(tree):
    tree.write("proc/self/limits", f"Max data size             {6000 * MIB}             unlimited            bytes\n")
    asked = []
    machine = Machine(tree.root, held_free=lambda: asked.append(1))

    assert machine().source == "host"
    assert asked == []
    machine.close()


def test_an_explicit_limit_is_held_against_the_process_itself(tree):
    machine = Machine(tree.root, limit_bytes=64 * MIB)

    usage = machine()

    assert (usage.limit_bytes, usage.used_bytes, usage.source) == (64 * MIB, 30 * MIB, "explicit")
    machine.close()


def test_shared_memory_is_not_file_backed(tree):
    tree.write("proc/self/statm", "100000 76800 51200 700 0 12800 0\n")
    tree.write("proc/self/status", f"RssShmem:\t{100 * 1024} kB\n")

    assert memory_usage(root=tree.root).anon_bytes == 200 * MIB


def test_a_machine_of_zero_bytes_is_not_believed(tree):
    tree.meminfo(total=0, available=0)

    with pytest.raises(SamplingError, match="nothing here limits memory"):
        memory_usage(root=tree.root)
    with pytest.raises(SamplingError, match="nothing here limits memory"):
        memory_limit(root=tree.root)


def test_an_old_kernel_without_memavailable_counts_what_is_free(tree):
    tree.write("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 50 kB\nCached: 250 kB\n")

    assert memory_usage(root=tree.root).used_bytes == 600 * 1024


@pytest.mark.parametrize("text", ["", "garbage", "1 2"])
def test_a_process_that_cannot_be_seen_is_an_error_not_a_zero(tree, text):
    tree.write("proc/self/statm", text)

    with pytest.raises(SamplingError, match="statm"):
        memory_usage(root=tree.root)


def test_limits_are_read_again_while_running(tree):
    tree.cgroup("0::/a", V2)
    tree.v2("sys/fs/cgroup/a", limit=100 * MIB, usage=MIB)
    machine = Machine(tree.root)
    before = machine().limit_bytes

    # In place, as the kernel does: the kept descriptor must see it.
    with (tree.root / "sys/fs/cgroup/a/memory.max").open("r+") as file:
        file.truncate()
        file.write(f"{50 * MIB}\n")

    assert (before, machine().limit_bytes) == (100 * MIB, 50 * MIB)
    machine.close()


def test_a_process_that_is_moved_is_followed(tree, monkeypatch):
    tree.cgroup("0::/a", V2)
    tree.v2("sys/fs/cgroup/a", limit=100 * MIB)
    tree.v2("sys/fs/cgroup/b", limit=50 * MIB)
    monkeypatch.setattr("memguard.sampling._machine._LOOK_AGAIN_SECONDS", 0.0)
    machine = Machine(tree.root)
    before = machine().limit_bytes

    with (tree.root / "proc/self/cgroup").open("r+") as file:
        file.write("0::/b\n")

    assert (before, machine().limit_bytes) == (100 * MIB, 50 * MIB)
    machine.close()


def reads_of(monkeypatch, *names):
    """Return a list that fills with the paths of the files that are read, of those that end so."""
    read, seen = KeptFile.read, []

    def noted(file):
        if file.path.name in names:
            seen.append(file.path.parent.name)
        return read(file)

    monkeypatch.setattr(KeptFile, "read", noted)
    return seen


def test_how_much_of_a_level_can_be_had_again_is_asked_only_where_it_may_bind(tree, monkeypatch):
    tree.cgroup("0::/a/b/c", V2)
    tree.v2("sys/fs/cgroup/a", limit=2000 * MIB, usage=100 * MIB)
    tree.v2("sys/fs/cgroup/a/b", limit=500 * MIB, usage=450 * MIB, inactive_file=210 * MIB)
    tree.v2("sys/fs/cgroup/a/b/c", limit=500 * MIB, usage=251 * MIB, inactive_file=150 * MIB)
    seen = reads_of(monkeypatch, "memory.stat")

    usage = memory_usage(root=tree.root)

    assert seen == ["b", "c"]
    assert (usage.source, usage.headroom_bytes) == ("cgroup v2 /a/b", 260 * MIB)


def test_asking_only_where_it_may_bind_changes_no_answer():
    chance = random.Random(7)
    for _ in range(500):
        charges = []
        for number in range(chance.randint(1, 6)):
            limit, usage = chance.randint(0, 20), chance.randint(0, 20)
            used = chance.choice([None, chance.randint(0, usage)])
            charges.append(Charge(limit, usage, str(number), used if used is None else lambda used=used: used))
        whole = [each.usage_bytes if each.used_bytes is None else each.used_bytes() for each in charges]
        best = min(zip(charges, whole, strict=True), key=lambda both: both[0].limit_bytes - both[1])

        assert _tightest(charges) == (best[0].limit_bytes, best[1], best[0].source)


def test_a_thread_that_comes_while_the_levels_are_sought_does_not_miss_them(tree, monkeypatch):
    tree.cgroup("0::/a", V2)
    tree.v2("sys/fs/cgroup/a", limit=100 * MIB)
    machine = Machine(tree.root)
    seen = []

    def meanwhile(*arguments):
        monkeypatch.undo()
        seen.append(machine().limit_bytes)
        return find_place(*arguments)

    monkeypatch.setattr("memguard.sampling._machine.find_place", meanwhile)
    machine()

    assert seen == [100 * MIB]
    machine.close()


@pytest.mark.parametrize("text", ["", "nonsense", "1:2", "0::/a\x00"])
def test_garbled_membership_is_no_place(text):
    assert find_place(text, "also nonsense\n1 2 3 - cgroup2 x y\n", tree_root()) is None
    assert set(parse_membership(text)) <= {2}


def tree_root():
    from pathlib import Path

    return Path("/nonexistent")


def test_a_limit_of_ones_own_counts_where_it_is_the_tightest(tree):
    for own, found in ((64 * MIB, (64 * MIB, "explicit")), (2**50, (8192 * MIB, "host"))):
        machine = Machine(tree.root, limit_bytes=own)
        limit = machine.limit()
        machine.close()

        assert (limit.bytes, limit.source) == found


def test_a_level_that_does_not_count_does_not_bind(tree):
    tree.cgroup("0::/a", V2)
    tree.v2("sys/fs/cgroup/a", limit=64 * MIB)
    (tree.root / "sys/fs/cgroup/a/memory.current").unlink()

    assert memory_usage(root=tree.root).source == "host"


def test_page_cache_that_is_told_in_no_number_is_not_taken_off(tree):
    tree.cgroup("0::/a", V2)
    tree.v2("sys/fs/cgroup/a", limit=64 * MIB, usage=50 * MIB)
    tree.write("sys/fs/cgroup/a/memory.stat", "inactive_file many\nactive_file 4096\n")

    assert memory_usage(root=tree.root).used_bytes == 50 * MIB - 4096


def test_without_a_status_shared_pages_count_as_file_pages(tree):
    tree.write("proc/self/statm", "90000 50000 40000 700 0 12800 0\n")
    tree.write("proc/self/status", "RssShmem:\t  100000 kB\n")
    assert memory_usage(root=tree.root).anon_bytes == 10_000 * 4096 + 100_000 * 1024

    (tree.root / "proc/self/status").unlink()
    assert memory_usage(root=tree.root).anon_bytes == 10_000 * 4096


def test_a_machine_that_does_not_say_its_size_leaves_the_other_limits(tree):
    tree.cgroup("0::/a", V2)
    tree.v2("sys/fs/cgroup/a", limit=64 * MIB, usage=30 * MIB)
    (tree.root / "proc/meminfo").unlink()

    assert memory_usage(root=tree.root).limit_bytes == 64 * MIB
