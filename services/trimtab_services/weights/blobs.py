"""`PUT`, `GET` and `HEAD /blobs/{digest}`: the bulk bytes, streamed, never held whole, never visible unchecked."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Iterator

from aiohttp import ClientError, web

from trimtab.errors import Cancelled, CorruptData, DeadlineExceeded, InvalidRequest, NotFound, Overloaded
from trimtab.weights.manifest import check_digest
from trimtab_services.runtime.http import Route
from trimtab_services.weights.catalog import Catalog
from trimtab_services.weights.files import Upload
from trimtab_services.weights.reading import OpenBlob
from trimtab_services.weights.store import writable

__all__ = ["PREFIX", "BlobRoutes"]

PREFIX = "/blobs/"
_WRITE_BYTES = 1024 * 1024
_SEND_BYTES = 64 * 1024
"""What a reader must take within the idle time: small, so that a slow one is not taken for a silent one."""
_SENDFILE_BYTES = 1024 * 1024
"""Likewise where the kernel sends; pieces of 64 KiB would halve its speed."""
_TYPE = "application/octet-stream"


class BlobRoutes:
    """The HTTP side of the store.

    Args:
        catalog: what it serves.
        max_blob_bytes: most bytes of one upload.
        idle_s: seconds without a byte after which a transfer is ended.
    """

    def __init__(self, catalog: Catalog, *, max_blob_bytes: int, idle_s: float) -> None:
        self._catalog = catalog
        self._max_blob_bytes = max_blob_bytes
        self._idle_s = idle_s

    def routes(self) -> list[Route]:
        """Its routes; GET answers HEAD too. Bulk bytes have no deadline of the server's, as long as they move."""
        path = PREFIX + "{digest}"
        return [
            Route("GET", path, self.get, scope="weights.read", deadline_s=math.inf),
            Route("PUT", path, self.put, scope="weights.publish", deadline_s=math.inf),
        ]

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Takes a blob. One that is there already is read and dropped: a retry is no error.

        Raises:
            InvalidRequest: the digest is none, or there are too many bytes: more than an upload may have, or than the
                blob has that is there already.
            CorruptData: the bytes have another digest; nothing is kept.
            DeadlineExceeded: no byte came for too long; nothing is kept.
            Overloaded: the disk is full.
            Unsupported: this is a read replica.
        """
        digest = _digest_of(request)
        store = writable(self._catalog)
        known = await asyncio.to_thread(store.blob_size, digest)
        if known is not None:
            async for _ in self._body(request, digest, most=known):
                pass
            return web.Response(status=200)
        try:
            upload = await asyncio.to_thread(store.files.upload)
            try:
                found = await self._receive(request, upload, digest)
                if found != digest:
                    raise CorruptData(
                        f"blob {digest}: the bytes received have SHA-256 {found}; nothing is kept",
                        field="digest",
                        value=found,
                        limit=digest,
                    )
                await asyncio.to_thread(store.commit_blob, upload, digest)
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
            DeadlineExceeded: the reader took no byte for too long; the connection is cut.
        """
        digest = _digest_of(request)
        blob = await asyncio.to_thread(self._catalog.open_blob, digest)
        if blob is None:
            raise NotFound(f"blob {digest}: not in the store", field="digest", value=digest)
        try:
            return await self._send(request, digest, blob)
        finally:
            blob.close()

    async def _receive(self, request: web.Request, upload: Upload, digest: str) -> str:
        """Writes a request's body; returns its SHA-256."""
        hasher = hashlib.sha256()
        buffer = bytearray()

        def flush(chunk: bytes) -> None:
            hasher.update(chunk)
            upload.write(chunk)

        async for chunk in self._body(request, digest, most=self._max_blob_bytes):
            buffer += chunk
            if len(buffer) >= _WRITE_BYTES:
                await asyncio.to_thread(flush, bytes(buffer))
                buffer.clear()
        await asyncio.to_thread(flush, bytes(buffer))
        return hasher.hexdigest()

    async def _body(self, request: web.Request, digest: str, *, most: int) -> AsyncIterator[bytes]:
        """A request's body as it comes, bounded in bytes and in silence."""
        _check_size(request.content_length or 0, most)
        received = 0
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    chunk = await request.content.readany()
            except TimeoutError:
                raise DeadlineExceeded(
                    f"blob {digest}: no byte came for {self._idle_s:g} s after {received} bytes; nothing is kept",
                    field="blob_idle_s",
                    value=received,
                    limit=self._idle_s,
                ) from None
            except (ClientError, ConnectionError, web.RequestPayloadError) as error:
                raise Cancelled(
                    f"blob {digest}: the upload broke off after {received} bytes", field="digest"
                ) from error
            if not chunk:
                return
            received += len(chunk)
            _check_size(received, most)
            yield chunk

    async def _send(self, request: web.Request, digest: str, blob: OpenBlob) -> web.StreamResponse:
        """Streams a blob, or the range of it that is asked for."""
        start, stop = 0, blob.size
        headers = {"Content-Type": _TYPE, "Accept-Ranges": "bytes"}
        is_part = "Range" in request.headers
        if is_part:
            try:
                start, stop, _ = request.http_range.indices(blob.size)
            except ValueError:
                start = blob.size
            if start >= stop:
                headers["Content-Range"] = f"bytes */{blob.size}"
                return web.Response(status=416, headers=headers)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
        response.content_length = stop - start
        await response.prepare(request)
        if request.method != "HEAD":
            try:
                await self._write(request, response, digest, blob, start, stop)
            except BaseException:
                if request.transport is not None:
                    request.transport.abort()  # an error after the headers would pass for bytes of the blob
                raise
        await response.write_eof()
        return response

    async def _write(
        self, request: web.Request, response: web.StreamResponse, digest: str, blob: OpenBlob, start: int, stop: int
    ) -> None:
        """Sends bytes [start, stop), by the kernel from file to socket where that is possible."""
        transport = request.transport
        if blob.file is not None and transport is not None and transport.get_extra_info("sslcontext") is None:
            loop = asyncio.get_running_loop()
            for at in range(start, stop, _SENDFILE_BYTES):
                count = min(_SENDFILE_BYTES, stop - at)
                await self._moving(loop.sendfile(transport, blob.file, blob.start + at, count), digest, at - start)
            return
        chunks = blob.chunks(start, stop - start)
        sent = 0
        while (chunk := await asyncio.to_thread(_next, chunks)) is not None:
            for at in range(0, len(chunk), _SEND_BYTES):
                await self._moving(response.write(memoryview(chunk)[at : at + _SEND_BYTES]), digest, sent + at)
            sent += len(chunk)

    async def _moving(self, sending: Awaitable[object], digest: str, sent: int) -> None:
        """Awaits the sending of a piece; DeadlineExceeded when the reader does not take it within the idle time."""
        try:
            async with asyncio.timeout(self._idle_s):
                await sending
        except TimeoutError:
            raise DeadlineExceeded(
                f"blob {digest}: the reader took nothing for {self._idle_s:g} s after {sent} bytes",
                field="blob_idle_s",
                value=sent,
                limit=self._idle_s,
            ) from None


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise InvalidRequest(
            f"blob: has {size} bytes or more; allowed: at most {most}", field="content-length", value=size, limit=most
        )


def _next(chunks: Iterator[bytes]) -> bytes | None:
    return next(chunks, None)


def _digest_of(request: web.Request) -> str:
    digest = request.match_info["digest"]
    check_digest("digest", digest)
    return digest
