"""Where the replicas of a service are: a fixed list, a file that is read again, or DNS that is asked again.

gRPC's own `dns:///` with round robin was measured never to find a replica that comes later, so whoever spreads work
over replicas asks a resolver again and again and keeps a connection for each address.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
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
        ConfigError: `must_exist`, and there is no such file, or it is not what `trimtab up` writes.
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
        if must_exist:
            try:
                self._read()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"endpoints_file: {path}: not what `trimtab up` writes: {type(error).__name__}: {error}",
                    field="endpoints_file",
                    value=path,
                ) from error

    def addresses(self) -> list[str]:
        """The addresses of the last good file."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            self._read()
        return list(self._addresses)

    def _read(self) -> None:
        """Takes the file's addresses if it has changed."""
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            replicas = json.loads(self._path.read_text(encoding="utf-8")).get(self._service, [])
            self._addresses = sorted({str(replica["grpc"]) for replica in replicas})
            self._stamp = stamp


class DNSResolver:
    """Every address behind a name, such as a headless Service on Kubernetes.

    The name is looked up by a thread of its own, never twice at once, so that a name server that does not answer holds
    nobody up for longer than `timeout_s`. While there is no answer, the last good list stays in force; `problem` says
    what is wrong. Where the name has addresses of both families only those of IPv4 count, since the same replica has
    one of each.

    Args:
        host: the name, or an address.
        port: added to each address.
        refresh_s: seconds after which an answer is old and the name is looked up again.
        timeout_s: seconds that `addresses` waits for a look-up.

    Raises:
        ConfigError: no host, or a port out of 1..65535.
    """

    def __init__(self, host: str, port: int, *, refresh_s: float = 1.0, timeout_s: float = 2.0) -> None:
        if not host or host != host.strip():
            raise ConfigError(f"dns: {host!r} is no name of a host", field="dns", value=host)
        if not 0 < port < 65536:
            raise ConfigError(f"dns: port {port} is not in 1..65535", field="dns", value=port, limit="1..65535")
        self._host = host.removeprefix("[").removesuffix("]")
        self._port = port
        self._refresh_s = refresh_s
        self._timeout_s = timeout_s
        self._addresses: list[str] = []
        self._problem = ""
        self._asked_at = float("-inf")
        self._lookup: threading.Thread | None = None

    @classmethod
    def of(cls, target: str) -> DNSResolver:
        """The resolver of a `name:port`.

        Raises:
            ConfigError: it is none.
        """
        host, colon, port = target.rpartition(":")
        if not colon or not port.isdecimal():
            raise ConfigError(f"dns: {target!r} is no name:port", field="dns", value=target, limit="name:port")
        return cls(host, int(port))

    @property
    def problem(self) -> str:
        """Why the last look-up gave no addresses; empty when it did."""
        waits = self._lookup is not None and time.monotonic() - self._asked_at > self._timeout_s
        return f"{self._host}: no answer of the name server yet" if waits else self._problem

    def addresses(self) -> list[str]:
        """The addresses of the last good answer; empty before the first."""
        if self._lookup is None and time.monotonic() - self._asked_at >= self._refresh_s:
            self._asked_at = time.monotonic()
            self._lookup = threading.Thread(target=self._look_up, name=f"dns {self._host}", daemon=True)
            self._lookup.start()
        if (lookup := self._lookup) is not None:
            lookup.join(max(0.0, self._asked_at + self._timeout_s - time.monotonic()))
        return list(self._addresses)

    def _look_up(self) -> None:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that no name can have
            self._problem = f"{self._host}: {getattr(error, 'strerror', None) or error}"
        else:
            families = {family for family, *_ in found}
            family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
            hosts = {str(address[0]) for its_family, _, _, _, address in found if its_family == family}
            self._addresses = sorted(
                f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}" for host in hosts
            )
            self._problem = ""
        finally:
            self._lookup = None
