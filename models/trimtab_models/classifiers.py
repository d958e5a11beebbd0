"""Scores of any sequence classifier: ours, and those of other libraries as their own forward gives them.

A causal classifier with a `score` layer is read at its last real token, found by length. Any other one (an encoder with
a pooled head) runs its own forward, behind an attention mask over the padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab_models.anatomy import reward_bias
from trimtab_models.heads import hidden_states

__all__ = ["classifier_scores", "has_score_layer"]


def has_score_layer(model: PreTrainedModel) -> bool:
    """Whether the model's head is one `score` layer without bias over its last hidden states."""
    head = getattr(model, "score", None)
    return isinstance(head, nn.Linear) and head.bias is None


def classifier_scores(
    model: PreTrainedModel, input_ids: Tensor, lengths: Tensor, *, logit: int = 0, type_ids: Tensor | None = None
) -> Tensor:
    """The raw score of each right-padded row: one logit, never squashed, a reward model's offset subtracted.

    Args:
        model: of `loading.load_classifier`.
        input_ids: int64 [batch, seq], right-padded with any id.
        lengths: int64 [batch], real tokens of each row.
        logit: which output, where the head has several.
        type_ids: int64 [batch, seq], segment of each token, for encoders that read them.

    Returns:
        float32 [batch].
    """
    if has_score_layer(model):
        hidden = hidden_states(model, input_ids)
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        weight: Tensor = model.score.weight  # type: ignore[union-attr,assignment]
        # a matrix product of one column is not stable in its rows
        return (last.float() * weight[logit].float()).sum(-1) - reward_bias(model)
    mask = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]
    extra: dict[str, Any] = {} if type_ids is None else {"token_type_ids": type_ids}
    logits: Tensor = model(input_ids=input_ids, attention_mask=mask.long(), **extra).logits
    return logits[:, logit].float() - reward_bias(model)
