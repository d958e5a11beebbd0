"""`PUT`, `GET` and `HEAD /blobs/{digest}`: the bulk bytes, streamed, never held whole, never visible unchecked."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import math
from collections.abc import Iterator

from aiohttp import ClientError, web

from trimtab.errors import Cancelled, CorruptData, InvalidRequest, NotFound, Overloaded
from trimtab.weights.manifest import check_digest
from trimtab_services.runtime.http import Route
from trimtab_services.weights.files import Upload
from trimtab_services.weights.store import Store
from trimtab_services.weights.verification import blob_path

__all__ = ["PREFIX", "BlobRoutes"]

PREFIX = "/blobs/"
_WRITE_BYTES = 1024 * 1024
_TYPE = "application/octet-stream"


class BlobRoutes:
    """The HTTP side of the store.

    Args:
        store: what it serves.
        max_blob_bytes: most bytes of one upload.
    """

    def __init__(self, store: Store, max_blob_bytes: int) -> None:
        self._store = store
        self._max_blob_bytes = max_blob_bytes

    def routes(self) -> list[Route]:
        """Its routes; GET answers HEAD too. Bulk bytes have no deadline of the server's."""
        path = PREFIX + "{digest}"
        return [
            Route("GET", path, self.get, scope="weights.read", deadline_s=math.inf),
            Route("PUT", path, self.put, scope="weights.publish", deadline_s=math.inf),
        ]

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Takes a blob. One that is there already is read and dropped: a retry is no error.

        Raises:
            InvalidRequest: the digest is none, or there are too many bytes.
            CorruptData: the bytes have another digest; nothing is kept.
            Overloaded: the disk is full.
        """
        digest = _digest_of(request)
        self._check_size(request.content_length or 0)
        if await asyncio.to_thread(self._store.blob_size, digest) is not None:
            async for _ in request.content.iter_any():
                pass
            return web.Response(status=200)
        try:
            upload = await asyncio.to_thread(self._store.files.upload)
            try:
                found = await self._receive(request, upload, digest)
                if found != digest:
                    raise CorruptData(
                        f"blob {digest}: the bytes received have SHA-256 {found}; nothing is kept",
                        field="digest",
                        value=found,
                        limit=digest,
                    )
                await asyncio.to_thread(self._store.commit_blob, upload, digest)
            finally:
                await asyncio.shield(asyncio.to_thread(upload.discard))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Overloaded(f"blob {digest}: the store's disk is full", field="digest", value=digest) from None
        return web.Response(status=201)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Sends a blob, or a range of it.

        Raises:
            InvalidRequest: the digest is none.
            NotFound: no such blob.
        """
        digest = _digest_of(request)
        size = await asyncio.to_thread(self._store.blob_size, digest)
        if size is None:
            raise NotFound(f"blob {digest}: not in the store", field="digest", value=digest)
        path = self._store.files.local_path(blob_path(digest))
        if path is not None:
            return web.FileResponse(path, headers={"Content-Type": _TYPE})
        return await self._send(request, blob_path(digest), size)

    async def _receive(self, request: web.Request, upload: Upload, digest: str) -> str:
        """Writes a request's body; returns its SHA-256."""
        hasher = hashlib.sha256()
        buffer = bytearray()
        received = 0

        def flush(chunk: bytes) -> None:
            hasher.update(chunk)
            upload.write(chunk)

        try:
            async for chunk in request.content.iter_any():
                received += len(chunk)
                self._check_size(received)
                buffer += chunk
                if len(buffer) >= _WRITE_BYTES:
                    await asyncio.to_thread(flush, bytes(buffer))
                    buffer.clear()
        except (ClientError, ConnectionError, web.RequestPayloadError) as error:
            raise Cancelled(f"blob {digest}: the upload broke off after {received} bytes", field="digest") from error
        await asyncio.to_thread(flush, bytes(buffer))
        return hasher.hexdigest()

    async def _send(self, request: web.Request, path: str, size: int) -> web.StreamResponse:
        """Streams a blob of an object store through this server."""
        start, stop = 0, size
        headers = {"Content-Type": _TYPE, "Accept-Ranges": "bytes"}
        is_part = "Range" in request.headers
        if is_part:
            try:
                start, stop, _ = request.http_range.indices(size)
            except ValueError:
                start = size
            if start >= stop:
                headers["Content-Range"] = f"bytes */{size}"
                return web.Response(status=416, headers=headers)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
        response.content_length = stop - start
        await response.prepare(request)
        if request.method != "HEAD":
            chunks = self._store.files.chunks(path, start, stop - start)
            while (chunk := await asyncio.to_thread(_next, chunks)) is not None:
                await response.write(chunk)
        await response.write_eof()
        return response

    def _check_size(self, size: int) -> None:
        if size > self._max_blob_bytes:
            raise InvalidRequest(
                f"blob: has {size} bytes or more; allowed: at most {self._max_blob_bytes}",
                field="content-length",
                value=size,
                limit=self._max_blob_bytes,
            )


def _next(chunks: Iterator[bytes]) -> bytes | None:
    return next(chunks, None)


def _digest_of(request: web.Request) -> str:
    digest = request.match_info["digest"]
    check_digest("digest", digest)
    return digest
