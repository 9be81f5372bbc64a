from __future__ import annotations

import errno
import hashlib
import os
import pickle
import stat
import sys
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from memguard import (
    AssemblyError,
    ChecksumMismatchError,
    InsufficientDiskError,
    MissingChunksError,
    assemble,
    measure_peak,
)
from memguard.files import _assemble, _copying, _publishing
from memguard.files._checksums import combine_crc32, parse_checksum

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="it is a matter of Linux")
MIB = 1024**2


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def crc32(data):
    return f"crc32:{zlib.crc32(data):08x}"


@pytest.fixture
def chunks(tmp_path):
    """Parts of odd sizes, an empty one among them."""
    folder = tmp_path / "parts"
    folder.mkdir()
    data = [os.urandom(size) for size in (5000, 0, 4096, 300_001, 1)]
    paths = []
    for number, each in enumerate(data):
        paths.append(folder / f"{number:03}")
        paths[-1].write_bytes(each)
    return paths, data


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "whole"


def left(out):
    return [path.name for path in out.parent.iterdir()]


def test_the_whole_is_the_parts_one_after_the_other(chunks, out):
    paths, data = chunks

    made = assemble(paths, out)

    assert out.read_bytes() == b"".join(data)
    assert (made.path, made.size_bytes, made.checksum) == (out, len(b"".join(data)), None)
    assert left(out) == ["whole"]


def test_parts_may_be_any_iterable_walked_once(chunks, out):
    paths, data = chunks

    assemble((str(path) for path in paths), str(out))

    assert out.read_bytes() == b"".join(data)


def test_a_part_is_opened_when_its_turn_comes(tmp_path, out):
    """So one path may be filled again and again."""
    path = tmp_path / "again"

    def parts():
        for number in range(5):
            path.write_bytes(b"%d" % number * 10)
            yield path

    assemble(parts(), out)

    assert out.read_bytes() == b"".join(b"%d" % number * 10 for number in range(5))


def test_no_parts_are_an_empty_file(out):
    assert assemble([], out, checksum="sha256").checksum == sha256(b"")
    assert out.read_bytes() == b""


# ----- verified


@pytest.mark.parametrize("algorithm", ["sha256", "crc32", "md5", "blake2b"])
def test_the_checksum_of_the_whole_is_computed_on_the_way(chunks, out, algorithm):
    paths, data = chunks
    whole = b"".join(data)
    expected = f"{zlib.crc32(whole):08x}" if algorithm == "crc32" else hashlib.new(algorithm, whole).hexdigest()

    assert assemble(paths, out, checksum=algorithm).checksum == f"{algorithm}:{expected}"
    out.unlink()
    assert assemble(paths, out, checksum=f"{algorithm}:{expected.upper()}").checksum == f"{algorithm}:{expected}"


def test_a_wrong_whole_is_not_published(chunks, out):
    paths, data = chunks

    with pytest.raises(ChecksumMismatchError) as caught:
        assemble(paths, out, checksum=sha256(b"something else"))

    assert (caught.value.expected, caught.value.actual) == (sha256(b"something else"), sha256(b"".join(data)))
    assert caught.value.index is None
    assert left(out) == []


def test_each_part_may_have_a_checksum(chunks, out):
    paths, data = chunks
    texts = [sha256(data[0]), crc32(data[1]), None, crc32(data[3]), sha256(data[4])]

    assemble(paths, out, part_checksums=texts, checksum=crc32(b"".join(data)))

    assert out.read_bytes() == b"".join(data)


@pytest.mark.parametrize("wrong", [0, 1, 3, 4])
def test_a_wrong_part_is_named_and_nothing_is_published(chunks, out, wrong):
    paths, data = chunks
    texts = [crc32(each) for each in data]
    texts[wrong] = crc32(b"something else")

    with pytest.raises(ChecksumMismatchError, match=f"part {wrong} has") as caught:
        assemble(paths, out, part_checksums=texts)

    assert caught.value.index == wrong
    assert left(out) == []
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_there_must_be_a_checksum_for_each_part(chunks, out):
    with pytest.raises(ValueError, match="shorter"):
        assemble(chunks[0], out, part_checksums=["crc32:00000000"] * 0)
    assert left(out) == []


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("sha256:12", ValueError, "64 hexadecimal digits, got 2"),
        ("sha257:12", ValueError, "no checksum"),
        ("sha256:xyz", ValueError, "no checksum"),
        ("shake_128", ValueError, "no checksum"),
        ("", ValueError, "no checksum"),
        (b"sha256", TypeError, "got b'sha256'"),
    ],
)
def test_a_checksum_that_cannot_be_meant_is_refused(chunks, out, text, error, words):
    with pytest.raises(error, match=words):
        assemble(chunks[0], out, checksum=text)
    assert left(out) == []


# ----- published


def test_what_is_there_is_not_replaced_unless_told(chunks, out):
    paths, data = chunks
    out.write_bytes(b"before")

    with pytest.raises(FileExistsError, match="overwrite=True"):
        assemble(paths, out)
    assert out.read_bytes() == b"before"
    assemble(paths, out, overwrite=True)

    assert out.read_bytes() == b"".join(data)
    assert left(out) == ["whole"]


def test_what_appears_meanwhile_is_not_replaced_either(chunks, out):
    paths, _ = chunks

    def parts():
        yield paths[0]
        out.write_bytes(b"another")

    with pytest.raises(FileExistsError):
        assemble(parts(), out)
    assert out.read_bytes() == b"another"
    assert left(out) == ["whole"]


def test_the_old_file_is_whole_until_the_new_one_is(chunks, out):
    paths, _ = chunks
    out.write_bytes(b"before")

    def parts():
        yield paths[0]
        assert out.read_bytes() == b"before"

    assemble(parts(), out, overwrite=True)

    assert out.read_bytes() == paths[0].read_bytes()


def test_a_directory_is_not_replaced(chunks, tmp_path):
    with pytest.raises(IsADirectoryError):
        assemble(chunks[0], tmp_path, overwrite=True)


@linux_only
@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("overwrite", [True, False])
def test_the_mode_is_that_of_a_file_one_creates(chunks, out, mask, overwrite):
    before = os.umask(mask)
    try:
        assemble(chunks[0], out, overwrite=overwrite)
    finally:
        os.umask(before)

    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~mask


@linux_only
def test_durable_the_file_is_on_the_disk_before_its_name_and_the_name_after(chunks, out, monkeypatch):
    done = []
    fsync, link = os.fsync, os.link

    def noted_fsync(number):
        done.append("directory" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    def noted_link(*args, **options):
        done.append("name")
        link(*args, **options)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)

    assemble(chunks[0], out)
    assert done == ["file", "name", "directory"]
    assemble(chunks[0], out.with_name("quick"), durable=False)
    assert done[3:] == ["name"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_where_no_file_can_be_without_a_name_it_has_a_hidden_one(chunks, out, monkeypatch, overwrite):
    paths, data = chunks
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    seen = []

    def parts():
        seen.extend(left(out))
        yield from paths

    assemble(parts(), out, overwrite=overwrite)

    assert out.read_bytes() == b"".join(data)
    assert [name.endswith(".memguard-part") for name in seen] == [True]
    assert left(out) == ["whole"]


@linux_only
def test_a_file_system_that_knows_no_nameless_files_gets_a_hidden_one(chunks, out, monkeypatch):
    real = os.open

    def refusing(path, flags, *args, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(path, flags, *args, **options)

    monkeypatch.setattr(_publishing.os, "open", refusing)

    assemble(chunks[0], out)

    assert left(out) == ["whole"]


@pytest.mark.parametrize("tmpfile", [True, False])
def test_whatever_goes_wrong_nothing_is_left(chunks, out, monkeypatch, tmpfile):
    if not tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    paths, _ = chunks

    def parts(error):
        yield paths[0]
        raise error

    for error in (RuntimeError("no more"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            assemble(parts(error), out, checksum="sha256")
    with pytest.raises(FileNotFoundError):
        assemble([paths[0], out.with_name("missing")], out)
    with pytest.raises(FileNotFoundError):
        assemble(paths, out.parent / "no such folder" / "whole")

    assert left(out) == []


# ----- odd parts


def test_the_whole_cannot_be_one_of_its_parts(chunks, out):
    paths, _ = chunks
    out.write_bytes(b"part")

    with pytest.raises(AssemblyError, match=r"part 1, .* is what the whole is to be written to"):
        assemble([paths[0], out], out, overwrite=True)
    assert out.read_bytes() == b"part"


def test_a_directory_is_no_part(chunks, out, tmp_path):
    with pytest.raises(AssemblyError, match="part 1, .* is a directory"):
        assemble([chunks[0][0], tmp_path], out)


@linux_only
def test_a_file_that_the_kernel_makes_as_it_is_read_is_read_to_its_end(out):
    assemble(["/proc/self/limits"], out)

    assert out.read_bytes() == Path("/proc/self/limits").read_bytes()


@linux_only
def test_a_pipe_is_read_to_its_end(tmp_path, out):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"through a pipe" * 1000))
    writer.start()

    assemble(iter([pipe]), out)
    writer.join(60)

    assert out.read_bytes() == b"through a pipe" * 1000


def test_a_part_that_shrinks_meanwhile_is_an_error(chunks, out, monkeypatch):
    paths, _ = chunks
    copy = _copying.Copier.copy

    def shrinking(self, source, nbytes, source_at, target_at):
        if nbytes == 300_001:
            with open(paths[3], "r+b") as file:
                file.truncate(1000)
        return copy(self, source, nbytes, source_at, target_at)

    monkeypatch.setattr(_assemble.Copier, "copy", shrinking)

    with pytest.raises(AssemblyError, match="part 3 shrank while it was copied: 1000 of 300001 bytes"):
        assemble(paths, out)
    assert left(out) == []


def test_a_disk_without_room_is_said_before_anything_is_copied(chunks, out, monkeypatch):
    class Full:
        f_bavail = 10
        f_frsize = 1000

    monkeypatch.setattr(os, "statvfs", lambda path: Full, raising=False)

    with pytest.raises(InsufficientDiskError, match=r"301\.9 KiB are needed in .*, 9\.8 KiB are free") as caught:
        assemble(chunks[0], out)
    assert caught.value.free_bytes == 10_000
    with pytest.raises(InsufficientDiskError):
        assemble(iter(chunks[0]), out)
    assert left(out) == []

    # What is shared takes none.
    monkeypatch.setattr(_assemble, "shares_extents", lambda source, target, at: True)
    assert assemble(chunks[0], out).size_bytes == sum(map(len, chunks[1]))


@pytest.mark.parametrize("size", [4096, 5000])
def test_files_that_cannot_share_blocks_are_told(tmp_path, size):
    (tmp_path / "part").write_bytes(bytes(size))
    with (tmp_path / "part").open("rb") as part, (tmp_path / "whole").open("w+b") as whole:
        assert not _copying.shares_extents(part.fileno(), whole.fileno(), 1)


# ----- ways to copy


@linux_only
@pytest.mark.parametrize("code", ["EXDEV", "EINVAL", "EOPNOTSUPP", "ENOSYS", "EPERM", "EBADF", "ETXTBSY", None])
@pytest.mark.parametrize("both", [False, True])
def test_where_a_way_to_copy_is_refused_the_next_is_taken(chunks, out, monkeypatch, code, both):
    paths, data = chunks
    calls = []

    def refused(*args):
        calls.append(args)
        if code is None:
            return 0  # as some file systems do though there is more
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(_copying, "_by_range", refused)
    if both:
        monkeypatch.setattr(_copying, "_by_sendfile", refused)

    assemble(paths, out, checksum="sha256")

    assert out.read_bytes() == b"".join(data)
    assert len(calls) == (2 if both else 1)


@linux_only
def test_a_disk_that_fails_is_an_error_not_another_way(chunks, out, monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(_copying, "_by_range", broken)

    with pytest.raises(OSError, match=f"broken: '{chunks[0][0]}' -> '{out}'"):
        assemble(chunks[0], out)
    assert left(out) == []


def test_without_any_of_these_calls_it_still_works(chunks, out, monkeypatch):
    paths, data = chunks
    for name in ("copy_file_range", "sendfile", "preadv", "pread", "pwrite", "O_TMPFILE", "posix_fadvise"):
        monkeypatch.delattr(os, name, raising=False)

    assert assemble(paths, out, checksum="sha256").checksum == sha256(b"".join(data))


@linux_only
def test_in_a_container_pages_are_dropped_behind_the_copy(tmp_path, out, monkeypatch):
    part = tmp_path / "part"
    part.write_bytes(b"x" * 20 * MIB)
    dropped = []
    monkeypatch.setattr(_assemble, "in_container", lambda: True)
    monkeypatch.setattr(_assemble, "drop_pages", lambda number, offset, nbytes: dropped.append(nbytes))

    assemble([part], out)
    assert max(dropped) == 20 * MIB
    assemble([part], out, overwrite=True, checksum="crc32")

    assert out.stat().st_size == 20 * MIB


# ----- memory and progress


@linux_only
@pytest.mark.parametrize("checksum", [None, "sha256"])
def test_it_takes_a_buffer_whatever_the_size(tmp_path, out, checksum):
    part = tmp_path / "part"
    with open(part, "wb") as file:
        file.truncate(300 * MIB)
    assemble([part], out, checksum=checksum, durable=False)
    out.unlink()

    with measure_peak() as peak:
        assemble([part], out, checksum=checksum, durable=False)

    assert peak.peak_bytes < 3 * MIB


def test_progress_is_told_in_bytes_and_ends_at_100(tmp_path, out):
    part = tmp_path / "part"
    part.write_bytes(b"x" * 20 * MIB)
    seen = []

    assemble([part, part], out, on_progress=seen.append)

    assert seen[-1].percent == 100.0
    assert seen[-1].done == seen[-1].total == 40 * MIB
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert all(each.percent < 100 for each in seen[:-1])
    again = []
    assemble(iter([part]), out, overwrite=True, on_progress=again.append)
    assert (again[0].total, again[0].percent, again[-1].percent) == (None, None, 100.0)


def test_a_progress_callback_that_raises_is_logged_and_stops_nothing(chunks, out, caplog):
    paths, whole = chunks[0], b"".join(path.read_bytes() for path in chunks[0])
    assemble(paths, out, on_progress=lambda progress: 1 / 0)
    assert out.read_bytes() == whole
    assert "on_progress" in caplog.text


def test_an_interrupt_in_a_progress_callback_stops_it_and_leaves_nothing(chunks, out):
    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assemble(chunks[0], out, on_progress=interrupt)
    assert left(out) == []


# ----- properties


@hypothesis_settings(max_examples=50, deadline=None)
@given(first=st.binary(max_size=3000), second=st.binary(max_size=3000))
def test_crcs_of_parts_combine_to_that_of_the_whole(first, second):
    combined = combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second))

    assert combined == zlib.crc32(first + second)


def test_a_crc_moves_over_terabytes():
    zeros = 10**12
    step = combine_crc32(combine_crc32(123, 0, zeros // 2), 0, zeros // 2)

    assert combine_crc32(123, 0, zeros) == step


@hypothesis_settings(max_examples=25, deadline=None)
@given(data=st.lists(st.binary(max_size=20_000), max_size=6))
def test_any_parts_make_their_whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    paths = []
    for number, each in enumerate(data):
        paths.append(folder / str(number))
        paths[-1].write_bytes(each)

    made = assemble(paths, folder / "whole", checksum="crc32", part_checksums=map(crc32, data), durable=False)

    assert (folder / "whole").read_bytes() == b"".join(data)
    assert made.checksum == crc32(b"".join(data))


def test_errors_say_what_to_do():
    assert "3 chunks are missing: 1, 2, 7; send them" in str(MissingChunksError((1, 2, 7)))
    assert ", ..." in str(MissingChunksError(tuple(range(20))))
    assert str(parse_checksum("crc32:0000ABCD")) == "crc32:0000abcd"
