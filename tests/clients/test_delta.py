"""The codec of differences: lossless for every bit pattern, never larger than the bytes, sure of what it is given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import CorruptData
from trimtab.weights import TensorData, decode_delta, encode_delta
from trimtab.weights.delta import BLOCK_ELEMENTS

Bits = npt.NDArray[np.unsignedinteger]

WIDTHS = (1, 2, 4, 8)


def _view(bits: Bits) -> memoryview:
    return memoryview(bits.tobytes())


def _round_trip(base: Bits, new: Bits) -> int:
    """Checks that `new` comes back; returns the bytes that were needed."""
    encoded = encode_delta(_view(base), _view(new), new.itemsize)
    if encoded is None:
        return new.nbytes
    assert len(encoded) < new.nbytes
    assert decode_delta(memoryview(encoded), _view(base), new.itemsize) == new.tobytes()
    return len(encoded)


def _random(rng: np.random.Generator, width: int, count: int) -> Bits:
    return rng.integers(0, 256, size=count * width, dtype=np.uint8).view(f"<u{width}")


@settings(max_examples=150, deadline=None)
@given(
    width=st.sampled_from(WIDTHS),
    count=st.integers(0, 3000),
    density=st.floats(0, 1),
    small=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_bits_come_back(width: int, count: int, density: float, small: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = _random(rng, width, count)
    changed = rng.random(count) < density
    steps = (
        rng.integers(-2, 3, size=count).astype(f"<i{width}").view(f"<u{width}") if small else _random(rng, width, count)
    )
    _round_trip(base, np.where(changed, base + steps, base))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("density", [0.0, 1e-6, 0.001, 0.014, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [-1, 0, 1])
def test_blocks_of_every_density(width: int, density: float, size: int) -> None:
    rng = np.random.default_rng(7)
    base = _random(rng, width, 2 * BLOCK_ELEMENTS + size)
    changed = rng.random(len(base)) < density
    changed[-1] = True  # the last element of the last block
    signs = rng.choice(np.array([1, -1]), size=len(base)).astype(f"<i{width}").view(f"<u{width}")
    needed = _round_trip(base, np.where(changed, base + signs, base))
    assert needed <= base.nbytes
    if width == 2:  # near the entropy of the places and of the signs
        entropy = -sum(p * np.log2(p) for p in (density, 1 - density) if p) + density
        assert needed <= 1.6 * entropy * len(base) / 8 + 200


def test_special_floats_come_back() -> None:
    patterns = np.array([0, 0x8000, 1, 0x8001, 0x007F, 0x7F80, 0xFF80, 0x7F81, 0x7FC0, 0xFFFF, 0x3F80], np.uint16)
    base, new = (grid.reshape(-1) for grid in np.meshgrid(patterns, patterns))  # signed zeros, denormals, inf, NaNs
    assert _round_trip(np.tile(base, 50), np.tile(new, 50)) < 2 * 50 * len(base)


def test_equal_bytes_are_next_to_nothing() -> None:
    bits = _random(np.random.default_rng(0), 2, 3 * BLOCK_ELEMENTS)
    assert _round_trip(bits, bits) < 100


def test_small_tensors_are_sent_whole() -> None:
    for count in (0, 1, 3):
        assert encode_delta(_view(np.zeros(count, np.uint16)), _view(np.ones(count, np.uint16)), 2) is None


def test_noise_is_never_larger() -> None:
    rng = np.random.default_rng(0)
    assert encode_delta(_view(_random(rng, 4, 10_000)), _view(_random(rng, 4, 10_000)), 4) is None
    base = _random(rng, 2, 2 * BLOCK_ELEMENTS)
    new = base.copy()
    new[:BLOCK_ELEMENTS] = _random(rng, 2, BLOCK_ELEMENTS)  # one block of noise beside an unchanged one
    assert 1.0 <= _round_trip(base, new) / (BLOCK_ELEMENTS * 2) < 1.001


def test_arrays_that_are_not_contiguous() -> None:
    array = np.arange(60_000, dtype=np.float32).reshape(200, 300)
    base, new = TensorData.from_array("t", array.T), TensorData.from_array("t", (array + (array % 97 == 0)).T)
    encoded = encode_delta(base.data, new.data, 4)
    assert encoded is not None
    assert decode_delta(memoryview(encoded), base.data, 4) == new.data


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="has 4 bytes"):
        encode_delta(memoryview(bytes(4)), memoryview(bytes(8)), 2)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_an_error_or_other_bytes(data: st.DataObject) -> None:
    """Nothing but CorruptData is ever raised, and nothing larger than the tensor comes out."""
    rng = np.random.default_rng(1)
    base = _random(rng, 2, 5000)
    density = data.draw(st.sampled_from([0.01, 0.4, 1.0]))
    encoded = encode_delta(_view(base), _view(base + (rng.random(5000) < density)), 2)
    assert encoded is not None
    damaged = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(0, len(damaged)))
    try:
        assert len(decode_delta(memoryview(damaged)[:kept], _view(base), 2)) == base.nbytes
    except CorruptData as error:
        assert error.field == "delta"


def test_a_frame_that_claims_too_much_is_refused() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    block = b"\x03" + (8).to_bytes(4, "little") + bytes(4) + len(bomb).to_bytes(4, "little") + bomb
    with pytest.raises(CorruptData, match="says that it holds 16777216 bytes"):
        decode_delta(memoryview(block), memoryview(bytes(16)), 2)
