"""
A client of upload_service.py: sends what the service does not have yet. What is refused, or arrives damaged, it sends
again.

    python examples/upload_client.py http://127.0.0.1:8000 film.mp4
    python examples/upload_client.py http://127.0.0.1:8000 film.mp4 --chunks 3     # three, for now
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit


class Service:
    """
    The service at *url*.

    Args:
        url: ``"http://host:port"`` or ``"https://..."``, and where on it the service is: ``"https://host/files"``.
        tries: How often a refused request is sent.
    """

    def __init__(self, url: str, tries: int) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise SystemExit(f"{url!r} is no address of a service: write http://host:port or https://host")
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._netloc, self._base = parts.netloc, parts.path.rstrip("/")
        self._tries = tries

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> dict[str, Any]:
        """Return the answer; what is to be sent again is, when the service says."""
        for _ in range(self._tries):
            connection = self._connect(self._netloc, timeout=60)
            try:
                connection.request(method, self._base + path, body, headers)
                answer = connection.getresponse()
                found: dict[str, Any] = json.loads(answer.read())
            finally:
                connection.close()
            if answer.status < 400:
                return found
            if answer.status not in (422, 503):
                break
            time.sleep(float(answer.headers.get("Retry-After", 0)))
        raise SystemExit(f"{answer.status}: {found['error']}")


def send(service: Service, file: Path, chunk_bytes: int, most: int | None) -> None:
    """Send what is missing of *file*, *most* chunks of it, and publish it if that is all."""
    path = f"/uploads/{quote(file.name, safe='')}"
    status = file.stat()
    # The same name and size need not be the same file: one that was changed since is another.
    query = f"total={status.st_size}&chunk={chunk_bytes}&content={status.st_size}-{status.st_mtime_ns}"
    missing = service.ask("PUT", f"{path}?{query}")["missing"]
    with file.open("rb") as source:
        for index in missing[:most]:
            source.seek(index * chunk_bytes)
            chunk = source.read(chunk_bytes)
            service.ask("PUT", f"{path}/{index}", chunk, **{"X-Checksum": f"crc32:{zlib.crc32(chunk):08x}"})
    if left := service.ask("GET", path)["missing"]:
        print(f"{len(missing) - len(left)} chunks sent, {len(left)} missing")
        return
    print(f"published: {service.ask('POST', path)}")


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    parser.add_argument("--chunk-bytes", type=int, default=2 * 1024**2)
    parser.add_argument("--chunks", type=int, help="send so many at most")
    parser.add_argument("--tries", type=int, default=5)
    options = parser.parse_args()
    send(Service(options.url, options.tries), options.file, options.chunk_bytes, options.chunks)


if __name__ == "__main__":
    main()
