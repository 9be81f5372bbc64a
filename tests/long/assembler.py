"""
A process that puts parts together, for a small container: assembler.py assemble|upload|threads PARTS DEST [CHECKSUM].
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import memguard

PIECE_BYTES = 64 * 1024


def pieces(path: Path):
    """Yield a part as a network would bring it, and leave none of it in the page cache."""
    import os

    with path.open("rb", buffering=0) as part:
        while piece := part.read(PIECE_BYTES):
            os.posix_fadvise(part.fileno(), 0, part.tell(), os.POSIX_FADV_DONTNEED)
            yield piece


def upload(parts: list[Path], dest: Path, checksum: str | None, threads: int) -> None:
    sizes = [part.stat().st_size for part in parts]
    store = memguard.UploadStore(dest.parent / "store", breaker=memguard.UNGUARDED)
    with store.create("whole", total_bytes=sum(sizes), chunk_bytes=sizes[0], checksum=checksum) as made:
        left = list(enumerate(parts))[::-1]

        def write() -> None:
            while left:
                try:
                    index, part = left.pop()
                except IndexError:
                    return
                made.write_chunk(index, pieces(part))

        writers = [threading.Thread(target=write) for _ in range(threads)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        made.finish(dest)
    store.remove_stale(older_than=0)


def main() -> None:
    how, folder, dest, checksum = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), (sys.argv[4:] or [None])[0]
    parts = sorted(folder.iterdir())
    began = time.perf_counter()
    if how == "assemble":
        memguard.assemble(parts, dest, checksum=checksum)
    else:
        upload(parts, dest, checksum, 3 if how == "threads" else 1)
    print(f"{time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
