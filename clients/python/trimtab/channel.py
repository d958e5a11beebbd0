"""Connections: TLS, bearer token, message limits, keepalive, and when a failed call is tried again."""

from __future__ import annotations

import ipaddress
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import grpc
import grpc.aio

from trimtab.errors import ConfigError, Overloaded, TrimtabError, Unavailable

__all__ = [
    "MAX_MESSAGE_BYTES",
    "RenewedChannel",
    "TLSConfig",
    "Token",
    "open_aio_channel",
    "open_channel",
    "retry_delay_s",
]

Channel = TypeVar("Channel")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Most bytes of one message in either direction; servers have the same default."""

MAX_TRIES = 4

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # we retry ourselves, by method
    ("grpc.keepalive_time_ms", 20_000),  # a peer that went silent is noticed while a stream is open
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),  # one connection a client, not one shared by all of a process
]


@dataclass(frozen=True)
class TLSConfig:
    """TLS towards a server. A client whose files were renewed connects anew with them for its next call.

    Attributes:
        ca_file: PEM roots; None takes those of the system.
        certificate_file, key_file: PEM client certificate and key, for mTLS; both or none.
        server_name: that the server's certificate must have; empty is the host of the target. For targets that are
            addresses behind a name.

    Raises:
        ConfigError: only one of certificate and key is given.
    """

    ca_file: str | Path | None = None
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ConfigError(
                "tls: certificate_file and key_file belong together; only one is given", field="tls.certificate_file"
            )

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            ConfigError: a file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_read("tls.ca_file", self.ca_file),
            private_key=_read("tls.key_file", self.key_file),
            certificate_chain=_read("tls.certificate_file", self.certificate_file),
        )

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Another one once a file was replaced or written again.

        Raises:
            ConfigError: a file is not there.
        """
        files = {
            "tls.ca_file": self.ca_file,
            "tls.certificate_file": self.certificate_file,
            "tls.key_file": self.key_file,
        }
        return tuple(_stamp(key, file) for key, file in files.items() if file is not None)

    def options(self) -> list[tuple[str, str | int]]:
        """Options of a channel."""
        return [*_OPTIONS, *([("grpc.ssl_target_name_override", self.server_name)] if self.server_name else [])]


class RenewedChannel(Generic[Channel]):
    """The channel of a client, opened again once the files of its TLS are others.

    Calls in flight go on over the channel on which they began.

    Args:
        open_now: opens a channel with what the files hold.
        tls: whose files are looked at before each call; None: there is nothing to renew.
    """

    def __init__(self, open_now: Callable[[], Channel], tls: TLSConfig | None) -> None:
        self._open_now = open_now
        self._tls = tls
        self._stamp = tls.stamp() if tls is not None else ()
        self.opened = [open_now()]
        """Every channel so far, the newest last; to be closed with the client."""

    def now(self) -> Channel:
        """The channel for the next call. While files cannot be read, as in the middle of a renewal, it is the old."""
        if self._tls is not None:
            with suppress(ConfigError):
                if (stamp := self._tls.stamp()) != self._stamp:
                    self.opened.append(self._open_now())
                    self._stamp = stamp
        return self.opened[-1]


class Token:
    """A bearer token: a text, or a file that is read again when it changes.

    Args:
        text: the token itself.
        file: a file that holds it.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """

    def __init__(self, text: str = "", *, file: str | Path | None = None) -> None:
        self._text = text
        self._file = Path(file) if file is not None else None
        self._stamp = (0, 0)
        if file is not None:
            self.value()

    def value(self) -> str:
        """The token now."""
        if self._file is None:
            return self._text
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp != self._stamp:
                text = self._file.read_text(encoding="utf-8").strip()
                if not text:
                    raise ConfigError(f"token_file: {self._file} is empty", field="token_file", value=self._file)
                self._text, self._stamp = text, stamp
        except OSError as error:
            raise ConfigError(
                f"token_file: {self._file}: {error.strerror or error}", field="token_file", value=self._file
            ) from None
        return self._text


def call_metadata(token: Token | None) -> tuple[tuple[str, str | bytes], ...]:
    """What travels with each call: the token, and the span that is active, so that traces go on in the server."""
    authorization = (("authorization", f"Bearer {token.value()}"),) if token is not None else ()
    return authorization + _trace_context()


def _trace_context() -> tuple[tuple[str, str], ...]:
    """The active span as W3C Trace Context; nothing in a program that never imported OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())


def open_channel(target: str, tls: TLSConfig | None, token: Token | None, insecure: bool) -> grpc.Channel:
    """Opens a channel for the synchronous client.

    Raises:
        ConfigError: target is no host:port, or a token would cross the network in plaintext.
    """
    check_target(target, tls, token, insecure)
    if tls is None:
        return grpc.insecure_channel(target, options=_OPTIONS)
    return grpc.secure_channel(target, tls.credentials(), options=tls.options())


def open_aio_channel(target: str, tls: TLSConfig | None, token: Token | None, insecure: bool) -> grpc.aio.Channel:
    """Opens a channel for the asyncio client; errors as `open_channel`."""
    check_target(target, tls, token, insecure)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    return grpc.aio.secure_channel(target, tls.credentials(), options=tls.options())


def check_target(target: str, tls: TLSConfig | None, token: Token | None, insecure: bool) -> None:
    """Refuses an address that is none, and a token in plaintext beyond this host.

    Raises:
        ConfigError: says which.
    """
    host, colon, port = target.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"target: {target!r} is no host:port", field="target", value=target, limit="host:port")
    if token is not None and tls is None and not insecure and not is_loopback(host):
        raise ConfigError(
            f"target: {target} is not on this host and has no TLS, so the bearer token would cross the network in "
            "plaintext; set tls, or insecure=True (--insecure)",
            field="target",
            value=target,
            limit="tls | a loopback address | insecure=True",
        )


def is_loopback(host: str) -> bool:
    """Whether a host is this one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def retry_delay_s(error: TrimtabError, tries: int, remaining_s: float) -> float | None:
    """Seconds to wait before a call that may be repeated is tried again; None to give up.

    Args:
        error: why the last try failed.
        tries: tries made so far, from 1.
        remaining_s: what is left of the call's deadline.
    """
    transient = isinstance(error, Unavailable) or (isinstance(error, Overloaded) and error.retry_after_s is not None)
    if not transient or tries >= MAX_TRIES:
        return None
    delay = max(error.retry_after_s or 0.0, 0.1 * 2 ** (tries - 1)) * random.uniform(1.0, 1.25)
    return delay if delay < remaining_s else None


def _stamp(key: str, path: str | Path) -> tuple[int, int]:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror or error}", field=key, value=path) from None
    return status.st_mtime_ns, status.st_ino


def _read(key: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror or error}", field=key, value=path) from None
