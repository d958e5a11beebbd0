"""Uploads and downloads that go silent or never end, over raw HTTP."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from trimtab.errors import Reason

from .conftest import RunningStore, running

IDLE_S = 0.5
CONTENT = b"some bytes" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunningStore]:
    with running(store=str(tmp_path / "store"), blob_idle_s=IDLE_S, max_blob_bytes=64 * 1024**2) as service:
        yield service


def connect(store: RunningStore, request: str, *, buffer_bytes: int | None = None) -> socket.socket:
    """Sends the head of a request."""
    url = urlsplit(store.http_url)
    connection = socket.socket()
    if buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    connection.settimeout(20)
    connection.connect((url.hostname or "", url.port or 0))
    connection.sendall(f"{request} HTTP/1.1\r\nHost: x\r\n".encode())
    return connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str]]:
    """Status and JSON body of what the server says before it closes the connection."""
    received = b""
    while b"\r\n\r\n" not in received or not received.partition(b"\r\n\r\n")[2]:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_an_upload_that_goes_silent_is_ended_with_the_reason(store: RunningStore) -> None:
    with connect(store, f"PUT /blobs/{DIGEST}") as connection:
        connection.sendall(f"Content-Length: {len(CONTENT)}\r\n\r\n".encode() + CONTENT[:100])
        began = time.monotonic()
        status, error = answer(connection)
    assert status == 504 and IDLE_S <= time.monotonic() - began < 10
    assert error["reason"] == Reason.DEADLINE_EXCEEDED
    assert "no byte came for 0.5 s after 100 bytes" in error["message"]
    assert httpx.head(f"{store.http_url}/blobs/{DIGEST}").status_code == 404


def test_an_upload_that_is_slow_but_not_silent_goes_on(store: RunningStore) -> None:
    with connect(store, f"PUT /blobs/{DIGEST}") as connection:
        connection.sendall(f"Content-Length: {len(CONTENT)}\r\n\r\n".encode())
        for start in range(0, len(CONTENT), 2500):
            time.sleep(0.6 * IDLE_S)
            connection.sendall(CONTENT[start : start + 2500])
        assert b" 201 " in connection.recv(65536)


def test_more_bytes_than_a_known_blob_has_are_not_read_to_their_end(store: RunningStore) -> None:
    url = f"{store.http_url}/blobs/{DIGEST}"
    assert httpx.put(url, content=CONTENT).status_code == 201
    assert httpx.put(url, content=CONTENT).status_code == 200
    with connect(store, f"PUT /blobs/{DIGEST}") as connection:
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        piece = f"{len(CONTENT):x}\r\n".encode() + CONTENT + b"\r\n"
        connection.sendall(piece)
        connection.sendall(piece)  # and never an end
        status, error = answer(connection)
    assert status == 400 and error["limit"] == str(len(CONTENT))


def test_a_download_whose_reader_is_silent_is_cut(store: RunningStore) -> None:
    content = bytes(48 * 1024**2)  # more than the buffers on the way hold
    url = f"{store.http_url}/blobs/{hashlib.sha256(content).hexdigest()}"
    assert httpx.put(url, content=content, timeout=60).status_code == 201
    with connect(store, f"GET {urlsplit(url).path}", buffer_bytes=4096) as connection:
        connection.sendall(b"\r\n")
        assert connection.recv(16).startswith(b"HTTP/1.1 200")
        assert store.server.runtime.activity.count == 1  # a drain waits for it
        deadline = time.monotonic() + 20
        while store.server.runtime.activity.count:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        received = 0
        with suppress(ConnectionError):
            while chunk := connection.recv(1024**2):
                received += len(chunk)
        assert received < len(content)
    assert httpx.get(url, timeout=60).content == content
