"""What a version of a model is made of: tensors, their digests, and the rules that a manifest obeys.

Both sides use this module: a publisher to write a manifest, the store to check it, a replica to trust what it fetched.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from trimtab.errors import InvalidRequest, Reason
from trimtab.v1 import weights_pb2

__all__ = [
    "DTYPE_BYTES",
    "TensorData",
    "check_channel",
    "check_digest",
    "check_manifest",
    "decoded_bytes",
    "manifest_blobs",
    "tensor_digest",
    "weights_digest",
]

DTYPE_BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one element of each dtype, named as in safetensors."""

_NUMPY = {"F64": "<f8", "I64": "<i8", "F32": "<f4", "I32": "<i4", "F16": "<f2", "I16": "<i2", "I8": "i1", "U8": "u1"}
_NUMPY |= {"BOOL": "?", "BF16": "<u2"}
_DTYPE_OF = {np.dtype(code): name for name, code in _NUMPY.items() if name != "BF16"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_NAME_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class TensorData:
    """One tensor and its bytes.

    Attributes:
        name: as in a safetensors file of the model.
        dtype: a key of `DTYPE_BYTES`.
        shape: empty for a scalar.
        data: row-major, little-endian bytes without padding; a flat view of bytes, often of a mapped file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def __post_init__(self) -> None:
        _check_form(f"tensor {self.name!r}", self.dtype, self.shape)
        _check_length(f"tensor {self.name!r}", self.dtype, self.shape, self.data.nbytes)

    @classmethod
    def from_array(cls, name: str, array: np.ndarray) -> TensorData:
        """A tensor over a NumPy array's bytes; copies only what is not contiguous or not little-endian.

        Raises:
            InvalidRequest: the array's dtype has no name in safetensors.
        """
        little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        if little.dtype not in _DTYPE_OF:
            raise InvalidRequest(
                f"tensor {name!r}: dtype {array.dtype} cannot be published; allowed: {', '.join(DTYPE_BYTES)}",
                field="dtype",
                value=array.dtype,
                limit=", ".join(DTYPE_BYTES),
            )
        return cls(name, _DTYPE_OF[little.dtype], array.shape, _bytes_of(little))

    def array(self) -> np.ndarray:
        """The tensor as a NumPy array of its shape over the same bytes; BF16, which NumPy lacks, as its uint16 bits."""
        return np.frombuffer(self.data, dtype=_NUMPY[self.dtype]).reshape(self.shape)


def tensor_digest(tensor: TensorData) -> str:
    """SHA-256 (hex) of a tensor's bytes."""
    return hashlib.sha256(tensor.data).hexdigest()


def weights_digest(entries: Iterable[weights_pb2.TensorEntry]) -> str:
    """SHA-256 (hex) over the lines `name dtype [shape] digest`, sorted; equal weights have equal digests.

    Args:
        entries: of which name, dtype, shape and digest count, and nothing of how the bytes are stored.
    """
    lines = sorted(f"{e.name} {e.dtype} [{','.join(map(str, e.shape))}] {e.digest}\n" for e in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def decoded_bytes(entry: weights_pb2.TensorEntry) -> int:
    """Bytes of a tensor, whatever its encoding."""
    return math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]


def manifest_blobs(manifest: weights_pb2.Manifest) -> set[str]:
    """Digests of all blobs that a version needs."""
    return {entry.blob_digest for entry in manifest.tensors} | {entry.digest for entry in manifest.files}


def check_manifest(manifest: weights_pb2.Manifest) -> None:
    """Checks all of a manifest that can be checked without its blobs.

    Raises:
        InvalidRequest: names the field: names not sorted or not unique, a shape that does not fit the length, an
            unknown dtype, a path out of the folder, a digest that is none, a metric that is not finite, or a
            `weights_digest` that is not that of the tensors.
    """
    for index, entry in enumerate(manifest.tensors):
        _check_tensor(f"manifest.tensors[{index}]", entry)
    _check_sorted("manifest.tensors", "name", [entry.name for entry in manifest.tensors])
    for index, file in enumerate(manifest.files):
        where = f"manifest.files[{index}]"
        check_digest(f"{where}.digest", file.digest)
        _check_path(f"{where}.path", file.path)
        if file.length_bytes < 0:
            raise _invalid(f"{where}.length_bytes", file.length_bytes, "at least 0")
    _check_sorted("manifest.files", "path", [file.path for file in manifest.files])
    for name, value in manifest.metrics.items():
        if not math.isfinite(value):
            raise _invalid(f"manifest.metrics[{name!r}]", value, "a finite number")
    if not manifest.tensors:
        raise InvalidRequest("manifest.tensors: is empty", reason=Reason.FIELD_MISSING, field="manifest.tensors")
    expected = weights_digest(manifest.tensors)
    if manifest.weights_digest != expected:
        raise _invalid("manifest.weights_digest", manifest.weights_digest, f"{expected}, the digest of its tensors")


def check_digest(field: str, digest: str) -> None:
    """Checks that a text is a SHA-256 in lower-case hex.

    Raises:
        InvalidRequest: it is not.
    """
    if not _DIGEST.fullmatch(digest):
        raise _invalid(field, digest, "64 lower-case hex digits")


def check_channel(field: str, channel: str) -> None:
    """Checks a channel's name: 1..200 letters, digits, `-`, `_`, `.`, in parts joined by `/`.

    Raises:
        InvalidRequest: it is none.
    """
    if len(channel) > 200 or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", channel, re.ASCII):
        raise _invalid(field, channel, "1..200 letters, digits, '-', '_', '.' in parts joined by '/'")


def _check_tensor(where: str, entry: weights_pb2.TensorEntry) -> None:
    if not entry.name or len(entry.name) > _MOST_NAME_CHARACTERS or not entry.name.isprintable() or " " in entry.name:
        limit = f"1..{_MOST_NAME_CHARACTERS} printable characters without spaces"
        raise _invalid(f"{where}.name", entry.name, limit)
    check_digest(f"{where}.digest", entry.digest)
    check_digest(f"{where}.blob_digest", entry.blob_digest)
    _check_form(where, entry.dtype, tuple(entry.shape))
    if entry.blob_offset_bytes < 0:
        raise _invalid(f"{where}.blob_offset_bytes", entry.blob_offset_bytes, "at least 0")
    if entry.encoding == weights_pb2.ENCODING_DELTA:
        _check_delta(where, entry)
        return
    if entry.encoding != weights_pb2.ENCODING_RAW:
        raise _invalid(f"{where}.encoding", entry.encoding, "ENCODING_RAW | ENCODING_DELTA")
    _check_length(where, entry.dtype, tuple(entry.shape), entry.blob_length_bytes)
    if entry.base_version or entry.base_digest:
        raise _invalid(f"{where}.base_version", entry.base_version, "0, and no base_digest, with ENCODING_RAW")


def _check_delta(where: str, entry: weights_pb2.TensorEntry) -> None:
    if not 1 <= entry.blob_length_bytes < decoded_bytes(entry):
        limit = f"1..{decoded_bytes(entry) - 1} for a delta of {entry.dtype} {list(entry.shape)}"
        raise _invalid(f"{where}.blob_length_bytes", entry.blob_length_bytes, limit)
    if entry.base_version < 1:
        raise _invalid(f"{where}.base_version", entry.base_version, "at least 1 with ENCODING_DELTA")
    check_digest(f"{where}.base_digest", entry.base_digest)


def _check_form(where: str, dtype: str, shape: tuple[int, ...]) -> None:
    if dtype not in DTYPE_BYTES:
        raise _invalid(f"{where}.dtype", dtype, ", ".join(DTYPE_BYTES))
    if any(size < 0 for size in shape):
        raise _invalid(f"{where}.shape", list(shape), "sizes of at least 0")


def _check_length(where: str, dtype: str, shape: tuple[int, ...], length_bytes: int) -> None:
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if length_bytes != expected:
        limit = f"{expected} bytes for {dtype} {list(shape)}"
        raise _invalid(f"{where}.blob_length_bytes", length_bytes, limit)


def _check_path(field: str, path: str) -> None:
    pure = PurePosixPath(path)
    is_plain = path == str(pure) and path.isprintable() and "\\" not in path
    if not path or not is_plain or pure.is_absolute() or ".." in pure.parts or path == ".":
        raise _invalid(field, path, "a relative path inside the model folder")


def _check_sorted(field: str, key: str, names: list[str]) -> None:
    for index, (before, after) in enumerate(zip(names, names[1:], strict=False), start=1):
        if before == after:
            raise InvalidRequest(
                f"{field}[{index}].{key}: {after!r} is there twice",
                reason=Reason.DUPLICATE_ID,
                field=f"{field}[{index}].{key}",
                value=after,
            )
        if before > after:
            raise _invalid(f"{field}[{index}].{key}", after, f"sorted names: it must not follow {before!r}")


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _invalid(field: str, value: object, limit: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {value!r}; allowed: {limit}", field=field, value=value, limit=limit)
