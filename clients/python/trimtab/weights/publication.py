"""Publishing a version of a model, and fetching one: what a trainer and a replica do with the weights service.

    with Client("127.0.0.1:50051") as client:
        manifest = publish_version(client, tensors, {"config.json": b"..."}, channels=["policy/latest"])
        version = fetch_version(client, channel="policy/latest", cache=Path("cache"))

Calls block; from asyncio, use `asyncio.to_thread`. Neither side holds more than it must: a publisher uploads views of
the tensors it was given, and a fetched tensor is a mapped part of a checked file.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trimtab.client import Client
from trimtab.errors import CorruptData, DeadlineExceeded, FailedPrecondition, InvalidRequest, Reason
from trimtab.v1 import weights_pb2
from trimtab.weights.manifest import (
    TensorData,
    check_channel,
    check_manifest,
    tensor_digest,
    weights_digest,
)
from trimtab.weights.transfer import BlobCache, BlobClient

__all__ = ["BLOB_BYTES", "FetchedVersion", "fetch_version", "publish_version"]

BLOB_BYTES = 64 * 1024 * 1024
"""Most bytes of tensors packed into one blob; a larger tensor is a blob of its own."""

_PAGE = 10_000
_PUBLISH_TRIES = 3


@dataclass(frozen=True)
class FetchedVersion:
    """One version, every byte of it checked against its digest.

    Attributes:
        manifest: what the store says of it.
        tensors: by name; their bytes are mapped from files, copied where somebody writes to them.
        files: config, tokenizer, template, ...: path within the model folder -> content.
    """

    manifest: weights_pb2.Manifest
    tensors: dict[str, TensorData]
    files: dict[str, bytes]
    _holds: object = field(default=None, repr=False)  # a temporary folder lives as long as what is mapped from it

    @property
    def version(self) -> int:
        """Its number."""
        return self.manifest.version

    @property
    def weights_digest(self) -> str:
        """Digest of its tensors; equal for equal weights."""
        return self.manifest.weights_digest


def publish_version(
    client: Client,
    tensors: Iterable[TensorData],
    files: Mapping[str, bytes],
    *,
    channels: Sequence[str],
    expected_previous_version: int = -1,
    lease_id: str = "",
    run: str = "",
    stage: str = "",
    step: int = 0,
    tokenizer_digest: str = "",
    chat_template_digest: str = "",
    metrics: Mapping[str, float] | None = None,
    publish_id: str = "",
    timeout_s: float = 600.0,
) -> weights_pb2.Manifest:
    """Uploads what the store does not have yet, then commits a version and moves the channels.

    Args:
        client: of the weights service; the HTTP side is reached with its token and TLS.
        tensors: the weights; names are unique.
        files: every other file of the model folder by its relative path.
        channels: channels to move to the new version; at least one.
        expected_previous_version: version that the first channel must point to now; 0: it must not exist; -1: no check.
        lease_id: the lease that covers the channels, where one does.
        run, stage, step: where the version comes from; may be empty.
        tokenizer_digest, chat_template_digest: as `trimtab_models.tokenizer` computes them; empty when not known.
        metrics: finite figures to look at later.
        publish_id: name of this publication: a caller that repeats one after a crash gets the version it made then.
            Empty: a new name, so only retries within this call are safe.
        timeout_s: for all of it, in seconds.

    Returns:
        The manifest with its version number and time.

    Raises:
        InvalidRequest: a name, path, channel or metric is wrong.
        VersionConflict: `expected_previous_version` is not the channel's version.
        LeaseHeld: another writer has the lease, or this one has lost it.
        Unavailable, DeadlineExceeded, CorruptData: the upload did not succeed.
    """
    give_up = time.monotonic() + timeout_s
    for index, channel in enumerate(channels):
        check_channel(f"channels[{index}]", channel)
    blobs: dict[str, list[memoryview]] = {}
    manifest = weights_pb2.Manifest(
        run=run,
        stage=stage,
        step=step,
        tensors=_pack(tensors, blobs),
        files=_file_entries(files, blobs),
        tokenizer_digest=tokenizer_digest,
        chat_template_digest=chat_template_digest,
        metrics=dict(metrics or {}),
    )
    manifest.weights_digest = weights_digest(manifest.tensors)
    check_manifest(manifest)
    request = weights_pb2.PublishRequest(
        manifest=manifest,
        channels=channels,
        expected_previous_version=expected_previous_version,
        lease_id=lease_id,
        publish_id=publish_id or uuid.uuid4().hex,
    )
    tries = 0
    while True:
        tries += 1
        _upload_missing(client, blobs, give_up)
        try:
            return client.publish(request, timeout_s=_left(give_up, timeout_s)).manifest
        except FailedPrecondition as error:
            if error.reason is not Reason.BLOB_MISSING or tries >= _PUBLISH_TRIES:
                raise  # a blob that nothing needed yet may be pruned between the upload and the commit


def fetch_version(
    client: Client,
    *,
    version: int | None = None,
    channel: str | None = None,
    cache: Path | None = None,
    timeout_s: float = 600.0,
) -> FetchedVersion:
    """Downloads a version and checks every blob, tensor and file against its digest.

    Args:
        client: of the weights service; the HTTP side is reached with its token and TLS.
        version, channel: which one; exactly one of both.
        cache: folder of blobs that later fetches reuse; None: a temporary one that lives as long as the result.
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
    reply = client.get_manifest(request, timeout_s=min(client.timeout_s, timeout_s))
    manifest = reply.manifest
    try:
        check_manifest(manifest)
    except InvalidRequest as error:
        raise CorruptData(f"version {manifest.version}: {error.message}", field=error.field) from None
    temporary = tempfile.TemporaryDirectory(prefix="trimtab-weights-") if cache is None else None
    blobs = BlobCache(Path(temporary.name) if temporary is not None else cache or Path())
    left = _left(give_up, timeout_s)
    with _blobs(client, reply.blobs_url, left) as source:
        tensors = _fetch_tensors(manifest, blobs, source)
        files = {entry.path: blobs.fetch(entry.digest, source).read_bytes() for entry in manifest.files}
    return FetchedVersion(manifest, tensors, files, temporary)


def _pack(tensors: Iterable[TensorData], blobs: dict[str, list[memoryview]]) -> list[weights_pb2.TensorEntry]:
    """Groups tensors, sorted by name, into blobs; fills in `blobs` (digest -> parts) and returns the entries."""
    entries: list[weights_pb2.TensorEntry] = []
    for group in _groups(sorted(tensors, key=lambda tensor: tensor.name)):
        digests = [tensor_digest(tensor) for tensor in group]
        blob_digest = digests[0] if len(group) == 1 else _digest_of(group)
        blobs[blob_digest] = [tensor.data for tensor in group]
        offset = 0
        for tensor, digest in zip(group, digests, strict=True):
            entries.append(
                weights_pb2.TensorEntry(
                    name=tensor.name,
                    dtype=tensor.dtype,
                    shape=tensor.shape,
                    digest=digest,
                    encoding=weights_pb2.ENCODING_RAW,
                    blob_digest=blob_digest,
                    blob_offset_bytes=offset,
                    blob_length_bytes=tensor.data.nbytes,
                )
            )
            offset += tensor.data.nbytes
    return entries


def _groups(tensors: Sequence[TensorData]) -> Iterator[list[TensorData]]:
    group: list[TensorData] = []
    size = 0
    for tensor in tensors:
        if group and size + tensor.data.nbytes > BLOB_BYTES:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.data.nbytes
    if group:
        yield group


def _digest_of(group: Sequence[TensorData]) -> str:
    digest = hashlib.sha256()
    for tensor in group:
        digest.update(tensor.data)
    return digest.hexdigest()


def _file_entries(files: Mapping[str, bytes], blobs: dict[str, list[memoryview]]) -> list[weights_pb2.FileEntry]:
    entries: list[weights_pb2.FileEntry] = []
    for path, content in sorted(files.items()):
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = [memoryview(content)]
        entries.append(weights_pb2.FileEntry(path=path, digest=digest, length_bytes=len(content)))
    return entries


def _upload_missing(
    client: Client,
    blobs: Mapping[str, Sequence[memoryview]],
    give_up: float,
) -> None:
    digests = sorted(blobs)
    for start in range(0, len(digests), _PAGE):
        request = weights_pb2.FindMissingBlobsRequest(digests=digests[start : start + _PAGE])
        reply = client.find_missing_blobs(request, timeout_s=_left(give_up, client.timeout_s))
        if not reply.missing:
            continue
        left = _left(give_up, math.inf)
        with _blobs(client, reply.blobs_url, left) as target:
            for digest in reply.missing:
                target.put(digest, blobs[digest])


def _fetch_tensors(manifest: weights_pb2.Manifest, blobs: BlobCache, source: BlobClient) -> dict[str, TensorData]:
    maps: dict[str, memoryview] = {}
    tensors: dict[str, TensorData] = {}
    for entry in manifest.tensors:
        if entry.blob_digest not in maps:
            maps[entry.blob_digest] = _map(blobs.fetch(entry.blob_digest, source))
        blob = maps[entry.blob_digest]
        data = blob[entry.blob_offset_bytes : entry.blob_offset_bytes + entry.blob_length_bytes]
        where = f"version {manifest.version}: tensor {entry.name!r}"
        if data.nbytes != entry.blob_length_bytes:
            raise CorruptData(f"{where} ends beyond its blob {entry.blob_digest}", field=entry.name, value=blob.nbytes)
        tensor = TensorData(entry.name, entry.dtype, tuple(entry.shape), data)
        is_whole_blob = entry.digest == entry.blob_digest and data.nbytes == blob.nbytes
        if not is_whole_blob and tensor_digest(tensor) != entry.digest:
            raise CorruptData(f"{where} does not have digest {entry.digest}", field=entry.name, limit=entry.digest)
        tensors[entry.name] = tensor
    return tensors


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _left(give_up: float, most: float) -> float:
    left = give_up - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("weights: the transfer is not done within timeout_s", field="timeout_s")
    return min(left, most)


def _blobs(client: Client, blobs_url: str, timeout_s: float) -> BlobClient:
    """The HTTP side of a client's server, with the client's own token and TLS."""
    return BlobClient(blobs_url, token=client.token, tls=client.tls, timeout_s=timeout_s, insecure=client.insecure)
