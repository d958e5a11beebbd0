"""OpenTelemetry traces: a server span for each call, under the caller's own span, with its waits and batches below.

A trace travels as W3C Trace Context (`traceparent` in gRPC metadata or HTTP headers) and leaves to a collector by OTLP
over HTTP. Spans hold names, codes and times, never prompts. The library is imported only where tracing is configured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import grpc
from pydantic import BaseModel, ConfigDict, Field

from trimtab.errors import ConfigError

__all__ = ["CallTrace", "Tracing", "TracingConfig"]

_EXPORT_TIMEOUT_S = 3.0
"""Seconds that a collector gets to take a batch of spans; a drain waits no longer for one that is away."""

_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that make a server span one of an error, by OpenTelemetry's conventions for RPC."""


class TracingConfig(BaseModel):
    """Where spans are sent, and how many."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str = Field(
        pattern=r"^https?://[^\s/]+",
        description="Base URL of an OTLP/HTTP collector, such as `http://collector:4318`; `/v1/traces` is appended.",
    )
    sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="Share of traces begun here that are kept. A caller's own choice is kept."
    )


class CallTrace:
    """The server span of one call; made by `Tracing.begin`, which makes it the present one of the task."""

    def __init__(self, tracer: Any, span: Any, context: Any) -> None:
        self._tracer = tracer
        self._span = span
        self._context = context

    @property
    def trace_id(self) -> str:
        """32 hex digits, as in the caller's `traceparent`."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def record_work(self, *, submitted: float, queue_s: float, compute_s: float, batch_items: int) -> None:
        """Adds the spans `queue` and `batch` of work that has been computed.

        Args:
            submitted: `time.monotonic()` of its admission.
            queue_s: seconds that it waited from then on.
            compute_s: seconds that its batch took after that.
            batch_items: items of the call in that batch.
        """
        start_ns = time.time_ns() - round((time.monotonic() - submitted) * 1e9)
        taken_ns = start_ns + round(queue_s * 1e9)
        self._add("queue", start_ns, taken_ns, batch_items)
        self._add("batch", taken_ns, taken_ns + round(compute_s * 1e9), batch_items)

    def end(self, code: grpc.StatusCode, request_id: str, caller: str) -> None:
        """Ends the span with what the call came to."""
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(
            {"trimtab.code": code.name, "trimtab.request_id": request_id, "trimtab.caller": caller}
        )
        if code in _SERVER_FAULTS:
            self._span.set_status(StatusCode.ERROR, code.name)
        self._span.end()

    def _add(self, name: str, start_ns: int, end_ns: int, items: int) -> None:
        """A span below this one that has ended already; times since the epoch."""
        child = self._tracer.start_span(name, self._context, start_time=start_ns, attributes={"trimtab.items": items})
        child.end(end_ns)


class Tracing:
    """Makes and sends the spans of one server.

    Args:
        config: where to, and how many.
        service: short name of the service, such as `reward`.
        replica: name of the replica.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self, config: TracingConfig, *, service: str, replica: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"tracing: needs OpenTelemetry ({error}); pip install 'trimtab[tracing]'", field="tracing"
            ) from None
        resource = Resource.create(
            {
                "service.name": f"trimtab-{service}",
                "service.instance.id": replica,
                "service.version": version("trimtab"),
            }
        )
        sampler = ParentBased(TraceIdRatioBased(config.sample_ratio))
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        url = f"{config.endpoint.rstrip('/')}/v1/traces"
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url, timeout=_EXPORT_TIMEOUT_S)))
        self._tracer = self._provider.get_tracer("trimtab_services")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, headers: Mapping[str, str]) -> CallTrace:
        """Begins the server span of a call.

        Args:
            name: full gRPC method, or `METHOD /path` of HTTP.
            headers: metadata or headers of the call; a malformed `traceparent` counts as none.
        """
        from opentelemetry.context import attach
        from opentelemetry.trace import SpanKind, set_span_in_context

        parent = self._propagator.extract(headers)
        span = self._tracer.start_span(
            name.removeprefix("/"), parent, kind=SpanKind.SERVER, attributes=_attributes_of(name)
        )
        context = set_span_in_context(span, parent)
        attach(context)  # never detached: each call has a task of its own, which ends with it
        return CallTrace(self._tracer, span, context)

    async def close(self) -> None:
        """Sends what has not been sent; a collector that is away gets a few seconds."""
        await asyncio.to_thread(self._provider.shutdown)


def _attributes_of(name: str) -> dict[str, str]:
    if name.startswith("/"):
        service, _, method = name[1:].partition("/")
        return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    method, _, path = name.partition(" ")
    return {"http.request.method": method, "http.route": path}
