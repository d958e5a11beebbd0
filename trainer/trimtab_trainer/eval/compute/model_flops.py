"""Sizes of models and the FLOPs of their graphs, by config.json alone: on the meta device nothing is computed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from trimtab_models.anatomy import output_layer
from trimtab_trainer.eval.compute.ledger import ModelSize, Work

__all__ = ["count_flops", "model_size"]


def model_size(folder: Path) -> ModelSize:
    """Parameters of the model in a folder, of which only config.json need be there; tied weights once."""
    model = _skeleton(folder)
    left_out = {id(weight) for weight in _embeddings(model)}
    sizes = {id(weight): weight.numel() for weight in model.parameters()}
    return ModelSize(sum(size for key, size in sizes.items() if key not in left_out), sum(sizes.values()))


def count_flops(folder: Path, work: Work) -> float:
    """FLOPs of the matrix products of some work of a model, counted on one sequence of the work's mean length.

    Attention is counted over the whole square of a sequence, as the kernels that mask it compute it. A recomputed
    forward (gradient checkpointing) is not counted, and generation is counted as one forward: a KV cache spares no
    product, it only spares doing it again.

    Raises:
        RuntimeError: the meta device cannot run the architecture, such as where it looks at a value.
    """
    length = max(1, round(work.tokens / work.sequences))
    predicted = round(length * work.predicted / work.tokens)
    return _count_sequence(folder, length, predicted, work.kind == "training") / length * work.tokens


@cache
def _count_sequence(folder: Path, length: int, predicted: int, training: bool) -> int:
    model = _skeleton(folder)
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    # given and dense: a mask that transformers would make looks at values, which the meta device has none of
    positions, mask = torch.zeros_like(ids), torch.zeros(1, 1, length, length, device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        hidden = model.base_model(
            input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        if predicted:
            hidden = hidden[:, :predicted] @ output_layer(model)[0].T
        if training:
            hidden.sum().backward()
    return counter.get_total_flops()


@cache
def _skeleton(folder: Path) -> PreTrainedModel:
    """The model of a folder without any numbers in it."""
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    kind: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config, attn_implementation="eager")
    return model


def _embeddings(model: PreTrainedModel) -> list[torch.Tensor]:
    """Tables that are looked up, of tokens and of positions, and the output projection."""
    tables: list[torch.Tensor] = [
        one.weight for one in model.base_model.modules() if isinstance(one, torch.nn.Embedding)
    ]
    head: Any = model.get_output_embeddings()
    return [*tables, head.weight] if head is not None else tables
