"""
Uploads whose process dies, or whose disk fails, at every single call to the kernel, one after the other: strace injects it.

Long because each call is a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import uploader

from memguard import UNGUARDED, UploadStore

pytestmark = [
    pytest.mark.long("calls"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here"),
]
CHUNK = 4096
WHOLE = uploader.whole(CHUNK, 6)
SECONDS = 60
PROGRAM = """
import os, select, sys
import memguard
root, dest, mode, action, gate = sys.argv[1:]
store = memguard.UploadStore(root, breaker=memguard.UNGUARDED)
upload = store.open("film")
chunk = os.read(0, 100_000)
os.write(1, b"ready\\n")
select.select([int(gate)], [], [])
try:
    if action == "assemble":
        part = store.root / "film" / "data"
        memguard.assemble([part, part], dest, checksum="crc32", overwrite=mode == "overwrite")
    elif action == "finish":
        upload.finish(dest, overwrite=mode == "overwrite")
    else:
        upload.write_chunk(2, chunk)
    said = "done"
except Exception as error:
    said = f"{'OSError' if isinstance(error, OSError) else type(error).__name__}: {error}"
os.write(1, said.encode())
os._exit(0)
"""
KERNEL_FILES = re.compile(
    r"open|close|read|write|stat|sync|link|rename|truncate|allocate|fcntl|fadvise|copy_file_range|sendfile|lseek"
)
"""The calls that a disk may fail; others are those of the interpreter."""
CLEAR = r"OSError: \[Errno \d+\] [\w/ ]+: '.*'"
"""What happened, and to which file. Of a close alone the file is not told: what was waited for is on the disk by then."""


def piece(index):
    return WHOLE[index * CHUNK : (index + 1) * CHUNK]


class Job:
    """One process that finishes, or writes a chunk, under strace."""

    def __init__(self, tmp_path, out, mode, action):
        self.store = UploadStore(tmp_path / "store", breaker=UNGUARDED)
        self.log = tmp_path / "log"
        self.dest, self.mode, self.action = out / "film.mp4", mode, action
        self.before = b"before" if mode == "overwrite" else None
        self.leftovers = 0
        self.whole = WHOLE * 2 if action == "assemble" else WHOLE

    def prepare(self):
        self.store.remove_stale(older_than=0)
        for path in self.dest.parent.iterdir():
            path.unlink()
        if self.before:
            self.dest.write_bytes(self.before)
        with self.store.create("film", total_bytes=len(WHOLE), chunk_bytes=CHUNK) as upload:
            for index in upload.missing:
                if self.action != "chunk" or index != 2:
                    upload.write_chunk(index, piece(index))

    def run(self, injection=None):
        """Return the exit status and what was said."""
        self.prepare()
        gate, opener = os.pipe()
        command = [sys.executable, "-c", PROGRAM, self.store.root, self.dest, self.mode, self.action, gate]
        child = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[gate],
        )
        with child:
            os.close(gate)
            child.stdin.write(piece(2))
            child.stdin.close()
            assert child.stdout.read1(6) == b"ready\n"
            options = ["-f", "-o", self.log, "-p", child.pid, *(["-e", f"inject={injection}"] if injection else [])]
            with subprocess.Popen(["strace", *map(str, options)], stderr=subprocess.PIPE, text=True) as tracer:
                told = tracer.stderr.readline()
                if "attached" not in told:
                    child.kill()
                    pytest.skip(f"processes cannot be traced here: {told}")
                os.write(opener, b"x")
                os.close(opener)
                said = child.stdout.read().decode()
                tracer.wait(SECONDS)
        return child.returncode, said

    def calls(self):
        """Return the calls to the kernel from the start of the action to its end: name, and which of this name."""
        assert self.run() == (0, "done")
        text = self.log.read_text(errors="replace")
        text = text[: text.rindex("write(1,")]
        found, counts = {}, Counter()
        for thread, name in re.findall(r"^(\d+) +(\w+)\(", text, re.MULTILINE):
            counts[thread, name] += 1  # as strace counts
            if "select" not in name:  # in which it waited for the tracer
                found[name, counts[thread, name]] = None
        return list(found)

    def there(self):
        return self.dest.read_bytes() if self.dest.exists() else None

    def check(self, said, injection):
        """Look at what is left, go on as the next process does, and see that all is well and nothing is left."""
        published = said == "done" and self.action != "chunk"
        assert self.there() in ([self.whole] if published else [self.whole, self.before]), injection
        if self.action == "assemble":
            names = [path.name for path in self.dest.parent.iterdir() if path != self.dest]
            most = 1 if self.mode == "overwrite" and not said else 0
            assert len(names) <= most, injection
            self.leftovers += len(names)
            return
        with self.store.open("film") as upload:
            if self.action == "chunk":
                assert set(upload.missing) <= ({2} if said != "done" else set())
                found = (self.store.root / "film" / "data").read_bytes()
                for index in set(range(6)) - set(upload.missing):
                    assert found[index * CHUNK :][: len(piece(index))] == piece(index)
                for index in upload.missing:
                    upload.write_chunk(index, piece(index))
            upload.finish(self.dest, overwrite=self.mode == "overwrite")
        assert self.there() == WHOLE
        self.store.remove_stale(older_than=0)
        assert list(self.store.root.iterdir()) == [], injection
        assert [path.name for path in self.dest.parent.iterdir()] == [self.dest.name], injection


@pytest.fixture
def job(request, tmp_path):
    mode, disk, action = request.param
    out = tmp_path / "out" if disk == "same" else Path("/dev/shm") / f"calls-{os.getpid()}"
    if disk == "other" and not (out.parent.is_dir() and out.parent.stat().st_dev != tmp_path.stat().st_dev):
        pytest.skip("there is no other file system here")
    out.mkdir()
    yield Job(tmp_path, out, mode, action)
    shutil.rmtree(out)


every_job = pytest.mark.parametrize(
    "job",
    [
        pytest.param(("new", "same", "finish"), id="finish"),
        pytest.param(("overwrite", "same", "finish"), id="finish over a file"),
        pytest.param(("new", "other", "finish"), id="finish on another disk"),
        pytest.param(("overwrite", "other", "finish"), id="finish over a file on another disk"),
        pytest.param(("new", "same", "chunk"), id="a chunk"),
        pytest.param(("new", "same", "assemble"), id="assemble"),
        pytest.param(("overwrite", "same", "assemble"), id="assemble over a file"),
    ],
    indirect=True,
)


@every_job
def test_killed_at_every_call_nothing_acknowledged_is_lost_and_nothing_is_left(job):
    calls = job.calls()
    for name, number in calls:
        injection = f"{name}:signal=KILL:when={number}"
        status, said = job.run(injection)
        assert (status, said) == (-signal.SIGKILL, "") or not KERNEL_FILES.search(name), injection
        job.check(said, injection)
    print(f"\nkilled at each of {len(calls)} calls: {', '.join(dict.fromkeys(name for name, _ in calls))}")
    assert len(calls) >= 10
    assert job.leftovers <= 1  # the documented one: replacing, between two calls


@every_job
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_when_every_call_fails_in_turn_the_error_is_clear_and_it_can_be_tried_again(job, error):
    outcomes = Counter()
    for name, number in job.calls():
        if KERNEL_FILES.search(name):
            injection = f"{name}:error={error}:when={number}"
            status, said = job.run(injection)
            outcomes[said] += 1
            assert status == 0, (injection, said)
            clear = "OSError: .*" if name == "close" else CLEAR
            assert said == "done" or re.fullmatch(clear, said), (injection, said)
            job.check(said, injection)
    print(f"\n{outcomes.total()} calls failed: {outcomes.pop('done', 0)} did not matter, of the others each was told")
