"""Fetching a version: every byte of it checked, and no byte read that is at hand.

    with Client("127.0.0.1:50051") as client:
        version = fetch_version(client, channel="policy/latest", cache=Path("cache"))
        newer = fetch_version(client, channel="policy/latest", cache=Path("cache"), base=version)

Calls block; from asyncio, use `asyncio.to_thread`. A fetched tensor is a mapped part of a checked file; decoding holds
two of one tensor's bytes besides, in each of a few threads.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from trimtab.client import Client
from trimtab.errors import CorruptData, InvalidRequest, NotFound
from trimtab.v1 import weights_pb2
from trimtab.weights.chains import Chains, Recipe
from trimtab.weights.manifest import TensorData, check_manifest, decoded_bytes, tensor_digest
from trimtab.weights.threads import over_tensors
from trimtab.weights.transfer import BlobCache, BlobClient, blob_client, time_left

__all__ = ["FetchedVersion", "fetch_version"]

_log = logging.getLogger(__name__)

_ALIGNMENT = 64

_DECODING_SHARE = 0.25
"""Of the cores, to decode and check: a replica samples meanwhile."""


@dataclass(frozen=True)
class FetchedVersion:
    """One version, every byte of it checked against its digest.

    Attributes:
        manifest: what the store says of it.
        tensors: by name; their bytes are mapped from files, copied where somebody writes to them.
        files: config, tokenizer, template, ...: path within the model folder -> content.
        fetched_bytes: bytes of blobs that were read for it.
    """

    manifest: weights_pb2.Manifest
    tensors: dict[str, TensorData]
    files: dict[str, bytes]
    fetched_bytes: int = 0
    _holds: object = field(default=None, repr=False)  # a temporary folder lives as long as what is mapped from it

    @property
    def version(self) -> int:
        """Its number."""
        return self.manifest.version

    @property
    def weights_digest(self) -> str:
        """Digest of its tensors; equal for equal weights."""
        return self.manifest.weights_digest


def fetch_version(
    client: Client,
    *,
    version: int | None = None,
    channel: str | None = None,
    cache: Path | None = None,
    base: FetchedVersion | None = None,
    timeout_s: float = 600.0,
) -> FetchedVersion:
    """Downloads a version and checks every tensor and file against its digest.

    Of a tensor that is sent as a difference the reader needs the base: from `base`, else from the store, by the whole
    chain of differences or decoded by the store, whichever is fewer bytes.

    Args:
        client: of the weights service; the HTTP side is reached with its token and TLS.
        version, channel: which one; exactly one of both.
        cache: folder of blobs that later fetches reuse; None: a temporary one that lives as long as the result.
        base: a version fetched before; what it has in common with the new one is not read again.
        timeout_s: for all of it, in seconds.

    Raises:
        InvalidRequest: not exactly one of version and channel.
        NotFound: no such version or channel.
        CorruptData: bytes that do not have the digest that names them.
        Unavailable, DeadlineExceeded: the download did not succeed.
    """
    if (version is None) == (channel is None):
        raise InvalidRequest("version, channel: exactly one must be given", field="version", value=version)
    give_up = time.monotonic() + timeout_s
    request = weights_pb2.GetManifestRequest()
    if version is not None:
        request.version = version
    else:
        request.channel = channel or ""
    temporary = tempfile.TemporaryDirectory(prefix="trimtab-weights-") if cache is None else None
    folder = Path(temporary.name) if temporary is not None else cache or Path()
    reply = _manifest(client, request, give_up)
    with blob_client(client, reply.blobs_url, time_left(give_up)) as source:
        blobs = _Blobs(BlobCache(folder), source)

        def earlier(number: int) -> weights_pb2.Manifest:
            return _manifest(client, weights_pb2.GetManifestRequest(version=number), give_up).manifest

        tensors = _tensors(reply, blobs, earlier, base, folder)
        files = {entry.path: blobs.path(entry.digest).read_bytes() for entry in reply.manifest.files}
    return FetchedVersion(reply.manifest, tensors, files, source.received_bytes, temporary)


def _manifest(
    client: Client, request: weights_pb2.GetManifestRequest, give_up: float
) -> weights_pb2.GetManifestResponse:
    reply = client.get_manifest(request, timeout_s=min(client.timeout_s, time_left(give_up)))
    try:
        check_manifest(reply.manifest)
    except InvalidRequest as error:
        raise CorruptData(f"version {reply.manifest.version}: {error.message}", field=error.field) from None
    return reply


def _tensors(
    reply: weights_pb2.GetManifestResponse,
    blobs: _Blobs,
    earlier: Callable[[int], weights_pb2.Manifest],
    base: FetchedVersion | None,
    folder: Path,
) -> dict[str, TensorData]:
    """The tensors of a version. What does not come out right is tried once more, trusting nothing but the chain."""
    if base is not None and base.weights_digest == reply.manifest.weights_digest and _is_intact(base):
        return base.tensors
    try:
        return _Reader(reply.manifest, blobs, earlier, base, decoded=reply.decoded).tensors(folder)
    except (CorruptData, NotFound) as error:  # a base that somebody wrote to, or decoded bytes that are gone by now
        if base is None and not reply.decoded:
            raise
        _log.warning("a version is read once more from its chain alone", extra={"error": error.message})
        return _Reader(reply.manifest, blobs, earlier, None, decoded=False).tensors(folder)


def _is_intact(version: FetchedVersion) -> bool:
    """Whether nobody, this process or the disk, has changed the bytes of a version since they were checked."""
    return all(tensor_digest(version.tensors[entry.name]) == entry.digest for entry in version.manifest.tensors)


class _Blobs:
    """Blobs by digest, each downloaded once and mapped once."""

    def __init__(self, cache: BlobCache, source: BlobClient) -> None:
        self._cache = cache
        self._source = source
        self._maps: dict[str, memoryview] = {}

    def path(self, digest: str) -> Path:
        """Where a blob lies on this host's disk."""
        return self._cache.fetch(digest, self._source)

    def part(self, entry: weights_pb2.TensorEntry) -> memoryview:
        """The bytes of an entry as they are stored."""
        digest = entry.blob_digest
        if digest == entry.digest:  # equal tensors are one blob, and whoever writes to one must not change the other
            with self.path(digest).open("rb") as file:
                return _mapped(file)
        if digest not in self._maps:
            with self.path(digest).open("rb") as file:
                self._maps[digest] = _mapped(file)
        start = entry.blob_offset_bytes
        part = self._maps[digest][start : start + entry.blob_length_bytes]
        if part.nbytes != entry.blob_length_bytes:
            raise CorruptData(f"tensor {entry.name!r} ends beyond its blob {digest}", field=entry.name)
        return part


class _Reader:
    """Reads the tensors of one version.

    Args:
        manifest: of the version.
        blobs: where bytes are read.
        earlier: returns the manifest of a version before.
        base: what is at hand.
        decoded: whether the store has each tensor decoded, too.
    """

    def __init__(
        self,
        manifest: weights_pb2.Manifest,
        blobs: _Blobs,
        earlier: Callable[[int], weights_pb2.Manifest],
        base: FetchedVersion | None,
        *,
        decoded: bool,
    ) -> None:
        self._manifest = manifest
        self._blobs = blobs
        self._reading = threading.Lock()
        self._unreadable: Exception | None = None
        # a whole version, and what was packed together with differences, is read in blobs of many tensors
        self._packed = {e.blob_digest for e in manifest.tensors if e.encoding == weights_pb2.ENCODING_DELTA}
        self._decoded = decoded and bool(self._packed)
        held: dict[tuple[str, str], memoryview] = {}
        if base is not None:
            held = {(e.name, e.digest): base.tensors[e.name].data for e in base.manifest.tensors}
        self._chains = Chains(earlier, lambda name, digest: held.get((name, digest)))

    def tensors(self, folder: Path) -> dict[str, TensorData]:
        """All of them by name. Those that no blob has as they are go to a file in the folder that nobody else sees."""
        recipes = [self._recipe(entry) for entry in self._manifest.tensors]
        places: dict[str, int] = {}
        end = 0
        for recipe in recipes:
            if not recipe.is_stored_whole:
                places[recipe.entry.name] = end
                end += decoded_bytes(recipe.entry) + -decoded_bytes(recipe.entry) % _ALIGNMENT
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix="decoded-") as file:
            file.truncate(end)

            def make(recipe: Recipe) -> memoryview | None:
                data = self._made(recipe)
                if recipe.is_stored_whole:
                    return data
                _write(file, data, places[recipe.entry.name])
                return None

            made = over_tensors(
                make, recipes, lambda recipe: decoded_bytes(recipe.entry), share=_DECODING_SHARE, name="decode"
            )
            decoded = _mapped(file)
        tensors: dict[str, TensorData] = {}
        for recipe, data in zip(recipes, made, strict=True):
            start = places.get(recipe.entry.name, 0)
            part = decoded[start : start + decoded_bytes(recipe.entry)] if data is None else data
            tensors[recipe.entry.name] = _tensor(recipe.entry, part)
        return tensors

    def _recipe(self, entry: weights_pb2.TensorEntry) -> Recipe:
        recipe = self._chains.recipe(self._manifest.version, entry)
        is_packed = recipe.is_stored_whole and recipe.whole_blob in self._packed
        if not self._decoded or is_packed or recipe.bytes_to_read() < decoded_bytes(entry):
            return recipe
        return Recipe(entry, _as_whole_blob(entry))

    def _made(self, recipe: Recipe) -> memoryview:
        """The bytes of a tensor, checked."""
        data = recipe.made(self._part)
        digest = recipe.entry.digest
        is_checked = recipe.is_stored_whole and recipe.whole_blob == digest  # the blob's own digest was compared
        if not is_checked and hashlib.sha256(data).hexdigest() != digest:
            where = f"version {self._manifest.version}: tensor {recipe.entry.name!r}"
            raise CorruptData(f"{where} does not have digest {digest}", field=recipe.entry.name, limit=digest)
        return data

    def _part(self, entry: weights_pb2.TensorEntry) -> memoryview:
        """As `_Blobs.part`, for one thread at a time: no blob is downloaded twice, and none after one that failed."""
        with self._reading:
            if self._unreadable is not None:
                raise self._unreadable
            try:
                return self._blobs.part(entry)
            except Exception as error:
                self._unreadable = error
                raise


def _as_whole_blob(entry: weights_pb2.TensorEntry) -> weights_pb2.TensorEntry:
    """A tensor as the store keeps it decoded: a blob of its own, named by the tensor's digest."""
    return weights_pb2.TensorEntry(
        name=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        digest=entry.digest,
        encoding=weights_pb2.ENCODING_RAW,
        blob_digest=entry.digest,
        blob_length_bytes=decoded_bytes(entry),
    )


def _tensor(entry: weights_pb2.TensorEntry, data: memoryview) -> TensorData:
    return TensorData(entry.name, entry.dtype, tuple(entry.shape), data)


def _write(file: IO[bytes], data: memoryview, start: int) -> None:
    """Writes all of `data` at a place of a file, which other threads write to as well."""
    data = data.cast("B")
    while data.nbytes:
        written = os.pwrite(file.fileno(), data, start)
        data, start = data[written:], start + written


def _mapped(file: IO[bytes]) -> memoryview:
    """The content of a file; copied where somebody writes to it."""
    if os.fstat(file.fileno()).st_size == 0:  # an empty file cannot be mapped
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
