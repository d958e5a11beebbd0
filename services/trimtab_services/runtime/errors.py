"""Around every gRPC call: name, caller, scope, state, quota, deadline, errors with their reason, and what is observed.

One interceptor does all of it, so that a servicer only raises `trimtab.errors`. A `TrimtabError` becomes a status with
`google.rpc.ErrorInfo`; anything else is a fault of ours: INTERNAL, with the trace in the log under the request's id.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, nullcontext
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from trimtab.errors import REASONS, DeadlineExceeded, InternalError, InvalidRequest, Overloaded, TrimtabError
from trimtab.rpc_errors import to_status
from trimtab_services.runtime.auth import Identity, MethodPolicy, check_scope, policy_of
from trimtab_services.runtime.calls import Call, begin_call, current_call, new_request_id
from trimtab_services.runtime.observation import Observation
from trimtab_services.runtime.state import Runtime

__all__ = ["CallInterceptor", "as_trimtab_error"]

_log = logging.getLogger(__name__)

_USED_UP = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handler of every method of a server.

    Args:
        runtime: of the server.
    """

    def __init__(self, runtime: Runtime[Any]) -> None:
        self._runtime = runtime

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """Returns the method's handler with everything above around it; None for unknown methods, as grpc expects."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        make, inner = _constructor_of(handler)
        wrap = self._wrap_generator if _generates(inner) else self._wrap_coroutine
        # requests come in as bytes: grpc's own answer to what cannot be decoded is UNKNOWN, without a reason
        return make(wrap(inner, method, _reader_of(handler)), None, handler.response_serializer)

    def _wrap_coroutine(self, inner: Callable[..., Any], method: str, read: Callable[[Any], Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            async with self._around(context, method):
                return await inner(read(request), context)

        return call

    def _wrap_generator(self, inner: Callable[..., Any], method: str, read: Callable[[Any], Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._around(context, method):
                async with aclosing(inner(read(request), context)) as responses:
                    async for response in responses:
                        yield response

        return call

    @asynccontextmanager
    async def _around(self, context: Any, method: str) -> AsyncIterator[None]:
        policy = policy_of(method)
        code = grpc.StatusCode.OK
        limit: asyncio.Timeout | None = None
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        seen = Observation(self._runtime, method, metadata, is_work=policy.is_work)
        try:
            with self._runtime.activity if policy.is_work else nullcontext():
                limit = asyncio.timeout(self._begin(context, method, policy, metadata, seen))
                async with limit:
                    yield
        except grpc.aio.AbortError:
            code = _status_code(context.code())
            raise
        except asyncio.CancelledError:
            left = context.time_remaining()
            code = grpc.StatusCode.DEADLINE_EXCEEDED if left is not None and left <= 0 else grpc.StatusCode.CANCELLED
            raise
        except GeneratorExit:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit is not None and limit.expired():
                error = DeadlineExceeded(
                    f"{method}: not done within the server's default deadline of "
                    f"{self._runtime.config.default_deadline_s:g} s; the call carried none",
                    limit=self._runtime.config.default_deadline_s,
                )
            known = as_trimtab_error(error)
            code = REASONS[known.reason][0]
            await context.abort_with_status(to_status(known, method))
        finally:
            seen.end(code)

    def _begin(
        self, context: Any, method: str, policy: MethodPolicy, metadata: dict[str, str], seen: Observation
    ) -> float | None:
        """Names the call, checks caller, state and quota; returns the default deadline where it applies."""
        request_id = (metadata.get("x-request-id") or new_request_id())[:200]
        remaining = context.time_remaining()
        default = self._runtime.config.default_deadline_s if policy.has_default_deadline else None
        left = default if remaining is None else remaining
        deadline = None if left is None else time.monotonic() + left
        begin_call(Call(method, request_id, _host_of(context.peer()), deadline, seen.trace))
        identity = self._identify(context, metadata, policy)
        seen.caller = identity.name
        begin_call(Call(method, request_id, identity.name, deadline, seen.trace))
        check_scope(identity, policy.scope)
        if policy.is_work:
            self._runtime.refuse_unless_serving()
            self._runtime.quotas.charge_request(identity.name)
        return default if remaining is None else None

    def _identify(self, context: Any, metadata: dict[str, str], policy: MethodPolicy) -> Identity:
        if self._runtime.tokens is not None and policy.needs_token:
            return self._runtime.tokens.identify(metadata.get("authorization"))
        names = context.auth_context().get("x509_common_name", [])
        return Identity(names[0].decode(errors="replace") if names else _host_of(context.peer()))


def as_trimtab_error(error: Exception) -> TrimtabError:
    """The error as clients get it; one that is none of ours is logged with its trace and becomes INTERNAL."""
    if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:  # as a group of tasks wraps what one raised
        return as_trimtab_error(error.exceptions[0])
    if isinstance(error, TrimtabError) and REASONS[error.reason][1] in type(error).__mro__:
        return error
    call = current_call()
    request_id = call.request_id if call is not None else ""
    if isinstance(error, OSError) and error.errno in _USED_UP:
        _log.error("this host has run out of something", exc_info=error)
        what = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return Overloaded(f"the service's host has run out: {what}", metadata={"request_id": request_id})
    _log.error("fault while serving", exc_info=error)
    return InternalError(
        f"fault of the service ({type(error).__name__}); its log has the trace under request id {request_id}",
        metadata={"request_id": request_id},
    )


def _reader_of(handler: Any) -> Callable[[Any], Any]:
    """What makes the request, or the iterator of requests, out of what came over the wire."""
    decode: Callable[[bytes], Any] = handler.request_deserializer

    def read(content: bytes) -> Any:
        try:
            return decode(content)
        except DecodeError:
            raise InvalidRequest("request: its bytes are not the message of this method", field="request") from None

    async def read_each(contents: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for content in contents:
            yield read(content)

    return read_each if handler.request_streaming else read


def _constructor_of(handler: Any) -> tuple[Callable[..., grpc.RpcMethodHandler], Callable[..., Any]]:
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, handler.stream_stream
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


def _host_of(peer: str | None) -> str:
    """The address in a peer's name (`ipv4:10.0.0.7:41022`, `ipv6:%5B::1%5D:41022`), without the port.

    Each connection of a caller has a port of its own; the address is what its connections share.
    """
    kind, _, address = unquote(peer or "").partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer or "unknown"
    return address.rpartition(":")[0].strip("[]")


def _generates(function: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(function)


def _status_code(code: Any) -> grpc.StatusCode:
    """grpc.aio keeps the code of an aborted call as a number."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)
