"""Tensors of the Open Inference Protocol: from what a request carries to texts and whole numbers, and rewards back.

As raw bytes a tensor is row-major and little-endian; a text is its length as uint32, then that many bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.errors import InvalidRequest
from trimtab_services.runtime.scoring import check_count

__all__ = [
    "INTEGER_TYPES",
    "MAX_DIMENSIONS",
    "OUTPUT_TYPES",
    "Tensor",
    "decode_raw",
    "decode_values",
    "encode_raw",
]

MAX_DIMENSIONS = 8
"""Most dimensions of a tensor."""

INTEGER_TYPES = {"INT32": np.dtype("<i4"), "INT64": np.dtype("<i8")}
OUTPUT_TYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int32): "INT32"}
_TYPES = ("BYTES", *INTEGER_TYPES)
_LENGTH = struct.Struct("<I")

_MAX_ELEMENTS = 2**31 - 1
"""More elements than any message has bytes."""


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """One input.

    Attributes:
        name: of the tensor.
        shape: every dimension is at least 1.
        texts: its elements where it is of BYTES; else none.
        numbers: its elements as int64 where it is of a whole-number type; else none.
    """

    name: str
    shape: tuple[int, ...]
    texts: tuple[str, ...] = ()
    numbers: npt.NDArray[np.int64] | None = None


def decode_values(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any], *, max_rows: int) -> Tensor:
    """The tensor of listed elements, flat and row-major.

    Args:
        name, datatype, shape: of the tensor.
        values: texts or their UTF-8 bytes, or whole numbers.
        max_rows: most rows.

    Raises:
        InvalidRequest: a type, a shape or an element is wrong.
    """
    dimensions = _check(name, datatype, shape, max_rows)
    _check_count(name, len(values), dimensions, _elements(name, dimensions))
    if datatype == "BYTES":
        return Tensor(name, dimensions, texts=tuple(_text(name, index, value) for index, value in enumerate(values)))
    kind = INTEGER_TYPES[datatype]
    bounds = np.iinfo(kind)
    for index, value in enumerate(values):
        if type(value) is not int or not bounds.min <= value <= bounds.max:
            raise InvalidRequest(
                f"{name}[{index}]: must be a whole number that {datatype} holds; found {str(value)[:100]}",
                field=f"{name}[{index}]",
                value=value,
                limit=datatype,
            )
    return Tensor(name, dimensions, numbers=np.array(values, dtype=np.int64))


def decode_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview, *, max_rows: int) -> Tensor:
    """The tensor of raw bytes.

    Args:
        name, datatype, shape: of the tensor.
        raw: its elements.
        max_rows: most rows.

    Raises:
        InvalidRequest: a type, a shape or an element is wrong, or there are more or fewer bytes than elements.
    """
    dimensions = _check(name, datatype, shape, max_rows)
    elements = _elements(name, dimensions)
    if datatype == "BYTES":
        texts = _split(name, raw, most=elements)
        _check_count(name, len(texts), dimensions, elements)
        return Tensor(name, dimensions, texts=tuple(_text(name, index, text) for index, text in enumerate(texts)))
    kind = INTEGER_TYPES[datatype]
    expected = elements * kind.itemsize
    if len(raw) != expected:
        raise InvalidRequest(
            f"{name}: {len(raw)} bytes; {datatype} of shape {list(dimensions)} has {expected}",
            field=name,
            value=len(raw),
            limit=expected,
        )
    return Tensor(name, dimensions, numbers=np.frombuffer(raw, dtype=kind).astype(np.int64))


def encode_raw(values: npt.NDArray[Any]) -> bytes:
    """Raw bytes of an output."""
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _check(name: str, datatype: str, shape: Sequence[int], max_rows: int) -> tuple[int, ...]:
    if datatype not in _TYPES:
        raise InvalidRequest(
            f"{name}: datatype {datatype!r}; allowed: {', '.join(_TYPES)}",
            field=name,
            value=datatype,
            limit=", ".join(_TYPES),
        )
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidRequest(
            f"{name}: {len(shape)} dimensions; allowed: {MAX_DIMENSIONS}",
            field=name,
            value=len(shape),
            limit=MAX_DIMENSIONS,
        )
    if not shape or min(shape) < 1:
        raise InvalidRequest(
            f"{name}: shape {list(shape)}; every dimension must be at least 1, and there must be one",
            field=name,
            value=list(shape),
            limit=1,
        )
    check_count(shape[0], max_rows)
    return tuple(shape)


def _elements(name: str, shape: tuple[int, ...]) -> int:
    """How many elements a tensor of the shape has."""
    elements = 1
    for dimension in shape:
        elements *= dimension
        if elements > _MAX_ELEMENTS:
            raise InvalidRequest(
                f"{name}: shape {list(shape)} has more than {_MAX_ELEMENTS} elements",
                field=name,
                value=list(shape),
                limit=_MAX_ELEMENTS,
            )
    return elements


def _check_count(name: str, count: int, shape: tuple[int, ...], expected: int) -> None:
    if count != expected:
        raise InvalidRequest(
            f"{name}: {count} elements; shape {list(shape)} has {expected}", field=name, value=count, limit=expected
        )


def _split(name: str, raw: bytes | memoryview, *, most: int) -> list[bytes]:
    """The byte strings of a raw BYTES tensor; one more than `most` where there are more."""
    found, at, end = [], 0, len(raw)
    while at < end and len(found) <= most:
        begin = at + _LENGTH.size
        length = _LENGTH.unpack_from(raw, at)[0] if begin <= end else end
        if begin + length > end:
            raise InvalidRequest(
                f"{name}[{len(found)}]: its length and bytes go beyond the end of the tensor's {end} bytes",
                field=f"{name}[{len(found)}]",
                limit=end,
            )
        found.append(bytes(raw[begin : begin + length]))
        at = begin + length
    return found


def _text(name: str, index: int, value: object) -> str:
    field = f"{name}[{index}]"
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{field}: no UTF-8 at byte {error.start}", field=field, limit="UTF-8") from None
    if not isinstance(value, str):
        raise InvalidRequest(f"{field}: must be text; found {type(value).__name__}", field=field, limit="text")
    return value
