"""Evaluation of a policy: what it answers to held-out prompts, and what pretraining text costs it.

Samples are written to DIR/samples/NAME.jsonl, one line an answer: `prompt`, `completion`, `reward`, `kl` (sum of
log pi - log pi_ref over the answer), `ended`, `tokens`. Figures go to DIR/samples/NAME.json. The report reads both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.types import SamplingParams, VersionRequirement
from trimtab_models.tokenizer import decode
from trimtab_trainer.checkpoint import write_file_atomically
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.context import StageContext
from trimtab_trainer.language_modeling import Example, mean_loss
from trimtab_trainer.prompts import PromptExample
from trimtab_trainer.rollouts import Rollout, RolloutPrompt
from trimtab_trainer.services import Services

__all__ = ["evaluate_pretraining", "read_figures", "sample_and_save"]

_SAMPLES_SEED = 0x5A11


def sample_and_save(
    context: StageContext,
    config: PPOConfig,
    services: Services,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[PromptExample],
    version: int,
    name: str,
) -> dict[str, float]:
    """Samples one answer to each held-out prompt from a published version, scores and saves them.

    Returns:
        Means: `held_out_reward`, `held_out_kl`, `held_out_ended_fraction`, `held_out_tokens`.
    """
    batch = [
        RolloutPrompt(str(i), p.token_ids, seed=int(np.random.SeedSequence([_SAMPLES_SEED, i]).generate_state(1)[0]))
        for i, p in enumerate(prompts)
    ]
    sampling = SamplingParams(temperature=config.sampling.temperature, max_new_tokens=config.sampling.max_new_tokens)
    rollouts = services.rollouts.collect(batch, sampling, VersionRequirement(exactly=version), score=True)
    rows = [_row(prompt, rollout, tokenizer) for prompt, rollout in zip(prompts, rollouts, strict=True)]
    folder = context.spec.directory / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_file_atomically(folder / f"{name}.jsonl", lines)
    figures = {
        "held_out_reward": float(np.mean([row["reward"] for row in rows])),
        "held_out_kl": float(np.mean([row["kl"] for row in rows])),
        "held_out_ended_fraction": float(np.mean([row["ended"] for row in rows])),
        "held_out_tokens": float(np.mean([row["tokens"] for row in rows])),
    }
    _add_figures(context, name, figures)
    return figures


def evaluate_pretraining(
    context: StageContext, config: PPOConfig, model: PreTrainedModel, passages: Sequence[Example], name: str
) -> dict[str, float]:
    """Loss on held-out pretraining text, nats per token: its rise is the alignment tax. Nothing for no text."""
    if not passages:
        return {}
    loss = mean_loss(model, passages, micro_batch_tokens=config.micro_batch_tokens)
    _add_figures(context, name, {"pretraining_loss": loss})
    return {"pretraining_loss": loss}


def read_figures(directory: Path) -> dict[str, dict[str, float]]:
    """Figures of every evaluated model of a run, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((directory / "samples").glob("*.json"))}


def _row(prompt: PromptExample, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    reference = rollout.ref_logprobs if rollout.ref_logprobs is not None else rollout.generation_logprobs
    return {
        "prompt": prompt.text,
        "completion": decode(tokenizer, rollout.token_ids),
        "reward": rollout.reward,
        "kl": float((rollout.generation_logprobs - reference).sum()),
        "ended": rollout.ended,
        "tokens": len(rollout.token_ids),
    }


def _add_figures(context: StageContext, name: str, figures: dict[str, float]) -> None:
    path = context.spec.directory / "samples" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    write_file_atomically(path, json.dumps({**known, **figures}, indent=1) + "\n")
