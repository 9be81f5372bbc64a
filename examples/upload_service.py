"""
A service that takes large files in chunks: in any order, resumable, whatever the memory of a request.

    pip install starlette uvicorn
    python examples/upload_service.py --port 8000
    python examples/upload_client.py http://127.0.0.1:8000 film.mp4

    PUT    /uploads/NAME?total=BYTES&chunk=BYTES   begins, or goes on: which chunks are missing
    PUT    /uploads/NAME/INDEX                     a chunk; X-Checksum: crc32:HEX
    GET    /uploads/NAME                           which chunks are missing
    GET    /uploads/NAME/events                    how far it is, as server-sent events, until all is there
    POST   /uploads/NAME                           publishes
    DELETE /uploads/NAME                           gives it up
    GET    /health                                 memory; 503 when it is short

A chunk is written as it comes. When memory is short its sender gets a 503 before the body is read.

With --bucket NAME (pip install boto3, and what AWS_* say) it is published there, else in FOLDER/published.
"""

from __future__ import annotations

import argparse
import asyncio
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
STATUS: dict[type[Exception], HTTPStatus] = {
    memguard.ChecksumMismatchError: HTTPStatus.UNPROCESSABLE_ENTITY,
    memguard.MissingChunksError: HTTPStatus.CONFLICT,
    memguard.UploadConflictError: HTTPStatus.CONFLICT,
    memguard.UploadNotFoundError: HTTPStatus.NOT_FOUND,
    memguard.UnsafeNameError: HTTPStatus.BAD_REQUEST,
    memguard.InsufficientDiskError: HTTPStatus.INSUFFICIENT_STORAGE,
    FileExistsError: HTTPStatus.CONFLICT,
    IndexError: HTTPStatus.NOT_FOUND,
    ValueError: HTTPStatus.BAD_REQUEST,
}


class Service:
    """The answers to requests."""

    def __init__(self, folder: Path, client: Any = None, bucket: str = "") -> None:
        self._store = memguard.UploadStore(folder / "incoming")
        self._published = folder / "published"
        self._published.mkdir(exist_ok=True)
        self._client = client
        self._bucket = bucket

    async def begin(self, request: Request) -> Response:
        """Begin an upload, or open it again."""
        total, chunk = int(request.query_params["total"]), int(request.query_params["chunk"])
        name = request.path_params["name"]
        async with await self._store.acreate(name, total_bytes=total, chunk_bytes=chunk) as upload:
            return JSONResponse({"missing": upload.missing}, status_code=HTTPStatus.CREATED)

    async def take(self, request: Request) -> Response:
        """Take a chunk."""
        async with await self._open(request) as upload:
            checksum = request.headers.get("x-checksum")
            new = await upload.awrite_chunk(request.path_params["index"], request.stream(), checksum=checksum)
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


async def refuse(_request: Request, error: Exception) -> Response:
    """Answer that memory is short; before the body was read."""
    assert isinstance(error, memguard.MemoryCircuitBreakerError)
    if error.retry_after is None:  # it can never fit
        return JSONResponse({"error": "too large for this server"}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    headers = {"Retry-After": str(max(1, round(error.retry_after))), "Connection": "close"}
    return JSONResponse({"error": "memory is short"}, HTTPStatus.SERVICE_UNAVAILABLE, headers)


async def explain(_request: Request, error: Exception) -> Response:
    """Answer what is wrong."""
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    return JSONResponse({"error": str(error)}, status)


def application(folder: Path, bucket: str = "") -> Starlette:
    """Return the service that keeps its files in *folder*, and publishes them there or in *bucket*."""
    client = None
    if bucket:
        import boto3  # noqa: PLC0415 - only this needs it

        client = boto3.client("s3")
    service = Service(folder, client, bucket)
    routes = [
        Route("/uploads/{name}", service.begin, methods=["PUT"]),
        Route("/uploads/{name}", service.tell, methods=["GET"]),
        Route("/uploads/{name}", service.finish, methods=["POST"]),
        Route("/uploads/{name}", service.give_up, methods=["DELETE"]),
        Route("/uploads/{name}/events", service.follow),
        Route("/uploads/{name}/{index:int}", service.take, methods=["PUT"]),
        Route("/health", service.health),
    ]
    handlers: dict[Any, Any] = dict.fromkeys(STATUS, explain)
    handlers[memguard.MemoryCircuitBreakerError] = refuse
    return Starlette(routes=routes, exception_handlers=handlers)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--bucket", default="", help="to publish in, through S3")
    parser.add_argument("--limit", help="of memory, beside those of the kernel")
    options = parser.parse_args()
    if options.limit:
        memguard.configure(limit=options.limit)
    uvicorn.run(application(options.folder, options.bucket), port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
