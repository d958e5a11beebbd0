"""Evaluation: what the models of a run answer to held-out prompts, what they forgot, and the claims that follow.

Every model is published, sampled through the generation service and scored by the reward service like any rollout.
Samples go to DIR/samples/NAME.jsonl, one line an answer: `prompt`, `completion`, `reward`, `kl` (sum of
log pi - log pi_ref over the answer, absent for few-shot prompts), `ended`, `tokens`, `token_ids`; with a judge also
`judge`, the reward by a model that no policy was optimised against; in the miniature also `gold` and `hallucinated`,
computed from prompt and answer alone, which no model was trained on. Figures go to DIR/samples/NAME.json, summed losses
of the held-out passages to DIR/samples/NAME.npz.

Over several ranks each computes the losses of its share of the passages; services and files are rank 0's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import ConfigError
from trimtab_models.loading import load_policy, max_sequence_tokens
from trimtab_models.tokenizer import decode
from trimtab_trainer.checkpoint import Snapshot, write_file_atomically
from trimtab_trainer.claim_table import Evaluated, claim_table, figures_of, preference
from trimtab_trainer.config import EvaluateConfig, EvaluatedModel
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.data import Demonstration, read_demonstrations
from trimtab_trainer.distributed import shard
from trimtab_trainer.examples import few_shot_prompt, first_of
from trimtab_trainer.held_out_answers import AnswerSampler, answer_sampler
from trimtab_trainer.language_modeling import Example, counted_tokens, example_losses, read_tokens
from trimtab_trainer.miniature.cloze import cloze_accuracy
from trimtab_trainer.miniature.gold import gold
from trimtab_trainer.optimization import shuffled
from trimtab_trainer.prompts import PromptExample
from trimtab_trainer.rollouts import Rollout

__all__ = ["evaluate", "read_evaluated"]

_BASELINE = "sft"
"""What every other model's answers are compared with."""
_TRIED = 50
"""Demonstrations tried for a prompt, in its own order, before it goes without those that do not fit."""


def evaluate(context: StageContext, config: EvaluateConfig) -> StageResult:
    """Runs the stage: see the module."""
    seed = context.seed(config.seed)
    folders = {name: context.resolve_model(one.model, key=f"models.{name}") for name, one in config.models.items()}
    judge = context.resolve_model(config.judge, key="judge") if config.judge is not None else None
    steps = len(folders) + (judge is not None)
    snapshot = context.checkpoints.load_latest()
    done = snapshot.step if snapshot else 0
    context.reporter.stage_started(context.stage, steps, step=done)
    with answer_sampler(context, seed=config.seed) as sampler:
        prompts = sampler.prompts(config.prompts)
        passages = first_of(sampler.data.pretraining_held_out, config.passages, seed=seed, name="evaluate/passages")
        for number, (name, folder) in enumerate(folders.items()):
            if number < done:
                continue
            model = shard(load_policy(folder), context.device)
            shown = _few_shot(context, config.models[name], sampler, model, prompts, seed)
            rollouts, counts = sampler.sample(
                model, prompts, name=name, samples_per_prompt=config.samples_per_prompt, shown=shown
            )
            _save_answers(context, name, _rows(context, rollouts, prompts, sampler.tokenizer, few_shot=bool(shown)))
            if passages:
                counts |= _save_losses(context, name, model, passages)
            metrics = _save_figures(context, config, name, model, sampler.tokenizer) | counts
            context.after_step(number + 1, steps, 1, lambda at=number + 1: Snapshot(at), metrics=metrics)
        if judge is not None and done < steps:
            metrics = _judge(context, config, sampler, judge, prompts)
            context.after_step(steps, steps, 1, lambda: Snapshot(steps), metrics=metrics)
    evaluated = {name: read_evaluated(context.spec.directory, name) for name in folders}
    _compare_with_baseline(context, config, evaluated)
    start = _start_of_ppo(context, config, folders)
    claims = claim_table(evaluated, context.results, samples=config.bootstrap_samples, seed=seed, start=start)
    metrics = {"claims": float(len(claims)), "claims_that_hold": float(sum(claim.holds for claim in claims))}
    return StageResult(metrics=metrics, details={"claims": [asdict(claim) for claim in claims]})


def _compare_with_baseline(context: StageContext, config: EvaluateConfig, evaluated: Mapping[str, Evaluated]) -> None:
    """Adds to the figures of every other model how often it is preferred to the baseline, where that is evaluated."""
    if (baseline := evaluated.get(_BASELINE)) is None:
        return
    seed = context.seed(config.seed)
    for name in evaluated.keys() - {_BASELINE}:
        _, found = preference(evaluated[name], baseline, samples=config.bootstrap_samples, seed=seed)
        figure = {"value": found.value, "low": found.low, "high": found.high}
        _add_figures(context, config, name, {f"preferred_to_{_BASELINE}": figure})


def _start_of_ppo(context: StageContext, config: EvaluateConfig, folders: Mapping[str, Path]) -> str | None:
    """The evaluated model that is PPO's start; None when it is none of them."""
    policy = context.resolve_model(context.spec.ppo.policy, key="ppo.policy")
    return next(
        (name for name, folder in folders.items() if folder == policy and not config.models[name].demonstrations), None
    )


def read_evaluated(directory: Path, name: str) -> Evaluated:
    """What the stage saved of one model of a run."""
    folder = directory / "samples"
    rows = _read_answers(directory, name)
    by_prompt: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["number"], []).append(row)
    losses = tokens = None
    if (folder / f"{name}.npz").exists():
        with np.load(folder / f"{name}.npz") as saved:
            losses, tokens = saved["losses"], saved["tokens"]
    figures = json.loads((folder / f"{name}.json").read_text()) if (folder / f"{name}.json").exists() else {}
    return Evaluated([by_prompt[number] for number in sorted(by_prompt)], losses, tokens, figures)


def _read_answers(directory: Path, name: str) -> list[dict[str, Any]]:
    lines = (directory / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _few_shot(
    context: StageContext,
    config: EvaluatedModel,
    sampler: AnswerSampler,
    model: PreTrainedModel,
    prompts: Sequence[PromptExample],
    seed: int,
) -> list[tuple[int, ...]]:
    """What the sampler sees of each prompt: demonstrations before it, different ones for each; empty for none.

    Like SFT it is shown none that has more than `sft.max_tokens`.

    Raises:
        ConfigError: a demonstration fits before no prompt.
    """
    if not config.demonstrations:
        return []
    tokenizer = sampler.tokenizer
    path = context.spec.path(context.spec.sft.demonstrations)
    rows = [
        row
        for row in read_demonstrations(path, skip_bad_rows=context.spec.sft.skip_bad_rows, warn=context.warn)
        if row.group not in context.spec.sft.held_out_groups
    ]
    context_length = max_sequence_tokens(model)
    served = sampler.services.longest_sequence("generation") or context_length
    most = min(context_length, served) - context.spec.ppo.sampling.max_new_tokens
    longest = context.spec.sft.max_tokens or context_length
    made, shown = [], 0
    for number, prompt in enumerate(prompts):
        order = shuffled(len(rows), seed=seed, epoch=number, name="evaluate/few_shot")
        chosen: list[Demonstration] = []
        ids = prompt.token_ids
        for index in order[:_TRIED]:
            longer = few_shot_prompt(tokenizer, [*chosen, rows[index]], prompt.prompt)
            if len(longer) <= min(most, len(ids) + longest):
                chosen, ids = [*chosen, rows[index]], longer
            if len(chosen) == config.demonstrations:
                break
        shown += len(chosen)
        made.append(ids)
    if not shown:
        raise ConfigError(
            f"evaluate.models: no demonstration fits before a prompt in {most} tokens",
            field="evaluate.models",
            value=config.demonstrations,
            limit=most,
        )
    return made


def _rows(
    context: StageContext,
    rollouts: Sequence[Rollout],
    prompts: Sequence[PromptExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    few_shot: bool,
) -> list[dict[str, Any]]:
    rows = []
    for rollout in rollouts:
        number = int(rollout.prompt_id)
        row: dict[str, Any] = {
            "number": number,
            "prompt": prompts[number].text,
            "completion": decode(tokenizer, rollout.token_ids),
            "reward": rollout.known_reward,
            "ended": rollout.ended,
            "tokens": len(rollout.token_ids),
            "token_ids": list(rollout.token_ids),
        }
        if not few_shot:  # a few-shot prompt is not what the reference saw
            row["kl"] = float((rollout.generation_logprobs - rollout.known_ref_logprobs).sum())
        if context.spec.miniature is not None:
            judged = gold(row["prompt"], row["completion"], finished=row["ended"])
            row |= {"gold": judged.score, "hallucinated": judged.hallucinated}
        rows.append(row)
    return rows


def _save_answers(context: StageContext, name: str, rows: list[dict[str, Any]]) -> None:
    folder = context.spec.directory / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_file_atomically(folder / f"{name}.jsonl", lines)


def _judge(
    context: StageContext,
    config: EvaluateConfig,
    sampler: AnswerSampler,
    judge: Path,
    prompts: Sequence[PromptExample],
) -> dict[str, float]:
    """Has another reward model served and score every answer by its token ids; adds `judge` to rows and figures.

    Returns:
        The mean of each model, and `tokens_scored` and `sequences_scored` of all their answers.
    """
    sampler.services.serve("reward", judge)
    sampler.services.check_tokenizers(sampler.tokenizer, ["reward"])
    means = {}
    tokens = sequences = 0
    for name in config.models:
        rows = _read_answers(context.spec.directory, name)
        asked = [
            Rollout(
                prompt_id=str(row["number"]),
                sample_index=0,
                prompt_token_ids=prompts[row["number"]].token_ids,
                token_ids=tuple(row["token_ids"]),
                generation_logprobs=np.zeros(0, np.float32),
                ended=row["ended"],
                version_spans=(),
            )
            for row in rows
        ]
        for row, reward in zip(rows, sampler.services.rollouts.rewards(asked), strict=True):
            row["judge"] = reward
        _save_answers(context, name, rows)
        figures = _add_figures(context, config, name, {})
        means[f"judge_{name}"] = figures["judge"]["value"]
        tokens += sum(len(one.prompt_token_ids) + len(one.token_ids) for one in asked)
        sequences += len(asked)
    return {**means, "tokens_scored": float(tokens), "sequences_scored": float(sequences)}


def _save_losses(
    context: StageContext, name: str, model: PreTrainedModel, passages: Sequence[Example]
) -> dict[str, float]:
    """Writes samples/NAME.npz; returns `tokens_evaluated` and `sequences_evaluated`."""
    losses = example_losses(model, passages, micro_batch_tokens=context.spec.ppo.micro_batch_tokens)
    tokens = np.array([counted_tokens([passage]) for passage in passages], np.float64)
    np.savez(context.spec.directory / "samples" / f"{name}.npz", losses=losses, tokens=tokens)
    return {"tokens_evaluated": float(read_tokens(passages)), "sequences_evaluated": float(len(passages))}


def _save_figures(
    context: StageContext,
    config: EvaluateConfig,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float]:
    more: dict[str, dict[str, float]] = {}
    if context.spec.miniature is not None:
        more["cloze"] = {"value": cloze_accuracy(model, tokenizer)}
    figures = _add_figures(context, config, name, more)
    return {key: figure["value"] for key, figure in figures.items()}


def _add_figures(
    context: StageContext, config: EvaluateConfig, name: str, more: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Writes samples/NAME.json from the answers, with figures that are known otherwise; those of before stay."""
    evaluated = read_evaluated(context.spec.directory, name)
    found = figures_of(evaluated, samples=config.bootstrap_samples, seed=context.seed(config.seed))
    figures = {**evaluated.figures, **found, **more}
    write_file_atomically(context.spec.directory / "samples" / f"{name}.json", json.dumps(figures, indent=1) + "\n")
    return figures
