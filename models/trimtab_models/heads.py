"""Scalar heads: rewards at the last real token, values at every token, one arithmetic for both.

The one-column product is `(hidden * weight).sum(-1)` in float32: a matrix product of one column is not stable in its
rows (its result changes with the number of neighbours), this is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import InternalError, Reason
from trimtab_models.loading import backbone, reward_bias, score_weight

__all__ = ["check_finite", "hidden_states", "read_rewards", "read_values", "scores_of"]


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

    Returns:
        [batch, seq, hidden] in the model's dtype.
    """
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape[0], -1)
    output = backbone(model)(
        input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
    )
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


def read_values(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Values at every position of right-padded sequences: entry (i, t) is the value of the state after token t.

    Args:
        model: a value model; it starts as the reward model, offset included (InstructGPT C.4).
        input_ids: int64 [batch, seq].

    Returns:
        float32 [batch, seq]; entries on padding mean nothing.
    """
    return scores_of(model, hidden_states(model, input_ids))


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
