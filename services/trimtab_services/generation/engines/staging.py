"""New weights for a model that serves: checked, copied and tried on a prompt before anyone samples from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.errors import CorruptData, Mismatch, Reason
from trimtab_models.loading import vocab_size

__all__ = ["canary_token_ids", "model_tensors", "staged_copy"]

_CANARY_TOKENS = 16


def canary_token_ids(model: PreTrainedModel) -> list[int]:
    """The fixed prompt that new weights are tried on: ids spread evenly over the vocabulary."""
    return [i * vocab_size(model) // _CANARY_TOKENS for i in range(_CANARY_TOKENS)]


def model_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's tensors by name, each once: of names tied to one tensor the first one counts."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def staged_copy(model: PreTrainedModel, version: int, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """A second model with these weights, on the device of the first; the first is not touched.

    The tensors are copied, so the caller may go on writing to its own. Floating-point ones are rounded to the dtype of
    the first model's, as its own were when it was loaded: a store may hold more bits than a replica serves.

    Args:
        model: the model that serves.
        version: named in errors.
        tensors: by the names of `model_tensors`; all of them and no other. A name tied to one of them may come too
            when its values are the same.

    Raises:
        Mismatch: a tensor is missing, unknown, has another shape, or another dtype with one of both not floating-point.
        CorruptData: a tensor, as rounded, or the logits of the canary prompt hold NaN or infinity (reason NOT_FINITE).
    """
    expected = model_tensors(model)
    _check_names(model, expected, tensors, version)
    replacements: dict[int, object] = {}
    for name, old in expected.items():
        new = tensors[name]
        _check_tensor(name, old, new, version)
        moved = new.detach().to(old.device, old.dtype, copy=True)
        if not torch.isfinite(moved).all():
            raise CorruptData(
                f"tensor {name} of version {version} holds NaN or infinity as {old.dtype}",
                reason=Reason.NOT_FINITE,
                field=name,
                value="not finite",
                limit="finite values",
            )
        replacements[id(old)] = nn.Parameter(moved, requires_grad=False) if isinstance(old, nn.Parameter) else moved
    # The memo makes deepcopy put the new tensors where the old ones were, ties included, without copying the old.
    staged = copy.deepcopy(model, memo=replacements)
    _canary(staged, version)
    return staged


def _check_names(
    model: PreTrainedModel, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], version: int
) -> None:
    """Every expected name, nothing unknown, and no tied name with values of its own."""
    missing = sorted(expected.keys() - tensors.keys())
    all_names = model.state_dict(keep_vars=True)
    extra = sorted(tensors.keys() - all_names.keys())
    for what, names in (("lacks", missing), ("has the unknown", extra)):
        if names:
            raise Mismatch(
                f"version {version} {what} tensor {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else ""),
                field=names[0],
                value=len(tensors),
                limit=len(expected),
            )
    owners = {id(tensor): name for name, tensor in expected.items()}
    for name in tensors.keys() - expected.keys():
        owner = owners[id(all_names[name])]
        if not torch.equal(tensors[name], tensors[owner]):
            raise Mismatch(
                f"version {version} has different values for {name} and {owner}, which the model ties",
                field=name,
                value="untied",
                limit=f"equal to {owner}",
            )


def _check_tensor(name: str, old: Tensor, new: Tensor, version: int) -> None:
    """Same shape; same dtype, or one floating-point dtype instead of another."""
    is_rounded = new.is_floating_point() and old.is_floating_point()
    for what, found, allowed in (
        ("shape", tuple(new.shape), tuple(old.shape)),
        ("dtype", new.dtype, new.dtype if is_rounded else old.dtype),
    ):
        if found != allowed:
            raise Mismatch(
                f"tensor {name} of version {version} has {what} {found}; the model has {allowed}",
                field=name,
                value=found,
                limit=allowed,
            )


@torch.inference_mode()
def _canary(model: PreTrainedModel, version: int) -> None:
    """Finite logits on the canary prompt."""
    ids = torch.tensor([canary_token_ids(model)], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise CorruptData(
            f"version {version} gives logits that are not finite on the canary prompt",
            reason=Reason.NOT_FINITE,
            field="logits",
            value="not finite",
            limit="finite values",
        )
