"""
Uploads published to an object store: a real server that speaks S3, over HTTP.

Long because of the server and what it needs.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
import urllib.request
import zlib

import pytest

from memguard import UNGUARDED, ChecksumMismatchError, UploadConflictError, UploadStore, measure_peak
from memguard.files import AssembledObject, S3Target
from memguard.files import _upload as upload_module

pytestmark = [
    pytest.mark.long("s3"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MIB = 1024**2
CHUNK = MIB
SERVER = """
import logging, threading
from moto.server import ThreadedMotoServer
logging.disable()
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("moto")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
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
    with filled(store, data) as upload:
        S3Target(client, "films", "warm.mp4").put(
            upload._data, MIB, zlib.crc32(bytes(MIB)), overwrite=True, drops=False
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
            crash.setattr(upload_module.Upload, "_done", crashing)
            upload.finish(S3Target(client, "films", "film.mp4"))
        before = client.head_object(Bucket="films", Key="film.mp4")["LastModified"]
        time.sleep(1.1)

        assert upload.finish(S3Target(client, "films", "film.mp4")).path == "s3://films/film.mp4"

    assert client.head_object(Bucket="films", Key="film.mp4")["LastModified"] == before


def crashing(*args, **options):
    raise KeyboardInterrupt
