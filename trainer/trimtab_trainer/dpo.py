"""Direct preference optimisation: rankings -> a policy, without a reward model and without sampling; PPO's baseline.

    rankings of `reward_model` -> log-probs of the reference (asked once, on disk) -> loss over pairs -> publish

It starts from the model that it is compared with, as PPO does, and learns from the rankings that PPO's reward model
learnt from: of several disjoint members those of the first. Where `reward_model` maximises log sigmoid(r_i - r_j), here
r = beta * (log pi(y | x) - log pi_ref(y | x)) (Rafailov et al. 2023, arXiv 2305.18290), or its squared variant (IPO).

Collaborators: `dpo_reference` asks the reference and keeps what it said; `dpo_pairs` packs a prompt with its answers,
and counts; `losses` has the formulas; `reward_model` reads the rankings. None of them knows this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import Mismatch
from trimtab_models.loading import load_policy, max_sequence_tokens
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.checkpoint import Snapshot
from trimtab_trainer.config import DPOConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.distributed import on_every_rank, save_whole, shard
from trimtab_trainer.dpo_pairs import ReferencedExample, logprobs_of, pair_figures, train_on_pairs
from trimtab_trainer.dpo_reference import Reference, reference_logprobs
from trimtab_trainer.examples import RankingExample, Reading, said_by
from trimtab_trainer.optimization import (
    Learner,
    in_evaluation,
    make_learner,
    prepare_for_training,
    seed_step,
    shuffled,
)
from trimtab_trainer.reward_model import example_tensors, parts_of_members, read_rankings_of
from trimtab_trainer.reward_model_accuracy import measure_scores
from trimtab_trainer.services import Services, connect

__all__ = ["train"]

_LARGEST_DIFFERENCE = {"float32": 2e-3, "bfloat16": 0.1}
"""Nats a token of an answer by which trainer and reference may differ before the first step."""


@dataclass(frozen=True)
class _Data:
    """Prompts with what the reference says of their answers: to train on, and held out."""

    train: list[ReferencedExample]
    held_out: list[ReferencedExample]


def train(context: StageContext, config: DPOConfig) -> StageResult:
    """Runs the stage: see the module.

    Raises:
        ConfigError: no decided ranking is left to train on.
        Mismatch: the reference service has another model than `policy`, log-probs of trainer and reference differ, or
            the stage's checkpoint was made with another reference.
    """
    folder = context.resolve_model(config.policy, key="policy")
    tokenizer = load_tokenizer(folder)
    model = shard(load_policy(folder), context.device)
    reference = Reference.of(folder, tokenizer)
    snapshot = context.checkpoints.load_latest() or Snapshot(0, state={"reference": reference.weights, "epochs": {}})
    _check_resumed(reference, snapshot)
    with connect(context, rollout_timeout_s=config.reference_timeout_s) as services:
        data = _read(context, config, services, reference, model, tokenizer)
        epochs = _train(context, config, model, tokenizer, data, snapshot)
        version = services.publish(model, tokenizer, step=_steps(config, data), name="trained")
    return _result(context, config, model, data, epochs, version)


def _read(
    context: StageContext,
    config: DPOConfig,
    services: Services,
    reference: Reference,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> _Data:
    """The rankings of the reward model, those of its first member where members share them out, with log-probs."""
    section = context.spec.reward_model
    reading = Reading.of(context, section, tokenizer, max_sequence_tokens(model), section="reward_model")
    rankings, held_out = read_rankings_of(context, section, reading)
    rankings = parts_of_members(rankings, section)[0]
    logprobs = reference_logprobs(
        context,
        services,
        reference,
        [*rankings, *held_out],
        cache=context.spec.path(config.cache),
        timeout_s=config.reference_timeout_s,
    )
    referenced = [ReferencedExample(*pair) for pair in zip([*rankings, *held_out], logprobs, strict=True)]
    return _Data(referenced[: len(rankings)], referenced[len(rankings) :])


def _train(
    context: StageContext,
    config: DPOConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: _Data,
    snapshot: Snapshot,
) -> Mapping[str, Mapping[str, float]]:
    """Trains the model from the snapshot to the end; returns the held-out figures of each epoch."""
    prepare_for_training(model, gradient_checkpointing=context.spec.gradient_checkpointing)
    total = _steps(config, data)
    learner = make_learner(model, config.optimizer, total_steps=total, precision=context.spec.precision)
    seed = context.seed(config.seed)
    context.reporter.stage_started(context.stage, total, step=snapshot.step)
    if snapshot.step:
        learner.restore(snapshot.saved)
    else:
        _check_start(context, config, learner, _batch(data.train, config.batch_size, 0, seed))
    state: dict[str, Any] = dict(snapshot.state)
    for step in range(snapshot.step, total):
        batch = _batch(data.train, config.batch_size, step, seed)
        seed_step(seed, step)
        with context.saving_batch(step + 1, lambda examples=batch: example_tensors([one.ranking for one in examples])):
            figures = train_on_pairs(learner, batch, config)
            update = learner.update()
        metrics = {
            **figures,
            "learning_rate": update.learning_rate,
            "gradient_norm": update.gradient_norm,
            "tokens": float(sum(len(answer) for example in batch for answer in example.ranking.answers)),
            "tokens_trained": float(sum(example.tokens for example in batch)),
            "sequences_trained": float(len(batch)),
        }
        epoch, rest = divmod(step + 1, total // config.epochs)
        if rest == 0:
            held_out = _held_out_figures(context, config, model, data.held_out)
            save_whole(model, tokenizer, context.models / f"epoch-{epoch}")
            state["epochs"] = {**state["epochs"], f"epoch-{epoch}": held_out}
            metrics |= {**held_out, "tokens_evaluated": float(sum(example.tokens for example in data.held_out))}
        context.after_step(
            step + 1,
            total,
            config.checkpoint_every,
            lambda done=step + 1: Snapshot(done, state=state, parts=[learner]),
            metrics=metrics,
        )
    in_evaluation(model)
    return state["epochs"]


def _check_resumed(reference: Reference, snapshot: Snapshot) -> None:
    if snapshot.state["reference"] != reference.weights:
        raise Mismatch(
            f"dpo.policy: {reference.folder} has weights {reference.weights} now; the stage's checkpoint at step "
            f"{snapshot.step} was trained against {snapshot.state['reference']}. Put that model back, or start a new "
            "run in another folder",
            field="dpo.policy",
            value=reference.weights,
            limit=snapshot.state["reference"],
        )


def _check_start(
    context: StageContext, config: DPOConfig, learner: Learner, batch: Sequence[ReferencedExample]
) -> None:
    """Before the first step the policy is the reference, so both must give the same answers the same log-probs.

    Raises:
        Mismatch: they differ by more than `gate_tolerance`, as a mean over the tokens of an answer.
    """
    own = _logprobs_as_trained([example.ranking for example in batch], learner, config)
    differences = [
        np.abs(logprobs.numpy() - example.ref_logprobs) / [len(answer) for answer in example.ranking.answers]
        for logprobs, example in zip(own, batch, strict=True)
    ]
    found = float(np.concatenate(differences).max())
    limit = _LARGEST_DIFFERENCE[context.spec.precision] if config.gate_tolerance is None else config.gate_tolerance
    if not found <= limit:
        raise Mismatch(
            f"log-probs of reference and trainer differ by up to {found:.3g} nats a token on the same answers; allowed "
            f"by dpo.gate_tolerance: {limit:g}. Training on this would optimise the difference",
            field="dpo.gate_tolerance",
            value=found,
            limit=limit,
        )


@on_every_rank
def _logprobs_as_trained(rankings: Sequence[RankingExample], learner: Learner, config: DPOConfig) -> list[Tensor]:
    with learner.autocast():
        return logprobs_of(learner.model, rankings, micro_batch_tokens=config.micro_batch_tokens)


def _held_out_figures(
    context: StageContext, config: DPOConfig, model: PreTrainedModel, held_out: Sequence[ReferencedExample]
) -> dict[str, float]:
    """Loss, accuracy and margin over the decided pairs of what was held out, of the labelers that are learnt from."""
    groups = context.spec.reward_model.groups_trained_on
    of_groups = [replace(example, ranking=said_by(example.ranking, groups)) for example in held_out]
    decided = [example for example in of_groups if example.ranking.decided]
    if not decided:
        return {}
    rankings = [example.ranking for example in decided]
    logprobs = logprobs_of(model, rankings, micro_batch_tokens=config.micro_batch_tokens)
    figures = pair_figures(decided, logprobs, config)
    return {f"held_out_{name}": figures[name] for name in ("loss", "accuracy", "reward_margin")}


def _result(
    context: StageContext,
    config: DPOConfig,
    model: PreTrainedModel,
    data: _Data,
    epochs: Mapping[str, Mapping[str, float]],
    version: int,
) -> StageResult:
    """The last epoch's model, and what its implicit reward is worth beside two rules that know no preference."""
    rankings = [example.ranking for example in data.held_out]
    logprobs = [one.numpy() for one in logprobs_of(model, rankings, micro_batch_tokens=config.micro_batch_tokens)]
    references = [example.ref_logprobs for example in data.held_out]
    scores = {
        "accuracy": [config.beta * (own - ref) for own, ref in zip(logprobs, references, strict=True)],
        "likelier_wins": logprobs,
        "likelier_wins_before": references,
    }
    metrics, details = measure_scores(
        context,
        context.spec.reward_model,
        rankings,
        {name: [one.tolist() for one in values] for name, values in scores.items()},
    )
    last = f"epoch-{config.epochs}"
    read = [*data.train, *data.held_out]
    counts = {
        "rankings": float(len(data.train)),
        "rankings_held_out": float(len(data.held_out)),
        "tokens_referenced": float(sum(map(_read_alone, read))),
        "answer_tokens_referenced": float(sum(len(answer) for example in read for answer in example.ranking.answers)),
        "sequences_referenced": float(sum(len(example.ranking.answers) for example in read)),
        "tokens_evaluated": float(sum(example.tokens for example in data.held_out)),
    }
    return StageResult(
        model=context.relative(context.models / last),
        metrics={**counts, **epochs[last], **metrics},
        details={"epochs": epochs, **details},
        version=version,
    )


def _read_alone(example: ReferencedExample) -> int:
    """Tokens that the reference reads, which is asked about each answer apart."""
    ranking = example.ranking
    return sum(len(ranking.prompt) + len(answer) for answer in ranking.answers)


def _steps(config: DPOConfig, data: _Data) -> int:
    return math.ceil(len(data.train) / config.batch_size) * config.epochs


def _batch(examples: Sequence[ReferencedExample], size: int, step: int, seed: int) -> list[ReferencedExample]:
    """The prompts of a step: a slice of its epoch's order."""
    epoch, position = divmod(step, math.ceil(len(examples) / size))
    order = shuffled(len(examples), seed=seed, epoch=epoch, name="dpo")
    return [examples[index] for index in order[position * size : (position + 1) * size]]
