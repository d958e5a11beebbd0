"""The HTTP side of a server (aiohttp, in the same event loop) and the metrics port.

A service gives `Route`s; the middleware does for them what the interceptor does for gRPC. An error is a JSON object
`{"reason", "message", "field", "value", "limit", "metadata"}` with the HTTP status of its gRPC code. Every server
answers `GET /health` (200 ready, 503 not) and `GET /info` (GetInfo as JSON) besides.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import grpc
from aiohttp import web
from google.protobuf import json_format

from trimtab.errors import REASONS, DeadlineExceeded, TrimtabError
from trimtab.v1 import info_pb2
from trimtab_services.runtime.auth import Identity, TokenTable, check_scope
from trimtab_services.runtime.calls import Call, begin_call, new_request_id
from trimtab_services.runtime.config import ServerTLS
from trimtab_services.runtime.errors import as_trimtab_error
from trimtab_services.runtime.metrics import CONTENT_TYPE, Metrics
from trimtab_services.runtime.state import Runtime, State

__all__ = ["HTTP_STATUS", "Route", "make_app", "make_metrics_app", "make_ssl_context"]

_calls = logging.getLogger("trimtab_services.calls")

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


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP route of a service.

    Attributes:
        method: such as `GET`; `GET` answers HEAD too.
        path: aiohttp path, such as `/blobs/{digest}`.
        handler: answers a request; raises `trimtab.errors`.
        scope: scope that a token must have. Empty: any known token.
        is_work: refused while the service is not SERVING; waited for in a drain.
        deadline_s: seconds it may take; None: the server's default; `inf`: no end, for bulk bytes.
    """

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    scope: str = ""
    is_work: bool = True
    deadline_s: float | None = None


def make_app(
    runtime: Runtime[Any],
    tokens: TokenTable | None,
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
    app.router.add_get("/health", health)
    for route in (*routes, Route("GET", "/info", info, is_work=False)):
        handler = _around(runtime, tokens, route)
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


def make_ssl_context(tls: ServerTLS) -> ssl.SSLContext:
    """TLS of the HTTP side; with `client_ca_file` a client certificate is required."""
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=str(tls.client_ca_file) if tls.client_ca_file else None
    )
    context.load_cert_chain(tls.certificate_file, tls.key_file)
    if tls.client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _around(
    runtime: Runtime[Any], tokens: TokenTable | None, route: Route
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The route's handler with name, caller, scope, state, deadline, metrics, log and errors around it."""
    label = f"{route.method} {route.path}"
    seconds = runtime.config.default_deadline_s if route.deadline_s is None else route.deadline_s
    timeout_s = None if math.isinf(seconds) else seconds

    async def call(request: web.Request) -> web.StreamResponse:
        started = time.monotonic()
        code = grpc.StatusCode.OK
        request_id = (request.headers.get("x-request-id") or new_request_id())[:200]
        deadline = None if timeout_s is None else started + timeout_s
        limit = asyncio.timeout(timeout_s)
        runtime.metrics.in_flight.inc()
        try:
            with runtime.activity if route.is_work else nullcontext():
                begin_call(Call(label, request_id, request.remote or "", deadline))
                identity = _identify(request, tokens)
                begin_call(Call(label, request_id, identity.name, deadline))
                check_scope(identity, route.scope)
                if route.is_work:
                    runtime.refuse_unless_serving()
                async with limit:
                    return await route.handler(request)
        except web.HTTPException:
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                error = DeadlineExceeded(f"{label}: not done within {seconds:g} s", limit=seconds)
            known = as_trimtab_error(error)
            code = REASONS[known.reason][0]
            return _error_response(known, request_id)
        finally:
            taken = time.monotonic() - started
            runtime.metrics.in_flight.dec()
            runtime.metrics.requests.labels(label, code.name).inc()
            runtime.metrics.request_seconds.labels(label).observe(taken)
            if route.is_work and runtime.config.log.calls:
                extra = {"code": code.name, "duration_ms": round(taken * 1e3, 3)}
                _calls.info("%s %s", label, code.name, extra=extra)

    return call


def _identify(request: web.Request, tokens: TokenTable | None) -> Identity:
    if tokens is not None:
        return tokens.identify(request.headers.get("authorization"))
    return Identity(request.remote or "unknown")


def _error_response(error: TrimtabError, request_id: str) -> web.Response:
    headers = {"x-request-id": request_id}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    body = {
        "reason": error.reason.value,
        "message": error.message,
        "field": error.field,
        "value": error.value,
        "limit": error.limit,
        "metadata": error.metadata,
    }
    return web.json_response(body, status=HTTP_STATUS[REASONS[error.reason][0]], headers=headers)
