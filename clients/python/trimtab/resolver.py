"""Where the replicas of a service are: a fixed list, a file that is read again, or DNS that is asked again.

gRPC's own `dns:///` with round robin was measured never to find a replica that comes later, so whoever spreads work
over replicas asks a resolver again and again and keeps a connection for each address.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Protocol

from trimtab.errors import ConfigError

__all__ = ["DNSResolver", "FileResolver", "Resolver", "StaticResolver"]


class Resolver(Protocol):
    """Says which addresses there are now."""

    def addresses(self) -> list[str]:
        """host:port of every replica, sorted, without doubles. Quick enough to be called every half second."""
        ...


class StaticResolver:
    """A fixed list.

    Args:
        addresses: host:port of each replica.
    """

    def __init__(self, addresses: tuple[str, ...] | list[str]) -> None:
        self._addresses = sorted(set(addresses))

    def addresses(self) -> list[str]:
        """The list."""
        return list(self._addresses)


class FileResolver:
    """The entry of one service in an endpoints.json, read again when the file changes.

    A file that is gone or half-written for a moment changes nothing: the last good list stays in force.

    Args:
        path: what `trimtab up` writes: `{"generation": [{"grpc": "127.0.0.1:1234", ...}], ...}`.
        service: the entry, such as "generation".
        must_exist: refuse a file that is not there at the start.

    Raises:
        ConfigError: `must_exist`, and there is no such file.
    """

    def __init__(self, path: Path, service: str, *, must_exist: bool = True) -> None:
        self._path = path
        self._service = service
        self._stamp = (0, 0)
        self._addresses: list[str] = []
        if must_exist and not path.is_file():
            raise ConfigError(
                f"endpoints_file: {path}: no such file; `trimtab up` writes it", field="endpoints_file", value=path
            )

    def addresses(self) -> list[str]:
        """The addresses of the last good file."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                replicas = json.loads(self._path.read_text(encoding="utf-8")).get(self._service, [])
                self._addresses = sorted({str(replica["grpc"]) for replica in replicas})
                self._stamp = stamp
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return list(self._addresses)


class DNSResolver:
    """Every address behind a name, such as a headless Service on Kubernetes.

    A name that does not resolve for a moment changes nothing: the last good list stays in force.

    Args:
        host: the name.
        port: added to each address.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._addresses: list[str] = []

    def addresses(self) -> list[str]:
        """The addresses of the last good answer."""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError:
            return list(self._addresses)
        hosts = {str(entry[4][0]) for entry in found}
        self._addresses = sorted(f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}" for host in hosts)
        return list(self._addresses)
