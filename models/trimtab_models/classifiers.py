"""Scores of any sequence classifier: ours, and those of other libraries as their own forward gives them.

A causal classifier with a `score` layer is read at its last real token, found by length. Any other one (an encoder with
a pooled head, an encoder-decoder that is read at its last EOS) runs its own forward, behind an attention mask over the
padding. One whose score would depend on that padding all the same is refused.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.errors import ModelFolderError
from trimtab_models.anatomy import reward_bias
from trimtab_models.heads import hidden_states

__all__ = ["check_classifier", "classifier_scores", "end_needed", "has_score_layer"]


def has_score_layer(model: PreTrainedModel) -> bool:
    """Whether the model's head is one `score` layer without bias over its last hidden states."""
    head = getattr(model, "score", None)
    return isinstance(head, nn.Linear) and head.bias is None


def check_classifier(model: PreTrainedModel) -> None:
    """Refuses a classifier whose score of right-padded rows is not that of each row alone.

    Raises:
        ModelFolderError: it reads another place of a row than the first, which may be padding, as XLNet does; it takes
            no attention mask, as FNet; or it reads at its EOS, and padding and EOS are not two ids.
    """
    name, config = type(model).__name__, model.config
    if has_score_layer(model):
        return
    if (summary := getattr(config, "summary_type", "first")) != "first":
        raise ModelFolderError(
            f"{name}: summary_type is {summary!r}: it reads the padding of a row too, where another row of the batch "
            "is longer",
            field="summary_type",
            value=summary,
            limit="first",
        )
    if "attention_mask" not in signature(model.forward).parameters:
        raise ModelFolderError(
            f"{name}: it takes no attention mask, so it reads the padding of a row too",
            field="architectures",
            value=name,
        )
    padding, end = config.pad_token_id, config.eos_token_id
    if _reads_at_eos(model) and not (isinstance(padding, int) and isinstance(end, int) and padding != end):
        raise ModelFolderError(
            f"{name}: eos_token_id is {end} and pad_token_id {padding}; it reads its score at EOS, which must be one "
            "id other than the padding's",
            field="eos_token_id",
            value=end,
        )


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
        float32 [batch]; NaN for a row without EOS where that is what the model reads its score at.
    """
    if has_score_layer(model):
        hidden = hidden_states(model, input_ids)
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        weight: Tensor = model.score.weight  # type: ignore[union-attr,assignment]
        # a matrix product of one column is not stable in its rows
        return (last.float() * weight[logit].float()).sum(-1) - reward_bias(model)
    mask = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]
    if model.config.pad_token_id is not None:  # some count positions, or look for the end, by the padding's id
        input_ids = input_ids.masked_fill(~mask, model.config.pad_token_id)
    if _reads_at_eos(model):
        return _scores_at_eos(model, input_ids, mask, logit) - reward_bias(model)
    extra: dict[str, Any] = {} if type_ids is None else {"token_type_ids": type_ids}
    logits: Tensor = model(input_ids=input_ids, attention_mask=mask.long(), **extra).logits
    return logits[:, logit].float() - reward_bias(model)


def end_needed(model: PreTrainedModel) -> int | None:
    """The EOS id that every sequence must contain; None where a model reads its score elsewhere."""
    return model.config.eos_token_id if _reads_at_eos(model) else None


def _reads_at_eos(model: PreTrainedModel) -> bool:
    """Whether it is an encoder-decoder as BART and T5 are, with a head over the decoder's state at its last EOS."""
    return bool(model.config.is_encoder_decoder) and hasattr(model, "classification_head")


def _scores_at_eos(model: PreTrainedModel, input_ids: Tensor, mask: Tensor, logit: int) -> Tensor:
    """Float32 [batch]. Such a forward takes rows of equally many EOS only, so each number has one of its own."""
    counts = (input_ids == model.config.eos_token_id).sum(-1)
    scores = torch.full(counts.shape, float("nan"), device=input_ids.device)
    for count in counts[counts > 0].unique():
        rows = counts == count
        scores[rows] = model(input_ids=input_ids[rows], attention_mask=mask[rows].long()).logits[:, logit].float()
    return scores
