"""A server that answers what the public API documentation of text-generation-inference says, as a test scripts it."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["Answer", "DocumentedTGI", "documented_tgi", "result"]


@dataclass(frozen=True)
class Answer:
    """An answer to a request for a completion: JSON, the events of a stream, or a connection that breaks."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    events: bool = False
    after_s: float = 0.0
    breaks: bool = False


def result(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], finish_reason: str = "length", *, stream: bool = False
) -> Answer:
    """A good answer with these tokens; their log-probs are -0.5, -1.5, ..."""
    tokens = [
        {"id": one, "text": tokenizer.decode([one]), "logprob": -0.5 - i, "special": one in tokenizer.all_special_ids}
        for i, one in enumerate(ids)
    ]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    told = {"finish_reason": finish_reason, "generated_tokens": len(ids), "seed": 0}
    if not stream:
        details = {**told, "best_of_sequences": None, "prefill": [], "tokens": tokens, "top_tokens": None}
        return Answer([{"generated_text": text, "details": details}])
    events = [
        {"index": i + 1, "token": token, "generated_text": None, "details": None} for i, token in enumerate(tokens)
    ]
    events[-1] |= {"generated_text": text, "details": {**told, "input_length": 1}}
    return Answer(events, events=True)


class DocumentedTGI:
    """What the server does next, and what it was asked.

    Attributes:
        url: of the server.
        answers: what the next requests for completions get; the last one stays.
        healthy, info, tokenize: what the other routes answer; `tokenize` None: 404.
        asked: bodies of the requests for completions.
        authorizations: of every request; None without.
        most_at_once: requests for completions that were there at the same time.
        hung_up: set once a caller has closed its connection before it was answered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.url = ""
        self.answers: list[Answer] = []
        self.healthy = True
        self.info: dict[str, Any] = {
            "model_id": "bigscience/blomm-560m",
            "model_sha": "e985a63cdc139290c5f700ff1929f0b5942cced2",
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 128,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": 100,
            "max_total_tokens": 200,
            "validation_workers": 2,
            "max_client_batch_size": 32,
            "router": "text-generation-router",
            "version": "2.4.1",
            "sha": None,
            "docker_label": None,
        }
        self.tokenize: Any = lambda text: tokenizer(text)["input_ids"]
        self.asked: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.most_at_once = 0
        self.hung_up = threading.Event()
        self.lock = threading.Lock()
        self.at_once = 0
        self.connections: list[socket.socket] = []

    def next_answer(self, body: dict[str, Any]) -> Answer:
        with self.lock:
            self.asked.append(body)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def _handler(tgi: DocumentedTGI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            tgi.connections.append(self.connection)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            tgi.authorizations.append(self.headers["authorization"])
            if self.path == "/info":
                self.reply(200, tgi.info)
            elif self.path == "/health" and tgi.healthy:
                self.reply(200, None)
            else:
                self.reply(503, {"error": "unhealthy", "error_type": "healthcheck"})

        def do_POST(self) -> None:
            tgi.authorizations.append(self.headers["authorization"])
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/tokenize":
                if tgi.tokenize is None:
                    self.reply(404, {"error": "No fast tokenizer available", "error_type": "no fast tokenizer"})
                    return
                rows = [{"id": one, "text": "", "start": 0, "stop": 0} for one in tgi.tokenize(body["inputs"])]
                self.reply(200, rows)
                return
            with tgi.lock:
                tgi.at_once += 1
                tgi.most_at_once = max(tgi.most_at_once, tgi.at_once)
            try:
                self.complete(tgi.next_answer(body))
            finally:
                with tgi.lock:
                    tgi.at_once -= 1

        def complete(self, answer: Answer) -> None:
            if self.caller_goes_within(answer.after_s):
                tgi.hung_up.set()
                self.close_connection = True
            elif answer.breaks:
                self.close_connection = True
            elif answer.events:
                self.send_response(answer.status)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                for event in answer.body:
                    self.wfile.write(f"data:{json.dumps(event)}\n\n".encode())
                self.close_connection = True
            else:
                self.reply(answer.status, answer.body, answer.headers)

        def caller_goes_within(self, seconds: float) -> bool:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if select.select([self.connection], [], [], 0.02)[0]:
                    return not self.connection.recv(1, socket.MSG_PEEK)
            return False

        def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


@contextmanager
def documented_tgi(tokenizer: PreTrainedTokenizerBase) -> Iterator[DocumentedTGI]:
    """Runs it on a free port."""
    tgi = DocumentedTGI(tokenizer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(tgi))
    server.daemon_threads = True
    tgi.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield tgi
    finally:
        server.shutdown()
        server.server_close()
        for connection in tgi.connections:  # as when a process ends
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(10)
