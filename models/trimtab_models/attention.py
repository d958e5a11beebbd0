"""Who sees whom in a packed row: the packing's mask narrowed to the sliding window of the layers that have one.

A model that is given a mask of its own uses it as it is, in every layer, and its window is forgotten. Distances are
those of positions, not of columns: an answer behind a shared prompt is nearer to the prompt than its column says.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import Unsupported

__all__ = ["layer_masks"]

_FULL, _SLIDING = "full_attention", "sliding_attention"  # the library's names


def layer_masks(model: PreTrainedModel, allowed: Tensor, position_ids: Tensor) -> Tensor | dict[str, Tensor]:
    """The masks that the model's layers attend under.

    Args:
        model: any of the models of `loading`.
        allowed: bool [batch, 1, seq, seq], true where a query (row) may see a key (column), windows aside.
        position_ids: int64 [batch, seq].

    Returns:
        `allowed` itself where no window cuts into it; its cut form where all layers slide; else one mask for each kind
        of layer, as the library's models with mixed layers take them.

    Raises:
        Unsupported: a layer is neither full nor sliding attention (recurrent, convolutional, chunked): it would carry
            one document into the next, whatever the mask says.
    """
    config = model.config.get_text_config()
    window: int | None = getattr(config, "sliding_window", None)
    # Where layers are mixed the configuration lists them, under one of two names; else a window is every layer's.
    listed = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    kinds = set(listed or [_SLIDING if window else _FULL])
    if not kinds <= {_FULL, _SLIDING}:
        raise Unsupported(
            f"{type(model).__name__}: it has layers of kind {', '.join(sorted(kinds))}; packed rows need "
            f"{_FULL} or {_SLIDING}",
            field="layer_types",
            value=", ".join(sorted(kinds)),
            limit=f"{_FULL}, {_SLIDING}",
        )
    if _SLIDING not in kinds or window is None or allowed.shape[-1] <= window:
        return allowed
    near = allowed & (position_ids[:, None, :, None] - position_ids[:, None, None, :] < window)
    return near if kinds == {_SLIDING} else {_FULL: allowed, _SLIDING: near}
