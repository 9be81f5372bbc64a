"""
A process that uploads and publishes until it is done, or killed: what it acknowledges it prints, in one write each.

    uploader.py STORE DEST ID CHUNK_BYTES CHUNKS THREADS random     killed from outside, at any time
    uploader.py STORE DEST ID CHUNK_BYTES CHUNKS THREADS N MODE     finishes only, killed by itself before call N of `os`
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading

import memguard

CALLS = [
    "access",
    "chmod",
    "close",
    "fdatasync",
    "fstat",
    "fstatvfs",
    "fsync",
    "ftruncate",
    "link",
    "listdir",
    "lseek",
    "lstat",
    "mkdir",
    "open",
    "pread",
    "preadv",
    "posix_fadvise",
    "pwrite",
    "pwritev",
    "read",
    "readlink",
    "rename",
    "replace",
    "rmdir",
    "scandir",
    "sendfile",
    "copy_file_range",
    "stat",
    "statvfs",
    "truncate",
    "unlink",
    "write",
]


def whole(chunk_bytes: int, chunks: int) -> bytes:
    """Return what is uploaded; the last chunk is short."""
    return random.Random(f"{chunk_bytes} {chunks}").randbytes(chunk_bytes * chunks - chunk_bytes // 3)


def say(word: object) -> None:
    os.write(1, f"{word}\n".encode())


def upload(store: memguard.UploadStore, name: str, chunk_bytes: int, chunks: int, threads: int) -> memguard.Upload:
    data = whole(chunk_bytes, chunks)
    say("ready")
    made = store.create(name, total_bytes=len(data), chunk_bytes=chunk_bytes, content_id=name)
    say("created")
    missing = list(made.missing)
    random.shuffle(missing)

    def write() -> None:
        while missing:
            try:
                index = missing.pop()
            except IndexError:
                return
            made.write_chunk(index, data[index * chunk_bytes : (index + 1) * chunk_bytes])
            say(index)

    writers = [threading.Thread(target=write) for _ in range(threads)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    return made


def kill_before(number: int) -> None:
    """Make the *number*-th of the calls that follow, counted from 1, the end of this process."""
    count = 0

    def counted(name, call):
        def wrapper(*arguments, **named):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        setattr(os, name, wrapper)

    for name in CALLS:
        counted(name, getattr(os, name))


def main() -> None:
    root, dest, name, chunk_bytes, chunks, threads, when = sys.argv[1:8]
    store = memguard.UploadStore(root, breaker=memguard.UNGUARDED)
    overwrite = sys.argv[8:] == ["overwrite"]
    if when == "random":
        made = upload(store, name, int(chunk_bytes), int(chunks), int(threads))
    else:
        made = store.open(name)
        kill_before(int(when))
    made.finish(dest, overwrite=overwrite)
    os.write(1, b"finished\n")


if __name__ == "__main__":
    main()
