"""
Uploads published to an object store: a real server that speaks S3, over HTTP.

Long because of the server and what it needs.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memguard import (
    UNGUARDED,
    ChecksumMismatchError,
    UploadConflictError,
    UploadNotFoundError,
    UploadStore,
    measure_peak,
)
from memguard.files import AssembledObject, S3Target
from memguard.files import _finishing as finishing

pytestmark = [
    pytest.mark.long("s3"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MIB = 1024**2
CHUNK = MIB
SERVER = Path(__file__).with_name("s3_server.py")


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("moto")
    with subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE, text=True) as server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


@pytest.fixture
def client(address):
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST"), timeout=30).close()
    boto3 = pytest.importorskip("boto3")
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    made = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
    made.create_bucket(Bucket="films")
    yield made
    made.close()


@pytest.fixture
def store(tmp_path):
    return UploadStore(tmp_path / "store", breaker=UNGUARDED)


def filled(store, data, *, checksum=None):
    upload = store.create("film", total_bytes=len(data), chunk_bytes=CHUNK, checksum=checksum)
    order = list(range(upload.chunks))
    random.Random(3).shuffle(order)
    for index in order:
        upload.write_chunk(index, data[index * CHUNK : (index + 1) * CHUNK])
    return upload


def stored(client, key="film.mp4"):
    return client.get_object(Bucket="films", Key=key)["Body"].read()


def unfinished(client):
    return client.list_multipart_uploads(Bucket="films").get("Uploads", [])


def test_64_chunks_in_random_order_become_one_object(client, store):
    data = random.Random(1).randbytes(64 * CHUNK - 1000)
    with filled(store, data) as upload:
        found = upload.finish(S3Target(client, "films", "film.mp4"))
        again = upload.finish(S3Target(client, "films", "film.mp4"))
        with pytest.raises(UploadConflictError, match="s3://films/film.mp4"):
            upload.finish(S3Target(client, "films", "other.mp4"))
        with pytest.raises(UploadConflictError, match="s3://films/film.mp4"):
            upload.finish(store.root.parent / "film.mp4")

    assert found == again == AssembledObject("s3://films/film.mp4", len(data), f"crc32:{zlib.crc32(data):08x}")
    assert stored(client) == data
    assert unfinished(client) == []
    assert not (store.root / "film" / "data").exists()


def test_64_parts_take_a_buffer_of_memory(client, store):
    data = bytes(64 * 5 * MIB)
    with filled(store, data) as upload, open(store.root / "film" / "data", "rb") as warm:
        S3Target(client, "films", "warm.mp4").put(
            warm.fileno(), MIB, zlib.crc32(bytes(MIB)), overwrite=True, drops=False
        )
        with measure_peak() as used:
            upload.finish(S3Target(client, "films", "film.mp4", part_bytes="5 MiB"))

    print(f"\n320 MiB in 64 parts: {used.seconds:.1f} s, {used.peak_bytes / MIB:.2f} MiB more")
    parts = client.head_object(Bucket="films", Key="film.mp4")
    assert parts["ContentLength"] == len(data)
    assert parts["ETag"].endswith('-64"')
    assert used.peak_bytes <= 4 * MIB


def test_an_empty_upload_becomes_an_empty_object(client, store):
    with store.create("film", total_bytes=0, chunk_bytes=CHUNK) as upload:
        upload.finish(S3Target(client, "films", "film.mp4"))

    assert stored(client) == b""


def test_an_object_that_is_there_stays_unless_it_is_to_be_replaced(client, store):
    client.put_object(Bucket="films", Key="film.mp4", Body=b"before")
    data = random.Random(2).randbytes(6 * MIB)
    with filled(store, data) as upload:
        with pytest.raises(FileExistsError, match="film.mp4"):
            upload.finish(S3Target(client, "films", "film.mp4"))
        assert stored(client) == b"before"
        assert unfinished(client) == []
        upload.finish(S3Target(client, "films", "film.mp4"), overwrite=True)

    assert stored(client) == data


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [1, 3, 13, "complete"])
def test_what_fails_on_the_way_leaves_nothing_and_can_be_tried_again(client, store, error, at):
    data = random.Random(4).randbytes(64 * MIB)
    calls = []

    class Failing:
        def __getattr__(self, name):
            return getattr(client, name)

        def upload_part(self, **named):
            calls.append(named["PartNumber"])
            if named["PartNumber"] == at:
                raise error
            return client.upload_part(**named)

        def complete_multipart_upload(self, **named):
            if at == "complete":
                raise error
            return client.complete_multipart_upload(**named)

    with filled(store, data) as upload:
        with pytest.raises(error):
            upload.finish(S3Target(Failing(), "films", "film.mp4", part_bytes="5 MiB"))
        assert len(calls) == (13 if at == "complete" else at)
        assert unfinished(client) == []
        assert "Contents" not in client.list_objects_v2(Bucket="films")

        upload.finish(S3Target(client, "films", "film.mp4"))
    assert stored(client) == data


def test_data_that_changed_on_the_disk_are_not_published(client, store):
    data = random.Random(5).randbytes(12 * MIB)
    with filled(store, data) as upload:
        with (store.root / "film" / "data").open("r+b") as file:
            file.seek(7 * MIB)
            file.write(b"changed")
        with pytest.raises(ChecksumMismatchError):
            upload.finish(S3Target(client, "films", "film.mp4"))

    assert unfinished(client) == []
    assert "Contents" not in client.list_objects_v2(Bucket="films")


def test_what_arrives_otherwise_than_it_was_sent_is_not_published(client, store):
    class Damaging:
        def __getattr__(self, name):
            return getattr(client, name)

        def upload_part(self, **named):
            return {**client.upload_part(**named), "ChecksumCRC32": "AAAAAA=="}

    with filled(store, random.Random(6).randbytes(6 * MIB)) as upload, pytest.raises(ChecksumMismatchError):
        upload.finish(S3Target(Damaging(), "films", "film.mp4"))

    assert unfinished(client) == []


def test_an_object_completed_right_before_a_crash_is_known_again(client, store, monkeypatch):
    data = random.Random(7).randbytes(6 * MIB)
    with filled(store, data) as upload:
        with monkeypatch.context() as crash, pytest.raises(KeyboardInterrupt):
            crash.setattr(finishing.Finishing, "_done", crashing)
            upload.finish(S3Target(client, "films", "film.mp4"))
        before = client.head_object(Bucket="films", Key="film.mp4")["LastModified"]
        time.sleep(1.1)

        assert upload.finish(S3Target(client, "films", "film.mp4")).path == "s3://films/film.mp4"

    assert client.head_object(Bucket="films", Key="film.mp4")["LastModified"] == before


def crashing(*args, **options):
    raise KeyboardInterrupt


# ----- sent as they arrive


class Counting:
    """A client that notes the parts that it sent, and how often it asked which are there."""

    def __init__(self, client):
        self.client = client
        self.sent = []
        self.listed = 0

    def __getattr__(self, name):
        return getattr(self.client, name)

    def upload_part(self, **named):
        answer = self.client.upload_part(**named)
        self.sent.append(named["PartNumber"])
        return answer

    def get_paginator(self, name):
        self.listed += name == "list_parts"
        return self.client.get_paginator(name)


class Waiting(Counting):
    """The same; before it sends the part *at* it says that it is busy, and waits to go on."""

    def __init__(self, client, at):
        super().__init__(client)
        self.at = at
        self.busy, self.go_on = threading.Event(), threading.Event()

    def upload_part(self, **named):
        if named["PartNumber"] == self.at:
            self.busy.set()
            assert self.go_on.wait(60)
        return super().upload_part(**named)


def target_of(client, key="film.mp4", part_bytes="5 MiB"):
    return S3Target(client, "films", key, part_bytes=part_bytes)


def begun(store, data, chunk_bytes=CHUNK):
    return store.create("film", total_bytes=len(data), chunk_bytes=chunk_bytes)


def write(upload, data, indexes):
    size = upload.chunk_bytes
    for index in indexes:
        upload.write_chunk(index, data[index * size : (index + 1) * size])


def is_clean(client):
    return unfinished(client) == [] and "Contents" not in client.list_objects_v2(Bucket="films")


@pytest.mark.parametrize("chunk_bytes", [MIB, 5 * MIB])
def test_64_parts_are_sent_as_they_arrive_and_finish_sends_the_rest(client, store, chunk_bytes):
    data = b"".join(map(random.Random(11).randbytes, [5 * MIB] * 63 + [5 * MIB - 1000]))
    counting = Counting(client)
    target = target_of(counting)
    with begun(store, data, chunk_bytes) as upload:
        order = list(range(upload.chunks))
        random.Random(12).shuffle(order)
        ahead = 0
        for index in order[:-3]:
            write(upload, data, [index])
            ahead += upload.send(target)
        write(upload, data, order[-3:])
        late = {1 + index * chunk_bytes // (5 * MIB) for index in order[-3:]}
        assert sorted({*counting.sent, *late}) == list(range(1, 65))
        assert ahead == sum(len(data[(number - 1) * 5 * MIB : number * 5 * MIB]) for number in counting.sent)
        assert not late & {*counting.sent}
        assert counting.listed == 0
        found = upload.finish(target)

    assert sorted(counting.sent) == list(range(1, 65))
    assert found == AssembledObject("s3://films/film.mp4", len(data), f"crc32:{zlib.crc32(data):08x}")
    assert stored(client) == data
    assert unfinished(client) == []
    assert sorted(path.name for path in (store.root / "film").iterdir()) == ["journal"]


def test_finish_sends_what_send_left(client, store):
    data = random.Random(13).randbytes(22 * MIB)
    counting = Counting(client)
    with begun(store, data) as upload:
        write(upload, data, range(5, 22))
        assert upload.send(target_of(counting)) == 17 * MIB
        assert counting.sent == [2, 3, 4, 5]
        write(upload, data, range(5))
        upload.finish(target_of(counting))

    assert counting.sent == [2, 3, 4, 5, 1]
    assert stored(client) == data


def test_nothing_is_begun_before_a_part_is_whole(client, store):
    data = bytes(20 * MIB)
    with begun(store, data) as upload:
        assert upload.send(target_of(client)) == 0
        write(upload, data, [0, 1, 2, 3, 6, 7, 8, 9, 10])
        assert upload.send(target_of(client)) == 0
        assert unfinished(client) == []
        upload.abort()


def test_an_empty_upload_is_sent_by_finish(client, store):
    with begun(store, b"") as upload:
        assert upload.send(target_of(client)) == 0
        upload.finish(target_of(client))
        assert upload.send(target_of(client)) == 0

    assert stored(client) == b""


def test_parts_whose_borders_are_inside_chunks_are_sent_and_known_again(client, store):
    data = random.Random(14).randbytes(31 * MIB)
    counting = Counting(client)
    with begun(store, data, 3 * MIB) as upload:
        write(upload, data, [0, 3, 4])
        assert upload.send(target_of(counting)) == 5 * MIB
        write(upload, data, [1, 6])
        assert upload.send(target_of(counting)) == 5 * MIB
        write(upload, data, [2, 5])
    with store.open("film") as upload:
        assert upload.send(target_of(counting)) == 10 * MIB
    with store.open("film") as upload:
        write(upload, data, [7, 8, 9, 10])
        upload.finish(target_of(counting))

    assert counting.sent == [3, 1, 2, 4, 5, 6, 7]
    assert stored(client) == data


SENDER = """
import os, signal, sys
import boto3
from memguard import UNGUARDED, UploadStore
from memguard.files import S3Target

address, root, count = sys.argv[1:]
keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)

class Killed:
    left = int(count)

    def __getattr__(self, name):
        return getattr(client, name)

    def upload_part(self, **named):
        answer = client.upload_part(**named)
        Killed.left -= 1
        if not Killed.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

with UploadStore(root, breaker=UNGUARDED).open("film") as upload:
    upload.send(S3Target(Killed(), "films", "film.mp4", part_bytes="5 MiB"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_after_a_process_was_killed_the_next_one_sends_no_part_again(address, client, store):
    data = random.Random(15).randbytes(40 * MIB)
    counting = Counting(client)
    with begun(store, data) as upload:
        write(upload, data, range(35))
        killed = subprocess.run([sys.executable, "-c", SENDER, address, store.root, "4"], timeout=60, check=False)
        assert killed.returncode == -9
    with store.open("film") as upload:
        assert upload.send(target_of(counting)) == 15 * MIB
        write(upload, data, range(35, 40))
        assert upload.send(target_of(counting)) == 5 * MIB
        upload.finish(target_of(counting))

    assert counting.sent == [5, 6, 7, 8]
    assert counting.listed == 1
    assert stored(client) == data


def test_two_that_take_turns_send_no_part_twice(client, store):
    data = random.Random(16).randbytes(40 * MIB)
    counting = Counting(client)
    with begun(store, data) as one, store.open("film") as other:
        for index in range(40):
            sender = (one, other)[index // 5 % 2]
            write(sender, data, [index])
            sender.send(target_of(counting))
        assert counting.listed == 7
        one.finish(target_of(counting))

    assert counting.sent == list(range(1, 9))
    assert stored(client) == data


def test_of_two_that_send_at_once_one_goes_away_at_once(client, store):
    data = random.Random(17).randbytes(20 * MIB)
    counting = Counting(client)
    waiting = Waiting(client, at=1)
    with begun(store, data) as one, store.open("film") as other, ThreadPoolExecutor() as pool:
        write(one, data, range(20))
        sending = pool.submit(one.send, target_of(waiting))
        assert waiting.busy.wait(60)
        assert (other.send(target_of(counting)), one.send(target_of(counting))) == (0, 0)
        finishing = pool.submit(other.finish, target_of(counting))
        waiting.go_on.set()
        assert sending.result(60) == 20 * MIB
        finishing.result(60)

    assert (waiting.sent, counting.sent) == ([1, 2, 3, 4], [])
    assert stored(client) == data


def test_threads_that_write_and_send_at_once_send_no_part_twice(client, store):
    data = random.Random(18).randbytes(60 * MIB)
    counting = Counting(client)
    order = list(range(60))
    random.Random(19).shuffle(order)

    def write_and_send(upload, indexes):
        for index in indexes:
            write(upload, data, [index])
            upload.send(target_of(counting))

    with begun(store, data) as one, store.open("film") as other, ThreadPoolExecutor() as pool:
        jobs = [pool.submit(write_and_send, (one, other)[n % 2], order[n::4]) for n in range(4)]
        for job in jobs:
            job.result(120)
        one.finish(target_of(counting))

    assert sorted(counting.sent) == list(range(1, 13))
    assert stored(client) == data


@pytest.mark.parametrize(("key", "part_bytes"), [("film.mp4", "6 MiB"), ("other.mp4", "5 MiB")])
@pytest.mark.parametrize("call", ["send", "finish"])
def test_another_key_or_part_size_begins_anew(client, store, key, part_bytes, call):
    data = random.Random(20).randbytes(24 * MIB)
    with begun(store, data) as upload:
        write(upload, data, range(24))
        upload.send(target_of(client))
        before = unfinished(client)[0]["UploadId"]
        if call == "send":
            assert upload.send(target_of(client, key, part_bytes)) == 24 * MIB
            assert before not in [one["UploadId"] for one in unfinished(client)]
        upload.finish(target_of(client, key, part_bytes))

    assert unfinished(client) == []
    assert [found["Key"] for found in client.list_objects_v2(Bucket="films")["Contents"]] == [key]
    assert stored(client, key) == data


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("arrived", [20, 25])
def test_what_the_store_dropped_meanwhile_is_sent_anew(client, store, reopened, arrived):
    data = random.Random(21).randbytes(25 * MIB)
    counting = Counting(client)
    upload = begun(store, data)
    write(upload, data, range(15))
    upload.send(target_of(client))
    client.abort_multipart_upload(Bucket="films", Key="film.mp4", UploadId=unfinished(client)[0]["UploadId"])
    if reopened:
        upload.close()
        upload = store.open("film")
    with upload:
        write(upload, data, range(15, arrived))
        assert upload.send(target_of(counting)) == arrived * MIB
        write(upload, data, range(arrived, 25))
        upload.finish(target_of(counting))

    assert counting.sent == [1, 2, 3, 4, 5]
    assert unfinished(client) == []
    assert stored(client) == data


@pytest.mark.parametrize("sent", [10, 15])
@pytest.mark.parametrize("reopened", [False, True])
def test_finish_sends_all_where_the_store_dropped_what_was_sent(client, store, sent, reopened):
    data = random.Random(22).randbytes(15 * MIB)
    upload = begun(store, data)
    write(upload, data, range(sent))
    upload.send(target_of(client))
    client.abort_multipart_upload(Bucket="films", Key="film.mp4", UploadId=unfinished(client)[0]["UploadId"])
    if reopened:
        upload.close()
        upload = store.open("film")
    with upload:
        write(upload, data, range(sent, 15))
        upload.finish(target_of(client))

    assert unfinished(client) == []
    assert stored(client) == data


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_send_that_fails_loses_nothing_and_the_next_one_goes_on(client, store, error):
    data = random.Random(23).randbytes(25 * MIB)

    class Failing(Counting):
        def upload_part(self, **named):
            if named["PartNumber"] == 3 and 3 not in failed:
                failed.append(3)
                raise error
            return super().upload_part(**named)

    failed = []
    counting = Failing(client)
    with begun(store, data) as upload:
        write(upload, data, range(25))
        with pytest.raises(error):
            upload.send(target_of(counting))
        assert len(unfinished(client)) == 1
        assert upload.send(target_of(counting)) == 15 * MIB
        upload.finish(target_of(counting))

    assert counting.sent == [1, 2, 3, 4, 5]
    assert stored(client) == data


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [4, "complete"])
def test_a_finish_that_fails_leaves_nothing_of_what_was_sent_ahead(client, store, error, at):
    data = random.Random(24).randbytes(25 * MIB)

    class Failing(Counting):
        def upload_part(self, **named):
            if named["PartNumber"] == at:
                raise error
            return super().upload_part(**named)

        def complete_multipart_upload(self, **named):
            raise error

    with begun(store, data) as upload:
        write(upload, data, range(15))
        upload.send(target_of(client))
        write(upload, data, range(15, 25))
        with pytest.raises(error):
            upload.finish(target_of(Failing(client)))
        assert is_clean(client)
        assert sorted(path.name for path in (store.root / "film").iterdir()) == ["data", "journal"]

        assert upload.send(target_of(client)) == 25 * MIB
        upload.finish(target_of(client))
    assert stored(client) == data


def test_what_was_sent_ahead_stays_while_an_object_is_in_the_way(client, store):
    client.put_object(Bucket="films", Key="film.mp4", Body=b"before")
    data = random.Random(25).randbytes(15 * MIB)
    counting = Counting(client)
    with begun(store, data) as upload:
        write(upload, data, range(15))
        upload.send(target_of(counting))
        with pytest.raises(FileExistsError, match="film.mp4"):
            upload.finish(target_of(counting))
        assert stored(client) == b"before"
        upload.finish(target_of(counting), overwrite=True)

    assert counting.sent == [1, 2, 3]
    assert stored(client) == data


@pytest.mark.parametrize("chunk_bytes", [MIB, 3 * MIB])
@pytest.mark.parametrize("reopened", [False, True])
def test_bytes_that_changed_after_they_were_sent_are_never_published(client, store, chunk_bytes, reopened):
    data = random.Random(26).randbytes(30 * MIB)
    upload = begun(store, data, chunk_bytes)
    write(upload, data, range(upload.chunks))
    upload.send(target_of(client))
    damage(store, 7 * MIB)
    if reopened:
        upload.close()
        upload = store.open("film")
    with upload:
        try:
            upload.finish(target_of(client))
        except ChecksumMismatchError:
            assert chunk_bytes == 3 * MIB
            assert reopened
            assert is_clean(client)
        else:
            assert stored(client) == data
            assert unfinished(client) == []


def test_bytes_that_changed_before_they_were_sent_are_not_sent(client, store):
    data = random.Random(27).randbytes(15 * MIB)
    with begun(store, data) as upload:
        write(upload, data, range(15))
        damage(store, 7 * MIB)
        with pytest.raises(ChecksumMismatchError, match="part 1 has"):
            upload.send(target_of(client))
        with pytest.raises(ChecksumMismatchError):
            upload.finish(target_of(client))

    assert is_clean(client)


def damage(store, at):
    with (store.root / "film" / "data").open("r+b") as file:
        file.seek(at)
        file.write(b"changed")


def test_a_part_that_the_store_has_otherwise_is_sent_again(client, store):
    data = random.Random(28).randbytes(15 * MIB)
    counting = Counting(client)
    with begun(store, data) as upload:
        write(upload, data, range(15))
        upload.send(target_of(client))
    client.upload_part(
        Bucket="films", Key="film.mp4", UploadId=unfinished(client)[0]["UploadId"], PartNumber=2, Body=bytes(5 * MIB)
    )
    with store.open("film") as upload:
        upload.finish(target_of(counting))

    assert counting.sent == [2]
    assert stored(client) == data


@pytest.mark.parametrize("how", ["remembered", "given"])
def test_an_aborted_upload_leaves_nothing_in_the_store(client, store, how):
    data = bytes(15 * MIB)
    upload = begun(store, data)
    write(upload, data, range(10))
    upload.send(target_of(client))
    assert len(unfinished(client)) == 1
    if how == "remembered":
        upload.abort()
    else:
        upload.close()
        store.open("film").abort(target_of(client))

    assert is_clean(client)
    assert list(store.root.iterdir()) == []


def test_an_upload_is_aborted_here_whatever_the_store_says(client, store):
    class Unreachable(Counting):
        def abort_multipart_upload(self, **named):
            raise ConnectionError

    data = bytes(15 * MIB)
    upload = begun(store, data)
    write(upload, data, range(10))
    upload.send(target_of(Unreachable(client)))
    upload.abort()

    assert list(store.root.iterdir()) == []
    assert len(unfinished(client)) == 1


def test_an_upload_that_is_aborted_while_it_is_sent_leaves_nothing_in_the_store(client, store):
    data = bytes(20 * MIB)
    waiting = Waiting(client, at=2)
    with begun(store, data) as upload, store.open("film") as other, ThreadPoolExecutor() as pool:
        write(upload, data, range(20))
        sending = pool.submit(upload.send, target_of(waiting))
        assert waiting.busy.wait(60)
        other.abort()
        waiting.go_on.set()
        with pytest.raises(UploadNotFoundError):
            sending.result(60)

    assert waiting.sent == [1, 2]
    assert is_clean(client)


def test_an_upload_that_is_closed_while_it_is_sent_is_sent_to_the_end(client, store):
    data = random.Random(29).randbytes(20 * MIB)
    waiting = Waiting(client, at=1)
    with begun(store, data) as upload, ThreadPoolExecutor() as pool:
        write(upload, data, range(20))
        sending = pool.submit(upload.send, target_of(waiting))
        assert waiting.busy.wait(60)
        upload.close()
        waiting.go_on.set()
        assert sending.result(60) == 20 * MIB
    with store.open("film") as upload:
        upload.finish(target_of(client))

    assert stored(client) == data


def test_published_to_a_path_what_was_sent_ahead_is_dropped(client, store, tmp_path):
    data = random.Random(30).randbytes(15 * MIB)
    with begun(store, data) as upload:
        write(upload, data, range(10))
        upload.send(target_of(client))
        write(upload, data, range(10, 15))
        upload.finish(tmp_path / "film.mp4")
        assert upload.send(target_of(client)) == 0
        assert sorted(path.name for path in (store.root / "film").iterdir()) == ["journal"]

    assert (tmp_path / "film.mp4").read_bytes() == data
    assert is_clean(client)


def test_an_object_sent_ahead_and_completed_right_before_a_crash_is_known_again(client, store, monkeypatch):
    data = random.Random(31).randbytes(15 * MIB)
    counting = Counting(client)
    with begun(store, data) as upload:
        write(upload, data, range(10))
        upload.send(target_of(counting))
        write(upload, data, range(10, 15))
        with monkeypatch.context() as crash, pytest.raises(KeyboardInterrupt):
            crash.setattr(finishing.Finishing, "_done", crashing)
            upload.finish(target_of(counting))
    with store.open("film") as upload:
        assert upload.finish(target_of(counting)).path == "s3://films/film.mp4"

    assert counting.sent == [1, 2, 3]
    assert unfinished(client) == []


def test_tasks_send_ahead(client, store):
    data = random.Random(32).randbytes(25 * MIB)
    counting = Counting(client)

    async def uploading():
        async with await store.acreate("film", total_bytes=len(data), chunk_bytes=CHUNK) as upload:

            async def one(index):
                await upload.awrite_chunk(index, data[index * CHUNK : (index + 1) * CHUNK])
                return await upload.asend(target_of(counting))

            sent = await asyncio.gather(*map(one, range(25)))
            left = await upload.asend(target_of(counting))
            await upload.afinish(target_of(counting))
            return sum(sent) + left

    assert asyncio.run(uploading()) == len(data)
    assert sorted(counting.sent) == [1, 2, 3, 4, 5]
    assert stored(client) == data


def test_64_parts_sent_as_they_arrive_take_a_buffer_of_memory(client, store):
    chunk = bytes(5 * MIB)
    target = target_of(client)
    with begun(store, bytes(6 * MIB)) as warm:
        write(warm, bytes(6 * MIB), range(6))
        warm.send(target)
        warm.abort()
    upload = store.create("film", total_bytes=64 * len(chunk), chunk_bytes=len(chunk))
    with measure_peak() as used, upload:
        for index in range(64):
            upload.write_chunk(index, chunk)
            assert upload.send(target) == len(chunk)
        upload.finish(target)

    print(f"\n320 MiB in 64 parts, as they arrive: {used.seconds:.1f} s, {used.peak_bytes / MIB:.2f} MiB more")
    assert client.head_object(Bucket="films", Key="film.mp4")["ContentLength"] == 64 * len(chunk)
    assert used.peak_bytes <= 4 * MIB
