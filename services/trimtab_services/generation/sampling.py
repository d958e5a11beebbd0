"""Counter-based sampling: the same seed gives the same token, whatever else the replica is doing.

A random generator with hidden state would tie a sequence's tokens to its neighbours. Here the random number of a token
is a pure function of (seed, sample index, token position), so a retry on another replica samples the same sequence.

- `philox4x32`: Philox4x32-10, the counter-based generator of Salmon et al. 2011, "Parallel random numbers: as easy as
  1, 2, 3" (section 3.3, figure 4), checked against the known-answer vectors of the Random123 distribution.
- `uniforms`: the uniform number of each token.
- `sample_tokens`: temperature, suppressed ids, top-k, top-p, then the inverse CDF in token-id order.
- `draw`: the same for rows that nothing but a temperature applies to, without a word from the host in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from trimtab.errors import InvalidRequest

__all__ = ["SampledTokens", "SamplingRow", "draw", "philox4x32", "sample_tokens", "sampled_tokens", "uniforms"]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_BLOCK = 128
"""Tokens in a block of the two-level inverse CDF."""


def philox4x32(counter: NDArray[np.uint64], key: NDArray[np.uint64], rounds: int = 10) -> NDArray[np.uint32]:
    """Philox4x32 block cipher (Salmon et al. 2011, figure 4).

    Args:
        counter: [..., 4] words below 2**32.
        key: [..., 2] words below 2**32, broadcast against the counter's leading dimensions.
        rounds: 10 in every use; the paper's crush-resistant default.

    Returns:
        [..., 4] random words, uint32.
    """
    counter, key = counter.astype(np.uint64), key.astype(np.uint64)
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = key[..., 0], key[..., 1]
    for _ in range(rounds):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (product1 >> _32) ^ c1 ^ k0, product1 & _LOW, (product0 >> _32) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def uniforms(seed: int, sample_index: int, positions: ArrayLike) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) of one sequence's tokens.

    The key is the seed (low word, high word), the counter is (sample index low, high, position low, high); the first
    two output words give the 53 bits of a double, as in NumPy's `random` (`a >> 5`, `b >> 6`).

    Args:
        seed: unsigned 64 bit.
        sample_index: which of the prompt's samples, unsigned 64 bit.
        positions: [n] token positions in the completion, 0 for its first token.

    Raises:
        InvalidRequest: the seed or the sample index does not fit 64 unsigned bits.
    """
    for field, value in (("seed", seed), ("sample_index", sample_index)):
        if not 0 <= value < 2**64:
            raise InvalidRequest(
                f"{field} is {value}; it must lie in [0, 2**64)", field=field, value=value, limit="[0, 2**64)"
            )
    at = np.asarray(positions, dtype=np.uint64)
    index = np.full_like(at, sample_index)
    counter = np.stack([index & _LOW, index >> _32, at & _LOW, at >> _32], axis=-1)
    words = philox4x32(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint64)).astype(np.uint64)
    high, low = words[..., 0] >> np.uint64(5), words[..., 1] >> np.uint64(6)
    return (high * np.float64(2**26) + low) / np.float64(2**53)


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """How one row of logits is sampled.

    Attributes:
        uniform: in [0, 1), from `uniforms`; not read when greedy.
        temperature: logits are divided by it; 0 takes the most probable token (the lowest id of equals).
        top_k: keep this many most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose probability reaches it; 1 keeps all.
        suppressed: ids that cannot be sampled, such as EOS before `min_new_tokens`.
    """

    uniform: float
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    suppressed: tuple[int, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether top-k or top-p removes tokens."""
        return self.top_k > 0 or self.top_p < 1.0

    @property
    def plain(self) -> bool:
        """Whether `draw` samples it: at a temperature, from all tokens."""
        return self.temperature > 0 and not self.truncated and not self.suppressed


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One token for each row.

    Attributes:
        token_ids: [rows].
        logprobs: [rows] in nats, from float32 logits: log-softmax of logits / temperature, over the whole vocabulary,
        before
            suppression, top-k and top-p. A greedy row states it at temperature 1. Not finite where `finite` is False.
        finite: [rows] bool; False where the logits hold NaN or infinity, and then the token means nothing.
    """

    token_ids: list[int]
    logprobs: list[float]
    finite: list[bool]


def sample_tokens(logits: Tensor, rows: Sequence[SamplingRow]) -> SampledTokens:
    """Sample one token from each row, by inverse CDF in token-id order over the kept, renormalised distribution.

    Equal logits are ranked by token id, so top-k keeps exactly k tokens. Top-p applies after top-k to the renormalised
    rest, in the order that Hugging Face's `GenerationConfig` documents (temperature, top-k, top-p).

    Args:
        logits: [rows, vocab], any float dtype, on any device.
        rows: one entry for each row.
    """
    device = logits.device
    temperatures = [row.temperature or 1.0 for row in rows]
    scaled = logits.float()
    if any(t != 1.0 for t in temperatures):
        scaled = scaled / torch.tensor(temperatures, device=device)[:, None]
    peak, weights = _weights(scaled)
    kept = _truncated(_without_suppressed(scaled, weights, rows), rows)
    tokens = _inverse_cdf(kept, torch.tensor([row.uniform for row in rows], dtype=torch.float64, device=device))
    greedy = [i for i, row in enumerate(rows) if row.temperature == 0]
    if greedy:
        tokens[greedy] = kept[greedy].argmax(dim=-1)
    return sampled_tokens(_with_logprobs(tokens, scaled, peak, weights))


def draw(logits: Tensor, temperatures: Tensor, uniform: Tensor) -> Tensor:
    """Samples rows that are all `SamplingRow.plain`, by the arithmetic of `sample_tokens`; works on the device alone.

    Args:
        logits: [rows, vocab], any float dtype.
        temperatures: float32 [rows], above 0.
        uniform: float64 [rows] in [0, 1).

    Returns:
        For `sampled_tokens`, on the device.
    """
    scaled = logits.float() / temperatures[:, None]
    peak, weights = _weights(scaled)
    return _with_logprobs(_inverse_cdf(weights, uniform), scaled, peak, weights)


def sampled_tokens(drawn: Tensor) -> SampledTokens:
    """What was drawn, on the host: the one transfer from the device."""
    ids, nats = drawn.tolist()
    return SampledTokens([int(i) for i in ids], nats, [math.isfinite(x) for x in nats])


def _weights(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row [rows, 1], and exp(logit - largest) [rows, vocab]."""
    peak = scaled.amax(dim=-1, keepdim=True)
    return peak, (scaled - peak).exp_()  # NaN or inf makes a row's log-sum NaN or inf, which `finite` reports


def _with_logprobs(tokens: Tensor, scaled: Tensor, peak: Tensor, weights: Tensor) -> Tensor:
    """Float64 [2, rows]: token ids, exact in a double, and their log-probs before anything was left out."""
    log_sum = weights.sum(dim=-1, dtype=torch.float64).log()
    logprobs = (scaled.gather(-1, tokens[:, None]) - peak).squeeze(-1).double() - log_sum
    return torch.stack([tokens.double(), logprobs])


def _without_suppressed(scaled: Tensor, weights: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Weights [rows, vocab] with the suppressed ids at zero.

    Those rows are exponentiated anew against the peak of what is left: where a suppressed token held nearly all of the
    probability, the rest would otherwise underflow to zero.
    """
    affected = [i for i, row in enumerate(rows) if row.suppressed]
    if not affected:
        return weights
    left = scaled[affected]
    at = [n for n, i in enumerate(affected) for _ in rows[i].suppressed]
    left[at, [token for i in affected for token in rows[i].suppressed]] = -math.inf
    kept = weights.clone()
    kept[affected] = (left - left.amax(dim=-1, keepdim=True)).exp_()
    return kept


def _truncated(weights: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Weights [rows, vocab] with everything outside top-k and top-p at zero; untouched rows are not sorted."""
    affected = [i for i, row in enumerate(rows) if row.truncated and row.temperature > 0]
    if not affected:
        return weights
    device, vocab = weights.device, weights.shape[-1]
    ordered, ids = weights[affected].sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocab, device=device)
    top_k = torch.tensor([rows[i].top_k or vocab for i in affected], device=device)
    ordered = ordered.masked_fill(ranks >= top_k[:, None], 0.0)
    cumulative = ordered.cumsum(dim=-1, dtype=torch.float64)
    top_p = torch.tensor([rows[i].top_p for i in affected], dtype=torch.float64, device=device)
    # The nucleus ends with the token that makes the probability reach top_p: keep a token while those before it do not.
    ordered = ordered.masked_fill(cumulative - ordered >= top_p[:, None] * cumulative[:, -1:], 0.0)
    kept = weights.clone()
    kept[affected] = torch.zeros_like(ordered).scatter_(-1, ids, ordered)
    return kept


def _inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the running sum of weights, in token-id order, first exceeds uniform * total.

    Two levels (blocks of 128 tokens, then the tokens of the chosen block) in float64: a running sum over the whole
    vocabulary costs several times more.

    Args:
        weights: [rows, vocab] float32, at least one positive in each row.
        uniform: [rows] float64 in [0, 1).

    Returns:
        [rows] int64; always a token of positive weight.
    """
    n, vocab = weights.shape
    padded = torch.nn.functional.pad(weights, (0, -vocab % _BLOCK)) if vocab % _BLOCK else weights
    blocks = padded.view(n, -1, _BLOCK)
    block_ends = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniform[:, None] * block_ends[:, -1:]
    block = _first_above(block_ends, target)
    before = torch.where(block > 0, block_ends.gather(-1, (block - 1).clamp_min(0)), 0.0)
    inside = blocks[torch.arange(n, device=weights.device), block.squeeze(-1)].cumsum(dim=-1, dtype=torch.float64)
    return (block * _BLOCK + _first_above(inside, target - before)).squeeze(-1).clamp_max(vocab - 1)


def _first_above(ends: Tensor, target: Tensor) -> Tensor:
    """[rows, 1] index of the first running sum above the target, never past the last step upwards.

    The second bound covers rounding: the target of a block may lie a few units above that block's own running sum.
    (The clamp only keeps a row of NaN, which `SampledTokens.finite` reports, inside the tensor.)
    """
    last = torch.searchsorted(ends, ends[:, -1:].contiguous(), right=False).clamp_max(ends.shape[-1] - 1)
    return torch.minimum(torch.searchsorted(ends, target.contiguous(), right=True), last)
