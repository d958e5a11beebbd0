"""Downloads and uploads over a connection that breaks."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from trimtab.errors import ConfigError, CorruptData, Unavailable
from trimtab.weights import BlobClient

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Breaking(BaseHTTPRequestHandler):
    """Promises all that is left of the blob, sends a third of the blob, and hangs up."""

    protocol_version = "HTTP/1.1"
    content = CONTENT
    ranges: list[str | None]
    is_dead = False

    def do_GET(self) -> None:
        given = self.headers["Range"]
        self.ranges.append(given)
        if self.is_dead:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(given.removeprefix("bytes=").rstrip("-")) if given else 0
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + 1_000_000])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def breaking() -> Iterator[tuple[str, type[Breaking]]]:
    handler = type("Handler", (Breaking,), {"ranges": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/blobs/", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_goes_on_where_it_broke_off(breaking: tuple[str, type[Breaking]], tmp_path: Path) -> None:
    url, handler = breaking
    with BlobClient(url, timeout_s=20) as blobs:
        blobs.get(DIGEST, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == CONTENT
    assert handler.ranges[0] is None
    starts = [int(text.removeprefix("bytes=").rstrip("-")) for text in handler.ranges[1:] if text]
    assert starts == sorted(starts) and starts[-1] >= 1_000_000


def test_wrong_bytes_never_become_a_file(breaking: tuple[str, type[Breaking]], tmp_path: Path) -> None:
    url, handler = breaking
    handler.content = b"x" * 1000
    with BlobClient(url, timeout_s=20) as blobs, pytest.raises(CorruptData):
        blobs.get(DIGEST, tmp_path / "blob")
    assert not list(tmp_path.iterdir())


def test_tries_are_bounded(breaking: tuple[str, type[Breaking]], tmp_path: Path) -> None:
    url, handler = breaking
    handler.is_dead = True
    with BlobClient(url, timeout_s=20) as blobs, pytest.raises(Unavailable):
        blobs.get(DIGEST, tmp_path / "blob")
    assert len(handler.ranges) == 5


def test_token_never_crosses_the_network_in_plaintext() -> None:
    with pytest.raises(ConfigError, match="plaintext"):
        BlobClient("http://example.org/blobs/", token="secret")
