"""Writes a tiny model, and prints what transformers gives as log-probs of a sequence from its second token on.

Arguments: folder, token ids as JSON. Prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from trimtab_trainer.miniature.tokenizer import save_base


def main(folder: str, token_ids: str) -> None:
    save_base(Path(folder), seed=7)  # not the seed of what the chart publishes
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([json.loads(token_ids)])
    with torch.inference_mode():
        logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    print(json.dumps(logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()))


main(*sys.argv[1:])
