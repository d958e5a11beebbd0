"""Where the replicas of a service are: a fixed list, a file that is read again, or DNS that is asked again.

gRPC's own `dns:///` with round robin was measured never to find a replica that comes later, so whoever spreads work
over replicas asks a resolver again and again and keeps a connection for each address.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import dns.inet
import dns.rcode
import dns.resolver
from dns.exception import DNSException

from trimtab.errors import ConfigError

__all__ = ["DNSResolver", "FileResolver", "Resolver", "StaticResolver"]


class Resolver(Protocol):
    """Says which addresses there are now."""

    def addresses(self) -> list[str]:
        """host:port of every replica, sorted, without doubles. Quick enough to be called every half second."""
        ...

    def close(self) -> None:
        """Ends what runs beside: a thread that is in the middle of a call aborts the interpreter as it ends."""
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

    def close(self) -> None:
        """Nothing runs beside."""


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

    def close(self) -> None:
        """Nothing runs beside."""

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

    The name is looked up by a thread of its own, never twice at once. `addresses` waits for the first answer only; then
    it says what is known and, when that is old, starts a look-up. So a change is known after `refresh_s` and the time
    between two calls, and a name server that is silent holds nobody up.

    The last addresses stay in force while there are no others: a name server that fails says nothing about replicas,
    and an answer without addresses says only that Kubernetes finds none ready, as may happen to all replicas of a busy
    service. Who sends work finds out itself which replica is well. `problem` says what is wrong. Of a name with
    addresses of both families only those of IPv4 count, since the same replica has one of each.

    DNS is asked directly, not through the C library: failures can be told apart, a look-up ends in time, long answers
    come over TCP with every C library, no cache is in between, and there is one query instead of two. Name servers and
    search domains are those of /etc/resolv.conf, read each time. /etc/hosts is not read: replicas that stand there are
    given as a list of addresses.

    Args:
        host: the name, or an address.
        port: added to each address.
        refresh_s: seconds after which an answer is old and the name is looked up again.
        timeout_s: seconds that a look-up may take.
        name_server: address:port of the name server to ask, such as Consul's; empty: those of /etc/resolv.conf.

    Raises:
        ConfigError: no host, a port out of 1..65535, or a name server that is no address:port.
    """

    def __init__(
        self, host: str, port: int, *, refresh_s: float = 1.0, timeout_s: float = 2.0, name_server: str = ""
    ) -> None:
        if not host or host != host.strip():
            raise ConfigError(f"dns: {host!r} is no name of a host", field="dns", value=host)
        if not 0 < port < 65536:
            raise ConfigError(f"dns: port {port} is not in 1..65535", field="dns", value=port, limit="1..65535")
        self._host = host.removeprefix("[").removesuffix("]")
        self._port = port
        self._refresh_s = refresh_s
        self._timeout_s = timeout_s
        self._name_server = _address_and_port(name_server) if name_server else None
        self._hosts = _without_dns(self._host)
        self._is_fixed = bool(self._hosts)
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
        return self._problem

    def addresses(self) -> list[str]:
        """The addresses last found; empty before there were any. Only then it waits for a look-up."""
        if not self._is_fixed and self._lookup is None and time.monotonic() - self._asked_at >= self._refresh_s:
            self._asked_at = time.monotonic()
            self._lookup = threading.Thread(target=self._look_up, name=f"dns {self._host}", daemon=True)
            self._lookup.start()
        lookup = self._lookup
        if lookup is not None and not self._hosts:
            lookup.join()
        return sorted(f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}" for host in self._hosts)

    def close(self) -> None:
        """Waits for a look-up that is under way, at most `timeout_s`."""
        if (lookup := self._lookup) is not None:
            lookup.join()

    def _look_up(self) -> None:
        try:
            hosts = self._ask()
        except (DNSException, OSError, UnicodeError) as error:  # UnicodeError: a label that no name can have
            self._problem = f"{self._host}: {_why(error)}"
        else:
            self._problem = "" if hosts else f"{self._host}: the name has no addresses now"
            self._hosts = hosts or self._hosts
        finally:
            self._lookup = None

    def _ask(self) -> set[str]:
        """The IPv4 addresses of the name; those of IPv6 where it has none."""
        resolver = dns.resolver.Resolver(configure=self._name_server is None)
        if self._name_server is not None:
            address, resolver.port = self._name_server
            resolver.nameservers = [address]
        give_up = time.monotonic() + self._timeout_s
        for family in ("A", "AAAA"):
            answer = resolver.resolve(
                self._host,
                family,
                search=True,
                raise_on_no_answer=False,
                lifetime=max(0.01, give_up - time.monotonic()),
            )
            if hosts := {str(record.address) for record in answer.rrset or ()}:
                return hosts
        return set()


def _address_and_port(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not dns.inet.is_address(address) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"name_server: {text!r} is no address:port", field="name_server", value=text, limit="address:port"
        )
    return address, int(port)


def _without_dns(host: str) -> set[str]:
    """The addresses of what needs no look-up: an address is its own, and DNS servers need not know `localhost`."""
    if dns.inet.is_address(host):
        return {host}
    return {"127.0.0.1"} if host == "localhost" else set()


def _why(error: Exception) -> str:
    if isinstance(error, dns.resolver.NXDOMAIN):
        return "no such name"
    if isinstance(error, dns.resolver.LifetimeTimeout):
        return "the name server does not answer"
    if isinstance(error, dns.resolver.NoNameservers):
        codes = {dns.rcode.to_text(response.rcode()) for *_, response in error.kwargs["errors"] if response is not None}
        return f"the name server answers {', '.join(sorted(codes))}" if codes else "no name server can be reached"
    return str(error)
