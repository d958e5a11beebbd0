"""Bulk bytes of weights over HTTP: blobs are PUT and GET by their SHA-256, and nothing is believed without checking it.

A transfer is tried a bounded number of times inside its deadline. A download that breaks off goes on where it stopped
(`Range`); a file appears under its digest only once its bytes have that digest.
"""

from __future__ import annotations

import hashlib
import os
import random
import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from trimtab.channel import TLSConfig, Token, is_loopback
from trimtab.client import Client
from trimtab.errors import (
    REASONS,
    ConfigError,
    CorruptData,
    DeadlineExceeded,
    InternalError,
    NotFound,
    Overloaded,
    Reason,
    TrimtabError,
    Unavailable,
)

__all__ = ["BlobCache", "BlobClient", "blob_client", "file_digest", "time_left"]

MAX_TRIES = 5
CHUNK_BYTES = 1024 * 1024
_PHASE_S = 30.0
"""Seconds in which a peer must show any progress."""

T = TypeVar("T")


class BlobClient:
    """The blobs of one weights service.

    Args:
        blobs_url: prefix of the blobs' URLs, as FindMissingBlobs and GetManifest tell it.
        token: bearer token.
        tls: set for a server whose certificate needs roots of its own, or asks for one of ours.
        timeout_s: seconds that all transfers of this client together may take.
        insecure: allows a token in plaintext beyond this host.

    Raises:
        ConfigError: blobs_url is no HTTP URL, or the token would cross the network in plaintext.
    """

    def __init__(
        self,
        blobs_url: str,
        *,
        token: str | Token | None = None,
        tls: TLSConfig | None = None,
        timeout_s: float = 600.0,
        insecure: bool = False,
    ) -> None:
        parts = urlsplit(blobs_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"blobs_url: {blobs_url!r} is no HTTP URL", field="blobs_url", value=blobs_url)
        if token is not None and parts.scheme == "http" and not insecure and not is_loopback(parts.hostname):
            raise ConfigError(
                f"blobs_url: {blobs_url} is not on this host and has no TLS, so the bearer token would cross the "
                "network in plaintext; give the weights service tls, or set insecure=True",
                field="blobs_url",
                value=blobs_url,
                limit="https | a loopback address | insecure=True",
            )
        self._url = blobs_url
        self._token = Token(token) if isinstance(token, str) else token
        self.received_bytes = 0
        """Bytes of blobs downloaded so far, those of broken downloads too."""
        self._timeout_s = timeout_s
        self._give_up = time.monotonic() + timeout_s
        self._http = httpx.Client(verify=_ssl_context(tls), timeout=_PHASE_S, follow_redirects=False, trust_env=False)

    def __enter__(self) -> BlobClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def put(self, digest: str, parts: Sequence[memoryview]) -> None:
        """Uploads a blob; the server checks the digest before anybody can see it.

        Args:
            digest: SHA-256 (hex) of the parts, one after the other.
            parts: flat views of bytes.

        Raises:
            CorruptData: the server got other bytes than the digest names, each time.
            Unavailable, DeadlineExceeded: the transfer did not succeed in the tries or the time that it had.
            TrimtabError: as the server says.
        """
        length = sum(part.nbytes for part in parts)

        def send() -> None:
            headers = {**self._headers(), "Content-Length": str(length), "Content-Type": "application/octet-stream"}
            response = self._http.put(
                self._url + digest, content=_chunks(parts), headers=headers, timeout=self._phase(digest)
            )
            if response.status_code >= 300:
                raise _error(response, digest)

        self._with_tries(digest, send)

    def get(self, digest: str, path: Path) -> None:
        """Downloads a blob to a file, which appears whole and checked or not at all.

        Raises:
            CorruptData: the bytes do not have the digest, each time.
            NotFound: the store has no such blob.
            Unavailable, DeadlineExceeded: the transfer did not succeed in the tries or the time that it had.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with partial.open("w+b") as file:
                self._with_tries(digest, lambda: self._receive(digest, file))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _receive(self, digest: str, file: BufferedRandom) -> None:
        have = file.seek(0, os.SEEK_END)
        headers = {**self._headers(), "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with self._http.stream("GET", self._url + digest, headers=headers, timeout=self._phase(digest)) as response:
            if response.status_code not in (200, 206, 416):
                response.read()
                raise _error(response, digest)
            if have and response.status_code == 200:  # a server without Range sends all of it again
                file.truncate(0)
                file.seek(0)
            if response.status_code != 416:  # 416: nothing is left to send, the digest decides
                for chunk in response.iter_raw():  # as it comes: a chunk size would lose the last piece of a broken one
                    file.write(chunk)
                    self.received_bytes += len(chunk)
                    self._phase(digest)
        file.flush()
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            file.truncate(0)
            raise _corrupt(digest, found)

    def _with_tries(self, digest: str, transfer: Callable[[], T]) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return transfer()
            except httpx.HTTPError as raised:
                why = str(raised) or type(raised).__name__
                error: TrimtabError = Unavailable(f"{self._url}{digest}: {why} (try {tries} of {MAX_TRIES})")
            except (Unavailable, Overloaded, CorruptData) as raised:
                error = raised
            delay_s = 0.1 * 2 ** (tries - 1) * random.uniform(1.0, 1.25)
            if tries >= MAX_TRIES or time.monotonic() + delay_s >= self._give_up:
                raise error
            time.sleep(delay_s)

    def _phase(self, digest: str) -> httpx.Timeout:
        left = self._give_up - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"blob {digest}: not transferred within {self._timeout_s:g} s", field="timeout_s", limit=self._timeout_s
            )
        return httpx.Timeout(min(_PHASE_S, left))

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token.value()}"} if self._token is not None else {}


class BlobCache:
    """Verified blobs in a local folder: DIR/blobs/ab/<SHA-256>. Several processes may share one.

    Args:
        directory: the folder; made when it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "blobs"
        self._directory.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where a blob lies, or would lie."""
        return self._directory / digest[:2] / digest

    def fetch(self, digest: str, source: BlobClient) -> Path:
        """The path of a blob, downloaded unless it is there with the right bytes; errors as `BlobClient.get`."""
        path = self.path(digest)
        if path.is_file():
            if file_digest(path) == digest:
                return path
            path.unlink(missing_ok=True)  # the disk lost what was once checked
        source.get(digest, path)
        return path

    def trim(self, keep: Iterable[str]) -> int:
        """Removes every blob but some, and downloads that broke off over an hour ago; returns the bytes freed.

        A file that a process still maps lives on until the process lets it go.
        """
        kept = set(keep)
        freed = 0
        for path in self._directory.glob("??/*"):
            try:
                status = path.stat()
                is_partial = path.suffix == ".part"
                if path.name in kept or (is_partial and time.time() - status.st_mtime < 3600):
                    continue
                path.unlink()
                freed += status.st_size
            except FileNotFoundError:
                continue  # another process was faster
        return freed


def blob_client(client: Client, blobs_url: str, timeout_s: float) -> BlobClient:
    """The HTTP side of a client's server, with the client's own token and TLS."""
    return BlobClient(blobs_url, token=client.token, tls=client.tls, timeout_s=timeout_s, insecure=client.insecure)


def time_left(give_up: float) -> float:
    """Seconds until a `time.monotonic()`.

    Raises:
        DeadlineExceeded: it has passed.
    """
    left = give_up - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("weights: the transfer is not done within timeout_s", field="timeout_s")
    return left


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(parts: Sequence[memoryview]) -> Iterator[bytes]:
    for part in parts:
        for start in range(0, part.nbytes, CHUNK_BYTES):
            yield bytes(part[start : start + CHUNK_BYTES])


def _ssl_context(tls: TLSConfig | None) -> ssl.SSLContext | bool:
    if tls is None:
        return True
    tls.credentials()  # says which file cannot be read
    context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    if tls.certificate_file is not None:
        context.load_cert_chain(tls.certificate_file, tls.key_file)
    return context


def _error(response: httpx.Response, digest: str) -> TrimtabError:
    """The error in a reply of the HTTP side: JSON with reason and message, or what a proxy between us made of it."""
    status = response.status_code
    try:
        body = response.json()
        reason = Reason(body["reason"])
        message = str(body["message"])
    except (ValueError, KeyError, TypeError):
        if status == 404:
            return NotFound(f"blob {digest}: no such blob", field="digest", value=digest)
        if status >= 500 or status == 429:
            return Unavailable(f"blob {digest}: HTTP status {status}")
        return InternalError(f"blob {digest}: HTTP status {status}: {response.text[:200]}")
    return REASONS[reason][1](message, reason=reason, field=str(body.get("field", "")), value=digest)


def _corrupt(digest: str, found: str) -> CorruptData:
    return CorruptData(f"blob {digest}: the bytes have SHA-256 {found}", field="digest", value=found, limit=digest)
