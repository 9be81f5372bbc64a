"""
Uploads among strangers: other folders, other processes, other stores, senders that stop, disks that forget.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import tracemalloc
import zlib

import pytest

from memguard import (
    UNGUARDED,
    AssemblyError,
    ChecksumMismatchError,
    InsufficientDiskError,
    MissingChunksError,
    UploadConflictError,
    UploadNotFoundError,
    UploadStore,
)
from memguard.files import _folder, _slots
from memguard.files._handles import Handle
from memguard.files._journal import Arrived, Header, mark_of
from memguard.files._locks import locked
from memguard.files._slots import Slots

LONG = 60.0
CHUNKS = [b"abcd", b"efgh", b"ij"]
WHOLE = b"".join(CHUNKS)


def made(root, **options):
    return UploadStore(root, **{"breaker": UNGUARDED, "min_free_bytes": 0} | options)


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "uploads")


def begin(store, name="film", **options):
    return store.create(name, **{"total_bytes": len(WHOLE), "chunk_bytes": 4} | options)


def fill(upload, chunks=CHUNKS):
    for index, chunk in enumerate(chunks):
        upload.write_chunk(index, chunk)


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# ----- what is not ours


def strangers(root):
    """Folders that no upload made, some of which look like one."""
    for name, files in {
        "photos": {"a.jpg": b"1"},
        "empty": {},
        "half": {"data": b"1"},
        "notes": {"journal": b"dear diary"},
        "backup.memguard-gone": {"x": b"1"},
        ".film.0123456789abcdef.memguard-gone": {"x": b"1"},
        ".film.0123456789abcdee.memguard-new": {"journal": b"dear diary"},
        ".hidden": {"journal": b"memguard"},
    }.items():
        (root / name).mkdir()
        for file, content in files.items():
            (root / name / file).write_bytes(content)
    (root / "file").write_bytes(b"memguard")


def test_what_no_upload_made_is_never_removed(store):
    strangers(store.root)
    before = tree(store.root)

    assert store.remove_stale(older_than=0) == ()
    assert tree(store.root) == before
    assert store.uploads() == ()


def test_creating_beside_strangers_removes_none_of_them(store):
    strangers(store.root)
    before = tree(store.root)
    store._swept_at -= 1000

    begin(store).abort()

    assert tree(store.root) == before


def test_a_link_is_not_followed(store, tmp_path):
    elsewhere = made(tmp_path / "elsewhere")
    begin(elsewhere).close()
    (store.root / "link").symlink_to(elsewhere.root / "film")
    (store.root / ".film.0123456789abcdef.memguard-gone").symlink_to(elsewhere.root / "film")

    assert store.remove_stale(older_than=0) == ()
    assert elsewhere.uploads() == ("film",)


def test_a_file_of_somebody_s_in_an_upload_stays(store):
    begin(store).close()
    (store.root / "film" / "notes.txt").write_bytes(b"1")

    assert store.remove_stale(older_than=0) == ("film",)
    assert [path.name for path in store.root.rglob("notes.txt")] == ["notes.txt"]


def test_an_upload_called_like_our_hidden_files_is_nobody_s_prey(store):
    with begin(store, "film.memguard-gone") as upload:
        upload.write_chunk(0, CHUNKS[0])
    assert store.remove_stale() == ()
    with store.open("film.memguard-gone") as again:
        assert again.missing == (1, 2)


def test_a_folder_of_somebody_s_is_no_upload_and_is_not_begun_in(store):
    (store.root / "film").mkdir()
    (store.root / "film" / "a.jpg").write_bytes(b"1")
    with pytest.raises(UploadNotFoundError):
        store.open("film")
    with pytest.raises(AssemblyError, match="no upload"):
        begin(store)
    with pytest.raises(UploadNotFoundError):
        store.abort("film")
    assert tree(store.root) == ["film", "film/a.jpg"]


# ----- files that others close


def test_who_writes_while_it_is_closed_writes_into_its_own_file(store, tmp_path):
    upload = begin(store)
    inside, go, seen = threading.Event(), threading.Event(), []

    def pieces():
        yield b"ab"
        inside.set()
        assert go.wait(LONG)
        yield b"cd"

    thread = threading.Thread(target=lambda: seen.append(upload.write_chunk(0, pieces())))
    thread.start()
    assert inside.wait(LONG)
    upload.close()
    others = [open(tmp_path / f"other{n}", "w+b", buffering=0) for n in range(8)]  # noqa: SIM115
    go.set()
    thread.join(LONG)

    assert seen == [True]
    assert [os.path.getsize(other.name) for other in others] == [0] * 8
    for other in others:
        other.close()
    with store.open("film") as again:
        assert again.missing == (1, 2)
    with pytest.raises(ValueError, match="is closed"):
        upload.write_chunk(1, CHUNKS[1])


def test_what_is_written_while_it_is_aborted_goes_nowhere(store):
    upload = begin(store)
    inside, go, seen = threading.Event(), threading.Event(), []

    def pieces():
        inside.set()
        assert go.wait(LONG)
        yield CHUNKS[0]

    def write():
        try:
            upload.write_chunk(0, pieces())
        except UploadNotFoundError as error:
            seen.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(LONG)
    upload.abort()
    with begin(store) as successor:
        go.set()
        thread.join(LONG)
        assert successor.missing == (0, 1, 2)


def test_an_open_file_is_closed_by_the_last_who_uses_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    ended = []
    handle = Handle(path, ended.append)
    with handle.borrowed() as number:
        handle.close()
        assert os.pread(number, 1, 0) == b"x"
        assert ended == []
    assert ended == [number]
    handle.close()
    assert ended == [number]
    with pytest.raises(ValueError, match="closed"), handle.borrowed():
        pass


def test_an_open_file_that_nobody_knows_any_more_is_closed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    handle = Handle(path)
    handle._users = 1  # an exception of a signal handler kept it from being given back
    del handle
    gc.collect()
    assert before == (len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)


# ----- forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_that_lives_on_keeps_no_lock(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    read, write = os.pipe()
    with locked(path, 0):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        with locked(path, 0, wait=False):
            pass
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_that_lets_go_of_an_upload_leaves_it_in_use(store):
    upload = begin(store)
    child = os.fork()
    if child == 0:
        upload.close()
        os._exit(0)
    os.waitpid(child, 0)

    assert store.remove_stale(older_than=0) == ()
    upload.close()
    assert store.remove_stale(older_than=0) == ("film",)


# ----- publishing


def test_two_stores_publish_their_own_bytes_in_one_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    stores = [made(tmp_path / name) for name in "ab"]
    uploads = [begin(each) for each in stores]
    fill(uploads[0])
    fill(uploads[1], [chunk.upper() for chunk in CHUNKS])
    hidden = set()
    replace = type(out).replace

    def noting(path, target):
        hidden.add(path.name)
        return replace(path, target)

    monkeypatch.setattr(type(out), "replace", noting)
    for upload in uploads:
        upload.finish(out, overwrite=True)

    assert len(hidden) == 2
    assert out.read_bytes() == WHOLE.upper()


def test_after_a_finish_that_failed_chunks_are_taken_and_verified_after_a_reboot(store, tmp_path):
    upload = begin(store)
    fill(upload)
    with pytest.raises(FileNotFoundError):
        upload.finish(tmp_path / "no" / "film")
    assert not upload.published
    upload.close()
    (store.root / "film" / "data").write_bytes(CHUNKS[0] + b"\0\0\0\0" + CHUNKS[2])  # what the disk kept

    rebooted = made(store.root)
    rebooted.boot = "another"
    with rebooted.open("film") as again:
        assert again.missing == (1,)
        assert again.write_chunk(1, CHUNKS[1])
        again.finish(tmp_path / "film")
    assert (tmp_path / "film").read_bytes() == WHOLE


def test_killed_while_publishing_it_is_verified_after_a_reboot_too(store, tmp_path, monkeypatch):
    upload = begin(store)
    fill(upload)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("memguard.files._finishing.give_name", stop)
        killed.setattr("memguard.files._finishing.is_file", lambda *_: True)  # nobody is left to take it back
        upload.finish(tmp_path / "film")
    upload.close()
    (store.root / "film" / "data").write_bytes(b"\0" * len(WHOLE))

    rebooted = made(store.root)
    rebooted.boot = "another"
    with rebooted.open("film") as again:
        assert again.missing == (0, 1, 2)
        fill(again)
        again.finish(tmp_path / "film")
    assert (tmp_path / "film").read_bytes() == WHOLE


def stop(*args, **options):
    raise KeyboardInterrupt


def test_a_file_that_was_named_by_an_attempt_nobody_knows_of_is_finished(store, tmp_path):
    upload = begin(store)
    fill(upload)
    os.link(store.root / "film" / "data", tmp_path / "film")

    assert upload.finish(tmp_path / "film").size_bytes == len(WHOLE)


def sha256(data):
    import hashlib

    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_the_running_checksum_of_one_upload_is_not_its_successor_s(tmp_path):
    one, two = (made(tmp_path / "uploads") for _ in range(2))
    damaged = begin(one, checksum=sha256(WHOLE))
    fill(damaged, [b"0000", b"0000", b"00"])
    with pytest.raises(ChecksumMismatchError):
        damaged.finish(tmp_path / "film")
    damaged.close()
    two.open("film").abort()

    with begin(one, checksum=sha256(WHOLE)) as again:
        fill(again)
        again.finish(tmp_path / "film")
    assert (tmp_path / "film").read_bytes() == WHOLE


def test_a_changed_file_of_the_same_name_and_size_is_another(store, tmp_path):
    with begin(store, content_id="monday") as upload:
        fill(upload)
        upload.finish(tmp_path / "film")
    with begin(store, content_id="monday") as same:
        assert (same.published, same.missing) == (True, ())
    with begin(store, content_id="tuesday") as changed:
        assert (changed.published, changed.missing) == (False, (0, 1, 2))
        with pytest.raises(UploadConflictError):
            begin(store, content_id="monday")


def test_where_nobody_says_what_the_contents_are_what_was_published_is_sent_again(store, tmp_path):
    with begin(store) as upload:
        fill(upload)
        upload.finish(tmp_path / "film")
    with begin(store) as again:
        assert again.missing == (0, 1, 2)
    assert (tmp_path / "film").read_bytes() == WHOLE


@pytest.mark.parametrize(("content", "error"), [("", ValueError), ("x" * 300, ValueError), (7, TypeError)])
def test_a_content_id_that_cannot_be_meant_is_refused(store, content, error):
    with pytest.raises(error, match="content_id"):
        begin(store, content_id=content)


# ----- races


def test_creating_while_others_give_up_is_no_error(store):
    until = time.monotonic() + 0.5
    errors = []

    def create_and_abort():
        while time.monotonic() < until:
            try:
                begin(store).abort()
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=create_and_abort) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert errors == []
    assert tree(store.root) == []


def test_giving_up_late_does_not_remove_a_successor(store):
    late = begin(store)
    store.open("film").abort()
    with begin(store) as successor:
        late.abort()
        assert successor.write_chunk(0, CHUNKS[0])
    assert store.uploads() == ("film",)


def test_opening_while_it_is_published_finds_it(store, tmp_path, monkeypatch):
    upload = begin(store)
    fill(upload)
    opened = []
    unlink = type(tmp_path).unlink

    def look(path, **options):
        unlink(path, **options)
        if path.name == "data":
            opened.append(store.open("film"))

    monkeypatch.setattr(type(tmp_path), "unlink", look)
    upload.finish(tmp_path / "film")
    assert [each.published for each in opened] == [True]


# ----- damage


@pytest.mark.parametrize("at", [10, 20, 60, 90])
def test_an_upload_whose_header_is_damaged_says_so_and_can_be_given_up(store, at):
    begin(store).close()
    journal = store.root / "film" / "journal"
    data = bytearray(journal.read_bytes())
    data[at] ^= 1
    journal.write_bytes(data)

    for ask in (lambda: begin(store), lambda: store.open("film")):
        with pytest.raises(AssemblyError, match="damaged") as caught:
            ask()
        assert not isinstance(caught.value, UploadNotFoundError)
    store.abort("film")
    with begin(store) as anew:
        assert anew.missing == (0, 1, 2)


def test_wherever_a_bit_of_the_journal_flips_the_right_file_comes_out_or_none(store, tmp_path):
    upload = begin(store)
    fill(upload)
    upload.close()
    journal = store.root / "film" / "journal"
    before = journal.read_bytes()
    written = [*range(120), *range(4096, len(before))]
    for bit in (at * 8 + at % 8 for at in written):
        damaged = bytearray(before)
        damaged[bit // 8] ^= 1 << bit % 8
        journal.write_bytes(damaged)
        out = tmp_path / str(bit)
        try:
            with store.open("film") as again:
                for index in again.missing:
                    again.write_chunk(index, CHUNKS[index])
                try:
                    again.finish(out)
                except MissingChunksError as error:
                    for index in error.missing:
                        again.write_chunk(index, CHUNKS[index])
                    again.finish(out)
        except AssemblyError:
            assert not out.exists()
            continue
        assert out.read_bytes() == WHOLE
        (store.root / "film" / "data").write_bytes(WHOLE)


def test_a_mark_that_was_never_written_costs_a_chunk_sent_again(store):
    with begin(store) as upload:
        fill(upload)
        with open(store.root / "film" / "journal", "r+b") as journal:
            journal.seek(4096 + 1)
            journal.write(b"\0")
        assert upload.missing == (1,)
        assert upload.write_chunk(1, CHUNKS[1]) is False
        assert upload.missing == ()


# ----- numbers from clients


def test_more_chunks_than_the_store_takes_are_refused(tmp_path):
    store = made(tmp_path, max_chunks=10)
    begin(store, total_bytes=40).abort()
    with pytest.raises(AssemblyError, match="11 chunks are more than this store takes: 10; send larger ones, of 5"):
        begin(store, total_bytes=41)
    with pytest.raises(AssemblyError, match="larger than this store takes"):
        begin(store, total_bytes=10**30, chunk_bytes=2**31)
    with pytest.raises(AssemblyError, match="more than this store takes: 65536"):
        begin(made(tmp_path), total_bytes=65_537, chunk_bytes=1)
    assert tree(tmp_path) == []


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (True, TypeError), (2.5, TypeError), ("9", TypeError)])
def test_a_bound_of_chunks_that_cannot_be_meant_is_refused(tmp_path, value, error):
    with pytest.raises(error, match="max_chunks"):
        made(tmp_path, max_chunks=value)


def test_what_has_arrived_of_a_hundred_thousand_chunks_is_told_in_little_memory(tmp_path):
    count = 100_000
    store = made(tmp_path, max_chunks=count, reserve_space=False)
    with begin(store, total_bytes=count, chunk_bytes=1) as upload:
        for index in range(0, 50, 5):
            upload.write_chunk(index, b"x")
        with open(store.root / "film" / "journal", "r+b") as journal:
            journal.seek(4096)
            journal.write(b"".join(mark_of(index) for index in range(count - 5)))
        tracemalloc.start()
        try:
            assert upload.missing == tuple(range(count - 5, count))
            assert upload.received_bytes == count - 5
            assert upload.progress.done == count - 5
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 2 * 1024**2


def test_marks_tell_bytes_with_a_short_last_chunk():
    header = Header(10, 4)
    marks = b"".join(map(mark_of, range(3)))
    assert Arrived(marks, header).nbytes == 10
    assert Arrived(marks[:2], header).nbytes == 8
    assert list(Arrived(b"", header).missing()) == [0, 1, 2]
    assert Arrived(b"", Header(0, 4)).complete
    assert list(Arrived(marks[1:] + marks[:1], header).missing()) == [0, 1, 2]


def test_a_whole_in_any_order_and_in_parts_by_another_process_has_its_crc(store, tmp_path):
    with begin(store) as upload:
        upload.write_chunk(2, CHUNKS[2])
        upload.write_chunk(0, CHUNKS[0])
        with made(store.root).open("film") as other:
            other.write_chunk(1, CHUNKS[1])
        assert upload.finish(tmp_path / "film").checksum == f"crc32:{zlib.crc32(WHOLE):08x}"


# ----- senders that stop


async def idle(begun):
    yield b"a"
    begun.release()
    await asyncio.sleep(3600)


def test_senders_that_stop_keep_nobody_out(store, monkeypatch):
    monkeypatch.setattr(_slots, "IDLE_SECONDS", 0.05)

    async def main():
        begun = threading.Semaphore(0)
        with begin(store, "slow", total_bytes=100, chunk_bytes=10) as upload, begin(store) as other:
            tasks = [asyncio.create_task(upload.awrite_chunk(n, idle(begun))) for n in range(5)]
            for _ in tasks:
                while not begun.acquire(blocking=False):
                    await asyncio.sleep(0)
            async with asyncio.timeout(LONG):
                assert await other.awrite_chunk(0, CHUNKS[0])
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert (store.statistics().active, store.statistics().waiting) == (0, 0)


def test_a_thread_whose_sender_stopped_stands_in_the_queue_again(monkeypatch):
    monkeypatch.setattr(_slots, "IDLE_SECONDS", 0.05)
    slots = Slots(1)
    idle, go, order = threading.Event(), threading.Event(), []

    def slow():
        with slots.taken() as place:
            with place.idle():
                idle.set()
                assert go.wait(LONG)
            order.append("slow")

    def quick():
        with slots.taken():
            go.set()
            while slots.waiting < 1:
                time.sleep(0.001)
            order.append("quick")

    threads = [threading.Thread(target=each) for each in (slow, quick)]
    threads[0].start()
    assert idle.wait(LONG)
    threads[1].start()
    for thread in threads:
        thread.join(LONG)

    assert order == ["quick", "slow"]
    assert (slots.active, slots.waiting) == (0, 0)


def test_two_who_send_one_chunk_do_not_wait_for_each_other_s_place(tmp_path, monkeypatch):
    monkeypatch.setattr(_slots, "IDLE_SECONDS", 0.05)
    store = made(tmp_path / "one", concurrency=1)
    inside, go = threading.Event(), threading.Event()

    def slow():
        inside.set()
        assert go.wait(LONG)
        yield CHUNKS[0]

    with begin(store) as upload:
        first = threading.Thread(target=upload.write_chunk, args=(0, slow()))
        first.start()
        assert inside.wait(LONG)
        second = threading.Thread(target=upload.write_chunk, args=(0, CHUNKS[0]))
        second.start()
        third = threading.Thread(target=upload.write_chunk, args=(1, CHUNKS[1]))
        third.start()
        third.join(LONG)
        go.set()
        first.join(LONG)
        second.join(LONG)
        assert upload.missing == (2,)


def test_a_place_whose_holder_died_is_free(monkeypatch):
    monkeypatch.setattr(_slots, "IDLE_SECONDS", 0.05)
    slots = Slots(1)
    lost = _slots.Place(slots)
    slots.wait(lost)
    assert slots.active == 1
    del lost  # an exception of a signal handler kept it from being given back
    gc.collect()
    with slots.taken():
        assert slots.active == 1


# ----- disks


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_quota_that_is_used_up_is_a_full_disk(store, monkeypatch, name):
    import errno

    code = getattr(errno, name, None)
    if code is None:
        code = errno.ENOSPC

    def full(*args):
        raise OSError(code, name)

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InsufficientDiskError):
        begin(store)
    assert tree(store.root) == []


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX")
def test_with_durable_chunks_the_folders_are_on_the_disk_too(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_ino), fsync(number)))
    store = made(tmp_path, durability="chunk")
    with begin(store) as upload:
        upload.write_chunk(0, CHUNKS[0])
    assert {os.stat(tmp_path).st_ino, os.stat(tmp_path / "film").st_ino} <= set(synced)


def test_data_are_on_the_disk_before_a_file_has_its_name(store, tmp_path, monkeypatch):
    with begin(store) as upload:
        fill(upload)
        order = []
        fsync, link = os.fsync, os.link
        inode = os.stat(store.root / "film" / "data").st_ino
        monkeypatch.setattr(os, "fsync", lambda number: (order.append(os.fstat(number).st_ino == inode), fsync(number)))
        monkeypatch.setattr(os, "link", lambda *args, **options: (order.append("named"), link(*args, **options)))
        upload.finish(tmp_path / "film")
    assert order.index(True) < order.index("named")


def test_a_folder_is_only_removed_if_it_is_still_the_one_that_was_meant(store):
    begin(store).close()
    assert _folder.remove(store.root / "film", lambda: False) is False
    assert store.uploads() == ("film",)
