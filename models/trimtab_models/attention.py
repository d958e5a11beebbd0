"""Who sees whom: a mask narrowed to the sliding window of the layers that have one.

A model that is given a mask of its own uses it as it is, in every layer, and its window is forgotten. Distances are
those of positions, not of columns: an answer behind a shared prompt is nearer to the prompt than its column says.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import Unsupported

__all__ = ["SlidingWindow", "layer_masks", "sliding_window"]

_FULL, _SLIDING = "full_attention", "sliding_attention"  # the library's names


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """How far a model's sliding layers see.

    Attributes:
        tokens: positions that a query sees, its own included.
        everywhere: whether all layers slide; else some attend to everything.
    """

    tokens: int
    everywhere: bool


def sliding_window(model: PreTrainedModel) -> SlidingWindow | None:
    """The window of a model's sliding layers, or None where no layer slides.

    Raises:
        Unsupported: a layer is neither full nor sliding attention (recurrent, convolutional, chunked): no mask says
            what it sees, so it would carry one document into the next.
    """
    config = model.config.get_text_config()
    tokens: int | None = getattr(config, "sliding_window", None)
    # Where layers are mixed the configuration lists them, under one of two names; else a window is every layer's.
    listed = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    kinds = set(listed or [_SLIDING if tokens else _FULL])
    if not kinds <= {_FULL, _SLIDING}:
        raise Unsupported(
            f"{type(model).__name__}: it has layers of kind {', '.join(sorted(kinds))}; only {_FULL} and {_SLIDING} "
            "can be masked",
            field="layer_types",
            value=", ".join(sorted(kinds)),
            limit=f"{_FULL}, {_SLIDING}",
        )
    return SlidingWindow(tokens, everywhere=kinds == {_SLIDING}) if tokens and _SLIDING in kinds else None


def layer_masks(
    window: SlidingWindow | None, allowed: Tensor, query_positions: Tensor, key_positions: Tensor
) -> Tensor | dict[str, Tensor]:
    """The masks that a model's layers attend under.

    Args:
        window: of `sliding_window`.
        allowed: bool [batch, 1, queries, keys], true where a query (row) may see a key (column), windows aside. What a
            query may see has consecutive positions that end at its own.
        query_positions: int64 [batch, queries].
        key_positions: int64 [batch, keys], or [1, keys] where they are those of every row.

    Returns:
        `allowed` itself where no window cuts into it; its cut form where all layers slide; else one mask for each kind
        of layer, as the library's models with mixed layers take them.
    """
    if window is None or allowed.shape[-1] <= window.tokens:
        return allowed
    near = allowed & (query_positions[:, None, :, None] - key_positions[:, None, None, :] < window.tokens)
    return near if window.everywhere else {_FULL: allowed, _SLIDING: near}
