"""
A service that takes large files in chunks: in any order, resumable, whatever the memory of a request.

    pip install starlette uvicorn
    python examples/upload_service.py --port 8000
    python examples/upload_client.py http://127.0.0.1:8000 film.mp4

    PUT  /uploads/NAME?total=BYTES&chunk=BYTES   begins, or goes on: which chunks are missing
    PUT  /uploads/NAME/INDEX                     a chunk; X-Checksum: crc32:HEX
    GET  /uploads/NAME                           which chunks are missing
    POST /uploads/NAME                           publishes

A chunk is written as it comes. When memory is short its sender gets a 503 before the body is read.
"""

from __future__ import annotations

import argparse
import asyncio
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import memguard

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

    def __init__(self, folder: Path) -> None:
        self._store = memguard.UploadStore(folder / "incoming")
        self._published = folder / "published"
        self._published.mkdir(exist_ok=True)

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
            return JSONResponse({"new": new})

    async def tell(self, request: Request) -> Response:
        """Tell how far it is."""
        async with await self._open(request) as upload:
            return JSONResponse({"missing": upload.missing, "received_bytes": upload.received_bytes})

    async def finish(self, request: Request) -> Response:
        """Publish the file. Asked again, the answer is the same."""
        async with await self._open(request) as upload:
            # The store took this name, so it is safe as that of a file.
            film = await upload.afinish(self._published / upload.upload_id)
            return JSONResponse({"name": film.path.name, "size_bytes": film.size_bytes, "checksum": film.checksum})

    async def _open(self, request: Request) -> memguard.Upload:
        return await asyncio.to_thread(self._store.open, request.path_params["name"])


async def refuse(_request: Request, error: Exception) -> Response:
    """Answer that memory is short; before the body was read."""
    assert isinstance(error, memguard.MemoryCircuitBreakerError)
    headers = {"Retry-After": str(max(1, round(error.retry_after))), "Connection": "close"}
    return JSONResponse({"error": "memory is short"}, HTTPStatus.SERVICE_UNAVAILABLE, headers)


async def explain(_request: Request, error: Exception) -> Response:
    """Answer what is wrong."""
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    return JSONResponse({"error": str(error)}, status)


def application(folder: Path) -> Starlette:
    """Return the service that keeps its files in *folder*."""
    service = Service(folder)
    routes = [
        Route("/uploads/{name}", service.begin, methods=["PUT"]),
        Route("/uploads/{name}", service.tell, methods=["GET"]),
        Route("/uploads/{name}", service.finish, methods=["POST"]),
        Route("/uploads/{name}/{index:int}", service.take, methods=["PUT"]),
    ]
    handlers: dict[Any, Any] = dict.fromkeys(STATUS, explain)
    handlers[memguard.MemoryCircuitBreakerError] = refuse
    return Starlette(routes=routes, exception_handlers=handlers)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--limit", help="of memory, beside those of the kernel")
    options = parser.parse_args()
    if options.limit:
        memguard.configure(limit=options.limit)
    uvicorn.run(application(options.folder), port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
