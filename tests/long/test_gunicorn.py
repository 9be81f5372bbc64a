"""
A threaded server after a burst: what it keeps of the memory that its requests freed, with memguard and without.

Long because it starts gunicorn several times, and waits until the server has been idle for a while.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.long("gunicorn")
MIB = 1024**2
APP = """
import json, os
from memguard import memory_usage
guarded = os.environ["GUARDED"] == "yes"
if guarded:
    from memguard import default_breaker
    default_breaker()

def work():
    block = bytearray(9 * 1024**2)
    block[::4096] = b"x" * len(block[::4096])
    return json.loads(json.dumps([{"id": n, "name": str(n) * 4} for n in range(4000)]))

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    if environ["PATH_INFO"] == "/rss":
        if guarded:
            default_breaker().check()
        return [json.dumps(memory_usage().rss_bytes).encode()]
    if guarded:
        with default_breaker().reserve(12 * 1024**2, timeout=30):
            work()
    else:
        work()
    return [b"1"]
"""


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return json.loads(answer.read())


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until_up(port):
    for _ in range(300):
        try:
            return get(port, "/rss")
        except OSError:
            time.sleep(0.1)
    raise AssertionError("gunicorn does not answer")


def resident_before_and_after(folder: Path, guarded: str):
    port = free_port()
    (folder / "served.py").write_text(APP)
    command = [sys.executable, "-m", "gunicorn", "served:app", "-b", f"127.0.0.1:{port}", "-k", "gthread"]
    env = os.environ | {"GUARDED": guarded}
    server = subprocess.Popen([*command, "--threads", "16", "--log-level", "error"], cwd=folder, env=env)
    try:
        wait_until_up(port)
        get(port, "/work")  # what the first request loads is no burst
        before = get(port, "/rss")
        with ThreadPoolExecutor(32) as clients:
            assert list(clients.map(lambda _: get(port, "/work"), range(600))) == [1] * 600
        peak = get(port, "/rss")
        for _ in range(15):  # as a health probe would
            time.sleep(1)
            after = get(port, "/rss")
        return before, peak, after
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def test_a_threaded_server_is_back_near_where_it_began_after_a_burst(tmp_path):
    pytest.importorskip("gunicorn")
    without = [resident_before_and_after(tmp_path, "no") for _ in range(2)]
    guarded = [resident_before_and_after(tmp_path, "yes") for _ in range(2)]

    for name, runs in (("without", without), ("with", guarded)):
        print(name, "before, right after, 15 s after, in MiB:", [[each // MIB for each in run] for run in runs])
    assert all(after <= before * 1.25 for before, _, after in guarded)
