"""A tensor's bytes as the difference to another's: what a publication sends instead of the bytes themselves.

Lossless for every bit pattern, NaN payloads included, since floats are handled as the unsigned integers of their bits.
Between two optimizer steps few bfloat16 elements change, and those by a unit or two in the last place, so what is sent
is *where* elements changed and *by how much* in such units, both compressed by zstd. An encoded tensor is a sequence of
blocks of up to 2^18 elements, so that neither side holds more than a block beside the tensor:

    block      = u8 kind of places, u32 n, u32 p, u32 d, p bytes of places, d bytes of differences; n elements changed
    places     SAME: nothing changed, n = p = d = 0, nothing follows
               GAPS: zstd of unchanged elements before each changed one; 255 in a byte says 255 and goes on
               BITS: zstd of one bit an element, the first in the highest bit of a byte
               ALL:  p = 0, n is the block's length
               RAW:  p = 0, n is the block's length and the new bytes follow as they are, d of them
    difference = new - base modulo 2^bits, zigzag (0, -1, 1, -2 -> 0, 1, 2, 3), lowest byte of all elements first, then
                 the next ones, all of it in one zstd frame

All integers are little-endian. Each block takes the smallest of those that fit it, by measured size; a tensor whose
blocks are together no smaller than its bytes is not encoded at all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from trimtab.errors import CorruptData

__all__ = ["BLOCK_ELEMENTS", "decode_delta", "encode_delta"]

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block; only the last of a tensor has fewer."""

_HEADER = struct.Struct("<BIII")
_ESCAPE = 255
_GAPS_BELOW = 0.25
"""Changed share above which gaps are not tried: a bit an element is smaller there."""
_ALL_ABOVE = 0.5
"""Changed share below which differences of all elements are not tried."""
_ZSTD = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=12)
"""Entropy coding is what helps here. Short matches are chance and cost more than they save; levels above 1, too."""

Bits = npt.NDArray[np.unsignedinteger]


class _Places(IntEnum):
    SAME = 0
    GAPS = 1
    BITS = 2
    ALL = 3
    RAW = 4


def encode_delta(base: memoryview, new: memoryview, element_bytes: int) -> bytes | None:
    """Encodes a tensor's bytes against those of another with the same dtype and shape.

    Args:
        base: flat bytes that the reader has.
        new: flat bytes that the reader is to get; as long as `base`.
        element_bytes: 1, 2, 4 or 8.

    Returns:
        The encoded tensor, or None when it would not be smaller than `new`.

    Raises:
        ValueError: the lengths differ or are no whole number of elements.
    """
    before, after = _bits(base, element_bytes), _bits(new, element_bytes)
    if len(before) != len(after):
        raise ValueError(f"base has {base.nbytes} bytes, new has {new.nbytes}")
    compressor = zstandard.ZstdCompressor(compression_params=_ZSTD)
    parts: list[bytes] = []
    for start in range(0, len(after), BLOCK_ELEMENTS):
        block = slice(start, start + BLOCK_ELEMENTS)
        parts.extend(_encode_block(before[block], after[block], compressor))
    return b"".join(parts) if sum(map(len, parts)) < new.nbytes else None


def decode_delta(encoded: memoryview, base: memoryview, element_bytes: int) -> bytearray:
    """The bytes that `encode_delta` was given as `new`.

    Args:
        encoded: by `encode_delta`.
        base: the flat bytes that it was encoded against.
        element_bytes: 1, 2, 4 or 8.

    Raises:
        CorruptData: `encoded` is none for a tensor of this size. A wrong base of the right size goes unnoticed: the
            caller compares the result's digest.
    """
    out = bytearray(base)
    bits = np.frombuffer(out, dtype=f"<u{element_bytes}")
    decompressor = zstandard.ZstdDecompressor()
    ends = 0
    for start in range(0, len(bits), BLOCK_ELEMENTS):
        ends = _decode_block(encoded, ends, bits[start : start + BLOCK_ELEMENTS], decompressor)
    if ends != encoded.nbytes:
        raise _corrupt(f"{encoded.nbytes - ends} bytes are left after its last block")
    return out


def _encode_block(before: Bits, after: Bits, compressor: zstandard.ZstdCompressor) -> Iterator[bytes]:
    difference = after - before
    changed = difference != 0
    where = np.flatnonzero(changed)
    share = len(where) / len(after)
    if not len(where):
        yield _HEADER.pack(_Places.SAME, 0, 0, 0)
        return
    candidates: list[tuple[_Places, int, bytes, bytes]] = []
    differences = compressor.compress(_planes(_zigzag(difference[where])))
    if share < _GAPS_BELOW:
        candidates.append((_Places.GAPS, len(where), compressor.compress(_gaps(where)), differences))
    candidates.append((_Places.BITS, len(where), compressor.compress(np.packbits(changed).tobytes()), differences))
    if share > _ALL_ABOVE:
        candidates.append((_Places.ALL, len(after), b"", compressor.compress(_planes(_zigzag(difference)))))
    places, count, first, second = min(candidates, key=lambda candidate: len(candidate[2]) + len(candidate[3]))
    if len(first) + len(second) >= after.nbytes:
        places, count, first, second = _Places.RAW, len(after), b"", after.tobytes()
    yield _HEADER.pack(places, count, len(first), len(second))
    yield first
    yield second


def _decode_block(encoded: memoryview, at: int, bits: Bits, decompressor: zstandard.ZstdDecompressor) -> int:
    """Applies the block that begins at byte `at` to `bits`; returns where it ends."""
    if at + _HEADER.size > encoded.nbytes:
        raise _corrupt(f"it ends inside the header at byte {at}")
    kind, count, places_bytes, difference_bytes = _HEADER.unpack_from(encoded, at)
    at += _HEADER.size
    end: int = at + places_bytes + difference_bytes
    if end > encoded.nbytes:
        raise _corrupt(f"the block at byte {at} ends at {end} of {encoded.nbytes}")
    if kind not in list(_Places) or count > len(bits):
        raise _corrupt(f"the block at byte {at} has places {kind} and {count} changes in {len(bits)} elements")
    places, difference = encoded[at : at + places_bytes], encoded[at + places_bytes : end]
    if kind in (_Places.ALL, _Places.RAW) and count != len(bits):
        raise _corrupt(f"the block at byte {at} changes {count} of {len(bits)} elements where it must change all")
    if kind == _Places.RAW:
        if difference.nbytes != bits.nbytes:
            raise _corrupt(f"the block at byte {at} has {difference.nbytes} bytes for {bits.nbytes}")
        bits[:] = np.frombuffer(difference, dtype=bits.dtype)
    elif kind != _Places.SAME:
        planes = _decompressed(difference, count * bits.itemsize, decompressor)
        if planes.nbytes != count * bits.itemsize:
            raise _corrupt(f"the block at byte {at} has {planes.nbytes} bytes of differences for {count} elements")
        changes = _unzigzag(np.ascontiguousarray(planes.reshape(bits.itemsize, count).T).view(bits.dtype).reshape(-1))
        if kind == _Places.ALL:
            bits += changes
        else:
            bits[_where(kind, places, count, len(bits), decompressor)] += changes
    return end


def _where(
    kind: int, places: memoryview, count: int, length: int, decompressor: zstandard.ZstdDecompressor
) -> npt.NDArray[np.integer]:
    """Positions of the changed elements of a block, each once."""
    if kind == _Places.BITS:
        packed = _decompressed(places, (length + 7) // 8, decompressor)
        where = np.flatnonzero(np.unpackbits(packed))
    else:
        gaps = _decompressed(places, count + length // _ESCAPE, decompressor)
        is_end = gaps != _ESCAPE
        where = np.cumsum(gaps, dtype=np.int64)[is_end] + np.arange(np.count_nonzero(is_end))
    if len(where) != count or (count and where[-1] >= length):
        raise _corrupt(f"it places {len(where)} changes where {count} were announced, in {length} elements")
    return where


def _gaps(where: npt.NDArray[np.integer]) -> bytes:
    """Unchanged elements before each changed one, a byte each where fewer than 255."""
    gaps = np.diff(where, prepend=-1) - 1
    escapes = gaps // _ESCAPE
    out = np.full(len(gaps) + int(escapes.sum()), _ESCAPE, np.uint8)
    out[np.cumsum(escapes + 1) - 1] = gaps % _ESCAPE
    return out.tobytes()


def _zigzag(difference: Bits) -> Bits:
    dtype = difference.dtype
    signs = difference.view(f"<i{dtype.itemsize}") >> (8 * dtype.itemsize - 1)
    zigzag: Bits = np.left_shift(difference, _one(dtype)) ^ signs.view(dtype)
    return zigzag


def _unzigzag(zigzag: Bits) -> Bits:
    one = _one(zigzag.dtype)
    difference: Bits = np.right_shift(zigzag, one) ^ (~(zigzag & one) + one)
    return difference


def _one(dtype: np.dtype[Any]) -> Any:
    return dtype.type(1)


def _planes(bits: Bits) -> bytes:
    """The lowest bytes of all elements, then the next ones: bytes of one kind compress better together."""
    return np.ascontiguousarray(bits.view(np.uint8).reshape(-1, bits.itemsize).T).tobytes()


def _bits(data: memoryview, element_bytes: int) -> Bits:
    return np.frombuffer(data, dtype=f"<u{element_bytes}")


def _decompressed(frame: memoryview, most: int, decompressor: zstandard.ZstdDecompressor) -> npt.NDArray[np.uint8]:
    """The content of a frame, which must say that it is no longer than `most`: nothing larger is ever allocated."""
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if not 0 <= size <= most:
            raise _corrupt(f"a frame says that it holds {size} bytes; allowed: at most {most}")
        return np.frombuffer(decompressor.decompress(frame, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise _corrupt(f"a frame is damaged: {error}") from None


def _corrupt(what: str) -> CorruptData:
    return CorruptData(f"encoded tensor: {what}", field="delta")
