"""What a loaded model consists of: its backbone, its heads, its sizes, the tensors that a folder of it holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from trimtab.errors import ModelFolderError

__all__ = [
    "UNBOUNDED_TOKENS",
    "backbone",
    "max_sequence_tokens",
    "named_parameter_tensors",
    "output_layer",
    "reward_bias",
    "score_weight",
    "set_reward_bias",
    "vocab_size",
]

UNBOUNDED_TOKENS = 2048
"""Context length of a model that can read any, and for which nothing names one: what BLOOM and MPT were trained at."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_RELATIVE_POSITIONS = ("bloom", "funnel", "mpt", "mt5", "t5", "umt5", "xlnet")
"""Model types that know only how far tokens are from each other, so no table of positions ends."""


def backbone(model: PreTrainedModel) -> nn.Module:
    """The transformer under the head: what turns token ids into `last_hidden_state` [batch, seq, hidden]."""
    return model.base_model


def output_layer(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Weight [vocab, hidden] and bias [vocab] (None where there is none) of a policy's output embeddings.

    Raises:
        ModelFolderError: the model has none, as a reward model has none.
    """
    head: Any = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelFolderError(
            f"{type(model).__name__}: it has no output embeddings, so it is no policy",
            field="architectures",
            value=type(model).__name__,
        )
    return weight, getattr(head, "bias", None)


def score_weight(model: PreTrainedModel) -> Tensor:
    """The scalar head's weight [1, hidden] of a reward or value model.

    Raises:
        ModelFolderError: the architecture's classifier has no `score` layer without bias.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None or head.out_features != 1:
        raise ModelFolderError(
            f"{type(model).__name__}: its head is no `score` layer with one output and no bias",
            field="score",
            value=type(model).__name__,
        )
    weight: Tensor = head.weight
    return weight


def reward_bias(model: PreTrainedModel) -> float:
    """The offset subtracted from every score; 0 for a model that has none."""
    return float(getattr(model.config, "reward_bias", 0.0))


def set_reward_bias(model: PreTrainedModel, bias: float) -> None:
    """Sets the offset, which `loading.save_model` writes to config.json."""
    model.config.reward_bias = float(bias)


def max_sequence_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """Context length: most tokens of one sequence.

    Args:
        model: its configuration names the length.
        tokenizer: its `model_max_length` is asked where the configuration names none. Where that names none either, a
            model whose positions are relative has `UNBOUNDED_TOKENS`. Without a tokenizer the configuration decides.

    Raises:
        ModelFolderError: nothing names a length.
    """
    for key in _CONTEXT_KEYS:
        value = getattr(model.config, key, None)
        if isinstance(value, int) and value > 0:
            return value - _positions_of_padding(model)
    if tokenizer is not None and tokenizer.model_max_length < VERY_LARGE_INTEGER:
        return int(tokenizer.model_max_length)
    if tokenizer is not None and model.config.model_type in _RELATIVE_POSITIONS:
        return UNBOUNDED_TOKENS
    also = "" if tokenizer is None else ", and its tokenizer no model_max_length"
    raise ModelFolderError(
        f"{type(model).__name__}: its configuration has none of {', '.join(_CONTEXT_KEYS)}{also}",
        field="max_position_embeddings",
    )


def _positions_of_padding(model: PreTrainedModel) -> int:
    """Positions that no token can have: models as RoBERTa count from behind the padding's."""
    table = getattr(getattr(backbone(model), "embeddings", None), "position_embeddings", None)
    padding = table.padding_idx if isinstance(table, nn.Embedding) else None
    return 0 if padding is None else padding + 1


def vocab_size(model: PreTrainedModel) -> int:
    """Size of the vocabulary: every token id is below it."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def named_parameter_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Exactly the tensors that a safetensors folder of the model holds, by name, sorted; tied weights once."""
    tied: Iterable[str] = getattr(model, "all_tied_weights_keys", None) or ()
    return {name: tensor for name, tensor in sorted(model.state_dict().items()) if name not in set(tied)}
