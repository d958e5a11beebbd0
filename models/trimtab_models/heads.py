"""Scalar heads: rewards at the last real token, values at every token, one arithmetic for both.

The one-column product is `(hidden * weight).sum(-1)` in float32: a matrix product of one column is not stable in its
rows (its result changes with the number of neighbours), this is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import InternalError, Reason
from trimtab_models.anatomy import backbone, reward_bias, score_weight
from trimtab_models.attention import layer_masks, sliding_window

__all__ = ["check_finite", "completion_values", "hidden_states", "read_rewards", "scores_of"]


def hidden_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Last hidden states of a policy, reward or value model, without its head.

    Right-padded rows need no mask: under causal attention no real token sees the padding after it.

    Args:
        model: any of the models of `loading`.
        input_ids: int64 [batch, seq].
        position_ids: int64 [batch, seq]; None counts from 0 in each row.
        attention_mask: bool [batch, 1, seq, seq], true where a query (row) may see a key (column); None is causal.
            Layers with a sliding window see no farther than it either way.

    Returns:
        [batch, seq, hidden] in the model's dtype.

    Raises:
        Unsupported: a mask is given and the model has layers that none applies to, see `attention.sliding_window`.
    """
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape[0], -1)
    masks = None
    if attention_mask is not None:
        masks = layer_masks(sliding_window(model), attention_mask, position_ids, position_ids)
    output = backbone(model)(input_ids=input_ids, position_ids=position_ids, attention_mask=masks, use_cache=False)
    return output.last_hidden_state


def scores_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The head's scalar for each hidden state, offset subtracted: [..., hidden] -> float32 [...]."""
    weight = score_weight(model)
    return (hidden.float() * weight[0].float()).sum(-1) - reward_bias(model)


def read_rewards(model: PreTrainedModel, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Rewards of right-padded sequences, read at each one's last real token (InstructGPT 3.5: a scalar output).

    Args:
        model: a reward model of `loading.load_reward_model`.
        input_ids: int64 [batch, seq], right-padded with any id.
        lengths: int64 [batch], real tokens of each row: the last one is found by length, never by token id.

    Returns:
        float32 [batch].

    Raises:
        InternalError: a score is NaN or infinite (reason NOT_FINITE); names the row.
    """
    hidden = hidden_states(model, input_ids)
    last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
    return check_finite(scores_of(model, last))


def completion_values(
    model: PreTrainedModel, input_ids: Tensor, prompt_lengths: Tensor, completion_lengths: Tensor
) -> Tensor:
    """Values of the states before each completion token, of right-padded rows.

    Args:
        model: a value model; it starts as the reward model, offset included (InstructGPT C.4).
        input_ids: int64 [batch, seq], prompt then completion.
        prompt_lengths, completion_lengths: int64 [batch], at least 1.

    Returns:
        float32 [batch, completion]: entry (i, t) is read at the token before completion token t, and 0 on padding.
    """
    hidden = hidden_states(model, input_ids)
    mask = torch.arange(int(completion_lengths.max()), device=input_ids.device) < completion_lengths[:, None]
    rows, columns = mask.nonzero(as_tuple=True)
    values = scores_of(model, hidden[rows, prompt_lengths[rows] + columns - 1])
    return hidden.new_zeros(mask.shape, dtype=torch.float32).masked_scatter(mask, values)


def check_finite(scores: Tensor) -> Tensor:
    """The scores themselves, when all are finite.

    Raises:
        InternalError: one is NaN or infinite (reason NOT_FINITE); names the first.
    """
    finite = torch.isfinite(scores)
    if not bool(finite.all()):
        index = int((~finite).flatten().nonzero()[0])
        raise InternalError(
            f"items[{index}]: the score is {float(scores.flatten()[index])}; scores must be finite",
            reason=Reason.NOT_FINITE,
            field=f"items[{index}]",
            value=float(scores.flatten()[index]),
        )
    return scores
