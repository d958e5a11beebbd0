"""What is counted, logged and traced of one call, the same for gRPC and HTTP."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import grpc

from trimtab_services.runtime.calls import current_call
from trimtab_services.runtime.state import Runtime

__all__ = ["Observation"]

_calls = logging.getLogger("trimtab_services.calls")


class Observation:
    """Begins when a call comes; `end` once.

    Args:
        runtime: of the server.
        method: full gRPC method, or `METHOD /path` of HTTP.
        headers: metadata or headers of the call, for its trace.
        is_work: a record is logged at its end.

    Attributes:
        caller: name of who calls, once that is known.
        trace: the call's span; None without tracing.
    """

    def __init__(self, runtime: Runtime[Any], method: str, headers: Mapping[str, str], *, is_work: bool) -> None:
        self._runtime = runtime
        self._method = method
        self._is_work = is_work
        self._started = time.monotonic()
        self.caller = ""
        self.trace = runtime.tracing.begin(method, headers) if runtime.tracing is not None else None
        runtime.metrics.in_flight.inc()

    def end(self, code: grpc.StatusCode) -> None:
        """Counts, logs and ends the trace of a call that has come to `code`."""
        seconds = time.monotonic() - self._started
        metrics = self._runtime.metrics
        label = self._method.rsplit("/", 1)[-1] if self._method.startswith("/") else self._method
        metrics.in_flight.dec()
        metrics.requests.labels(label, code.name, metrics.callers.label(self.caller)).inc()
        metrics.request_seconds.labels(label).observe(seconds)
        if self.trace is not None:
            call = current_call()
            self.trace.end(code, call.request_id if call is not None else "", self.caller)
        if self._is_work and self._runtime.config.log.calls:
            extra = {"code": code.name, "duration_ms": round(seconds * 1e3, 3)}
            _calls.info("%s %s", self._method, code.name, extra=extra)
