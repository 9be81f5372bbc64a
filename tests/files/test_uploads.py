from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import random
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from memguard import (
    UNGUARDED,
    AssemblyError,
    ChecksumMismatchError,
    InsufficientDiskError,
    MemoryCircuitBreaker,
    MemoryCircuitBreakerError,
    MissingChunksError,
    UnsafeNameError,
    UploadConflictError,
    UploadNotFoundError,
    UploadStore,
    assemble,
)
from memguard.files import _caching, _chunk, _finishing, _folder, _locks, _publishing
from memguard.files._journal import Header, Phase, Record, pack_record, unpack_record, unpack_records
from memguard.files._slots import Slots
from memguard.testing import ScriptedSampler

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="it is a matter of Linux")
LONG = 60.0
CHUNK = 4096
WHOLE = random.Random(1).randbytes(10 * CHUNK + 1000)
CHUNKS = [WHOLE[at : at + CHUNK] for at in range(0, len(WHOLE), CHUNK)]


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def crc32(data):
    return f"crc32:{zlib.crc32(data):08x}"


@pytest.fixture
def store(tmp_path):
    return UploadStore(tmp_path / "uploads", breaker=UNGUARDED)


@pytest.fixture
def upload(store):
    with store.create("film.mp4", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as made:
        yield made


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "film.mp4"


def fill(upload, indexes=None):
    for index in range(len(CHUNKS)) if indexes is None else indexes:
        upload.write_chunk(index, CHUNKS[index])


def left(store):
    return sorted(path.name for path in store.root.iterdir())


# ----- chunks


def test_chunks_in_any_order_make_the_whole(upload, out):
    order = list(range(len(CHUNKS)))
    random.Random(2).shuffle(order)
    fill(upload, order)

    made = upload.finish(out)

    assert out.read_bytes() == WHOLE
    assert (made.path, made.size_bytes, made.checksum) == (out, len(WHOLE), crc32(WHOLE))
    assert os.listdir(out.parent) == ["film.mp4"]


def test_missing_chunks_are_named_and_nothing_is_published(upload, out):
    fill(upload, [0, 3, 10])

    assert upload.missing == (1, 2, 4, 5, 6, 7, 8, 9)
    assert upload.received_bytes == 2 * CHUNK + 1000
    with pytest.raises(MissingChunksError) as caught:
        upload.finish(out)
    assert caught.value.missing == upload.missing
    assert not out.exists()


def test_a_repeated_chunk_is_accepted_when_equal_and_refused_when_not(upload):
    assert upload.write_chunk(2, CHUNKS[2]) is True
    assert upload.write_chunk(2, io.BytesIO(CHUNKS[2])) is False

    with pytest.raises(UploadConflictError, match="chunk 2 arrived before with other bytes"):
        upload.write_chunk(2, CHUNKS[3])
    assert upload.write_chunk(2, CHUNKS[2]) is False


def test_a_chunk_that_is_not_what_was_said_does_not_count(upload):
    with pytest.raises(ChecksumMismatchError, match="part 4 has") as caught:
        upload.write_chunk(4, CHUNKS[5], checksum=crc32(CHUNKS[4]))
    assert (caught.value.index, caught.value.expected) == (4, crc32(CHUNKS[4]))
    assert 4 in upload.missing

    assert upload.write_chunk(4, CHUNKS[4], checksum=sha256(CHUNKS[4]))
    with pytest.raises(ChecksumMismatchError):  # a repetition that was damaged on its way is no conflict
        upload.write_chunk(4, CHUNKS[5], checksum=crc32(CHUNKS[4]))


@pytest.mark.parametrize(("index", "data"), [(0, b"short"), (0, CHUNKS[0] + b"x"), (10, CHUNKS[0]), (10, b"")])
def test_a_chunk_of_another_length_does_not_count(upload, index, data):
    with pytest.raises(ChecksumMismatchError, match="bytes"):
        upload.write_chunk(index, data)
    assert index in upload.missing


@pytest.mark.parametrize("index", [-1, 11, 2**40])
def test_a_chunk_that_there_is_not_is_an_error(upload, index):
    with pytest.raises(IndexError, match=f"there is no chunk {index}"):
        upload.write_chunk(index, b"x")


@pytest.mark.parametrize("index", [True, 1.0, "1", None])
def test_an_index_is_a_whole_number(upload, index):
    with pytest.raises(TypeError, match="whole number"):
        upload.write_chunk(index, b"x")


@pytest.mark.parametrize(
    "data",
    [CHUNKS[1], bytearray(CHUNKS[1]), memoryview(CHUNKS[1]), io.BytesIO(CHUNKS[1]), [CHUNKS[1][:100], CHUNKS[1][100:]]],
    ids=["bytes", "bytearray", "memoryview", "file", "pieces"],
)
def test_a_chunk_may_come_as_bytes_file_or_pieces(upload, data):
    upload.write_chunk(1, data)

    assert 1 not in upload.missing


@pytest.mark.parametrize("data", ["text", [b"x", "text"], [5]])
def test_what_holds_no_bytes_is_refused(upload, data):
    with pytest.raises(TypeError, match="a chunk is bytes"):
        upload.write_chunk(1, data)
    assert 1 in upload.missing


def test_a_source_that_fails_leaves_the_chunk_to_be_sent_again(upload, out):
    def broken():
        yield CHUNKS[1][:100]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        upload.write_chunk(1, broken())
    fill(upload)
    upload.finish(out)

    assert out.read_bytes() == WHOLE


def test_progress_is_told_in_bytes(upload):
    assert (upload.progress.done, upload.progress.total, upload.progress.percent) == (0, len(WHOLE), 0.0)
    fill(upload, range(10))
    assert 0 < upload.progress.percent < 100
    fill(upload)
    assert upload.progress.percent == 100.0


def test_nothing_at_all_can_be_uploaded_too(store, out):
    with store.create("empty", total_bytes=0, chunk_bytes=CHUNK, checksum=sha256(b"")) as upload:
        assert upload.missing == ()
        assert upload.progress.percent == 100.0
        upload.finish(out)

    assert out.read_bytes() == b""


# ----- the end


@pytest.mark.parametrize("text", [sha256(WHOLE), crc32(WHOLE), "md5:" + hashlib.md5(WHOLE).hexdigest()])
@pytest.mark.parametrize("seed", range(3))
def test_the_whole_is_verified_in_whatever_order_it_came(store, out, text, seed):
    order = list(range(len(CHUNKS)))
    random.Random(seed).shuffle(order)
    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK, checksum=text) as upload:
        fill(upload, order)
        assert upload.finish(out).checksum == text
        assert upload.finish(out).checksum == text


@pytest.mark.parametrize("wrong", [sha256(b"other"), crc32(b"other")])
def test_a_wrong_whole_is_not_published(store, out, wrong):
    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK, checksum=wrong) as upload:
        fill(upload)
        with pytest.raises(ChecksumMismatchError) as caught:
            upload.finish(out)
    assert caught.value.index is None
    assert not out.exists()


def test_to_finish_again_is_the_same_answer(upload, store, out):
    fill(upload)
    first = upload.finish(out)

    assert upload.finish(out) == first
    with store.open("film.mp4") as again:
        assert again.finish(out) == first
        assert again.missing == ()
    with pytest.raises(UploadConflictError, match="was published as"):
        upload.finish(out.with_name("elsewhere"))


def test_after_it_was_published_a_repetition_is_accepted_and_nothing_else(upload, out):
    fill(upload)
    upload.finish(out)

    assert upload.write_chunk(3, CHUNKS[3]) is False
    with pytest.raises(UploadConflictError):
        upload.write_chunk(3, CHUNKS[4])


def test_what_is_there_is_not_replaced_unless_told(upload, out):
    out.write_bytes(b"before")
    fill(upload)

    with pytest.raises(FileExistsError):
        upload.finish(out)
    assert out.read_bytes() == b"before"
    upload.finish(out, overwrite=True)

    assert out.read_bytes() == WHOLE
    assert os.listdir(out.parent) == ["film.mp4"]


@pytest.fixture
def another_file_system(monkeypatch):
    """Links of the data are refused, as between file systems; those of a copy are on the right side."""
    link = os.link

    def refuse(source, *args, **options):
        if str(source).endswith("data"):
            raise OSError(errno.EXDEV, "another file system")
        return link(source, *args, **options)

    monkeypatch.setattr(os, "link", refuse)


def test_where_it_goes_may_be_another_file_system(upload, out, another_file_system):
    fill(upload)

    upload.finish(out)

    assert out.read_bytes() == WHOLE
    assert upload.finish(out).size_bytes == len(WHOLE)


def test_a_copy_published_right_before_a_crash_is_known_again(upload, out, another_file_system, monkeypatch):
    fill(upload)
    with monkeypatch.context() as crash, pytest.raises(KeyboardInterrupt):
        crash.setattr(_finishing.Finishing, "_done", crashing)
        upload.finish(out)

    assert upload.finish(out).size_bytes == len(WHOLE)
    assert os.listdir(out.parent) == [out.name]


def crashing(*args, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("then", ["finish elsewhere", "abort", "remove"])
def test_what_a_crash_left_beside_the_destination_is_removed(store, upload, out, monkeypatch, then):
    fill(upload)
    with monkeypatch.context() as crash, pytest.raises(KeyboardInterrupt):
        crash.setattr(Path, "replace", crashing)
        upload.finish(out, overwrite=True)
    assert os.listdir(out.parent)[0].endswith(".memguard-part")

    if then == "finish elsewhere":
        upload.finish(out.with_name("other"))
    elif then == "abort":
        upload.abort()
    else:
        upload.close()
        store.remove_stale(older_than=0)

    assert os.listdir(out.parent) == (["other"] if then == "finish elsewhere" else [])


def test_a_folder_that_is_missing_is_an_error_and_it_can_be_tried_again(upload, out):
    fill(upload)
    with pytest.raises(FileNotFoundError):
        upload.finish(out.parent / "missing" / "film")
    (out.parent / "missing").mkdir()

    upload.finish(out.parent / "missing" / "film")

    assert (out.parent / "missing" / "film").read_bytes() == WHOLE


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_between_the_name_and_the_note_of_it_it_is_finished_all_the_same(
    upload, store, out, monkeypatch, overwrite
):
    fill(upload)
    monkeypatch.setattr(_finishing.Finishing, "_done", crashing)
    with pytest.raises(KeyboardInterrupt):
        upload.finish(out, overwrite=overwrite)
    monkeypatch.undo()
    upload.close()

    with store.open("film.mp4") as again:
        assert again.finish(out).checksum == crc32(WHOLE)
    assert out.read_bytes() == WHOLE
    assert os.listdir(out.parent) == ["film.mp4"]


def test_killed_before_the_name_it_can_be_finished_elsewhere(upload, store, out, monkeypatch):
    fill(upload)
    monkeypatch.setattr(_finishing, "give_name", crashing)
    with pytest.raises(KeyboardInterrupt):
        upload.finish(out)
    monkeypatch.undo()
    upload.close()

    with store.open("film.mp4") as again:
        again.finish(out.with_name("elsewhere"))
    assert out.with_name("elsewhere").read_bytes() == WHOLE


# ----- begun, opened, given up


def test_the_same_again_is_the_same_upload(upload, store):
    fill(upload, [1])

    with store.create("film.mp4", total_bytes=len(WHOLE), chunk_bytes="4 KiB") as again:
        assert 1 not in again.missing
    for other in ({"total_bytes": 5}, {"chunk_bytes": 5}, {"checksum": sha256(WHOLE)}):
        wanted = {"total_bytes": len(WHOLE), "chunk_bytes": CHUNK} | other
        with pytest.raises(UploadConflictError, match="there is an upload 'film.mp4'"):
            store.create("film.mp4", **wanted)


def test_another_process_or_a_later_one_goes_on_where_this_one_was(upload, store, out):
    fill(upload, range(5))
    upload.close()

    with UploadStore(store.root, breaker=UNGUARDED).open("film.mp4") as again:
        assert again.missing == (5, 6, 7, 8, 9, 10)
        fill(again, again.missing)
        again.finish(out)
    assert out.read_bytes() == WHOLE


def test_what_was_never_begun_is_not_found(store):
    with pytest.raises(UploadNotFoundError, match="there is no upload 'film'"):
        store.open("film")
    (store.root / "film").mkdir()
    (store.root / "film" / "journal").write_bytes(b"garbage")
    with pytest.raises(UploadNotFoundError):
        store.open("film")


def test_an_aborted_upload_leaves_nothing(upload, store):
    fill(upload, [1])
    other = store.open("film.mp4")
    upload.abort()

    assert left(store) == []
    assert store.uploads() == ()
    with pytest.raises(UploadNotFoundError):
        store.open("film.mp4")
    with pytest.raises(UploadNotFoundError):
        other.write_chunk(2, CHUNKS[2])
    other.close()
    with store.create("film.mp4", total_bytes=5, chunk_bytes=5):
        assert store.uploads() == ("film.mp4",)


def test_a_closed_upload_says_so(upload):
    upload.close()
    upload.close()

    with pytest.raises(ValueError, match="is closed"):
        upload.missing  # noqa: B018
    with pytest.raises(ValueError, match="is closed"):
        upload.write_chunk(1, CHUNKS[1])


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "a\0b",
        ".hidden",
        "a" * 128,
        "ä",
        "con",
        "NUL.txt",
        "a.",
        "a b",
        None,
        5,
        b"a",
    ],
)
def test_names_that_could_leave_the_folder_are_refused(store, name):
    with pytest.raises(UnsafeNameError, match="no safe name"):
        store.create(name, total_bytes=5, chunk_bytes=5)
    with pytest.raises(UnsafeNameError):
        store.open(name)
    assert left(store) == []


@hypothesis_settings(max_examples=200, deadline=None)
@given(name=st.text(max_size=200))
def test_whatever_the_name_nothing_outside_is_touched(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("fuzz")
    store = UploadStore(root / "uploads", breaker=UNGUARDED)
    try:
        store.create(name, total_bytes=5, chunk_bytes=5).close()
    except UnsafeNameError:
        assert left(store) == []
    else:
        assert left(store) == [name]
    assert os.listdir(root) == ["uploads"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"total_bytes": -1}, ValueError, "-1"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes .* 0"),
        ({"chunk_bytes": 2**32}, ValueError, "4 GiB"),
        ({"checksum": "sha256"}, ValueError, "names no digest"),
        ({"checksum": "sha256:12"}, ValueError, "64 hexadecimal digits"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(store, options, error, words):
    with pytest.raises(error, match=words):
        store.create("film", **({"total_bytes": 100, "chunk_bytes": 10} | options))
    assert left(store) == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"concurrency": 0}, ValueError, "0"),
        ({"concurrency": 1.5}, TypeError, "1.5"),
        ({"durability": "always"}, ValueError, "always"),
        ({"page_cache": "none"}, ValueError, "none"),
        ({"max_age": -1}, ValueError, "-1"),
        ({"max_age": "1 d"}, TypeError, "1 d"),
        ({"min_free_bytes": "64m"}, ValueError, "two meanings"),
    ],
)
def test_a_store_refuses_nonsense(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        UploadStore(tmp_path / "uploads", **options)


# ----- the disk


def test_an_upload_that_the_disk_has_no_room_for_is_refused_when_it_begins(tmp_path):
    store = UploadStore(tmp_path / "uploads", breaker=UNGUARDED)

    with pytest.raises(InsufficientDiskError, match="are needed in"):
        store.create("film", total_bytes=10**18, chunk_bytes="1 GiB")
    assert left(store) == []
    small = UploadStore(tmp_path / "uploads", breaker=UNGUARDED, max_upload_bytes="1 MiB")
    with pytest.raises(AssemblyError, match="larger than this store takes"):
        small.create("film", total_bytes="2 MiB", chunk_bytes=CHUNK)


@linux_only
def test_room_is_taken_when_an_upload_begins(tmp_path):
    for reserve, blocks in ((True, 2048), (False, 0)):
        store = UploadStore(tmp_path / str(reserve), breaker=UNGUARDED, reserve_space=reserve)
        with store.create("film", total_bytes="1 MiB", chunk_bytes=CHUNK):
            status = (store.root / "film" / "data").stat()
        assert (status.st_size, status.st_blocks >= blocks) == (1024**2, True)
        if not reserve:
            assert status.st_blocks == 0


@linux_only
@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, InsufficientDiskError), (errno.EIO, OSError)])
def test_a_disk_that_fails_while_room_is_taken_is_an_error(store, monkeypatch, code, error):
    def fail(*args):
        raise OSError(code, "no")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(error):
        store.create("film", total_bytes=100, chunk_bytes=10)
    assert left(store) == []


@linux_only
def test_a_file_system_that_reserves_nothing_will_do(store, monkeypatch, out):
    def fail(*args):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as upload:
        fill(upload)
        upload.finish(out)
    assert out.read_bytes() == WHOLE


def test_a_file_that_somebody_cut_is_noticed(upload, store, out):
    fill(upload)
    os.truncate(store.root / "film.mp4" / "data", 100)

    with pytest.raises(AssemblyError, match="somebody cut the upload's file to 100 of"):
        upload.finish(out)
    with pytest.raises(AssemblyError, match="somebody cut"):
        upload.write_chunk(1, CHUNKS[1])
    assert not out.exists()


def test_a_write_that_fails_leaves_the_chunk_missing(upload, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("memguard.files._chunk.write_all", full)
    with pytest.raises(OSError, match="full: '.*film.mp4/data'"):
        upload.write_chunk(1, CHUNKS[1])
    monkeypatch.undo()
    assert 1 in upload.missing


def test_an_error_of_the_sender_is_told_as_it_is(upload):
    def stream():
        yield CHUNKS[1][:10]
        raise ConnectionResetError(errno.ECONNRESET, "gone")

    with pytest.raises(ConnectionResetError) as told:
        upload.write_chunk(1, stream())
    assert told.value.filename is None


def test_after_the_machine_died_only_chunks_that_are_on_the_disk_count(upload, store, out, monkeypatch):
    fill(upload, range(6))
    upload.close()
    with open(store.root / "film.mp4" / "data", "r+b") as data:
        data.seek(2 * CHUNK + 10)
        data.write(b"\0" * 100)  # a page that the disk never got
    monkeypatch.setattr("memguard.files._store._boot", lambda: "another boot")

    rebooted = UploadStore(store.root, breaker=UNGUARDED)
    with rebooted.open("film.mp4") as again:
        assert again.missing == (2, 6, 7, 8, 9, 10)
        fill(again, again.missing)
        again.finish(out)
    assert out.read_bytes() == WHOLE


@pytest.mark.parametrize("durability", ["none", "publish", "chunk"])
def test_durability_says_what_is_waited_for(tmp_path, out, monkeypatch, durability):
    store = UploadStore(tmp_path / "uploads", breaker=UNGUARDED, durability=durability)
    calls = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append(number), fsync(number)))

    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as upload:
        begun = len(calls)
        fill(upload)
        received = len(calls)
        upload.finish(out)

    assert (begun > 0, received - begun, len(calls) > received) == {
        "none": (False, 0, False),
        "publish": (True, 0, True),
        "chunk": (True, 2 * len(CHUNKS), True),
    }[durability]


@linux_only
def test_in_a_container_what_was_written_is_dropped_from_the_page_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(_caching, "DROP_BYTES", 2 * CHUNK)
    waited = []
    monkeypatch.setattr(_caching.os, "fdatasync", waited.append)
    dropped = []
    monkeypatch.setattr(_caching, "drop_pages", lambda number, offset, nbytes: dropped.append((offset, nbytes)))
    store = UploadStore(tmp_path / "uploads", breaker=UNGUARDED, page_cache="drop")
    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as upload:
        fill(upload, [3, 9])
        assert (dropped, waited) == ([(0, 0)], [])
        fill(upload, [5, 7])

    assert len(waited) == 1, "the disk has not taken the first ones, as they are still cached"


@linux_only
def test_dropping_pages_does_without_what_the_kernel_may_lack(tmp_path, monkeypatch):
    monkeypatch.setattr(_caching, "DROP_BYTES", CHUNK)
    for name in ("RWF_NOWAIT", "posix_fadvise"):
        monkeypatch.delattr(os, name)
    store = UploadStore(tmp_path / "uploads", breaker=UNGUARDED, page_cache="drop")
    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as upload:
        fill(upload)
        upload.finish(tmp_path / "film")

    assert (tmp_path / "film").read_bytes() == WHOLE


# ----- stale ones


def make_old(store, name, seconds=100_000):
    then = time.time() - seconds
    for path in [*(store.root / name).iterdir(), store.root / name]:
        os.utime(path, (then, then))


def test_stale_uploads_are_removed_and_live_ones_never(store, upload):
    with store.create("old", total_bytes=5, chunk_bytes=5) as old:
        old.write_chunk(0, b"12345")
    store.create("new", total_bytes=5, chunk_bytes=5).close()
    for name in ("old", "film.mp4"):
        make_old(store, name)

    assert store.remove_stale() == ("old",)
    assert store.uploads() == ("film.mp4", "new")
    fill(upload, [1])
    assert store.remove_stale(older_than=0) == ("new",)
    with pytest.raises(ValueError, match="-5"):
        store.remove_stale(older_than=-5)


def test_what_a_killed_process_left_half_made_is_removed(store, out):
    header = Header(5, 5, nonce=1).pack()
    for kind, files in {
        "1new": {},
        "2new": {"journal": b""},
        "3new": {"journal": header, "data": b""},
        "4gone": {"journal": header, "data": b"12345", "sending": b"{}"},
        "5gone": {},
    }.items():
        folder = store.root / f".film.{kind[0] * 16}.memguard-{kind[1:]}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)

    assert store.remove_stale() == ()
    assert len(left(store)) == 5
    assert store.remove_stale(older_than=0) == ()
    assert left(store) == []


def test_the_hidden_name_of_one_that_was_killed_while_publishing_is_removed(upload, store, out, monkeypatch):
    fill(upload)
    monkeypatch.setattr(Path, "replace", crashing)
    with pytest.raises(KeyboardInterrupt):
        upload.finish(out, overwrite=True)
    monkeypatch.undo()
    upload.close()
    assert [name.endswith(".memguard-part") for name in os.listdir(out.parent)] == [True]

    store.remove_stale(older_than=0)

    assert os.listdir(out.parent) == []


def test_creating_sweeps_now_and_then(store, monkeypatch):
    store.create("old", total_bytes=5, chunk_bytes=5).close()
    make_old(store, "old")
    store.create("first", total_bytes=5, chunk_bytes=5).close()
    assert "old" in store.uploads()
    store._swept_at -= 301
    store.create("second", total_bytes=5, chunk_bytes=5).close()

    assert store.uploads() == ("first", "second")


@linux_only
def test_an_upload_that_another_process_has_open_is_live(store):
    store.create("film", total_bytes=5, chunk_bytes=5).close()
    code = (
        "import sys; from memguard import UploadStore, UNGUARDED\n"
        f"upload = UploadStore({str(store.root)!r}, breaker=UNGUARDED).open('film')\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "open\n"
        assert store.remove_stale(older_than=0) == ()
        child.kill()
        child.wait(LONG)

    assert store.remove_stale(older_than=0) == ("film",)


# ----- at once


@pytest.mark.parametrize("seed", range(3))
def test_threads_write_different_chunks_and_the_same_at_once(store, out, seed):
    failed = []
    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK, checksum=sha256(WHOLE)) as upload:

        def work(number):
            order = list(range(len(CHUNKS)))
            random.Random(seed * 10 + number).shuffle(order)
            try:
                fill(upload, order)
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert failed == []
        upload.finish(out)
    assert out.read_bytes() == WHOLE


def test_only_so_many_chunks_are_written_at_a_time_and_the_others_wait(tmp_path):
    store = UploadStore(tmp_path / "uploads", breaker=UNGUARDED, concurrency=2)
    go, inside = threading.Event(), threading.Semaphore(0)

    def slow(index):
        inside.release()
        assert go.wait(LONG)
        yield CHUNKS[index]

    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as upload:
        threads = [threading.Thread(target=upload.write_chunk, args=(index, slow(index))) for index in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            assert inside.acquire(timeout=LONG)
        deadline = time.monotonic() + LONG
        while store.statistics().waiting < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert (store.statistics().active, store.statistics().waiting) == (2, 4)
        go.set()
        for thread in threads:
            thread.join(LONG)
        assert upload.missing == (6, 7, 8, 9, 10)
    assert (store.statistics().active, store.statistics().waiting) == (0, 0)


def test_the_breaker_is_asked_before_a_chunk_is_read(tmp_path):
    breaker = MemoryCircuitBreaker(sampler=ScriptedSampler([0.95]), relief=False)
    store = UploadStore(tmp_path / "uploads", breaker=breaker)

    def never():
        raise AssertionError("it was read")
        yield b""

    with store.create("film", total_bytes=5, chunk_bytes=5) as upload, pytest.raises(MemoryCircuitBreakerError):
        upload.write_chunk(0, never())


# ----- tasks


def test_tasks_upload_from_streams_and_finish(store, out):
    async def stream(index):
        for at in range(0, len(CHUNKS[index]), 1000):
            await asyncio.sleep(0)
            yield CHUNKS[index][at : at + 1000]

    async def main():
        async with await store.acreate("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as upload:
            await asyncio.gather(
                *(upload.awrite_chunk(index, stream(index), checksum=crc32(CHUNKS[index])) for index in range(11))
            )
            assert not await upload.awrite_chunk(0, CHUNKS[0])
            return await upload.afinish(out)

    assert asyncio.run(main()).size_bytes == len(WHOLE)
    assert out.read_bytes() == WHOLE


def test_a_cancelled_task_gives_its_place_and_its_chunk_back(tmp_path):
    store = UploadStore(tmp_path / "uploads", breaker=UNGUARDED, concurrency=1)

    async def endless():
        yield CHUNKS[0][:10]
        await asyncio.Event().wait()

    async def main():
        async with await store.acreate("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as upload:
            first = asyncio.create_task(upload.awrite_chunk(0, endless()))
            while not store.statistics().active:
                await asyncio.sleep(0.001)
            second = asyncio.create_task(upload.awrite_chunk(0, CHUNKS[0]))
            third = asyncio.create_task(upload.awrite_chunk(1, CHUNKS[1]))
            while store.statistics().waiting < 2:
                await asyncio.sleep(0.001)
            second.cancel()
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first, second, third], timeout=LONG)
            assert (first.cancelled(), second.cancelled(), third.result()) == (True, True, True)
            assert await upload.awrite_chunk(0, CHUNKS[0])
            return upload.missing

    assert asyncio.run(main()) == tuple(range(2, 11))
    assert (store.statistics().active, store.statistics().waiting) == (0, 0)


def test_a_cancelled_write_has_landed_before_another_may_begin(store, monkeypatch):
    """Else it could land in a chunk that was written anew, and acknowledged."""
    inside, go = threading.Event(), threading.Event()
    write_all = _chunk.write_all
    order = []

    def slow(number, piece, offset):
        if not inside.is_set():
            inside.set()
            assert go.wait(LONG)
        order.append(bytes(piece[:1]))
        write_all(number, piece, offset)

    monkeypatch.setattr(_chunk, "write_all", slow)

    async def main():
        async with await store.acreate("film", total_bytes=5, chunk_bytes=5) as upload:
            first = asyncio.create_task(upload.awrite_chunk(0, b"wrong"))
            while not inside.is_set():
                await asyncio.sleep(0.001)
            first.cancel()
            second = asyncio.create_task(upload.awrite_chunk(0, b"right"))
            await asyncio.sleep(0.05)
            first.cancel()
            go.set()
            await asyncio.wait([first, second], timeout=LONG)
            return first.cancelled(), second.result()

    assert asyncio.run(main()) == (True, True)
    assert order[:2] == [b"w", b"r"]  # and then the record
    assert (store.root / "film" / "data").read_bytes() == b"right"


def test_many_tasks_that_send_one_chunk_leave_a_thread_for_the_one_that_writes_it(tmp_path):
    store = UploadStore(tmp_path / "uploads", breaker=UNGUARDED, concurrency=60)

    async def stream():
        for at in range(0, CHUNK, 64):
            yield CHUNKS[0][at : at + 64]

    async def main():
        async with await store.acreate("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as upload:
            return await asyncio.wait_for(asyncio.gather(*(upload.awrite_chunk(0, stream()) for _ in range(60))), LONG)

    assert sum(asyncio.run(main())) == 1


def test_a_place_handed_to_a_loop_that_is_gone_goes_to_the_next():
    slots = Slots(1)
    taken = slots.taken()
    taken.__enter__()

    async def wait():
        async with slots.ataken():
            pass

    loop = asyncio.new_event_loop()
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    assert slots.waiting == 1
    first = slots._queue[0]
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    slots._queue.append(first)  # as if it had been closed without a word
    taken.__exit__(None, None, None)

    assert (slots.active, slots.waiting) == (0, 0)


# ----- the journal


headers = st.builds(
    Header,
    total_bytes=st.integers(0, 2**50),
    chunk_bytes=st.integers(1, 2**32 - 1),
    checksum=st.sampled_from(["", "crc32:00000000", "sha256:" + "0" * 64]),
    boot=st.sampled_from(["", "3f2b1a44-0000-4000-8000-000000000000"]),
    phase=st.sampled_from(list(Phase)),
    dest=st.text(max_size=300).filter(lambda text: text.isprintable()),
    device=st.integers(0, 2**64 - 1),
    inode=st.integers(0, 2**64 - 1),
)


@hypothesis_settings(max_examples=100, deadline=None)
@given(header=headers)
def test_a_header_survives_the_trip(header):
    assert Header.unpack(header.pack().ljust(4096, b"\0")) == header


@hypothesis_settings(max_examples=100, deadline=None)
@given(header=headers, at=st.integers(0, 60), bit=st.integers(0, 7))
def test_a_damaged_header_is_none(header, at, bit):
    data = bytearray(header.pack())
    data[at % len(data)] ^= 1 << bit

    assert Header.unpack(bytes(data)) is None
    assert Header.unpack(bytes(data[:20])) is None


@hypothesis_settings(max_examples=100, deadline=None)
@given(crc=st.integers(0, 2**32 - 1), index=st.integers(0, 50), at=st.integers(0, 15), bit=st.integers(0, 7))
def test_a_record_counts_in_its_place_and_undamaged_only(crc, index, at, bit):
    header = Header(100 * CHUNK, CHUNK)
    data = pack_record(index, Record(CHUNK, crc))

    assert unpack_record(data, index, header) == Record(CHUNK, crc)
    assert unpack_record(data, index + 1, header) is None
    damaged = bytearray(data)
    damaged[at] ^= 1 << bit
    # The three bytes between are not looked at by themselves, but by the checksum.
    assert unpack_record(bytes(damaged), index, header) is None
    found = {index: record for index, record in unpack_records(b"\0" * 16 * index + data, header) if record}
    assert found == {index: Record(CHUNK, crc)}


def test_a_name_that_the_journal_has_no_room_for_is_refused():
    with pytest.raises(ValueError, match="too long a name"):
        Header(1, 1, dest="x" * 5000).pack()


# ----- other platforms, as far as Linux can play them

MISSING = {
    "macos": ("copy_file_range", "sendfile", "O_TMPFILE", "posix_fadvise", "posix_fallocate"),
    "windows": ("copy_file_range", "sendfile", "O_TMPFILE", "posix_fadvise", "posix_fallocate", "preadv", "pread")
    + ("pwrite", "O_NOFOLLOW", "O_CLOEXEC", "statvfs", "fstatvfs"),
}


def refuses_what_is_open(call):
    """Wrap *call* to refuse, as Windows does, a file that this process has open, or a folder of one."""

    def wrapper(path, *arguments, **named):
        paths = {os.path.realpath(path), *(entry.path for entry in scan(path))}
        inodes = {os.stat(each).st_ino for each in paths if os.path.exists(each)}
        for number in os.listdir("/proc/self/fd"):
            try:
                inode = os.fstat(int(number)).st_ino
            except OSError:
                continue
            if inode in inodes:
                raise PermissionError(errno.EACCES, "it is open", str(path))
        return call(path, *arguments, **named)

    return wrapper


def scan(path):
    return list(os.scandir(path)) if os.path.isdir(path) else []


@pytest.fixture(params=["macos", "windows"])
def elsewhere(request, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("it is Linux that plays them")
    for name in MISSING[request.param]:
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(_locks, "_has_byte_locks", False)
    if request.param == "windows":
        monkeypatch.setattr(_locks, "_fcntl", None)
        monkeypatch.setattr(_publishing, "_DIRECTORY", 0)
        for module in (_publishing, _folder, _finishing):
            monkeypatch.setattr(module, "RENAMES_OPEN_FILES", False)
        for name in ("rename", "replace", "unlink"):
            monkeypatch.setattr(os, name, refuses_what_is_open(getattr(os, name)))
    return request.param


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("checksum", [None, "sha256"])
def test_an_upload_arrives_and_is_published_elsewhere_too(elsewhere, store, out, overwrite, checksum):
    if overwrite:
        out.write_bytes(b"before")
    named = sha256(WHOLE) if checksum else None
    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK, checksum=named) as upload:
        fill(upload, [3, 1, 2])
        assert upload.write_chunk(1, CHUNKS[1]) is False
        with pytest.raises(UploadConflictError):
            upload.write_chunk(1, CHUNKS[2])
    with store.open("film") as upload:
        fill(upload, upload.missing)
        assert upload.finish(out, overwrite=overwrite) == upload.finish(out, overwrite=overwrite)

    assert out.read_bytes() == WHOLE
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert store.remove_stale(0) == ("film",)
    assert left(store) == []


def test_a_copy_is_published_elsewhere_too(elsewhere, upload, out, another_file_system):
    fill(upload)

    upload.finish(out, overwrite=True)

    assert out.read_bytes() == WHOLE


@pytest.mark.parametrize("elsewhere", ["windows"], indirect=True)
def test_what_could_not_be_replaced_while_open_can_be_once_it_is_free(elsewhere, upload, store, out):
    fill(upload)
    out.write_bytes(b"before")
    with store.open("film.mp4"):
        with pytest.raises(PermissionError):
            upload.finish(out, overwrite=True)
        assert out.read_bytes() == b"before"

    upload.finish(out, overwrite=True)
    assert out.read_bytes() == WHOLE


def test_what_is_open_is_not_removed_elsewhere_either(elsewhere, store, upload):
    assert store.remove_stale(0) == ()
    upload.close()
    assert store.remove_stale(0) == ("film.mp4",)
    assert left(store) == []


@pytest.mark.parametrize("seed", range(3))
def test_two_objects_of_one_process_write_one_chunk_one_after_the_other_elsewhere_too(elsewhere, store, upload, seed):
    chance = random.Random(seed)
    writing, most = [], []

    def pieces():
        writing.append(None)
        most.append(len(writing))
        for at in range(0, CHUNK, 512):
            time.sleep(chance.random() / 1000)
            yield CHUNKS[0][at : at + 512]
        writing.pop()

    news = []

    def write():
        with store.open("film.mp4") as other:
            news.append(other.write_chunk(0, pieces()))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)

    assert (sorted(news), max(most)) == ([False, False, False, True], 1)
    assert _locks._table._locks == {}


def test_what_another_thread_had_locked_at_a_fork_is_free_in_the_child(monkeypatch):
    with _locks._table.held("chunk", wait=False):
        monkeypatch.setattr(_locks, "_table", _locks._table)  # put back at the end
        with pytest.raises(_locks.BusyError), _locks._table.held("chunk", wait=False):
            pass
        _locks._after_fork()
        with _locks._table.held("chunk", wait=False):
            pass


@pytest.mark.parametrize("overwrite", [False, True])
def test_parts_are_put_together_elsewhere_too(elsewhere, tmp_path, out, overwrite):
    part = tmp_path / "part"
    part.write_bytes(WHOLE)
    if overwrite:
        out.write_bytes(b"before")

    assemble([part, part], out, checksum=sha256(WHOLE * 2), overwrite=overwrite)

    assert out.read_bytes() == WHOLE * 2
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_parts_and_uploads_agree(upload, out, tmp_path):
    fill(upload)
    upload.finish(out)
    parts = []
    for number, chunk in enumerate(CHUNKS):
        parts.append(tmp_path / str(number))
        parts[-1].write_bytes(chunk)

    assert assemble(parts, out.with_name("again"), checksum="crc32").checksum == upload.finish(out).checksum
