"""Nothing becomes a version before its bytes were read back and had the digests that its manifest says."""

from __future__ import annotations

import hashlib

from trimtab.errors import CorruptData, FailedPrecondition, InvalidRequest, Reason
from trimtab.v1 import weights_pb2
from trimtab.weights.manifest import manifest_blobs
from trimtab.weights.threads import over_tensors
from trimtab_services.weights.decoded import DecodedTensors
from trimtab_services.weights.files import Files
from trimtab_services.weights.files import sizes as file_sizes
from trimtab_services.weights.state import blob_path

__all__ = ["verify_bytes"]

_CHECKING_SHARE = 0.5
"""Of the cores, to check the tensors of a version: blobs are sent meanwhile."""


def verify_bytes(files: Files, decoded: DecodedTensors, manifest: weights_pb2.Manifest, number: int) -> None:
    """Reads every tensor and file of a manifest, whose form was checked already, and compares their digests.

    Args:
        files: the store's files.
        decoded: where differences are decoded.
        manifest: of the version.
        number: above that of every version that it may build on.

    Raises:
        FailedPrecondition: BLOB_MISSING; metadata `missing` has the first digests.
        InvalidRequest: a tensor ends beyond its blob, or a file has another length.
        CorruptData: bytes with another digest.
        FailedPrecondition: BASE_MISSING, as `DecodedTensors.check`.
    """
    digests = sorted(manifest_blobs(manifest))
    sizes = dict(zip(digests, file_sizes(files, map(blob_path, digests)).values(), strict=True))
    missing = [digest for digest, size in sizes.items() if size is None]
    if missing:
        raise FailedPrecondition(
            f"manifest: {len(missing)} of its {len(sizes)} blobs are not in the store, such as {missing[0]}; upload "
            "them first",
            reason=Reason.BLOB_MISSING,
            field="manifest",
            value=missing[0],
            metadata={"missing": ",".join(missing[:10])},
        )
    whole: list[tuple[str, weights_pb2.TensorEntry]] = []
    for index, entry in enumerate(manifest.tensors):
        where = f"manifest.tensors[{index}]"
        end, size = entry.blob_offset_bytes + entry.blob_length_bytes, sizes[entry.blob_digest] or 0
        if end > size:
            raise InvalidRequest(
                f"{where}: tensor {entry.name!r} ends at byte {end} of a blob of {size} bytes",
                field=f"{where}.blob_length_bytes",
                value=end,
                limit=size,
            )
        if entry.encoding != weights_pb2.ENCODING_DELTA:
            whole.append((where, entry))

    def check(place: tuple[str, weights_pb2.TensorEntry]) -> None:
        where, entry = place
        found = _digest(files, blob_path(entry.blob_digest), entry.blob_offset_bytes, entry.blob_length_bytes)
        _compare(f"{where}.digest", entry.name, found, entry.digest)

    over_tensors(check, whole, lambda place: 0, share=_CHECKING_SHARE, name="check")  # reads in small pieces
    decoded.check(manifest, number, share=_CHECKING_SHARE)
    for index, file in enumerate(manifest.files):
        where, size = f"manifest.files[{index}]", sizes[file.digest] or 0
        if file.length_bytes != size:
            raise InvalidRequest(
                f"{where}.length_bytes: {file.path} has {size} bytes, not {file.length_bytes}",
                field=f"{where}.length_bytes",
                value=file.length_bytes,
                limit=size,
            )
        _compare(f"{where}.digest", file.path, _digest(files, blob_path(file.digest), 0, size), file.digest)


def _digest(files: Files, path: str, start: int, length: int) -> str:
    digest = hashlib.sha256()
    for chunk in files.chunks(path, start, length):
        digest.update(chunk)
    return digest.hexdigest()


def _compare(field: str, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise CorruptData(
            f"{field}: the stored bytes of {name!r} have SHA-256 {found}, not {expected}",
            field=field,
            value=found,
            limit=expected,
        )
