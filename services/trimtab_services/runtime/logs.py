"""JSON logs on standard error: one object a line, with the request's id and caller.

Prompts and completions never appear unless `log.prompts` is set: code that may log one asks
`Runtime.config.log.prompts`.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from trimtab_services.runtime.calls import current_call
from trimtab_services.runtime.config import LogConfig

__all__ = ["configure_logs"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Formatter(logging.Formatter):
    """Writes time, level, logger, message, request_id, caller, what `extra` holds, and the trace of an exception."""

    def __init__(self, as_json: bool, replica: str) -> None:
        super().__init__()
        self._as_json = as_json
        self._replica = replica

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "replica": self._replica,
            "message": record.getMessage(),
        }
        call = current_call()
        if call is not None:
            fields |= {"request_id": call.request_id, "caller": call.caller}
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps(fields, default=str, ensure_ascii=False)
        shown = {k: v for k, v in fields.items() if k not in ("time", "level", "logger", "message", "replica", "trace")}
        line = f"{fields['time']} {fields['level']} {record.name}: {fields['message']} {shown or ''}".rstrip()
        return f"{line}\n{fields['trace']}" if "trace" in fields else line


class _Handler(logging.StreamHandler):
    """The one handler that `configure_logs` installs, told apart from those of others."""


def configure_logs(config: LogConfig, replica: str) -> None:
    """Sends all logs of the process to standard error in the configured form; calling it again replaces the form."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Formatter(config.format == "json", replica))
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, _Handler)] + [handler]
    root.setLevel(logging.WARNING)  # libraries
    logging.getLogger("trimtab_services").setLevel(config.level.upper())
    logging.getLogger("trimtab").setLevel(config.level.upper())
    # grpc logs every non-OK end of a handler with a trace; the interceptor has logged it once already.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
