"""What the tests of models beside one another share: folders with room for long prompts, real data, commands."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import click
import torch
from click.testing import CliRunner

from tiny_models import make_policy, make_tokenizer
from trimtab_models.loading import load_policy, save_model
from trimtab_models.tokenizer import load_tokenizer

__all__ = ["direct_logprob", "found_by", "model_folder", "unloadable_folder", "write_rows"]


def model_folder(folder: Path, *, seed: int) -> Path:
    """A policy of random weights whose context holds 4,096 tokens; its tokenizer has no chat template."""
    tokenizer = make_tokenizer(template=False)
    model = make_policy("llama", len(tokenizer), seed=seed)
    model.config.max_position_embeddings = 4096
    save_model(model, tokenizer, folder)
    return folder


def unloadable_folder(folder: Path) -> Path:
    """A folder of which a service cannot load the weights: whatever is told before that was found without any model."""
    model_folder(folder, seed=0)
    for weights in folder.glob("*.safetensors"):
        weights.write_bytes(b"no tensors")
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def found_by(command: click.Command, *arguments: object) -> dict[str, Any]:
    """The figures that a command prints."""
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.strip().splitlines()[-1])


def direct_logprob(folder: Path, context: str, text: str) -> float:
    """Log-prob of a text behind a context by transformers alone; without context behind the EOS, as lm-eval has it."""
    tokenizer, model = _loaded(folder)
    ids = tokenizer(context + text)["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    if not context:
        ids, start = [tokenizer.eos_token_id, *ids], 1
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    return sum(logprobs[i - 1, ids[i]].item() for i in range(start, len(ids)))


@functools.cache
def _loaded(folder: Path) -> tuple[Any, Any]:
    return load_tokenizer(folder), load_policy(folder)
