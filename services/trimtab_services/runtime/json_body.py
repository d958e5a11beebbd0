"""One way to read a body over HTTP, JSON or not: bounded in bytes, time and depth; every refusal says what is wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pydantic_core
from aiohttp import ClientError, web

from trimtab.errors import Cancelled, DeadlineExceeded, InvalidRequest

__all__ = ["IDLE_S", "MAX_DEPTH", "check_json_type", "json_object", "read_body", "read_json"]

IDLE_S = web.AppKey("idle_s", float)
"""Where an application says how long the body of a request may take."""

MAX_DEPTH = 201
"""Most levels of arrays and objects inside one another: the limit of the parser."""

_LEAST_BYTES_PER_S = 64 * 1024
"""A body that comes no slower than this is never cut."""


async def read_json(request: web.Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    Args:
        request: its body must not have been read.

    Raises:
        TrimtabError: of `check_json_type`, `read_body` or `json_object`.
    """
    check_json_type(request)
    return json_object(await read_body(request))


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that bytes spell. Of a key that stands twice the last one counts.

    Raises:
        InvalidRequest: not UTF-8, not JSON, half a surrogate pair, a number that no float holds as NaN, more than
            `MAX_DEPTH` levels, or no object. Names the place, never the text.
    """
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


def check_json_type(request: web.Request) -> None:
    """Lets bodies through that say that they are JSON.

    Raises:
        InvalidRequest: the content type is none of JSON, which also keeps web pages of other origins from calling a
            server without tokens; or its charset is not UTF-8.
    """
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


async def read_body(request: web.Request) -> bytes:
    """The bytes of a request's body.

    They must have come within the `IDLE_S` seconds of the application, and a second more for each 64 KiB of them. A
    compressed body is bounded by what it unpacks to.

    Args:
        request: its body must not have been read.

    Raises:
        InvalidRequest: the body is longer than the application's `client_max_size`.
        DeadlineExceeded: it came too slowly.
        Cancelled: it broke off.
    """
    most, idle_s = request.client_max_size, request.app[IDLE_S]
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
