"""The codec of differences by itself: how small and how fast, on weights that AdamW has moved."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from trimtab.weights import decode_delta, encode_delta

__all__ = ["SETTINGS", "codec_figures"]

SETTINGS = tuple((rate, steps) for rate in (1e-6, 1e-5, 1e-4) for steps in (1, 8, 16))
"""Learning rate and optimizer steps to a publication."""

_ELEMENTS = 4_000_000
_WARM_STEPS = 20

Bits = npt.NDArray[np.signedinteger]


def codec_figures() -> Iterator[tuple[str, dict[str, float]]]:
    """For each setting and dtype: shares of changed elements and of bytes sent, MB/s of dense bytes on one core."""
    for rate, steps in SETTINGS:
        before, after = _moved(rate, steps)
        for name, dtype, bits in (("bfloat16", torch.bfloat16, torch.int16), ("float32", torch.float32, torch.int32)):
            base, new = (weights.to(dtype).view(bits).numpy() for weights in (before, after))
            yield f"{rate:g} x {steps} {name}", _figures(base, new)


def _figures(base: Bits, new: Bits) -> dict[str, float]:
    old_bytes, new_bytes = base.view(np.uint8).data, new.view(np.uint8).data
    began = time.perf_counter()
    encoded = encode_delta(old_bytes, new_bytes, new.itemsize)
    encode_s = time.perf_counter() - began
    if encoded is None:
        raise SystemExit("a difference was no smaller than the bytes")
    began = time.perf_counter()
    decoded = decode_delta(memoryview(encoded), old_bytes, new.itemsize)
    decode_s = time.perf_counter() - began
    if decoded != new_bytes:
        raise SystemExit("the codec is not exact")
    return {
        "changed": round(float(np.count_nonzero(base != new)) / len(new), 4),
        "sent": round(len(encoded) / new.nbytes, 4),
        "encode_mb_per_s": round(new.nbytes / encode_s / 1e6),
        "decode_mb_per_s": round(new.nbytes / decode_s / 1e6),
    }


def _moved(rate: float, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights N(0, 0.02) after some steps of AdamW on noisy gradients, and as many steps later as said."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(_ELEMENTS, generator=generator) * 0.02)
    signal = torch.randn(_ELEMENTS, generator=generator) * 0.3
    optimizer = torch.optim.AdamW([weights], lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    before = weights.detach()
    for step in range(_WARM_STEPS + steps):
        if step == _WARM_STEPS:
            before = weights.detach().clone()
        weights.grad = signal + torch.randn(_ELEMENTS, generator=generator)
        optimizer.step()
    return before, weights.detach()
