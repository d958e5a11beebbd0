"""Log-probs: the only place of Trimtab that gathers a log-softmax.

Logits are made for a chunk of tokens at a time and forgotten again, in the backward pass too, so that no tensor of
[tokens, vocab] ever exists beyond one chunk. They are divided by the temperature in float32: every log-prob of a run
(rollout, old, new, reference) must use the same one (Ziegler et al. 2019, code; Huang et al. 2024, N+ details).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from trimtab.errors import ModelFolderError
from trimtab_models.anatomy import output_layer, vocab_size
from trimtab_models.heads import hidden_states

__all__ = ["TokenLogProbs", "check_logprobs", "completion_logprobs", "sequence_logprobs", "token_logprobs"]

CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS = 2**24, 2**26
"""Logits of a chunk, tokens times vocabulary: 64 MiB in float32 on a CPU; 256 MiB on a GPU, which smaller chunks keep
waiting for their kernels to be started."""

_MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")


@dataclass(frozen=True)
class TokenLogProbs:
    """What is known of each target token.

    Attributes:
        logprobs: float32 [tokens], in nats.
        entropies: float32 [tokens] of the whole distribution, in nats; None unless asked for. Carries no gradient.
        top_ids: int64 [tokens, n]; None unless asked for.
        top_logprobs: float32 [tokens, n]; None unless asked for. Carries no gradient.
    """

    logprobs: Tensor
    entropies: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


def token_logprobs(
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    top_n: int = 0,
    chunk_tokens: int | None = None,
    row_multiple: int = 1,
) -> TokenLogProbs:
    """Log-probs of target tokens under the model's output layer: log softmax(cap(scale W h) / T)[target].

    Args:
        model: a policy; its output embeddings (with bias), logit scale and final logit soft-cap are used.
        hidden: [tokens, hidden], the state before each target.
        targets: int64 [tokens].
        temperature: T, above 0.
        entropy: also the entropy of each distribution.
        top_n: also the n likeliest tokens.
        chunk_tokens: tokens of a chunk; None fits `CHUNK_ELEMENTS` logits, on a GPU `GPU_CHUNK_ELEMENTS`.
        row_multiple: rows of every matrix product are padded to a multiple of this, which makes a row's result
            independent of how many neighbours it has (4 x threads on a CPU).

    Returns:
        One entry for each token. `logprobs` is differentiable in hidden and in the output layer. A float64 model's are
        float64.

    Raises:
        ModelFolderError: the model has no output embeddings.
    """
    weight, bias = output_layer(model)
    config = model.config.get_text_config()
    scale, softcap = _logit_scale(config), _number(config, _SOFT_CAPS)
    most = GPU_CHUNK_ELEMENTS if weight.device.type == "cuda" else CHUNK_ELEMENTS
    chunk = chunk_tokens or max(row_multiple, most // weight.shape[0] // row_multiple * row_multiple)

    def one_chunk(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, ...]:
        logits = functional.linear(hidden, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if scale != 1:
            logits = logits * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        logits = logits / temperature
        normaliser = torch.logsumexp(logits, dim=-1)
        logprobs = logits.gather(-1, targets[:, None])[:, 0] - normaliser
        with torch.no_grad():
            extra = []
            if entropy:
                extra.append(normaliser - (torch.softmax(logits, dim=-1) * logits).sum(-1))
            if top_n:
                values, ids = logits.topk(top_n, dim=-1)
                extra += [ids, values - normaliser[:, None]]
        return (logprobs, *extra)

    parts: list[tuple[Tensor, ...]] = []
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, weight, bias) if t is not None)
    for rows, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        padding = -len(rows) % row_multiple
        if padding:
            rows, ids = functional.pad(rows, (0, 0, 0, padding)), functional.pad(ids, (0, padding))
        if needs_gradient and len(targets) > chunk:  # a single chunk is small enough to be kept
            part = checkpoint(one_chunk, rows, weight, bias, ids, use_reentrant=False)
        else:
            part = one_chunk(rows, weight, bias, ids)
        parts.append(tuple(tensor[: len(tensor) - padding] for tensor in part) if padding else part)
    if not parts:
        parts = [one_chunk(hidden, weight, bias, targets)]
    joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    return TokenLogProbs(
        logprobs=joined[0],
        entropies=joined[1] if entropy else None,
        top_ids=joined[-2] if top_n else None,
        top_logprobs=joined[-1] if top_n else None,
    )


def completion_logprobs(
    model: PreTrainedModel,
    input_ids: Tensor,
    prompt_lengths: Tensor,
    completion_lengths: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of the completion tokens of right-padded rows; logits are made for those tokens only.

    Args:
        model: a policy.
        input_ids: int64 [batch, seq], prompt then completion, right-padded with any id.
        prompt_lengths: int64 [batch], at least 1.
        completion_lengths: int64 [batch], at least 1.
        temperature: divides the logits.
        entropy: also entropies, without gradient.

    Returns:
        float32 [batch, completion]: entry (i, t) is the log-prob of completion token t of row i, and 0 on padding; the
        second item likewise, or None.
    """
    hidden = hidden_states(model, input_ids)
    longest = int(completion_lengths.max())
    offsets = torch.arange(longest, device=input_ids.device)
    mask = offsets < completion_lengths[:, None]
    rows, columns = mask.nonzero(as_tuple=True)
    targets_at = prompt_lengths[rows] + columns
    found = token_logprobs(
        model, hidden[rows, targets_at - 1], input_ids[rows, targets_at], temperature=temperature, entropy=entropy
    )
    blank = found.logprobs.new_zeros(mask.shape)
    logprobs = blank.masked_scatter(mask, found.logprobs)
    if found.entropies is None:
        return logprobs, None
    return logprobs, blank.masked_scatter(mask, found.entropies)


def sequence_logprobs(
    model: PreTrainedModel,
    input_ids: Tensor,
    targets_mask: Tensor,
    *,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probs of chosen tokens of any layout of rows, packed ones too.

    Args:
        model: a policy.
        input_ids: int64 [batch, seq].
        targets_mask: bool [batch, seq], true on tokens whose log-prob is wanted; column 0 must be false. The token is
            predicted from the column before it.
        position_ids, attention_mask: as in `heads.hidden_states`.
        temperature: divides the logits.

    Returns:
        float32 [number of true entries], in row-major order.
    """
    hidden = hidden_states(model, input_ids, position_ids=position_ids, attention_mask=attention_mask)
    rows, columns = targets_mask.nonzero(as_tuple=True)
    return token_logprobs(model, hidden[rows, columns - 1], input_ids[rows, columns], temperature=temperature).logprobs


@torch.no_grad()
def check_logprobs(model: PreTrainedModel, *, tokens: int = 4) -> None:
    """Compares `token_logprobs` with the log-softmax of the model's own logits, on a few ids of its vocabulary.

    What stands between an architecture's last hidden state and its logits is known by name only (`token_logprobs`); an
    architecture that does anything else there is refused here rather than trained on wrong log-probs.

    Args:
        model: a policy, in evaluation mode.
        tokens: how many positions are compared, each at its likeliest and its unlikeliest token.

    Raises:
        ModelFolderError: they differ by more than the rounding of the model's dtype; names architecture and difference.
    """
    ids = torch.linspace(0, vocab_size(model) - 1, tokens, device=model.device).long()[None]
    hidden = hidden_states(model, ids)[0]
    logits = model(input_ids=ids, use_cache=False).logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    extremes = torch.stack([logits.argmax(-1), logits.argmin(-1)], dim=1)
    expected = logits.log_softmax(-1).gather(-1, extremes).flatten()
    found = token_logprobs(model, hidden.repeat_interleave(2, dim=0), extremes.flatten()).logprobs
    difference = float((found - expected).abs().max())
    allowed = max(1e-3, 4 * torch.finfo(model.dtype).eps) * float(logits.abs().max())
    if difference > allowed:  # false for NaN: weights that are not finite are told by whoever serves or trains them
        raise ModelFolderError(
            f"{model.name_or_path}: {type(model).__name__} turns hidden states into logits in a way that is not "
            f"supported: log-probs from its output layer, logit scale and soft-cap differ from its own by "
            f"{difference:.3g} nats; allowed: {allowed:.3g}",
            field="architectures",
            value=type(model).__name__,
            limit=f"{allowed:.3g}",
        )


def _logit_scale(config: PreTrainedConfig) -> float:
    """What logits are multiplied by; 1 where the configuration names nothing."""
    scaling = _number(config, ("logits_scaling",)) or 1.0
    scale = scaling if config.model_type == "hyperclovax" else 1 / scaling  # Granite and all others divide by it
    return scale * (_number(config, _MULTIPLIERS) or 1.0)


def _number(config: PreTrainedConfig, names: tuple[str, ...]) -> float | None:
    """The first of these settings that is a number other than 0."""
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float) and value), None)
