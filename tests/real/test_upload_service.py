"""
The upload service of the examples, over HTTP.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CHUNK = 64 * 1024
DATA = random.Random(1).randbytes(7 * CHUNK - 1000)


@contextmanager
def serving(folder, *arguments):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, EXAMPLES / "upload_service.py", "--folder", folder, "--port", port, *arguments]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as server:
        try:
            wait_for(port, server)
            yield port
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
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


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
    with serving(tmp_path, "--limit", "8 MiB") as port:
        assert ask(port, "PUT", f"/uploads/film.mp4?total={len(DATA)}&chunk={CHUNK}")[0] == 201
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest("PUT", "/uploads/film.mp4/0")
        connection.putheader("Content-Length", str(CHUNK))
        connection.endheaders()  # and no body
        answer = connection.getresponse()

        assert (answer.status, int(answer.headers["Retry-After"]) >= 1) == (503, True)
        connection.close()
        assert "no memory" in client(port, film, "--chunk-bytes", CHUNK, "--tries", 1).stderr
