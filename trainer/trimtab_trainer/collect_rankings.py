"""Rankings for the miniature: answers sampled by the generation service, ranked by openly simulated labelers.

    prompts -> answers at several temperatures (generation) + answers with a known flaw -> rankings ->
    data/rankings.jsonl

The rows have exactly the form in which people's rankings come; from here on nothing knows that nobody was asked.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from trimtab.errors import ConfigError
from trimtab.types import SamplingParams, VersionRequirement
from trimtab_models.loading import load_policy
from trimtab_models.tokenizer import decode, encode_prompt, load_tokenizer
from trimtab_trainer.checkpoint import Snapshot, write_file_atomically
from trimtab_trainer.config import CollectRankingsConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.data import read_prompts
from trimtab_trainer.data.splits import HELD_OUT_GROUP
from trimtab_trainer.evaluation import labeler_agreement
from trimtab_trainer.miniature.demonstrations import corruptions
from trimtab_trainer.miniature.labelers import Labeler, labelers_for, make_labelers, oracle, ranking_row, ranks_of
from trimtab_trainer.miniature.world import parse_prompt
from trimtab_trainer.rollouts import Rollout, RolloutPrompt, token_counts
from trimtab_trainer.services import Services, connect

__all__ = ["collect"]

_ORACLE_ROWS = 1000
"""Rankings that the oracle is measured on: enough for three digits."""


def collect(context: StageContext, config: CollectRankingsConfig) -> StageResult:
    """Runs the stage: see the module."""
    if context.spec.miniature is None:
        raise ConfigError("collect_rankings: its labelers know the miniature only", field="miniature")
    folder = context.resolve_model(config.model, key="model")
    tokenizer = load_tokenizer(folder)
    prompts = [str(row.prompt) for row in read_prompts(context.spec.path(config.prompts))][: config.limit]
    labelers = make_labelers(context.spec.miniature.seed)
    parts = [prompts[i : i + config.prompts_per_request] for i in range(0, len(prompts), config.prompts_per_request)]
    snapshot = context.checkpoints.load_latest()
    done = snapshot.step if snapshot else 0

    context.reporter.stage_started(context.stage, len(parts), step=done)
    with connect(context, rollout_timeout_s=config.timeout_s) as services:
        services.check_tokenizers(tokenizer, ["generation"])
        version = services.publish(load_policy(folder, device=context.spec.device), tokenizer, step=0)
        for number in range(done, len(parts)):
            answers, counts = _answers(services, config, tokenizer, parts[number], number, version, context.spec.seed)
            rows = [
                _rank(prompt, texts, config, labelers, context.spec.seed)
                for prompt, texts in zip(parts[number], answers, strict=True)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_file_atomically(_part(context, number), text)
            agree, pairs = labeler_agreement(_ranks(rows))
            context.after_step(
                number + 1,
                len(parts),
                1,
                lambda step=number + 1: Snapshot(step),
                metrics={
                    "labeler_agreement": agree,
                    "agreement_pairs": pairs,
                    "answers": float(np.mean([len(row["answers"]) for row in rows])),
                    **counts,
                },
            )

    texts = [_part(context, number).read_text() for number in range(len(parts))]
    rankings = context.spec.directory / "data" / "rankings.jsonl"
    write_file_atomically(rankings, "".join(texts))
    rows = [json.loads(line) for line in "".join(texts).splitlines()]
    agree, pairs = labeler_agreement(_ranks(rows))
    metrics = {"rankings": float(len(rows)), "labeler_agreement": agree, "agreement_pairs": float(pairs)}
    return StageResult(metrics={**metrics, "oracle": oracle(rows[:_ORACLE_ROWS], group="training")})


def _answers(
    services: Services,
    config: CollectRankingsConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    part: int,
    version: int,
    seed: int,
) -> tuple[list[list[tuple[str, bool]]], dict[str, float]]:
    """For each prompt its sampled answers as (text, whether it ended by itself), at each temperature; token counts."""
    answers: list[list[tuple[str, bool]]] = [[] for _ in prompts]
    batch: list[RolloutPrompt] = []
    sampled: list[Rollout] = []
    for group, at in enumerate(config.answers):
        batch = [
            RolloutPrompt(
                str(index),
                tuple(encode_prompt(tokenizer, prompt)),
                seed=int(np.random.SeedSequence([seed, part, group, index]).generate_state(1, np.uint64)[0]),
                num_samples=at.count,
            )
            for index, prompt in enumerate(prompts)
        ]
        sampling = SamplingParams(temperature=at.temperature, max_new_tokens=config.max_new_tokens)
        rollouts = services.rollouts.collect(batch, sampling, VersionRequirement(exactly=version), score=False)
        for rollout in rollouts:
            answers[int(rollout.prompt_id)].append((decode(tokenizer, rollout.token_ids), rollout.ended))
        sampled += rollouts
    return answers, token_counts(batch, sampled)  # at every temperature the prompts are the same


def _rank(
    prompt: str,
    sampled: Sequence[tuple[str, bool]],
    config: CollectRankingsConfig,
    labelers: Sequence[Labeler],
    seed: int,
) -> dict[str, Any]:
    parsed = parse_prompt(prompt)
    flawed = corruptions(random.Random(f"{seed}/{prompt}"), parsed, count=config.corrupted_answers)
    candidates = [*sampled, *((text, True) for text in flawed)]
    if config.reference_answer:
        candidates.append((parsed.reference(), True))
    unique = dict(reversed([(text, ended) for text, ended in candidates if text.strip()]))
    answers = list(reversed(unique))
    training, held_out = ([one for one in labelers if one.group == group] for group in ("training", HELD_OUT_GROUP))
    chosen = [
        *labelers_for(prompt, training, config.labelers_per_prompt),
        *(labelers_for(prompt, held_out, held) if (held := config.held_out_labelers_per_prompt) else ()),
    ]
    return ranking_row(prompt, answers, chosen, finished=[unique[answer] for answer in answers])


def _ranks(rows: Sequence[dict[str, Any]]) -> list[list[list[int]]]:
    return [[ranks_of(label["ranking"]) for label in row["labels"]] for row in rows]


def _part(context: StageContext, number: int) -> Path:
    folder = context.spec.directory / "data" / "rankings"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"part-{number:05d}.jsonl"
