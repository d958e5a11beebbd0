"""What a server takes from callers that are wrong, slow or hostile: headers, bodies, metadata, handshakes."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import time
from collections.abc import Iterator

import grpc
import httpx
import pytest
from aiohttp import web

from running import FREE_PORTS, RunningServer
from trimtab_services.runtime.config import ServiceConfig
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.json_body import MAX_DEPTH, read_json
from trimtab_services.runtime.server import Service
from trimtab_services.runtime.state import Runtime

IDLE_S = 1.5
MAX_BYTES = 200_000
JSON = {"content-type": "application/json"}


async def echo(request: web.Request) -> web.StreamResponse:
    return web.json_response(await read_json(request))


async def read_raw(request: web.Request) -> web.StreamResponse:
    return web.json_response(len(await request.read()))


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    async def build(runtime: Runtime[ServiceConfig]) -> Service:
        return Service(handlers=[], routes=[Route("POST", "/echo", echo), Route("POST", "/raw", read_raw)])

    config = ServiceConfig(**FREE_PORTS, http_idle_s=IDLE_S, max_request_bytes=MAX_BYTES, drain_s=1.0)  # type: ignore[arg-type]
    running = RunningServer(config, "weights", "trimtab.v1.WeightsService", build)
    yield running
    running.stop()


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.server.runtime.http_url, timeout=20) as client:
        yield client


def connect(server: RunningServer, side: str = "http") -> socket.socket:
    return socket.create_connection(("127.0.0.1", getattr(server.server.runtime.ports, side)), timeout=30)


def nested(levels: int) -> bytes:
    return b'{"a": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_a_json_object_is_read(http: httpx.Client) -> None:
    content = {"text": "Grüße 🙂", "list": [1, -2.5, None, True], "big": 2**70}
    assert http.post("/echo", json=content).json() == content
    packed = gzip.compress(json.dumps(content).encode())
    assert http.post("/echo", content=packed, headers={**JSON, "content-encoding": "gzip"}).json() == content
    for kind in ("application/json; charset=UTF-8", "application/vnd.api+json"):
        assert http.post("/echo", content=b"{}", headers={"content-type": kind}).status_code == 200
    assert http.post("/echo", content=nested(MAX_DEPTH), headers=JSON).status_code == 200


@pytest.mark.parametrize(
    ("body", "words", "place"),
    [
        (b"", "EOF", "line 1 column 0"),
        (b'{"a": secret}', "expected value", "line 1 column 7"),
        (b'{"a": 1} secret', "trailing characters", "line 1 column 10"),
        (b'{\n"a": "\xff"}', "not JSON in UTF-8", "line 2"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON in UTF-8", "column 1"),
        (b'{"secret": "\\ud800"}', "not JSON in UTF-8", "hex escape"),
        (b'{"a": "\xed\xa0\x80"}', "not JSON in UTF-8", "unicode"),
        (b'{"a": NaN}', "expected value", "column 7"),
        (b'{"a": ' + b"1" * 5000 + b"}", "out of range", "column"),
        (b'["secret"]', "must be a JSON object", "an array"),
        (b'"secret"', "must be a JSON object", "a string"),
        (b"null", "must be a JSON object", "null"),
        (nested(MAX_DEPTH + 1), f"more than {MAX_DEPTH} levels", "column"),
        (b"[" * 150_000, f"more than {MAX_DEPTH} levels", "column"),
        (b'{"a": "' + b"x" * MAX_BYTES + b'"}', f"allowed: {MAX_BYTES}", "bytes"),
    ],
)
def test_a_wrong_body_is_a_400_that_says_where_and_repeats_nothing(
    http: httpx.Client, body: bytes, words: str, place: str
) -> None:
    answer = http.post("/echo", content=body, headers=JSON)
    told = answer.json()
    assert (answer.status_code, told["reason"], told["field"]) == (400, "FIELD_INVALID", "body"), told
    assert words in told["message"] and place in told["message"]
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
def test_what_a_web_page_can_send_unasked_is_no_json(http: httpx.Client, kind: str) -> None:
    answer = http.post("/echo", content=b"{}", headers={"content-type": kind} if kind else {})
    assert (answer.status_code, answer.json()["field"]) == (400, "content-type")


def test_a_body_is_bounded_by_what_it_unpacks_to_and_by_what_it_sends(http: httpx.Client) -> None:
    bomb = gzip.compress(b'{"a": "' + b"x" * (100 * MAX_BYTES) + b'"}')
    assert len(bomb) < MAX_BYTES
    answer = http.post("/echo", content=bomb, headers={**JSON, "content-encoding": "gzip"})
    assert answer.status_code == 400 and f"allowed: {MAX_BYTES}" in answer.json()["message"]
    chunks = (b" " * 50_000 for _ in range(10))  # without a content-length
    answer = http.post("/echo", content=chunks, headers=JSON)
    assert answer.status_code == 400 and f"allowed: {MAX_BYTES}" in answer.json()["message"]


def test_an_answer_of_the_library_is_counted_as_what_it_is(server: RunningServer, http: httpx.Client) -> None:
    assert http.post("/raw", content=b"x" * (MAX_BYTES + 1)).status_code == 413
    page = httpx.get(server.metrics_url).text
    assert 'trimtab_request_total{caller="127.0.0.1",code="INVALID_ARGUMENT",method="POST /raw"} 1.0' in page
    assert 'code="OK",method="POST /raw"' not in page


@pytest.mark.parametrize(
    "head",
    [
        b"GET /info HTTP/1.1\r\nhost: a\r\n" + b"x-a: secret\r\n" * 200,
        b"GET /info HTTP/1.1\r\nhost: a\r\nauthorization: " + b"secret" * 5000 + b"\r\n",
        b"GET /" + b"secret" * 5000 + b" HTTP/1.1\r\nhost: a\r\n",
        b"GET /info HTTP/1.1\r\nhost: a\r\nauthorization secret\r\n",
    ],
    ids=["too many headers", "too long a header", "too long a line", "no header"],
)
def test_wrong_headers_are_a_400_and_no_byte_of_them_is_logged(
    server: RunningServer, http: httpx.Client, caplog: pytest.LogCaptureFixture, head: bytes
) -> None:
    with connect(server) as connection:
        connection.sendall(head + b"\r\n")
        assert connection.recv(4096).split()[1] == b"400"
    assert http.get("/info").status_code == 200
    (record,) = [record for record in caplog.records if record.name == "trimtab_services.http"]
    assert record.levelno == logging.WARNING and record.exc_info is None
    assert "127.0.0.1" in record.getMessage() and "secret" not in record.getMessage()


@pytest.mark.parametrize(
    "first", [b"", b"GET /info HTTP/1.1\r\nhost: a\r\n\r\n"], ids=["first request", "second request"]
)
def test_headers_that_trickle_in_are_cut(server: RunningServer, first: bytes) -> None:
    with connect(server) as connection:
        if first:
            connection.sendall(first)
            assert b"200 OK" in connection.recv(65536)
        began = time.monotonic()
        closed = False
        for byte in b"GET /info HTTP/1.1\r\nx-slow: " + b"a" * 200:
            try:
                connection.sendall(bytes([byte]))
                connection.settimeout(0.1)
                closed = connection.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
            if closed:
                break
        assert closed and IDLE_S - 0.5 < time.monotonic() - began < IDLE_S + 6


def trickle(server: RunningServer, pieces: list[bytes], pause_s: float) -> tuple[bytes, float]:
    """Sends a body in pieces; the answer's head, and the seconds until it came."""
    length = sum(map(len, pieces))
    with connect(server) as connection:
        head = f"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        began = time.monotonic()
        for piece in pieces:
            connection.sendall(piece)
            connection.settimeout(pause_s)
            try:
                return connection.recv(4096), time.monotonic() - began
            except TimeoutError:
                continue
        connection.settimeout(20)
        return connection.recv(4096), time.monotonic() - began


def test_a_body_that_trickles_in_is_cut_with_an_error(server: RunningServer) -> None:
    answer, seconds = trickle(server, [b'{"a": "', *[b"x"] * 200, b'"}'], 0.1)
    assert b"504" in answer.split(b"\r\n")[0]
    assert IDLE_S - 0.1 < seconds < IDLE_S + 5


def test_a_slow_body_that_moves_is_taken(server: RunningServer) -> None:
    """40 KiB every half second: more than 64 KiB a second, and more seconds than the idle time."""
    answer, seconds = trickle(server, [b'{"a": "', *[b"x" * 40_960] * 4, b'"}'], 0.5)
    assert b"200" in answer.split(b"\r\n")[0]
    assert seconds > IDLE_S


def test_metadata_is_bounded(server: RunningServer) -> None:
    with grpc.insecure_channel(server.target) as channel:
        info = channel.unary_unary("/trimtab.v1.InfoService/GetInfo")
        info(b"", timeout=20, metadata=(("x-a", "a" * 1000),) * 10)
        with pytest.raises(grpc.RpcError) as refused:
            info(b"", timeout=20, metadata=(("x-a", "a" * 1000),) * 20)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info(b"", timeout=20)


def test_a_connection_that_says_nothing_is_closed(server: RunningServer) -> None:
    with connect(server, "grpc") as connection:
        began = time.monotonic()
        while connection.recv(4096):  # the server's own greeting
            pass
        assert 5 < time.monotonic() - began < 25
