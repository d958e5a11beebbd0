"""Publishing a model: what a trainer does with the weights service, once or again and again.

    with Client("127.0.0.1:50051") as client:
        manifest = publish_version(client, tensors, {"config.json": b"..."}, channels=["policy/latest"])

        publisher = Publisher(client)
        publisher.publish(tensors, files, channels=["policy/latest"])       # whole
        publisher.publish(new_tensors, files, channels=["policy/latest"])   # what changed since

Calls block; from asyncio, use `asyncio.to_thread`. A publication uploads views of the tensors it was given.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trimtab.client import Client
from trimtab.errors import FailedPrecondition, Reason
from trimtab.v1 import weights_pb2
from trimtab.weights.delta import encode_delta
from trimtab.weights.manifest import (
    DTYPE_BYTES,
    TensorData,
    check_channel,
    check_manifest,
    tensor_digest,
    weights_digest,
)
from trimtab.weights.threads import over_tensors
from trimtab.weights.transfer import blob_client, time_left

__all__ = ["BLOB_BYTES", "MAX_CHAIN", "Publication", "Publisher", "publish_version"]

_log = logging.getLogger(__name__)

BLOB_BYTES = 64 * 1024 * 1024
"""Most bytes of tensors packed into one blob; a larger tensor is a blob of its own."""

MAX_CHAIN = 16
"""Most differences between a version and whole bytes, unless a publisher is told otherwise."""

_ENCODING_SHARE = 0.25
"""Of the cores, to encode: the trainer goes on meanwhile."""

_PAGE = 10_000
_PUBLISH_TRIES = 3


@dataclass(frozen=True)
class Publication:
    """A committed version and what it took.

    Attributes:
        manifest: with its version number and time.
        payload_bytes: bytes of blobs that were uploaded for it.
        dense_bytes: bytes of all its tensors, decoded.
        encode_seconds: computing digests and deltas.
        upload_seconds: sending blobs and committing.
    """

    manifest: weights_pb2.Manifest
    payload_bytes: int
    dense_bytes: int
    encode_seconds: float
    upload_seconds: float

    @property
    def version(self) -> int:
        """Its number."""
        return self.manifest.version


@dataclass(frozen=True)
class _Published:
    """What the next version can be encoded against.

    Attributes:
        manifest: as it was committed.
        tensors: by name, their bytes.
        entries: by name, as in its manifest.
        sent_bytes: bytes of tensors sent since a version was whole, in differences or not.
    """

    manifest: weights_pb2.Manifest
    tensors: dict[str, TensorData]
    entries: dict[str, weights_pb2.TensorEntry]
    sent_bytes: int


@dataclass
class _Draft:
    """A version that is being put together.

    Attributes:
        entries: of its manifest.
        blobs: digest -> parts, of those that the store may lack.
        sent_bytes: bytes of tensors in these.
    """

    entries: list[weights_pb2.TensorEntry] = field(default_factory=list)
    blobs: dict[str, list[memoryview]] = field(default_factory=dict)
    sent_bytes: int = 0


class Publisher:
    """Publishes one model again and again, each time only what changed since the last time.

    A tensor is sent as its difference to the last published bytes, or whole where that is smaller; one that has not
    changed is not sent. After `max_chain` such versions, or where all that was sent since would add up to a model, a
    version is sent whole, so that a reader that comes late never reads more than two models.

    Args:
        client: of the weights service; the HTTP side is reached with its token and TLS.
        max_chain: most differences between a version and whole bytes; 0 sends every version whole.
    """

    def __init__(self, client: Client, *, max_chain: int = MAX_CHAIN) -> None:
        self._client = client
        self._max_chain = max_chain
        self._last: _Published | None = None

    def publish(
        self,
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
    ) -> Publication:
        """Uploads what the store does not have yet, then commits a version and moves the channels.

        Args:
            tensors: the weights; names are unique. Unless `max_chain` is 0 they are kept until the next publication, so
                nobody may write to their bytes.
            files: every other file of the model folder by its relative path.
            channels: channels to move to the new version; at least one.
            expected_previous_version: version that the first channel must point to now; 0: it must not exist; -1: no
                check.
            lease_id: the lease that covers the channels, where one does.
            run, stage, step: where the version comes from; may be empty.
            tokenizer_digest, chat_template_digest: as `trimtab_models.tokenizer` computes them; empty when not known.
            metrics: finite figures to look at later.
            publish_id: name of this publication: a caller that repeats one after a crash gets the version it made then.
                Empty: a new name, so only retries within this call are safe.
            timeout_s: for all of it, in seconds.

        Raises:
            InvalidRequest: a name, path, channel or metric is wrong.
            VersionConflict: `expected_previous_version` is not the channel's version.
            LeaseHeld: another writer has the lease, or this one has lost it.
            Unavailable, DeadlineExceeded, CorruptData: the upload did not succeed.
        """
        give_up = time.monotonic() + timeout_s
        for index, channel in enumerate(channels):
            check_channel(f"channels[{index}]", channel)
        tensors = sorted(tensors, key=lambda tensor: tensor.name)
        manifest = weights_pb2.Manifest(
            run=run,
            stage=stage,
            step=step,
            tokenizer_digest=tokenizer_digest,
            chat_template_digest=chat_template_digest,
            metrics=dict(metrics or {}),
        )
        request = weights_pb2.PublishRequest(
            manifest=manifest,
            channels=channels,
            expected_previous_version=expected_previous_version,
            lease_id=lease_id,
            publish_id=publish_id or uuid.uuid4().hex,
        )
        try:
            return self._publish(tensors, files, request, give_up, self._base())
        except FailedPrecondition as error:
            if self._last is None or error.reason not in (Reason.BASE_MISSING, Reason.BLOB_MISSING):
                raise
            _log.info("what a publication builds on is gone, it is sent whole", extra={"error": error.message})
            return self._publish(tensors, files, request, give_up, None)

    def _base(self) -> _Published | None:
        """What to encode against; None when the next version is to be whole."""
        last = self._last
        return last if last is not None and last.manifest.chain_length < self._max_chain else None

    def _publish(
        self,
        tensors: Sequence[TensorData],
        files: Mapping[str, bytes],
        request: weights_pb2.PublishRequest,
        give_up: float,
        base: _Published | None,
    ) -> Publication:
        began = time.monotonic()
        draft = _draft(tensors, base)
        dense = sum(tensor.data.nbytes for tensor in tensors)
        if base is not None and base.sent_bytes + draft.sent_bytes >= dense:
            draft, base = _draft(tensors, None), None
        manifest = request.manifest
        del manifest.tensors[:], manifest.files[:]
        manifest.tensors.extend(draft.entries)
        manifest.files.extend(_file_entries(files, draft.blobs))
        manifest.weights_digest = weights_digest(manifest.tensors)
        check_manifest(manifest)
        encoded = time.monotonic()
        committed, payload = self._commit(request, draft.blobs, give_up)
        if self._max_chain:
            self._last = _Published(
                committed,
                {tensor.name: tensor for tensor in tensors},
                {entry.name: entry for entry in committed.tensors},
                draft.sent_bytes + base.sent_bytes if base is not None else 0,
            )
        return Publication(
            committed,
            payload_bytes=payload,
            dense_bytes=dense,
            encode_seconds=encoded - began,
            upload_seconds=time.monotonic() - encoded,
        )

    def _commit(
        self, request: weights_pb2.PublishRequest, blobs: Mapping[str, Sequence[memoryview]], give_up: float
    ) -> tuple[weights_pb2.Manifest, int]:
        payload, tries = 0, 0
        while True:
            tries += 1
            payload += _upload_missing(self._client, blobs, give_up)
            try:
                return self._client.publish(request, timeout_s=time_left(give_up)).manifest, payload
            except FailedPrecondition as error:
                if error.reason is not Reason.BLOB_MISSING or tries >= _PUBLISH_TRIES:
                    raise  # a blob that nothing needed yet may be pruned between the upload and the commit


def publish_version(
    client: Client,
    tensors: Iterable[TensorData],
    files: Mapping[str, bytes],
    *,
    channels: Sequence[str],
    **options: Any,
) -> weights_pb2.Manifest:
    """Publishes one version, whole.

    Args:
        client: of the weights service.
        tensors, files, channels, options: as of `Publisher.publish`, which also says what is raised.

    Returns:
        The manifest with its version number and time.
    """
    return Publisher(client, max_chain=0).publish(tensors, files, channels=channels, **options).manifest


def _draft(tensors: Sequence[TensorData], base: _Published | None) -> _Draft:
    """Encodes tensors, sorted by name, several at a time, and packs what must be sent into blobs."""
    draft = _Draft()
    to_pack: list[tuple[weights_pb2.TensorEntry, memoryview]] = []
    encoded = partial(_encoded, base=base)
    for entry, part in over_tensors(
        encoded, tensors, lambda tensor: tensor.data.nbytes, share=_ENCODING_SHARE, name="encode"
    ):
        draft.entries.append(entry)
        if part is not None:
            to_pack.append((entry, part))
    draft.sent_bytes = sum(part.nbytes for _, part in to_pack)
    for group in _groups(to_pack):
        _pack(group, draft.blobs)
    return draft


def _encoded(tensor: TensorData, base: _Published | None) -> tuple[weights_pb2.TensorEntry, memoryview | None]:
    """A tensor's entry, and what must be sent of it; None where the base has its bytes."""
    entry = weights_pb2.TensorEntry(
        name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, digest=tensor_digest(tensor)
    )
    before = base.entries.get(tensor.name) if base is not None else None
    if base is None or before is None or not _is_alike(before, entry):
        return entry, _whole(tensor, entry)
    if before.digest == entry.digest:
        entry.CopyFrom(before)
        return entry, None
    return entry, _difference(tensor, entry, base, before)


def _is_alike(before: weights_pb2.TensorEntry, after: weights_pb2.TensorEntry) -> bool:
    return before.dtype == after.dtype and before.shape == after.shape


def _whole(tensor: TensorData, entry: weights_pb2.TensorEntry) -> memoryview:
    entry.encoding = weights_pb2.ENCODING_RAW
    return tensor.data


def _difference(
    tensor: TensorData, entry: weights_pb2.TensorEntry, base: _Published, before: weights_pb2.TensorEntry
) -> memoryview:
    """The difference to the base's tensor, or the bytes themselves where they are no more."""
    encoded = encode_delta(base.tensors[tensor.name].data, tensor.data, DTYPE_BYTES[tensor.dtype])
    if encoded is None:
        return _whole(tensor, entry)
    entry.encoding = weights_pb2.ENCODING_DELTA
    entry.base_version, entry.base_digest = base.manifest.version, before.digest
    return memoryview(encoded)


def _groups(
    parts: Sequence[tuple[weights_pb2.TensorEntry, memoryview]],
) -> Iterator[list[tuple[weights_pb2.TensorEntry, memoryview]]]:
    group: list[tuple[weights_pb2.TensorEntry, memoryview]] = []
    size = 0
    for entry, part in parts:
        if group and size + part.nbytes > BLOB_BYTES:
            yield group
            group, size = [], 0
        group.append((entry, part))
        size += part.nbytes
    if group:
        yield group


def _pack(group: Sequence[tuple[weights_pb2.TensorEntry, memoryview]], blobs: dict[str, list[memoryview]]) -> None:
    """Makes one blob of a group and tells its entries where they lie."""
    parts = [part for _, part in group]
    first = group[0][0]
    is_whole = len(group) == 1 and first.encoding == weights_pb2.ENCODING_RAW
    blob_digest = first.digest if is_whole else _digest_of(parts)
    blobs[blob_digest] = parts
    offset = 0
    for entry, part in group:
        entry.blob_digest = blob_digest
        entry.blob_offset_bytes, entry.blob_length_bytes = offset, part.nbytes
        offset += part.nbytes


def _digest_of(parts: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _file_entries(files: Mapping[str, bytes], blobs: dict[str, list[memoryview]]) -> list[weights_pb2.FileEntry]:
    entries: list[weights_pb2.FileEntry] = []
    for path, content in sorted(files.items()):
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = [memoryview(content)]
        entries.append(weights_pb2.FileEntry(path=path, digest=digest, length_bytes=len(content)))
    return entries


def _upload_missing(client: Client, blobs: Mapping[str, Sequence[memoryview]], give_up: float) -> int:
    """Uploads those blobs that the store lacks; returns their bytes."""
    digests = sorted(blobs)
    sent = 0
    for start in range(0, len(digests), _PAGE):
        request = weights_pb2.FindMissingBlobsRequest(digests=digests[start : start + _PAGE])
        reply = client.find_missing_blobs(request, timeout_s=min(time_left(give_up), client.timeout_s))
        if not reply.missing:
            continue
        with blob_client(client, reply.blobs_url, time_left(give_up)) as target:
            for digest in reply.missing:
                target.put(digest, blobs[digest])
                sent += sum(part.nbytes for part in blobs[digest])
    return sent
