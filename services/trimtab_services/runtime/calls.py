"""The call being served: who made it, what it is called in logs, and until when its answer is of use.

The interceptor of `errors.py` (gRPC) and the middleware of `http.py` set it; servicers, the scheduler and the log read
it.
"""

from __future__ import annotations

import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, replace

from trimtab_services.runtime.tracing import CallTrace

__all__ = ["Call", "begin_call", "current_call", "limit_call", "new_request_id", "rename_call"]


@dataclass(frozen=True, slots=True)
class Call:
    """Facts of one call.

    Attributes:
        method: full gRPC method (`/trimtab.v1.RewardService/Score`) or `METHOD /path` of HTTP.
        request_id: name in logs and traces.
        caller: name of the token, the client certificate's subject, or the peer's address without its port.
        deadline: `time.monotonic()` at which the answer is worthless; None when the call has no end, as a watch.
        trace: its span; None without tracing.
    """

    method: str
    request_id: str
    caller: str
    deadline: float | None
    trace: CallTrace | None = None

    @property
    def remaining_s(self) -> float | None:
        """Seconds left, negative when over; None without a deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()


_current: ContextVar[Call | None] = ContextVar("trimtab_call", default=None)


def new_request_id() -> str:
    """A new name for a request that came without one: 32 hex digits."""
    return uuid.uuid4().hex


def begin_call(call: Call) -> None:
    """Makes `call` the one of the present task and of the tasks that it starts."""
    _current.set(call)


def current_call() -> Call | None:
    """The call that the present task serves; None outside of calls."""
    return _current.get()


def rename_call(request_id: str) -> None:
    """Takes the name that the request itself carries; an empty one changes nothing."""
    call = _current.get()
    if call is not None and request_id:
        _current.set(replace(call, request_id=request_id[:200]))


def limit_call(seconds: float) -> None:
    """Gives the present task's call that many seconds from now, unless it has a deadline."""
    call = _current.get()
    if call is not None and call.deadline is None:
        _current.set(replace(call, deadline=time.monotonic() + seconds))
