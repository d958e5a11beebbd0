"""An S3 server in a process of its own: moto behind a switch that lets chosen requests fail.

Takes a free port and prints its URL. One request at a time, so that a conditional write is one step as in S3 itself.
`POST /_faults` takes JSON: `method`, `path` (part of it), `when` ("before": the request is not done; "after": it is
done, but answered with an error), `times`. `POST /_clock` takes `seconds` by which the server's clock is ahead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from email.utils import formatdate, parsedate_to_datetime
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

CLOCK_HEADERS = {"date", "last-modified"}


class Switch:
    """The server, or an error in its place."""

    def __init__(self) -> None:
        self._s3 = DomainDispatcherApplication(create_backend_app)
        self._fault: dict[str, Any] = {"times": 0}
        self._seconds_ahead = 0.0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in ("/_faults", "/_clock"):
            told = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            if path == "/_faults":
                self._fault = told
            else:
                self._seconds_ahead = told["seconds"]
            start_response("204 No Content", [])
            return []
        fails = self._fails(environ["REQUEST_METHOD"], path)
        if fails and self._fault["when"] == "before":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))  # else nobody hears the answer
            return self._refuse(start_response)
        answer = list(self._s3(environ, lambda *given: self._start(start_response, *given) if not fails else None))
        return self._refuse(start_response) if fails else answer

    def _fails(self, method: str, path: str) -> bool:
        fault = self._fault
        if fault["times"] <= 0 or method != fault["method"] or fault["path"] not in path:
            return False
        fault["times"] -= 1
        return True

    def _refuse(self, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"]

    def _start(
        self, start_response: Callable[..., Any], status: str, headers: list[tuple[str, str]], *rest: Any
    ) -> Any:
        given = [*headers, ("Date", formatdate(usegmt=True))]
        return start_response(
            status, [(n, self._shift(v) if n.lower() in CLOCK_HEADERS else v) for n, v in given], *rest
        )

    def _shift(self, date: str) -> str:
        return formatdate(parsedate_to_datetime(date).timestamp() + self._seconds_ahead, usegmt=True)


class QuietHandler(MotoRequestHandler):
    """No line for each request."""

    def log_request(self, *given: Any) -> None: ...


if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, Switch(), threaded=False, request_handler=QuietHandler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
