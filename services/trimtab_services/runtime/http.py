"""The HTTP side of a server (aiohttp, in the same event loop) and the metrics port.

A service gives `Route`s; the middleware does for them what the interceptor does for gRPC. An error is a JSON object
`{"error", "reason", "message", "field", "value", "limit", "metadata"}` with the HTTP status of its gRPC code. Every
server answers `GET /health` (200 ready, 503 not) and `GET /info` (GetInfo as JSON) besides.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import grpc
from aiohttp import web
from aiohttp.http import HttpProcessingError
from google.protobuf import json_format

from trimtab.errors import REASONS, DeadlineExceeded, TrimtabError
from trimtab.v1 import info_pb2
from trimtab_services.runtime.auth import Identity, check_scope
from trimtab_services.runtime.calls import Call, begin_call, new_request_id
from trimtab_services.runtime.errors import as_trimtab_error
from trimtab_services.runtime.json_body import IDLE_S
from trimtab_services.runtime.metrics import CONTENT_TYPE, Metrics
from trimtab_services.runtime.observation import Observation
from trimtab_services.runtime.state import Runtime, State

__all__ = ["CODE", "HTTP_STATUS", "Route", "make_app", "make_metrics_app", "make_runner"]

HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.DATA_LOSS: 422,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""HTTP status of each gRPC code in `trimtab.errors.REASONS`."""

CODE: web.RequestKey[grpc.StatusCode] = web.RequestKey("code", grpc.StatusCode)
"""Where a handler that words its errors itself says what the call has come to, for metrics, log and trace."""

_CODES = {status: code for code, status in HTTP_STATUS.items()} | {413: grpc.StatusCode.INVALID_ARGUMENT}

_MOST_HEADERS = 64
_MOST_HEADER_BYTES = 8190
"""Most bytes of the request line, and of each header; most headers is `_MOST_HEADERS`. More is answered with 400."""


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP route of a service.

    Attributes:
        method: such as `GET`; `GET` answers HEAD too.
        path: aiohttp path, such as `/blobs/{digest}`.
        handler: answers a request; raises `trimtab.errors`.
        scope: scope that a token must have. Empty: any known token.
        needs_token: False where the handler itself finds out who calls, such as by the session of a person.
        is_work: refused while the service is not SERVING; waited for in a drain.
        deadline_s: seconds it may take; None: the server's default; `inf`: no end, for bulk bytes.
        word_error: the answer to an error, such as of the caller's token; None: as our own routes word it.
    """

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    scope: str = ""
    needs_token: bool = True
    is_work: bool = True
    deadline_s: float | None = None
    word_error: Callable[[TrimtabError], web.Response] | None = None


def make_app(
    runtime: Runtime[Any],
    routes: Sequence[Route],
    describe: Callable[[], info_pb2.GetInfoResponse],
) -> web.Application:
    """The HTTP side of a server."""

    async def health(request: web.Request) -> web.StreamResponse:
        ready = runtime.state == State.SERVICE_STATE_SERVING
        return web.json_response({"ready": ready, "reason": runtime.state_reason}, status=200 if ready else 503)

    async def info(request: web.Request) -> web.StreamResponse:
        return web.json_response(json_format.MessageToDict(describe(), preserving_proto_field_name=True))

    app = web.Application(client_max_size=runtime.config.max_request_bytes)
    app[IDLE_S] = runtime.config.http_idle_s
    app.router.add_get("/health", health)
    for route in (*routes, Route("GET", "/info", info, is_work=False)):
        handler = _around(runtime, route)
        if route.method == "GET":
            app.router.add_get(route.path, handler)
        else:
            app.router.add_route(route.method, route.path, handler)
    return app


def make_metrics_app(metrics: Metrics) -> web.Application:
    """`GET /metrics` in Prometheus' text format."""

    async def show(request: web.Request) -> web.StreamResponse:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", show)
    return app


def make_runner(app: web.Application, *, idle_s: float, shutdown_s: float) -> web.AppRunner:
    """Runs an application with bounded headers, in bytes and in time.

    Args:
        app: what to run.
        idle_s: seconds after which a connection is closed that has not sent the whole header of its next request.
        shutdown_s: seconds that answers under way get at the end.
    """
    return web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,  # who hangs up is not computed for
        shutdown_timeout=shutdown_s,
        keepalive_timeout=idle_s,
        max_line_size=_MOST_HEADER_BYTES,
        max_field_size=_MOST_HEADER_BYTES,
        max_headers=_MOST_HEADERS,
        logger=_parser_log(),
    )


def _parser_log() -> logging.Logger:
    """Where aiohttp logs requests that it cannot parse: that they came, without their bytes, which may hold a token."""
    logger = logging.getLogger("trimtab_services.http")
    logger.addFilter(_without_bytes)  # once, however often it is added
    return logger


def _without_bytes(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"  # a fault of the caller's, not of ours
        record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}", ()
    return True


def _around(runtime: Runtime[Any], route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The route's handler with what `errors.py` puts around a gRPC method."""
    label = f"{route.method} {route.path}"
    seconds = runtime.config.default_deadline_s if route.deadline_s is None else route.deadline_s
    timeout_s = None if math.isinf(seconds) else seconds

    async def call(request: web.Request) -> web.StreamResponse:
        code = grpc.StatusCode.OK
        request_id = (request.headers.get("x-request-id") or new_request_id())[:200]
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        limit = asyncio.timeout(timeout_s)
        seen = Observation(runtime, label, request.headers, is_work=route.is_work)
        try:
            with runtime.activity if route.is_work else nullcontext():
                begin_call(Call(label, request_id, request.remote or "", deadline, seen.trace))
                identity = _identify(request, runtime, route)
                seen.caller = identity.name
                begin_call(Call(label, request_id, identity.name, deadline, seen.trace))
                check_scope(identity, route.scope)
                if route.is_work:
                    runtime.refuse_unless_serving()
                    runtime.quotas.charge_request(identity.name)
                async with limit:
                    response = await route.handler(request)
                    code = request.get(CODE, code)
                    return response
        except web.HTTPException as error:
            known_code = _CODES.get(error.status, grpc.StatusCode.UNKNOWN) if error.status >= 400 else code
            code = request.get(CODE, known_code)
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                error = DeadlineExceeded(f"{label}: not done within {seconds:g} s", limit=seconds)
            known = as_trimtab_error(error)
            code = REASONS[known.reason][0]
            return route.word_error(known) if route.word_error is not None else _error_response(known, request_id)
        finally:
            seen.end(code)

    return call


def _identify(request: web.Request, runtime: Runtime[Any], route: Route) -> Identity:
    if runtime.tokens is not None and route.needs_token:
        return runtime.tokens.identify(request.headers.get("authorization"))
    certificate = request.get_extra_info("peercert") or {}
    parts = [part for group in certificate.get("subject", ()) for part in group]
    return Identity(next((value for key, value in parts if key == "commonName"), request.remote or "unknown"))


def _error_response(error: TrimtabError, request_id: str) -> web.Response:
    headers = {"x-request-id": request_id}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    body = {
        "error": error.message,  # where clients of the Open Inference Protocol and of many others look for it
        "reason": error.reason.value,
        "message": error.message,
        "field": error.field,
        "value": error.value,
        "limit": error.limit,
        "metadata": error.metadata,
    }
    return web.json_response(body, status=HTTP_STATUS[REASONS[error.reason][0]], headers=headers)
