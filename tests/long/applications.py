"""
Applications as somebody writes them who has read the README. Each runs in a box of its own, by the tests beside it.

    applications.py NAME guarded FOLDER     with memguard
    applications.py NAME plain FOLDER       the same without

Each prints how much of its work is done: "80 of 80".
"""

from __future__ import annotations

import contextlib
import csv
import faulthandler
import hashlib
import http.client
import io
import sqlite3
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import memguard

MIB = 1024**2
SECONDS = 300.0
"""How long an application may take."""

CLIENTS = 80
WIDTH = 800
BYTES_PER_PIXEL = 4  # Pillow keeps RGB in four bytes


# A service that makes large images small, in a thread for each of its clients.


def resized(path: Path, width: int) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        small = image.resize((width, width * image.height // image.width))
    file = io.BytesIO()
    small.save(file, "JPEG")
    return file.getvalue()


def pixels(path: Path, width: int) -> int:
    """What `resized` costs: the source and the target."""
    from PIL import Image

    with Image.open(path) as image:  # reads the header only
        source, target = image.width * image.height, width * width * image.height // image.width
    return (source + target) * BYTES_PER_PIXEL


def serve(work: Callable[[Path, int], bytes], pictures: list[Path]) -> str:
    """Answer CLIENTS that all come at once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                body, status = work(pictures[int(self.path[1:])], WIDTH), 200
            except memguard.MemoryCircuitBreakerError as error:
                body, status = str(error).encode(), 503
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 2 * CLIENTS

    def ask(number: int) -> int:
        start.wait(60)
        client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=SECONDS)
        client.request("GET", f"/{number % len(pictures)}")
        answer = client.getresponse()
        body = answer.read()
        client.close()
        if answer.status != 200:
            print(body.decode(), file=sys.stderr)
        return answer.status

    start = threading.Barrier(CLIENTS)
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with ThreadPoolExecutor(CLIENTS) as clients:
                statuses = list(clients.map(ask, range(CLIENTS)))
        finally:
            server.shutdown()
    return f"{statuses.count(200)} of {CLIENTS}"


def images(cost: str, sizes: str, way: str, folder: Path) -> str:
    work: Callable[[Path, int], bytes] = resized
    if way == "guarded":
        memguard.default_breaker()
        work = memguard.guard(cost="auto" if cost == "auto" else pixels, timeout=SECONDS)(resized)
    return serve(work, sorted(folder.glob(f"{sizes}*.jpg")))


# A stream of blocks that a pool compresses.

BLOCK_BYTES = 256 * 1024
BLOCKS = 4000
CHUNK_BYTES = 16 * MIB


def blocks() -> Iterator[bytes]:
    for number in range(BLOCKS):
        yield number.to_bytes(4, "big") * (BLOCK_BYTES // 4)


def squeezed(chunk: list[bytes]) -> int:
    return sum(1 for block in chunk if zlib.compress(block, 1))


def pool_of_chunks(make: Callable[[int], Executor], way: str, folder: Path) -> str:
    if way == "guarded":
        memguard.default_breaker()
        with make(8) as pool:
            report = memguard.process_in_chunks(blocks(), squeezed, max_bytes=CHUNK_BYTES, executor=pool, concurrency=8)
        return f"{sum(report.results)} of {BLOCKS}"
    source = blocks()
    size = CHUNK_BYTES // BLOCK_BYTES
    with make(8) as pool:
        done = sum(pool.map(squeezed, iter(lambda: list(islice(source, size)), [])))
    return f"{done} of {BLOCKS}"


# A producer that is faster than those who consume.

JOBS = 200
JOB_BYTES = 8 * MIB


def digest(block: bytes) -> str:
    time.sleep(0.05)  # stands for sending it somewhere
    return hashlib.sha256(block).hexdigest()


def produced(number: int) -> bytes:
    return number.to_bytes(8, "big") * (JOB_BYTES // 8)


def submit(pool: Executor, number: int) -> Future[str]:
    held = memguard.acquire(JOB_BYTES, timeout=None)
    try:
        future = pool.submit(held.run, digest, produced(number))
    except BaseException:
        held.release()
        raise
    future.add_done_callback(lambda _: held.release())
    return future


def producer(way: str, folder: Path) -> str:
    if way == "guarded":
        memguard.default_breaker()
    with ThreadPoolExecutor(16) as pool:
        if way == "guarded":
            futures = [submit(pool, number) for number in range(JOBS)]
        else:
            futures = [pool.submit(digest, produced(number)) for number in range(JOBS)]
        done = {future.result() for future in as_completed(futures)}
    held = memguard.default_breaker().statistics().reserved_bytes if way == "guarded" else 0
    return f"{len(done)} of {JOBS}" + (f", {held} bytes still held" if held else "")


# Tables larger than memory.


def into_sqlite(way: str, folder: Path) -> str:
    source, target = folder / "table.csv", folder / "out.db"
    with source.open(newline="", encoding="utf-8") as file, contextlib.closing(sqlite3.connect(target)) as database:
        rows = csv.reader(file)
        names = next(rows)
        database.execute(f"CREATE TABLE rows ({', '.join(names)})")
        insert = f"INSERT INTO rows VALUES ({', '.join('?' * len(names))})"

        def store(chunk: list[list[str]]) -> None:
            with database:
                database.executemany(insert, chunk)

        if way == "guarded":
            memguard.process_in_chunks(rows, store)
        else:
            store(list(rows))
        count: int = database.execute("SELECT count(*) FROM rows").fetchone()[0]
    return f"{count} of {(folder / 'rows').read_text()}"


def into_parquet(way: str, folder: Path) -> str:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, target = folder / "table.csv", folder / "out.parquet"
    if way == "plain":
        pd.read_csv(source).to_parquet(target)
    else:
        with source.open(newline="", encoding="utf-8") as file, contextlib.ExitStack() as stack:
            writers: list[pq.ParquetWriter] = []

            def store(rows: list[dict[str, str]]) -> None:
                table = pa.Table.from_pandas(pd.DataFrame(rows))
                if not writers:
                    writers.append(stack.enter_context(pq.ParquetWriter(target, table.schema)))
                writers[0].write_table(table)

            memguard.process_in_chunks(csv.DictReader(file), store)
    return f"{pq.read_metadata(target).num_rows} of {(folder / 'rows').read_text()}"


APPLICATIONS: dict[str, Callable[[str, Path], str]] = {
    "equal images, computed cost": lambda *given: images("computed", "equal", *given),
    "equal images, learned cost": lambda *given: images("auto", "equal", *given),
    "mixed images, computed cost": lambda *given: images("computed", "mixed", *given),
    "mixed images, learned cost": lambda *given: images("auto", "mixed", *given),
    "chunks in threads": lambda *given: pool_of_chunks(ThreadPoolExecutor, *given),
    "chunks in processes": lambda *given: pool_of_chunks(ProcessPoolExecutor, *given),
    "producer": producer,
    "CSV into SQLite": into_sqlite,
    "pandas into Parquet": into_parquet,
}

if __name__ == "__main__":
    faulthandler.dump_traceback_later(SECONDS - 10, exit=True)
    print(APPLICATIONS[sys.argv[1]](sys.argv[2], Path(sys.argv[3])))
    faulthandler.cancel_dump_traceback_later()
