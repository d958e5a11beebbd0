"""One way to read a JSON body over HTTP: bounded in bytes, time and depth, and every refusal says what is wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pydantic_core
from aiohttp import ClientError, web

from trimtab.errors import Cancelled, DeadlineExceeded, InvalidRequest

__all__ = ["IDLE_S", "MAX_DEPTH", "read_json"]

IDLE_S = web.AppKey("idle_s", float)
"""Where an application says how long the body of a request may take."""

MAX_DEPTH = 201
"""Most levels of arrays and objects inside one another: the limit of the parser."""

_LEAST_BYTES_PER_S = 64 * 1024
"""A body that comes no slower than this is never cut."""


async def read_json(request: web.Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    The body must have come within the `IDLE_S` seconds of the application, and a second more for each 64 KiB of it.
    Of a key that stands twice the last one counts. A compressed body is bounded by what it unpacks to.

    Args:
        request: its body must not have been read.

    Raises:
        InvalidRequest: the content type is none of JSON (which also keeps web pages of other origins from calling a
            server without tokens), the body is longer than the application's `client_max_size`, is not UTF-8, not
            JSON, has half a surrogate pair, a number that no float holds as NaN, more than `MAX_DEPTH` levels, or is
            no object. Names the place, never the text.
        DeadlineExceeded: it came too slowly.
        Cancelled: it broke off.
    """
    _check_content_type(request)
    body = await _read(request, request.app[IDLE_S])
    try:
        content = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise _wrong(str(error)) from None
    if not isinstance(content, dict):
        raise InvalidRequest(
            f"body: must be a JSON object; found {_KINDS[type(content)]}",
            field="body",
            value=_KINDS[type(content)],
            limit="an object",
        )
    return content


_KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def _check_content_type(request: web.Request) -> None:
    kind = request.content_type
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise InvalidRequest(
            f"content-type: {kind!r} is no JSON; send `content-type: application/json`",
            field="content-type",
            value=kind,
            limit="application/json",
        )
    charset = request.charset or "utf-8"
    if charset.lower() not in ("utf-8", "utf8"):
        raise InvalidRequest(
            f"content-type: charset {charset!r}; JSON is UTF-8", field="content-type", value=charset, limit="utf-8"
        )


async def _read(request: web.Request, idle_s: float) -> bytes:
    most = request.client_max_size
    _check_size(request.content_length or 0, most)
    body = bytearray()
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(began + idle_s) as limit:
            while chunk := await request.content.readany():
                body += chunk
                _check_size(len(body), most)
                limit.reschedule(began + idle_s + len(body) / _LEAST_BYTES_PER_S)
    except TimeoutError:
        raise DeadlineExceeded(
            f"body: {len(body)} bytes came within {idle_s:g} s and a second more for each "
            f"{_LEAST_BYTES_PER_S} of them; the request is dropped",
            field="http_idle_s",
            value=len(body),
            limit=idle_s,
        ) from None
    except (ClientError, ConnectionError, web.RequestPayloadError) as error:
        raise Cancelled(f"body: broke off after {len(body)} bytes", field="body") from error
    return bytes(body)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise InvalidRequest(f"body: {size} bytes or more; allowed: {most}", field="body", value=size, limit=most)


def _wrong(why: str) -> InvalidRequest:
    if why.startswith("recursion limit exceeded"):
        place = why.removeprefix("recursion limit exceeded ")
        return InvalidRequest(
            f"body: more than {MAX_DEPTH} levels of arrays and objects {place}", field="body", limit=MAX_DEPTH
        )
    return InvalidRequest(f"body: not JSON in UTF-8: {why}", field="body")
