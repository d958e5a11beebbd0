"""Knowledge that the miniature's base has from pretraining: the word that ends each sentence of a biography."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab_trainer.miniature.prose import cloze_items

__all__ = ["cloze_accuracy"]


@torch.no_grad()
def cloze_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of the biographies' sentences whose last word is the model's likeliest; all starts are equally long."""
    items = cloze_items()
    starts = [tokenizer.encode(start, add_special_tokens=False) for start, _ in items]
    words = torch.tensor([tokenizer.convert_tokens_to_ids(word) for _, word in items])
    logits = model(torch.tensor(starts, device=model.device)).logits[:, -1]
    return float((logits.argmax(-1).cpu() == words).float().mean())
