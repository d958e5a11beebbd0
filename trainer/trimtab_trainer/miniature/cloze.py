"""Knowledge that the miniature's base has from pretraining: the word that ends each sentence of a biography."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab_trainer.distributed import apply, on_every_rank
from trimtab_trainer.miniature.prose import cloze_items

__all__ = ["cloze_accuracy"]


def cloze_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of the biographies' sentences whose last word is the model's likeliest; all starts are equally long."""
    items = cloze_items()
    starts = [tokenizer.encode(start, add_special_tokens=False) for start, _ in items]
    words = torch.tensor([tokenizer.convert_tokens_to_ids(word) for _, word in items])
    return float((_likeliest_next(model, torch.tensor(starts)) == words).float().mean())


@on_every_rank
@torch.no_grad()
def _likeliest_next(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    return apply(model, _last_logits, input_ids.to(next(model.parameters()).device)).argmax(-1).cpu()


def _last_logits(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=input_ids).logits
    return logits[:, -1]
