"""Evaluation: what the models of a run answer to held-out prompts, what they forgot, and the claims that follow.

Every model is published, sampled through the generation service and scored by the reward service like any rollout.
Samples go to DIR/samples/NAME.jsonl, one line an answer: `prompt`, `completion`, `reward`, `kl` (sum of
log pi - log pi_ref over the answer, absent for few-shot prompts), `ended`, `tokens`; in the miniature also `gold` and
`hallucinated`, which are computed from prompt and answer alone and which no model was trained on. Figures go to
DIR/samples/NAME.json, summed losses of the held-out passages to DIR/samples/NAME.npz.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import ConfigError
from trimtab.types import SamplingParams, VersionRequirement
from trimtab_models.loading import load_policy, max_sequence_tokens
from trimtab_models.tokenizer import decode, encode_completion, encode_prompt, load_tokenizer
from trimtab_trainer.checkpoint import Snapshot, write_file_atomically
from trimtab_trainer.claim_table import Evaluated, claim_table, figures_of
from trimtab_trainer.config import EvaluateConfig, EvaluatedModel
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.data import read_demonstrations
from trimtab_trainer.examples import first_of
from trimtab_trainer.language_modeling import Example, counted_tokens, example_losses
from trimtab_trainer.optimization import shuffled
from trimtab_trainer.ppo_data import PPOData
from trimtab_trainer.prompts import PromptExample
from trimtab_trainer.rollouts import Rollout, RolloutPrompt
from trimtab_trainer.services import Services

__all__ = ["evaluate", "read_evaluated"]


def evaluate(context: StageContext, config: EvaluateConfig) -> StageResult:
    """Runs the stage: see the module."""
    ppo = context.spec.ppo
    if context.spec.services is None:
        raise ConfigError("services: not set, but evaluate works with services", field="services")
    start = context.resolve_model(ppo.policy, key="ppo.policy")
    reward_folder = context.resolve_model(ppo.reward_model, key="ppo.reward_model")
    tokenizer = load_tokenizer(start)
    seed = context.seed(config.seed)
    data = PPOData.read(context, ppo, tokenizer)
    prompts = first_of(data.held_out, config.prompts, seed=seed, name="evaluate/prompts")
    passages = first_of(data.pretraining_held_out, config.passages, seed=seed, name="evaluate/passages")
    if not prompts:
        raise ConfigError(
            "evaluate: no prompt is held out; set ppo.prompts_held_out or ppo.held_out_fraction",
            field="ppo.held_out_fraction",
            value=ppo.held_out_fraction,
        )
    folders = {name: context.resolve_model(one.model, key=f"models.{name}") for name, one in config.models.items()}
    snapshot = context.checkpoints.load_latest()
    done = snapshot.step if snapshot else 0
    context.reporter.stage_started(context.stage, len(folders), step=done)
    with Services(
        context.spec.services,
        run=context.spec.name,
        stage=context.stage,
        rollout_timeout_s=ppo.rollout_timeout_s,
    ) as services:
        services.check_tokenizers(tokenizer, ["generation"])
        services.serve("reference", start)
        services.serve("reward", reward_folder)
        services.check_tokenizers(tokenizer, ["reference", "reward"])
        for number, (name, folder) in enumerate(folders.items()):
            if number < done:
                continue
            model = load_policy(folder, device=context.spec.device)
            shown = _few_shot(context, config.models[name], tokenizer, model, prompts, seed)
            rollouts = _sample(context, config, services, model, tokenizer, prompts, shown, name)
            _save(context, name, _rows(rollouts, prompts, tokenizer, few_shot=bool(shown)))
            if passages:
                _save_losses(context, name, model, passages, ppo.micro_batch_tokens)
            metrics = _save_figures(context, config, name, model, tokenizer)
            context.after_step(number + 1, len(folders), 1, lambda at=number + 1: Snapshot(at), metrics=metrics)
    evaluated = {name: read_evaluated(context.spec.directory, name) for name in folders}
    claims = claim_table(evaluated, context.results, samples=config.bootstrap_samples, seed=seed)
    metrics = {"claims": float(len(claims)), "claims_that_hold": float(sum(claim.holds for claim in claims))}
    return StageResult(metrics=metrics, details={"claims": [asdict(claim) for claim in claims]})


def read_evaluated(directory: Path, name: str) -> Evaluated:
    """What the stage saved of one model of a run."""
    folder = directory / "samples"
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    by_prompt: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["number"], []).append(row)
    losses = tokens = None
    if (folder / f"{name}.npz").exists():
        with np.load(folder / f"{name}.npz") as saved:
            losses, tokens = saved["losses"], saved["tokens"]
    figures = json.loads((folder / f"{name}.json").read_text()) if (folder / f"{name}.json").exists() else {}
    return Evaluated([by_prompt[number] for number in sorted(by_prompt)], losses, tokens, figures)


def _few_shot(
    context: StageContext,
    config: EvaluatedModel,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    prompts: Sequence[PromptExample],
    seed: int,
) -> list[tuple[int, ...]]:
    """For each prompt the token ids of the demonstrations before it, different ones for each; empty for none.

    Raises:
        ConfigError: so many demonstrations fit before no prompt.
    """
    if not config.demonstrations:
        return []
    path = context.spec.path(context.spec.sft.demonstrations)
    rows = read_demonstrations(path, skip_bad_rows=context.spec.sft.skip_bad_rows, warn=context.warn)
    shots = [(*encode_prompt(tokenizer, row.prompt), *encode_completion(tokenizer, row.completion)) for row in rows]
    most = max_sequence_tokens(model) - context.spec.ppo.sampling.max_new_tokens
    made = []
    for number, prompt in enumerate(prompts):
        room = most - len(prompt.token_ids)
        chosen: list[tuple[int, ...]] = []
        for index in shuffled(len(shots), seed=seed, epoch=number, name="evaluate/few_shot"):
            if len(chosen) < config.demonstrations and sum(map(len, chosen)) + len(shots[index]) <= room:
                chosen.append(shots[index])
        made.append(tuple(token for shot in chosen for token in shot))
    if not any(made):
        raise ConfigError(
            "evaluate.models: no demonstration fits before a prompt in a context of "
            f"{max_sequence_tokens(model)} tokens",
            field="evaluate.models",
            value=config.demonstrations,
        )
    return made


def _sample(
    context: StageContext,
    config: EvaluateConfig,
    services: Services,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[PromptExample],
    shown: Sequence[tuple[int, ...]],
    name: str,
) -> list[Rollout]:
    """Every model draws with seeds of its own, so that equal models do not win or lose by equal draws."""
    version = services.publish(model, tokenizer, step=0)
    own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    seeds = np.random.SeedSequence([context.seed(config.seed), own]).generate_state(len(prompts), np.uint64)
    batch = [
        RolloutPrompt(
            str(number),
            prompt.token_ids,
            seed=int(seeds[number]),
            num_samples=config.samples_per_prompt,
            context=shown[number] if shown else (),
        )
        for number, prompt in enumerate(prompts)
    ]
    ppo = context.spec.ppo.sampling
    sampling = SamplingParams(temperature=ppo.temperature, max_new_tokens=ppo.max_new_tokens)
    return services.rollouts.collect(batch, sampling, VersionRequirement(exactly=version), score=True)


def _rows(
    rollouts: Sequence[Rollout],
    prompts: Sequence[PromptExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    few_shot: bool,
) -> list[dict[str, Any]]:
    rows = []
    for rollout in rollouts:
        number = int(rollout.prompt_id)
        row = {
            "number": number,
            "prompt": prompts[number].text,
            "completion": decode(tokenizer, rollout.token_ids),
            "reward": rollout.reward,
            "ended": rollout.ended,
            "tokens": len(rollout.token_ids),
        }
        if not few_shot and rollout.ref_logprobs is not None:  # a few-shot prompt is not what the reference saw
            row["kl"] = float((rollout.generation_logprobs - rollout.ref_logprobs).sum())
        rows.append(row)
    return rows


def _save(context: StageContext, name: str, rows: list[dict[str, Any]]) -> None:
    if context.spec.miniature is not None:
        from trimtab_trainer.miniature.gold import gold

        for row in rows:
            judged = gold(row["prompt"], row["completion"], finished=row["ended"])
            row |= {"gold": judged.score, "hallucinated": judged.hallucinated}
    folder = context.spec.directory / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_file_atomically(folder / f"{name}.jsonl", lines)


def _save_losses(
    context: StageContext, name: str, model: PreTrainedModel, passages: Sequence[Example], micro_batch_tokens: int
) -> None:
    losses = example_losses(model, passages, micro_batch_tokens=micro_batch_tokens)
    tokens = np.array([counted_tokens([passage]) for passage in passages], np.float64)
    np.savez(context.spec.directory / "samples" / f"{name}.npz", losses=losses, tokens=tokens)


def _save_figures(
    context: StageContext,
    config: EvaluateConfig,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float]:
    directory = context.spec.directory
    evaluated = read_evaluated(directory, name)
    figures = figures_of(evaluated, samples=config.bootstrap_samples, seed=context.seed(config.seed))
    if context.spec.miniature is not None:
        from trimtab_trainer.miniature.cloze import cloze_accuracy

        figures["cloze"] = {"value": cloze_accuracy(model, tokenizer)}
    write_file_atomically(directory / "samples" / f"{name}.json", json.dumps(figures, indent=1) + "\n")
    return {key: figure["value"] for key, figure in figures.items()}
