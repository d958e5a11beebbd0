"""Around every route of the fronts: deadline, errors in the front's shape, event streams."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from trimtab.errors import REASONS, Cancelled, DeadlineExceeded, TrimtabError
from trimtab_services.runtime.calls import current_call, limit_call
from trimtab_services.runtime.errors import as_trimtab_error
from trimtab_services.runtime.http import CODE, HTTP_STATUS

__all__ = ["Answering", "Events", "Handler", "json_answer", "request_id"]

_log = logging.getLogger(__name__)

_STREAM = web.RequestKey("stream", web.StreamResponse)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Events = AsyncGenerator[Mapping[str, Any], None]


@dataclass(frozen=True, slots=True)
class Answering:
    """How a front answers.

    Attributes:
        error_body: the JSON object of an error, in the front's shape.
        status: HTTP status by the class of the error, where it is another than that of `runtime.http.HTTP_STATUS`.
        prefix: what stands in front of an event's JSON.
        last_event: ends a stream that went well; empty: the stream just ends.
        deadline_s: seconds that a call may take.
    """

    error_body: Callable[[TrimtabError], Mapping[str, Any]]
    status: Mapping[type[TrimtabError], int]
    prefix: str
    last_event: str
    deadline_s: float

    def around(self, handler: Handler) -> Handler:
        """The handler under the deadline, its errors in the front's shape; one whose caller goes away is cancelled."""

        async def answer(request: web.Request) -> web.StreamResponse:
            limit_call(self.deadline_s)
            limit = asyncio.timeout(self.deadline_s)
            try:
                async with limit:
                    return await handler(request)
            except (Cancelled, ConnectionError):
                raise Cancelled("the caller has gone away") from None
            except Exception as error:
                if isinstance(error, TimeoutError) and limit.expired():
                    error = DeadlineExceeded(f"not done within {self.deadline_s:g} s", limit=self.deadline_s)
                return await self._tell(request, as_trimtab_error(error))

        return answer

    async def stream(self, request: web.Request, events: Events, version: int) -> web.StreamResponse:
        """Sends each event as it comes. What is wrong before the first one is an error of the call; later, an event.

        Args:
            request: what is answered.
            events: JSON objects, at least one.
            version: of the policy when the stream begins.
        """
        async with aclosing(events):
            first = await anext(events)
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **_headers(str(version))}
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            request[_STREAM] = response
            await response.write(self._event(first))
            async for event in events:
                await response.write(self._event(event))
        if self.last_event:
            await response.write(f"{self.prefix}{self.last_event}\n\n".encode())
        await response.write_eof()
        return response

    async def _tell(self, request: web.Request, error: TrimtabError) -> web.StreamResponse:
        """Answers with an error, or ends the stream that has begun with it."""
        request[CODE] = REASONS[error.reason][0]
        stream = request.get(_STREAM)
        if stream is None:
            return self.error_answer(error)
        _log.warning("a stream ends with an error", extra={"reason": error.reason.value})
        with suppress(ConnectionError):
            await stream.write(self._event(self.error_body(error)))
            await stream.write_eof()
        return stream

    def error_answer(self, error: TrimtabError) -> web.Response:
        """An error in the front's shape."""
        headers = _headers()
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        return web.json_response(self.error_body(error), status=self._status(error), headers=headers)

    def _status(self, error: TrimtabError) -> int:
        own = next((status for kind, status in self.status.items() if isinstance(error, kind)), None)
        return own or HTTP_STATUS[REASONS[error.reason][0]]

    def _event(self, event: Mapping[str, Any]) -> bytes:
        return f"{self.prefix}{json.dumps(event, allow_nan=False)}\n\n".encode()


def json_answer(body: Any, versions: set[int]) -> web.Response:
    """A JSON answer that names the policy versions it comes from in its header `x-trimtab-version`."""
    return web.json_response(body, headers=_headers(",".join(str(version) for version in sorted(versions))))


def request_id() -> str:
    """Name of the present call."""
    call = current_call()
    return call.request_id if call is not None else ""


def _headers(versions: str = "") -> dict[str, str]:
    return {"x-request-id": request_id(), **({"x-trimtab-version": versions} if versions else {})}
