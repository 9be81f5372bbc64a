"""Parts that are sent ahead: which are ready, and what follows from what a store says. A scripted store, no server."""

from __future__ import annotations

import base64
import random
import types
import zlib
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memguard import UNGUARDED, ChecksumMismatchError, MissingChunksError, UploadNotFoundError, UploadStore
from memguard.files import S3Target, _sending
from memguard.files._journal import Header, Record, pack_record
from memguard.files._multipart import Part, crc32_of_range, parts_of
from memguard.files._sending import Begun, combined_crc32, ready_parts

MIB = 1024**2
PART = 5 * MIB
WHOLE = random.Random(1).randbytes(3 * PART + 1000)


def journal(header, arrived, whole=b""):
    """Return the records of the chunks that *arrived*."""
    data = bytearray(16 * header.chunks)
    for index in arrived:
        at = index * header.chunk_bytes
        length = header.length(index)
        data[16 * index : 16 * index + 16] = pack_record(index, Record(length, zlib.crc32(whole[at : at + length])))
    return bytes(data)


sizes = st.integers(1, 60)


@given(total=st.integers(0, 200), chunk=sizes, part=sizes, seed=st.integers())
def test_a_part_is_ready_once_every_byte_of_it_has_arrived(total, chunk, part, seed):
    header = Header(total, chunk)
    arrived = [index for index in range(header.chunks) if random.Random(seed + index).random() < 0.7]
    there = {byte for index in arrived for byte in range(index * chunk, index * chunk + header.length(index))}
    expected = [one for one in parts_of(total, part) if there >= set(range(one.start, one.end))]

    assert list(ready_parts(header, part, journal(header, arrived))) == expected


@given(total=st.integers(0, 200), part=sizes)
def test_parts_are_the_whole_without_gaps(total, part):
    parts = list(parts_of(total, part))

    assert [one.number for one in parts] == list(range(1, len(parts) + 1))
    assert [byte for one in parts for byte in range(one.start, one.end)] == list(range(total))
    assert all(one.length == part for one in parts[:-1])


def test_what_was_sent_is_not_looked_at_again():
    header = Header(20, 5)

    assert [part.number for part in ready_parts(header, 5, journal(header, [0, 1, 3]), {2})] == [1, 4]


def test_a_damaged_record_makes_no_part_ready():
    header = Header(20, 5)
    records = bytearray(journal(header, range(4)))
    records[16 * 2 + 9] ^= 1

    assert [part.number for part in ready_parts(header, 10, bytes(records))] == [1]


@given(total=st.integers(1, 200), chunk=sizes, part=sizes)
def test_a_crc_is_combined_where_the_borders_are_those_of_chunks(total, chunk, part):
    header, whole = Header(total, chunk), random.Random(2).randbytes(total)
    records = journal(header, range(header.chunks), whole)

    for one in parts_of(total, part):
        aligned = one.start % chunk == 0 and (one.end % chunk == 0 or one.end == total)
        expected = zlib.crc32(whole[one.start : one.end]) if aligned else None
        assert combined_crc32(header, one, records) == expected


def test_the_crc_of_a_part_that_is_not_ready_is_not_known():
    header = Header(20, 5)

    assert combined_crc32(header, Part(1, 0, 10), journal(header, [0])) is None


BEGUN = Begun({"Bucket": "films", "Key": "film.mp4"}, PART, "id", 2**63, "sender")


def test_what_was_begun_survives_the_trip():
    assert Begun.unpack(BEGUN.pack()) == BEGUN


@pytest.mark.parametrize("data", [b"", b"\0" * 40, b"[]", b"{}", b"null", BEGUN.pack()[:-1], b'{"names": 5}', b"\xff"])
def test_what_is_not_whole_was_not_begun(data):
    assert Begun.unpack(data) is None


# ----- a scripted store


class ClientError(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class Scripted:
    """A client whose store is in this process."""

    exceptions = types.SimpleNamespace(ClientError=ClientError)
    meta = MagicMock()

    def __init__(self):
        self.uploads = {}
        self.objects = {}
        self.begun = 0
        self.sent = []
        self.pages = 0
        self.tells_crc32 = True

    def _upload(self, named):
        if named["UploadId"] not in self.uploads:
            raise ClientError("NoSuchUpload")
        return self.uploads[named["UploadId"]]

    def create_multipart_upload(self, **named):
        self.begun += 1
        self.uploads[f"id-{self.begun}"] = (named["Metadata"], {})
        return {"UploadId": f"id-{self.begun}"}

    def upload_part(self, **named):
        number, data = named["PartNumber"], named["Body"].read()
        self._upload(named)[1][number] = data
        self.sent.append(number)
        return {"ETag": str(number), "ChecksumCRC32": text_of(data)}

    def get_paginator(self, name):
        assert name == "list_parts"
        return types.SimpleNamespace(paginate=self._pages)

    def _pages(self, **named):
        for number, data in sorted(self._upload(named)[1].items()):
            self.pages += 1
            crc = {"ChecksumCRC32": text_of(data)} if self.tells_crc32 else {}
            yield {"Parts": [{"PartNumber": number, "Size": len(data), "ETag": str(number), **crc}]}
        yield {}

    def complete_multipart_upload(self, **named):
        metadata, parts = self._upload(named)
        body = b"".join(parts[part["PartNumber"]] for part in named["MultipartUpload"]["Parts"])
        self.objects[named["Key"]] = {"ContentLength": len(body), "Metadata": metadata, "Body": body}
        del self.uploads[named["UploadId"]]

    def abort_multipart_upload(self, **named):
        self._upload(named)
        del self.uploads[named["UploadId"]]

    def head_object(self, **named):
        if named["Key"] not in self.objects:
            raise ClientError("404")
        return self.objects[named["Key"]]


def text_of(data):
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


@pytest.fixture
def client():
    return Scripted()


@pytest.fixture
def target(client):
    return S3Target(client, "films", "film.mp4", part_bytes=PART)


@pytest.fixture
def store(tmp_path):
    return UploadStore(tmp_path / "uploads", breaker=UNGUARDED)


@pytest.fixture
def upload(store):
    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=PART) as made:
        yield made


def write(upload, *indexes):
    for index in indexes:
        upload.write_chunk(index, WHOLE[index * PART : (index + 1) * PART])


def test_what_was_sent_ahead_is_not_sent_by_finish(upload, target, client):
    write(upload, 3, 1)
    assert (upload.send(target), upload.send(target)) == (PART + 1000, 0)
    write(upload, 0, 2)
    upload.finish(target)

    assert client.sent == [2, 4, 1, 3]
    assert client.pages == 0
    assert client.objects["film.mp4"]["Body"] == WHOLE
    assert client.uploads == {}


def test_a_finish_that_comes_too_early_keeps_what_was_sent_ahead(upload, target, client):
    write(upload, 0, 2, 3)
    upload.send(target)
    with pytest.raises(MissingChunksError):
        upload.finish(target)
    write(upload, 1)
    upload.finish(target)

    assert client.sent == [1, 3, 4, 2]


def test_a_closed_upload_sends_nothing(upload, target, client):
    write(upload, 0)
    upload.close()
    with pytest.raises(ValueError, match="closed"):
        upload.send(target)
    assert client.begun == 0


def test_the_next_process_asks_for_the_parts_page_by_page(upload, store, target, client):
    write(upload, 0, 1, 2)
    upload.send(target)
    write(upload, 3)
    with store.open("film") as other:
        assert other.send(target) == 1000

    assert (client.sent, client.pages) == ([1, 2, 3, 4], 3)


def test_what_this_process_sent_is_not_read_again_because_another_sent_meanwhile(store, target, client, monkeypatch):
    read = []

    def reading(data, part):
        read.append(part.number)
        return crc32_of_range(data, part)

    monkeypatch.setattr(_sending, "crc32_of_range", reading)
    with store.create("film", total_bytes=len(WHOLE), chunk_bytes=3 * MIB) as one, store.open("film") as other:
        for upload, indexes in ((one, [0, 1]), (other, [2, 3]), (one, [4])):
            for index in indexes:
                upload.write_chunk(index, WHOLE[index * 3 * MIB : (index + 1) * 3 * MIB])
            assert upload.send(target) == PART

    assert read == [1, 2]
    assert client.sent == [1, 2, 3]


def test_a_store_that_tells_no_crc_is_sent_everything_again_by_the_next_process(upload, store, target, client):
    client.tells_crc32 = False
    write(upload, 0, 1, 2, 3)
    upload.send(target)
    with store.open("film") as other:
        assert other.send(target) == len(WHOLE)
        other.finish(target)

    assert client.objects["film.mp4"]["Body"] == WHOLE


def test_what_nobody_can_read_any_more_is_begun_anew(upload, store, target, client):
    write(upload, 0)
    upload.send(target)
    (store.root / "film" / "sending").write_bytes(b"\0" * 100)

    assert upload.send(target) == PART
    assert client.begun == 2


def test_what_could_not_be_noted_is_given_up(upload, target, client, monkeypatch):
    def failing(self, other):
        raise OSError("disk")

    write(upload, 0)
    with monkeypatch.context() as broken, pytest.raises(OSError, match="disk"):
        broken.setattr("pathlib.Path.replace", failing)
        upload.send(target)
    assert client.uploads == {}
    assert upload.send(target) == PART


def test_a_part_whose_chunk_was_lost_with_the_machine_is_looked_at_once_it_is_there_again(
    store, upload, target, client
):
    write(upload, 0, 1)
    upload.send(target)
    upload.close()
    with (store.root / "film" / "data").open("r+b") as data:
        data.write(b"lost")
    store.boot = "another"
    with store.open("film") as again:
        write(again, 2)
        assert again.missing == (0, 3)
        assert again.send(target) == PART
        write(again, 0)
        assert again.send(target) == 0

    assert client.sent == [1, 2, 3]


def test_a_forked_child_asks_what_its_parent_has_sent(upload, target, client, monkeypatch):
    write(upload, 0)
    upload.send(target)
    monkeypatch.setattr("memguard.files._sending.os.getpid", lambda: -1)
    write(upload, 1)
    assert upload.send(target) == PART

    assert client.sent == [1, 2]
    assert client.pages > 0


def test_an_answer_that_was_lost_is_no_failure(upload, target, client):
    complete = client.complete_multipart_upload

    def asked_twice(**named):
        complete(**named)
        complete(**named)

    client.complete_multipart_upload = asked_twice
    write(upload, 0, 1, 2, 3)
    upload.send(target)

    assert upload.finish(target).size_bytes == len(WHOLE)
    assert client.begun == 1


def test_completed_but_not_known_to_be_it_is_known_again(upload, target, client):
    complete = client.complete_multipart_upload

    def cut_off(**named):
        complete(**named)
        raise ConnectionError

    write(upload, 0, 1, 2)
    upload.send(target)
    write(upload, 3)
    client.complete_multipart_upload = cut_off
    with pytest.raises(ConnectionError):
        upload.finish(target)

    assert upload.finish(target).size_bytes == len(WHOLE)
    assert client.begun == 1


def test_another_object_of_the_same_size_is_not_taken_for_it(upload, target, client):
    def failing(**named):
        client.objects["film.mp4"] = {"ContentLength": len(WHOLE), "Metadata": {}}
        raise ConnectionError

    write(upload, 0, 1, 2, 3)
    upload.send(target)
    client.complete_multipart_upload = failing
    with pytest.raises(ConnectionError):
        upload.finish(target)
    with pytest.raises(FileExistsError):
        upload.finish(target)


def test_parts_that_are_each_right_but_not_the_whole_are_not_completed(upload, target, client):
    write(upload, 0, 1, 2, 3)
    upload.send(target)
    upload._sending._sent[2] = upload._sending._sent[1]
    with pytest.raises(ChecksumMismatchError):
        upload.finish(target)

    assert (client.uploads, client.objects) == ({}, {})


def test_an_upload_that_was_removed_is_not_begun_anew_where_the_store_has_dropped_it(upload, store, target, client):
    write(upload, 0)
    upload.send(target)
    write(upload, 1)
    send = client.upload_part

    def aborted_meanwhile(**named):
        with store.open("film") as other:
            other.abort(target)
        return send(**named)

    client.upload_part = aborted_meanwhile
    with pytest.raises(UploadNotFoundError):
        upload.send(target)
    assert (client.begun, client.uploads) == (1, {})


def test_aborted_through_no_client_everything_here_is_removed(upload, store, target, client):
    write(upload, 0)
    upload.send(target)
    with store.open("film") as other:
        other.abort()

    assert list(store.root.iterdir()) == []
    assert list(client.uploads) == ["id-1"]


def test_a_stale_upload_is_removed_with_what_it_noted_of_sending(upload, store, target):
    write(upload, 0)
    upload.send(target)
    upload.close()

    assert store.remove_stale(older_than=0) == ("film",)
    assert list(store.root.iterdir()) == []


def test_published_to_a_path_by_another_process_the_parts_are_left_to_the_store(
    upload, store, target, client, tmp_path
):
    write(upload, 0, 1, 2, 3)
    upload.send(target)
    with store.open("film") as other:
        other.finish(tmp_path / "film.mp4")

    assert (tmp_path / "film.mp4").read_bytes() == WHOLE
    assert list(client.uploads) == ["id-1"]
    assert [path.name for path in (store.root / "film").iterdir()] == ["journal"]
    assert upload.send(target) == 0
