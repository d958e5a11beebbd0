"""JSON logs on standard error: one object a line, with the request's id, caller and trace.

Prompts and completions never appear unless `log.prompts` is set. That goes for the traces of faults too: whatever code
raises, its own or a user's, its message may quote a prompt. So a trace shows types and places, and of an error of the
operating system what its number means; nothing that was written into an exception.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime

from trimtab_services.runtime.calls import current_call
from trimtab_services.runtime.config import LogConfig

__all__ = ["configure_logs"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Formatter(logging.Formatter):
    """Writes time, level, logger, message, the call's names, what `extra` holds, and the trace of an exception."""

    def __init__(self, config: LogConfig, replica: str) -> None:
        super().__init__()
        self._as_json = config.format == "json"
        self._with_values = config.prompts
        self._replica = replica

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "replica": self._replica,
            "message": record.getMessage() if self._with_values else _message(record),
        }
        call = current_call()
        if call is not None:
            fields |= {"request_id": call.request_id, "caller": call.caller}
            if call.trace is not None:
                fields["trace_id"] = call.trace.trace_id
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["trace"] = self.formatException(record.exc_info) if self._with_values else _trace(error)
        if self._as_json:
            return json.dumps(fields, default=str, ensure_ascii=False)
        shown = {k: v for k, v in fields.items() if k not in ("time", "level", "logger", "message", "replica", "trace")}
        line = f"{fields['time']} {fields['level']} {record.name}: {fields['message']} {shown or ''}".rstrip()
        return f"{line}\n{fields['trace']}" if "trace" in fields else line


def _message(record: logging.LogRecord) -> str:
    """The message; of one of asyncio's only what is not the `repr` of a callback, a task or its exception."""
    message = record.getMessage()
    return message.partition("\n")[0].partition(" <")[0].partition("(")[0] if record.name == "asyncio" else message


def _trace(error: BaseException) -> str:
    """The trace of an exception and of those behind it, without messages that may quote a prompt."""
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{_trace(behind)}\n\nwhich led to:\n\n" if behind is not None else ""
    places = "".join(traceback.format_tb(error.__traceback__))
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    within = "".join(f"\n\nwith:\n\n{_trace(part)}" for part in parts)
    return f"{before}Traceback (most recent call last):\n{places}{_told(error)}{within}"


def _told(error: BaseException) -> str:
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    return f"{name}: {_meaning(error) or '(log.prompts would show the message)'}"


def _meaning(error: BaseException) -> str:
    """What the number of an operating system's error means; empty for others, such as TLS with numbers of its own."""
    if not isinstance(error, OSError) or type(error).__module__ != "builtins":
        return ""
    number = error.errno
    return f"[Errno {number}] {os.strerror(number)}" if number is not None and number in errno.errorcode else ""


class _Handler(logging.StreamHandler):
    """The one handler that `configure_logs` installs, told apart from those of others."""


def configure_logs(config: LogConfig, replica: str) -> None:
    """Sends all logs of the process to standard error in the configured form; calling it again replaces the form."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Formatter(config, replica))
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, _Handler)] + [handler]
    root.setLevel(logging.WARNING)  # libraries
    logging.getLogger("trimtab_services").setLevel(config.level.upper())
    logging.getLogger("trimtab").setLevel(config.level.upper())
    # grpc logs every non-OK end of a handler with a trace; the interceptor has logged it once already.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
