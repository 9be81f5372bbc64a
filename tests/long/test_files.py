"""
Files for real: killed at any instant, in a small container, on file systems that share extents, on a full disk.

Long because of 300 kills, of gigabytes, and of file systems that are made for it. What cannot run here says so.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uploader

from memguard import UNGUARDED, UploadNotFoundError, UploadStore

pytestmark = [
    pytest.mark.long("files"),
    pytest.mark.skipif(sys.platform != "linux", reason="it is a matter of Linux"),
]
MIB = 1024**2
UPLOADER = Path(uploader.__file__)


# ----- killed


class Killed:
    """One upload that is killed, and what it had acknowledged until then."""

    def __init__(self, folder, number, chance):
        self.root, self.out = folder / "store", folder / "out"
        for path in (self.root, self.out):
            path.mkdir(exist_ok=True)
        self.dest = self.out / f"film-{number}.mp4"
        self.chunk_bytes = chance.choice([4096, 8192, 16384, 65536])
        self.chunks = chance.choice([20, 60])
        self.whole = uploader.whole(self.chunk_bytes, self.chunks)
        self.name = f"film-{number}"
        self.words = set()

    def run(self, seconds, threads=3):
        """Let it run for *seconds*, then kill it; tell whether it was killed before its end."""
        arguments = [self.root, self.dest, self.name, self.chunk_bytes, self.chunks, threads, "random"]
        command = [sys.executable, UPLOADER, *map(str, arguments)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            first = child.stdout.read1(6) if select.select([child.stdout], [], [], 60)[0] else b""
            assert first == b"ready\n", child.stderr.read()
            time.sleep(seconds)
            child.send_signal(signal.SIGKILL)
            self.words |= set((child.stdout.read() + b"").decode().split())
            errors = child.stderr.read().decode()
        assert not errors
        return child.returncode == -signal.SIGKILL

    def acknowledged(self):
        return {int(word) for word in self.words if word.isdigit()}

    def piece(self, index):
        return self.whole[index * self.chunk_bytes : (index + 1) * self.chunk_bytes]


def store_of(folder):
    return UploadStore(folder / "store", breaker=UNGUARDED)


def check_after_kill(job, store):
    """Look at what is left of it, as the next process does; return the upload, if it was begun."""
    if job.dest.exists():
        assert job.dest.read_bytes() == job.whole
    try:
        upload = store.open(job.name)
    except UploadNotFoundError:
        assert "created" not in job.words
        assert not job.dest.exists()
        return None
    assert job.acknowledged() <= set(range(job.chunks)) - set(upload.missing)
    data = store.root / job.name / "data"
    there = data if data.exists() else job.dest
    found = there.read_bytes()
    for index in set(range(job.chunks)) - set(upload.missing):
        assert found[index * job.chunk_bytes :][: len(job.piece(index))] == job.piece(index)
    return upload


def test_killed_at_300_random_instants_no_acknowledged_chunk_is_lost_and_nothing_is_left_behind(tmp_path):
    chance, store, kills, number = random.Random(7), store_of(tmp_path), 0, 0
    stages = dict.fromkeys(["not begun", "receiving", "published"], 0)
    while kills < 300:
        number += 1
        job = Killed(tmp_path, number, chance)
        for _ in range(chance.choice([1, 2, 3])):
            if not job.run(chance.uniform(0, 0.05 if job.chunks == 60 else 0.02)):
                break
            kills += 1
            upload = check_after_kill(job, store)
            stages["not begun" if upload is None else "published" if job.dest.exists() else "receiving"] += 1
            if upload is not None:
                upload.close()
        if chance.random() < 0.5:  # the next process goes on; else nobody ever comes back
            with store.create(job.name, total_bytes=len(job.whole), chunk_bytes=job.chunk_bytes) as upload:
                for index in upload.missing:
                    upload.write_chunk(index, job.piece(index))
                upload.finish(job.dest)
            assert job.dest.read_bytes() == job.whole
        store.remove_stale(older_than=0)
        assert list(store.root.iterdir()) == []
        assert {path.name for path in job.out.iterdir()} <= {job.dest.name}
        job.dest.unlink(missing_ok=True)

    print(f"\n{kills} kills of {number} uploads: {stages}")
    assert min(stages.values()) > 5


@pytest.mark.parametrize("mode", ["new", "overwrite"])
@pytest.mark.parametrize("disk", ["same", "other"])
@pytest.mark.parametrize("then", ["finish", "remove"])
def test_killed_at_every_call_of_finish_the_file_is_whole_or_absent_and_finish_can_be_called_again(
    tmp_path, mode, disk, then, other_disk
):
    out = tmp_path / "out" if disk == "same" else other_disk
    out.mkdir(exist_ok=True)
    dest, store, number, killed = out / "film.mp4", store_of(tmp_path), 0, True
    whole = uploader.whole(4096, 20)
    while killed:
        number += 1
        for path in out.iterdir():
            path.unlink()
        if mode == "overwrite":
            dest.write_bytes(b"before")
        with store.create("film", total_bytes=len(whole), chunk_bytes=4096) as upload:
            for index in upload.missing:
                upload.write_chunk(index, whole[index * 4096 : (index + 1) * 4096])
        command = [sys.executable, UPLOADER, store.root, dest, "film", "4096", "20", "1", str(number), mode]
        child = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
        killed = child.returncode == -signal.SIGKILL
        assert killed or (child.returncode, child.stdout) == (0, "finished\n"), child.stderr
        before = b"before" if mode == "overwrite" else None
        there = dest.read_bytes() if dest.exists() else None
        assert there in ([whole, before] if killed else [whole])

        if then == "finish":
            with store.open("film") as upload:
                upload.finish(dest, overwrite=mode == "overwrite")
            there = whole
        store.remove_stale(older_than=0)

        assert (dest.read_bytes() if dest.exists() else None) == there, f"killed before call {number}"
        assert list(store.root.iterdir()) == [], f"killed before call {number}"
        assert {path.name for path in out.iterdir()} <= {dest.name}, f"killed before call {number}"
    print(f"\n{mode}, {disk} disk, {then}: {number - 1} calls")
    assert number > 20


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system than *tmp_path*."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system here")
    folder = shm / f"files-{os.getpid()}"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
