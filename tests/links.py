"""A network link to a local port that can stop passing bytes while its connections stay open, or cut them."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["Link", "link_to"]

_CHUNK = 4096


class Link(socketserver.ThreadingTCPServer):
    """Passes bytes between its own port and another.

    Args:
        port: of the server behind it, on loopback.

    Attributes:
        most_bytes: answers of each connection stand still after so many; None: never.
        cuts: whether the connection is closed then.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        self.behind = ("127.0.0.1", port)
        self.most_bytes: int | None = None
        self.cuts = False
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), _Connection)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.server_address[1]
        return port


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        link = self.server
        assert isinstance(link, Link)
        with socket.create_connection(link.behind) as behind:
            asking = threading.Thread(target=self._pass_on, args=(self.request, behind), daemon=True)
            asking.start()
            passed = 0
            with suppress(OSError):
                while chunk := behind.recv(_CHUNK):
                    if link.most_bytes is not None and passed + len(chunk) > link.most_bytes:
                        if link.cuts:
                            return
                        link.closing.wait()
                    self.request.sendall(chunk)
                    passed += len(chunk)

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(_CHUNK):
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def link_to(port: int) -> Iterator[Link]:
    """A link that works until the context ends."""
    link = Link(port)
    thread = threading.Thread(target=link.serve_forever, daemon=True)
    thread.start()
    try:
        yield link
    finally:
        link.closing.set()
        link.shutdown()
        link.server_close()
        thread.join(10)
