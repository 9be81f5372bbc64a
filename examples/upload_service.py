"""
A service that takes large files in chunks: in any order, resumable, whatever the memory of a request.

    pip install starlette uvicorn
    python examples/upload_service.py --port 8000
    python examples/upload_client.py http://127.0.0.1:8000 film.mp4

    PUT    /uploads/NAME?total=BYTES&chunk=BYTES   begins, or goes on: which chunks are missing;
                                                   &content=ID tells a file that was changed from the one before
    PUT    /uploads/NAME/INDEX                     a chunk; X-Checksum: crc32:HEX
    GET    /uploads/NAME                           which chunks are missing
    GET    /uploads/NAME/events                    how far it is, as server-sent events, until all is there
    POST   /uploads/NAME                           publishes
    DELETE /uploads/NAME                           gives it up
    GET    /health                                 memory; 503 when it is short

A chunk is written as it comes. When memory is short its sender gets a 503 before the body is read. Nobody may send more
than --max-bytes, in more than 65,536 chunks; a sender that stops keeps nobody else out.

With --bucket NAME (pip install boto3, and what AWS_* say) it is published there, else in FOLDER/published.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import logging
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import memguard
from memguard.files import AssembledObject, S3Target

EVENT_SECONDS = 0.25
MOST_BYTES = 10 * 1024**3
ANSWERS: dict[type[Exception], tuple[HTTPStatus, str | None]] = {
    memguard.ChecksumMismatchError: (HTTPStatus.UNPROCESSABLE_ENTITY, None),
    memguard.MissingChunksError: (HTTPStatus.CONFLICT, None),
    memguard.UploadConflictError: (HTTPStatus.CONFLICT, "another upload has this name, or other bytes arrived before"),
    memguard.UploadNotFoundError: (HTTPStatus.NOT_FOUND, "there is no such upload"),
    memguard.UnsafeNameError: (HTTPStatus.BAD_REQUEST, None),
    memguard.InsufficientDiskError: (HTTPStatus.INSUFFICIENT_STORAGE, "the disk has no room for it"),
    memguard.AssemblyError: (HTTPStatus.CONFLICT, "what has arrived is damaged; give it up and begin anew"),
    FileExistsError: (HTTPStatus.CONFLICT, "a file of this name was published before"),
    IndexError: (HTTPStatus.NOT_FOUND, "there is no such chunk"),
    ValueError: (HTTPStatus.BAD_REQUEST, None),
    OSError: (HTTPStatus.SERVICE_UNAVAILABLE, "the disk refuses"),
}
"""What is answered to each error, and the words; None: those of the error, which name no path of this machine."""


class TooLargeError(Exception):
    """A client wants to send more than this service takes."""


class Service:
    """The answers to requests."""

    def __init__(self, folder: Path, client: Any = None, bucket: str = "", most_bytes: int = MOST_BYTES) -> None:
        self._store = memguard.UploadStore(folder / "incoming", max_upload_bytes=most_bytes)
        self._most_bytes = most_bytes
        self._published = folder / "published"
        self._published.mkdir(exist_ok=True)
        self._client = client
        self._bucket = bucket

    async def begin(self, request: Request) -> Response:
        """Begin an upload, or open it again."""
        total, chunk = number(request, "total"), number(request, "chunk")
        if total > self._most_bytes or total > chunk * self._store.max_chunks:
            raise TooLargeError
        name, content = request.path_params["name"], request.query_params.get("content")
        begin = self._store.acreate(name, total_bytes=total, chunk_bytes=chunk, content_id=content)
        async with await begin as upload:
            return JSONResponse({"missing": upload.missing}, status_code=HTTPStatus.CREATED)

    async def take(self, request: Request) -> Response:
        """Take a chunk."""
        async with await self._open(request) as upload:
            checksum = request.headers.get("x-checksum")
            new = await upload.awrite_chunk(index_of(request), request.stream(), checksum=checksum)
            if self._bucket:
                try:
                    await upload.asend(self._target(upload))
                except Exception:  # the chunk is here; what could not be sent now is when it is published
                    logging.getLogger(__name__).warning("parts of %s wait", upload.upload_id, exc_info=True)
            return JSONResponse({"new": new})

    async def tell(self, request: Request) -> Response:
        """Tell how far it is."""
        async with await self._open(request) as upload:
            return JSONResponse({"missing": upload.missing, "received_bytes": upload.received_bytes})

    async def follow(self, request: Request) -> Response:
        """Tell how far it is, again and again."""
        events = self._events(await self._open(request))
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def _events(self, upload: memguard.Upload) -> AsyncIterator[str]:
        async with upload:
            done = -1
            while done < upload.total_bytes:
                if done >= 0:
                    await asyncio.sleep(EVENT_SECONDS)
                try:
                    progress = await asyncio.to_thread(lambda: upload.progress)
                except memguard.UploadNotFoundError:
                    yield "event: gone\ndata: {}\n\n"
                    return
                done = progress.done
                told = {"received_bytes": done, "percent": progress.percent, "seconds_left": progress.eta}
                yield f"data: {json.dumps(told)}\n\n"

    async def finish(self, request: Request) -> Response:
        """Publish the file. Asked again, the answer is the same."""
        async with await self._open(request) as upload:
            name = upload.upload_id  # the store took it, so it is safe as that of a file
            film: memguard.AssembledFile | AssembledObject
            if self._bucket:
                film = await upload.afinish(self._target(upload))
            else:
                film = await upload.afinish(self._published / name)
            return JSONResponse({"name": name, "size_bytes": film.size_bytes, "checksum": film.checksum})

    async def give_up(self, request: Request) -> Response:
        """Remove what has arrived."""
        async with await self._open(request) as upload:
            await asyncio.to_thread(upload.abort, self._target(upload) if self._bucket else None)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def health(self, _request: Request) -> Response:
        """Tell what memory there is, and what is at work."""
        breaker, at_work = memguard.default_breaker(), self._store.statistics()
        usage, level = breaker.usage(), breaker.level
        memory = {
            "level": level.name.lower(),
            "percent": round(usage.percent, 1),
            "used_bytes": usage.used_bytes,
            "limit_bytes": usage.limit_bytes,
            "process_bytes": usage.rss_bytes,
        }
        chunks = {"writing": at_work.active, "waiting": at_work.waiting}
        status = HTTPStatus.OK if breaker.allows() else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"memory": memory, "chunks": chunks}, status)

    def _target(self, upload: memguard.Upload) -> S3Target:
        return S3Target(self._client, self._bucket, upload.upload_id)

    async def _open(self, request: Request) -> memguard.Upload:
        return await asyncio.to_thread(self._store.open, request.path_params["name"])


def number(request: Request, name: str) -> int:
    """
    Return a number of the query.

    Raises:
        ValueError: There is none, or none that can be meant.
    """
    text = request.query_params.get(name, "")
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 18):
        raise ValueError(f"{name} is a whole number of bytes")
    return int(text)


def index_of(request: Request) -> int:
    """
    Return the chunk that is meant.

    Raises:
        IndexError: There can be none.
    """
    text: str = request.path_params["index"]
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise IndexError(text)
    return int(text)


async def refuse(_request: Request, error: Exception) -> Response:
    """Answer that memory is short; before the body was read."""
    assert isinstance(error, memguard.MemoryCircuitBreakerError)
    if error.retry_after is None:  # it can never fit
        return JSONResponse({"error": "too large for this server"}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    headers = {"Retry-After": str(max(1, round(error.retry_after))), "Connection": "close"}
    return JSONResponse({"error": "memory is short"}, HTTPStatus.SERVICE_UNAVAILABLE, headers)


async def explain(_request: Request, error: Exception) -> Response:
    """Answer what is wrong, and keep to ourselves where."""
    status, words = next(answer for kind, answer in ANSWERS.items() if isinstance(error, kind))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logging.getLogger(__name__).error("%s", error)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        status = HTTPStatus.INSUFFICIENT_STORAGE
    return JSONResponse({"error": words or str(error)}, status)


async def too_large(_request: Request, _error: Exception) -> Response:
    """Answer that it is more than this service takes."""
    return JSONResponse({"error": "too large, or too many chunks"}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def application(folder: Path, bucket: str = "", most_bytes: int = MOST_BYTES) -> Starlette:
    """Return the service that keeps its files in *folder*, and publishes them there or in *bucket*."""
    client = None
    if bucket:
        import boto3  # noqa: PLC0415 - only this needs it

        client = boto3.client("s3")
    service = Service(folder, client, bucket, most_bytes)
    routes = [
        Route("/uploads/{name}", service.begin, methods=["PUT"]),
        Route("/uploads/{name}", service.tell, methods=["GET"]),
        Route("/uploads/{name}", service.finish, methods=["POST"]),
        Route("/uploads/{name}", service.give_up, methods=["DELETE"]),
        Route("/uploads/{name}/events", service.follow),
        Route("/uploads/{name}/{index}", service.take, methods=["PUT"]),
        Route("/health", service.health),
    ]
    handlers: dict[Any, Any] = dict.fromkeys(ANSWERS, explain)
    handlers[TooLargeError] = too_large
    handlers[memguard.MemoryCircuitBreakerError] = refuse
    return Starlette(routes=routes, exception_handlers=handlers)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--bucket", default="", help="to publish in, through S3")
    parser.add_argument("--max-bytes", type=int, default=MOST_BYTES, help="of one upload")
    parser.add_argument("--limit", help="of memory, beside those of the kernel")
    options = parser.parse_args()
    if options.limit:
        memguard.configure(limit=options.limit)
    uvicorn.run(application(options.folder, options.bucket, options.max_bytes), port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
