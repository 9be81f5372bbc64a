"""
The upload service of the examples, over HTTP.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CHUNK = 64 * 1024
DATA = random.Random(1).randbytes(7 * CHUNK - 1000)
MIB = 1024**2
S3_SERVER = Path(__file__).parent.parent / "long" / "s3_server.py"


@contextmanager
def serving(folder, *arguments, mode="off", environ=None):
    """Serve; unless it is about memory, whatever the machine has left of it."""
    with service(folder, *arguments, environ={"MEMGUARD_MODE": mode, **(environ or {})}) as (port, _):
        yield port


@contextmanager
def service(folder, *arguments, environ=None):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, EXAMPLES / "upload_service.py", "--folder", folder, "--port", port, *arguments]
    env = {**os.environ, **(environ or {})}
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=env) as server:
        try:
            wait_for(port, server)
            yield port, server
        finally:
            server.kill()


def wait_for(port, server):
    for _ in range(1500):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert server.poll() is None, server.stderr.read()
            time.sleep(0.02)
    raise TimeoutError


def client(port, file, *arguments):
    command = [sys.executable, EXAMPLES / "upload_client.py", f"http://127.0.0.1:{port}", file, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read() or b"null")
    connection.close()
    return found


class Sender(threading.Thread):
    """A client that sends in random order, a tenth twice, a twentieth damaged first; and what it was told."""

    def __init__(self, port, number, chunks, chunk_bytes):
        super().__init__()
        self.port, self.name = port, f"film-{number}"
        self.chunks, self.chunk_bytes, self.total = chunks, chunk_bytes, chunks * chunk_bytes - 1000
        self.chance = random.Random(number)
        self.seed = number
        self.told = {"new": 0, "repeated": 0, "damaged": 0}
        self.published = None

    def chunk(self, index):
        size = min(self.chunk_bytes, self.total - index * self.chunk_bytes)
        return random.Random(f"{self.seed} {index}").randbytes(size)

    def send(self, index, data, checksum):
        path = f"/uploads/{self.name}/{index}"
        return ask(self.port, "PUT", path, data, **{"X-Checksum": f"crc32:{checksum:08x}"})

    def run(self):
        begin = f"/uploads/{self.name}?total={self.total}&chunk={self.chunk_bytes}"
        assert ask(self.port, "PUT", begin)[0] == 201
        order = list(range(self.chunks))
        order += self.chance.sample(order, self.chunks // 10)
        self.chance.shuffle(order)
        damaged = set(self.chance.sample(range(self.chunks), self.chunks // 20))
        for index in order:
            data = self.chunk(index)
            checksum = zlib.crc32(data)
            if index in damaged:
                damaged.remove(index)
                spoiled = bytearray(data)
                spoiled[self.chance.randrange(len(data))] ^= 1
                assert self.send(index, spoiled, checksum)[0] == 422
                self.told["damaged"] += 1
            status, answer = self.send(index, data, checksum)
            assert status == 200, answer
            self.told["new" if answer["new"] else "repeated"] += 1
        self.published = ask(self.port, "POST", f"/uploads/{self.name}")

    def check(self, folder):
        """Compare what was published, chunk by chunk, with what was sent."""
        status, said = self.published
        path, crc = folder / "published" / self.name, 0
        with path.open("rb") as file:
            for index in range(self.chunks):
                data = self.chunk(index)
                crc = zlib.crc32(data, crc)
                assert file.read(self.chunk_bytes) == data
            assert file.read() == b""
        assert (status, said["checksum"]) == (200, f"crc32:{crc:08x}")


def send_all(port, folder, *, chunks, chunk_bytes):
    senders = [Sender(port, number, chunks, chunk_bytes) for number in range(5)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(300)
    return senders


def test_an_upload_goes_on_after_the_service_was_killed_and_is_published_whole(tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(DATA)
    with serving(tmp_path) as port:
        assert client(port, film, "--chunk-bytes", CHUNK, "--chunks", 3).stdout == "3 chunks sent, 4 missing\n"
        assert ask(port, "POST", "/uploads/film.mp4")[0] == 409
    with serving(tmp_path) as port:
        out = client(port, film, "--chunk-bytes", CHUNK)
        checksum = f"crc32:{zlib.crc32(DATA):08x}"
        said = {"name": "film.mp4", "size_bytes": len(DATA), "checksum": checksum}
        assert out.stdout == f"published: {said}\n", out.stderr
        assert ask(port, "POST", "/uploads/film.mp4") == (200, said)

        assert ask(port, "PUT", "/uploads/film.mp4/0", b"wrong")[0] == 422
        assert ask(port, "PUT", "/uploads/film.mp4/7", b"")[0] == 404
        assert ask(port, "GET", "/uploads/other")[0] == 404
        assert ask(port, "PUT", "/uploads/..film?total=1&chunk=1")[0] == 400

    assert (tmp_path / "published" / "film.mp4").read_bytes() == DATA


def test_a_chunk_for_which_there_is_no_memory_is_refused_before_its_body(tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(DATA)
    with serving(tmp_path, "--limit", "8 MiB", mode="enforce") as port:
        content = f"{len(DATA)}-{film.stat().st_mtime_ns}"
        assert ask(port, "PUT", f"/uploads/film.mp4?total={len(DATA)}&chunk={CHUNK}&content={content}")[0] == 201
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest("PUT", "/uploads/film.mp4/0")
        connection.putheader("Content-Length", str(CHUNK))
        connection.endheaders()  # and no body
        answer = connection.getresponse()

        assert (answer.status, int(answer.headers["Retry-After"]) >= 1) == (503, True)
        connection.close()
        assert "503: memory is short" in client(port, film, "--chunk-bytes", CHUNK, "--tries", 1).stderr


def test_five_clients_send_in_any_order_some_twice_some_damaged_and_all_arrives(tmp_path):
    with serving(tmp_path) as port:
        for sender in send_all(port, tmp_path, chunks=40, chunk_bytes=CHUNK):
            sender.check(tmp_path)
            assert sender.told == {"new": 40, "repeated": 4, "damaged": 2}


def memory_kib(process, key):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@pytest.mark.long("service")  # a GB goes over the wire
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_five_clients_of_200_mb_each_take_8_mib_of_the_service_at_most(tmp_path):
    with service(tmp_path) as (port, server):
        ask(port, "PUT", "/uploads/first?total=4&chunk=4")
        ask(port, "PUT", "/uploads/first/0", b"1234")
        ask(port, "POST", "/uploads/first")
        before, began = memory_kib(server, "VmRSS"), time.monotonic()
        senders = send_all(port, tmp_path, chunks=100, chunk_bytes=2 * MIB)
        seconds, peak = time.monotonic() - began, memory_kib(server, "VmHWM")
        for sender in senders:
            sender.check(tmp_path)
            assert sender.told == {"new": 100, "repeated": 10, "damaged": 5}
    growth = (peak - before) / 1024
    print(f"\n5 x 200 MB in {seconds:.1f} s: {before / 1024:.1f} MiB before, {growth:.1f} MiB more at the peak")
    assert growth <= 8


@contextmanager
def events(port, name):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/uploads/{name}/events")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    yield iter(lambda: event_of(answer), "")
    answer.close()
    connection.close()


def event_of(answer):
    """Return the next event; an empty one at the end."""
    lines = []
    while (line := answer.readline()) not in (b"", b"\n"):
        lines.append(line.decode().strip())
    return "\n".join(lines)


def test_how_far_an_upload_is_comes_as_events_until_all_is_there(tmp_path):
    with serving(tmp_path) as port:
        ask(port, "PUT", f"/uploads/film?total={3 * CHUNK}&chunk={CHUNK}")
        with events(port, "film") as following:
            seen = [json.loads(next(following).removeprefix("data: "))["received_bytes"]]
            for index in range(3):
                ask(port, "PUT", f"/uploads/film/{index}", bytes(CHUNK))
                while seen[-1] < (index + 1) * CHUNK:
                    told = json.loads(next(following).removeprefix("data: "))
                    seen.append(told["received_bytes"])

            assert sorted(set(seen)) == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
            assert told == {"received_bytes": 3 * CHUNK, "percent": 100.0, "seconds_left": 0.0}
            assert list(following) == []


def test_whoever_follows_an_upload_that_is_given_up_is_told(tmp_path):
    with serving(tmp_path) as port:
        ask(port, "PUT", f"/uploads/film?total={CHUNK}&chunk={CHUNK}")
        with events(port, "film") as following:
            next(following)
            assert ask(port, "DELETE", "/uploads/film") == (204, None)

            assert list(following)[-1] == "event: gone\ndata: {}"
        assert ask(port, "GET", "/uploads/film")[0] == 404
    assert list((tmp_path / "incoming").iterdir()) == []


def test_health_tells_memory_and_says_503_when_it_is_short(tmp_path):
    with serving(tmp_path) as port:
        status, found = ask(port, "GET", "/health")
        assert (status, found["memory"]["level"], found["chunks"]) == (200, "normal", {"writing": 0, "waiting": 0})
        assert 0 < found["memory"]["process_bytes"] < found["memory"]["limit_bytes"]
    with serving(tmp_path, "--limit", "8 MiB", mode="enforce") as port:
        status, found = ask(port, "GET", "/health")
        assert (status, found["memory"]["level"], found["memory"]["limit_bytes"]) == (503, "critical", 8 * MIB)


@pytest.mark.long("service")  # it needs a server that speaks S3
def test_the_service_publishes_in_a_bucket_and_sends_parts_there_as_they_arrive(tmp_path):
    pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    film, data = tmp_path / "film.mp4", random.Random(2).randbytes(20 * MIB)
    film.write_bytes(data)
    with subprocess.Popen([sys.executable, S3_SERVER], stdout=subprocess.PIPE, text=True) as moto:
        address = f"http://127.0.0.1:{int(moto.stdout.readline())}"
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        environ = {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1", **keys}
        urllib.request.urlopen(urllib.request.Request(f"{address}/films", method="PUT"), timeout=30).close()
        with serving(tmp_path, "--bucket", "films", environ=environ) as port:
            assert client(port, film, "--chunk-bytes", MIB, "--chunks", 18).stdout == "18 chunks sent, 2 missing\n"
            boto = boto3.Session("test", "test", region_name="us-east-1").client("s3", endpoint_url=address)
            begun = boto.list_multipart_uploads(Bucket="films")["Uploads"]
            upload_id = begun[0]["UploadId"]
            parts = boto.list_parts(Bucket="films", Key="film.mp4", UploadId=upload_id)["Parts"]
            assert (len(begun), [part["Size"] for part in parts]) == (1, [8 * MIB, 8 * MIB])
            boto.close()
            out = client(port, film, "--chunk-bytes", MIB)
            assert f"'checksum': 'crc32:{zlib.crc32(data):08x}'" in out.stdout, out.stderr
            assert ask(port, "POST", "/uploads/film.mp4")[0] == 200
        with urllib.request.urlopen(f"{address}/films/film.mp4", timeout=30) as found:
            assert found.read() == data
        moto.kill()
    assert list((tmp_path / "published").iterdir()) == []
