"""The certificates of a server, which follow their files: a new handshake gets the newest pair that works.

Both sides ask at each handshake: gRPC through dynamic server credentials, HTTP through the callback that OpenSSL makes
when a client's hello has come. Connections that stand keep what they were made with. Files that do not fit together,
are half written or are gone leave the last good ones in force; the log says why, once for each change of the files.
"""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass

import grpc

from trimtab.errors import ConfigError
from trimtab_services.runtime.config import ServerTLS
from trimtab_services.runtime.watched import WatchedFiles

__all__ = ["Certificates"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the files held at one moment, in the forms of gRPC and of HTTP."""

    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext


class Certificates:
    """Certificate, key and client roots of one server.

    Args:
        tls: names the files.
        recheck_s: the files are looked at no more often than this.

    Raises:
        ConfigError: a file cannot be read, or certificate and key are no pair.
    """

    def __init__(self, tls: ServerTLS, *, recheck_s: float = 1.0) -> None:
        self._tls = tls
        paths = [tls.certificate_file, tls.key_file, *([tls.client_ca_file] if tls.client_ca_file is not None else [])]
        self._watched = WatchedFiles(paths, recheck_s=recheck_s)
        self._lock = threading.Lock()  # gRPC asks from a thread of its own
        self._loaded = _load(tls)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials of the gRPC side; with `client_ca_file` a client certificate is required."""
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration,
            lambda: self._newest().configuration,
            require_client_authentication=self._tls.client_ca_file is not None,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Context of the HTTP side; with `client_ca_file` a client certificate is required."""
        context = _make_context(self._tls)

        def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, of: ssl.SSLContext) -> None:
            connection.context = self._newest().context

        context.sni_callback = choose
        if self._tls.client_ca_file is not None:  # a resumed session would let in whom the newest roots refuse
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET
        return context

    def _newest(self) -> _Loaded:
        with self._lock:
            if self._watched.changed():
                try:
                    self._loaded = _load(self._tls)
                    _log.info("certificates re-read", extra={"file": str(self._tls.certificate_file)})
                except ConfigError as error:
                    _log.error("certificates are wrong, the last good ones stay in force: %s", error)
            return self._loaded


def _load(tls: ServerTLS) -> _Loaded:
    before = _read(tls)
    context = _make_context(tls)
    if _read(tls) != before:  # the context reads the files itself
        raise ConfigError(f"tls: {tls.certificate_file}: changed while it was read", field="tls")
    key, chain, roots = before
    configuration = grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)
    return _Loaded(configuration, context)


def _read(tls: ServerTLS) -> tuple[bytes, bytes, bytes | None]:
    try:
        roots = tls.client_ca_file.read_bytes() if tls.client_ca_file is not None else None
        return tls.key_file.read_bytes(), tls.certificate_file.read_bytes(), roots
    except OSError as error:
        raise ConfigError(f"tls: {error.filename}: {error.strerror}", field="tls", value=error.filename) from None


def _make_context(tls: ServerTLS) -> ssl.SSLContext:
    roots = tls.client_ca_file
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(roots) if roots is not None else None)
        if roots is not None:
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigError(f"tls.client_ca_file: {roots}: {_why(error)}", field="tls.client_ca_file") from None
    try:
        context.load_cert_chain(tls.certificate_file, tls.key_file, password=_no_password)
    except OSError as error:
        raise ConfigError(
            f"tls: {tls.certificate_file} and {tls.key_file} cannot be used together: {_why(error)}", field="tls"
        ) from None
    return context


def _no_password() -> str:
    """Keeps OpenSSL from asking for one at the terminal."""
    raise ConfigError("tls.key_file: the key is encrypted; a server needs a plain one", field="tls.key_file")


def _why(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return (reason or str(error)).lower().replace("_", " ")
