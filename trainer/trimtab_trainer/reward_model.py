"""Stage 2, the reward model: rankings -> a scalar score, with the demonstrations' mean as its zero.

One prompt with K ranked answers is one batch element: its answers are packed behind the prompt, which is read once, and
all pairs of the ranking enter the loss together (InstructGPT 3.5, equation 1; C.2). One epoch, since more overfits. The
offset is set afterwards so that demonstrations have mean reward 0, and lives in `config.json` as `reward_bias`.

The accuracy on rankings that were held out comes with a bootstrap interval over prompts, for each labeler group, and
beside the rule "the longer answer wins", which a reward model must beat.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import ConfigError
from trimtab_models.heads import hidden_states, scores_of
from trimtab_models.loading import (
    load_reward_model,
    max_sequence_tokens,
    reward_model_from_policy,
    save_model,
    set_reward_bias,
)
from trimtab_models.packing import pack_shared_prompts
from trimtab_models.tokenizer import check_same_tokenizer, load_tokenizer
from trimtab_trainer.checkpoint import Snapshot, capture_random_state, restore_random_state
from trimtab_trainer.config import RewardModelConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.data import Ranking, read_demonstrations, read_rankings
from trimtab_trainer.data.splits import in_groups, keep_groups, keep_sources, split_by_prompt
from trimtab_trainer.evaluation import RankedAnswers, pair_agreement, ranking_accuracy
from trimtab_trainer.examples import (
    RankingExample,
    Reading,
    demonstration_examples,
    first_of,
    ranking_examples,
)
from trimtab_trainer.losses import ranking_loss
from trimtab_trainer.optimization import Learner, prepare_for_training, seed_step, shuffled, token_micro_batches

__all__ = ["score_answers", "train", "train_on_rankings"]


def train(context: StageContext, config: RewardModelConfig) -> StageResult:
    """Runs the stage: see the module."""
    folder = context.resolve_model(config.initial_model)
    tokenizer = load_tokenizer(folder)
    check_same_tokenizer("reward_model.initial_model", folder, Path(context.base_model))
    model = _load(context, config, folder, tokenizer)
    reading = Reading.of(context, config, tokenizer, max_sequence_tokens(model))
    rankings, held_out = _read_rankings(context, config, reading)
    total_steps = math.ceil(len(rankings) / config.batch_size) * config.epochs
    learner = Learner(model, config.optimizer, total_steps=total_steps, precision=context.spec.precision)
    snapshot = context.checkpoints.load_latest()
    if snapshot is not None:
        learner.restore(snapshot.tensors)
        restore_random_state(snapshot.tensors)

    context.reporter.stage_started(context.stage, learner.total_steps, step=learner.step)
    seed = context.seed(config.seed)
    for step in range(learner.step, learner.total_steps):
        batch = _batch(rankings, config.batch_size, step, seed)
        seed_step(seed, step)
        with context.saving_batch(step + 1, lambda examples=batch: _example_tensors(examples)):
            figures = train_on_rankings(
                learner,
                batch,
                micro_batch_tokens=config.micro_batch_tokens,
                margin=config.margin,
                label_smoothing=config.label_smoothing,
            )
            update = learner.update()
        context.after_step(
            step + 1,
            learner.total_steps,
            config.checkpoint_every,
            lambda: Snapshot(learner.step, {**learner.capture(), **capture_random_state()}),
            metrics={**figures, "learning_rate": update.learning_rate, "gradient_norm": update.gradient_norm},
        )

    model.eval()
    bias = _set_offset(context, config, model, reading)
    metrics, details = _evaluate(context, config, model, held_out)
    save_model(model, tokenizer, context.models / "model")
    counts = {"rankings": float(len(rankings)), "rankings_held_out": float(len(held_out)), "reward_bias": bias}
    return StageResult(model=context.relative(context.models / "model"), metrics={**metrics, **counts}, details=details)


def train_on_rankings(
    learner: Learner,
    examples: Sequence[RankingExample],
    *,
    micro_batch_tokens: int,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
) -> dict[str, float]:
    """Adds the gradient of the mean ranking loss over a batch of prompts; the caller makes the update.

    `margin` and `label_smoothing` are those of `ranking_loss`.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    loss_sum = agree = pairs = 0.0
    rewards: list[float] = []
    for positions in token_micro_batches([example.tokens for example in examples], micro_batch_tokens):
        micro = [examples[position] for position in positions]
        with learner.autocast():
            scores = score_answers(learner.model, micro)
        losses = [
            ranking_loss(score, *_decided_pairs(example), margin=margin, label_smoothing=label_smoothing)
            for score, example in zip(scores, micro, strict=True)
        ]
        loss = torch.stack(losses).sum() / len(examples)
        learner.backward(loss)
        loss_sum += float(loss.detach())
        for score, example in zip(scores, micro, strict=True):
            rewards += score.tolist()
            for _, ranks in example.rankings:
                found = pair_agreement(ranks, score.tolist())
                agree, pairs = agree + found[0], pairs + found[1]
    spread = torch.tensor(rewards)
    return {
        "loss": loss_sum,
        "accuracy": agree / pairs,
        "mean_reward": float(spread.mean()),
        "std_reward": float(spread.std(unbiased=False)),
        "pairs": pairs,
    }


def score_answers(model: PreTrainedModel, examples: Sequence[RankingExample]) -> list[Float[Tensor, " answers"]]:
    """Rewards of every answer, float32, the shared prompt read once; differentiable.

    Equal to scoring each prompt + answer on its own: an answer attends to the prompt and to itself, and its positions
    go on from the prompt's end.

    Args:
        model: a sequence classifier with one label.
        examples: one packed row each; rows are padded on the right.

    Returns:
        For each example the rewards of its answers, read at their last tokens.
    """
    device = next(model.parameters()).device
    rows = pack_shared_prompts([(example.prompt, example.answers) for example in examples])
    hidden = hidden_states(
        model,
        rows.input_ids.to(device),
        position_ids=rows.position_ids.to(device),
        attention_mask=rows.attention_mask.to(device),
    )
    rewards = scores_of(model, hidden[rows.last_row.to(device), rows.last_column.to(device)])
    return list(rewards.split(rows.counts))


def _decided_pairs(example: RankingExample) -> tuple[Tensor, Tensor]:
    """Indices of the better and the worse answer of all decided pairs of all labelers of a prompt."""
    pairs = [
        (better, worse)
        for _, ranks in example.rankings
        for better, worse in permutations(range(len(ranks)), 2)
        if ranks[better] < ranks[worse]
    ]
    better, worse = torch.tensor(pairs).T
    return better, worse


def _read_rankings(
    context: StageContext, config: RewardModelConfig, reading: Reading
) -> tuple[list[RankingExample], list[RankingExample]]:
    """Rankings to train on, of the groups asked for, and those held out, of every group."""
    seed = context.seed(config.seed)
    path = other = context.spec.path(config.rankings)
    train_rows = _read_sources(context, config, path)
    if config.rankings_held_out is not None:
        other = context.spec.path(config.rankings_held_out)
        held_out_rows = _read_sources(context, config, other)
    else:
        train_rows, held_out_rows = split_by_prompt(train_rows, config.held_out_fraction, seed=seed)
    train = ranking_examples(path, keep_groups(train_rows, config.groups), reading)
    held_out = ranking_examples(other, held_out_rows, reading)
    return (
        first_of(_decided(context, config, path, train), config.limit, seed=seed, name="reward_model/limit"),
        first_of(held_out, config.limit_held_out, seed=seed, name="reward_model/limit_held_out"),
    )


def _read_sources(context: StageContext, config: RewardModelConfig, path: Path) -> list[Ranking]:
    rows = read_rankings(path, skip_bad_rows=config.skip_bad_rows, warn=context.warn)
    return rows if config.sources is None else keep_sources(rows, config.sources)


def _decided(
    context: StageContext, config: RewardModelConfig, path: Path, examples: Sequence[RankingExample]
) -> list[RankingExample]:
    """The examples with a decided pair; wholly tied ones teach nothing, are left out and told.

    Raises:
        ConfigError: none is left.
    """
    decided = [example for example in examples if example.decided]
    if len(decided) < len(examples):
        context.warn(f"{path}: {len(examples) - len(decided)} of {len(examples)} rankings are wholly tied and left out")
    if not decided:
        raise ConfigError(
            f"{path}: no decided ranking is left to train on; reward_model.groups is {config.groups}, "
            f"reward_model.sources is {config.sources}",
            field="reward_model.groups",
            value=config.groups,
        )
    return decided


@torch.no_grad()
def _set_offset(context: StageContext, config: RewardModelConfig, model: PreTrainedModel, reading: Reading) -> float:
    """Sets the offset so that demonstrations have mean reward 0 (InstructGPT 3.5); returns it."""
    if config.demonstrations is None:
        return 0.0
    seed = context.seed(config.seed)
    path = context.spec.path(config.demonstrations)
    demonstrations = read_demonstrations(path, skip_bad_rows=config.skip_bad_rows, warn=context.warn)
    rows = demonstration_examples(path, demonstrations, reading)
    rows = first_of(rows, config.offset_rows, seed=seed, name="reward_model/offset")
    total = 0.0
    for positions in token_micro_batches([len(row.token_ids) for row in rows], config.micro_batch_tokens):
        micro = [
            RankingExample("", "", row.token_ids[: row.first], (row.token_ids[row.first :],), ())
            for row in (rows[position] for position in positions)
        ]
        total += sum(float(rewards[0]) for rewards in score_answers(model, micro))
    bias = total / len(rows)
    set_reward_bias(model, bias)
    return bias


def _load(
    context: StageContext, config: RewardModelConfig, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The model to train: a policy's backbone under a new head, or a reward model that goes on."""
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    if architectures[0].endswith("ForSequenceClassification"):
        model = load_reward_model(folder, dtype="float32", device=context.spec.device)
    else:
        seed = context.seed(config.seed)
        model = reward_model_from_policy(
            folder, tokenizer=tokenizer, seed=seed, dtype="float32", device=context.spec.device
        )
    set_reward_bias(model, 0.0)  # the loss does not see it, and the offset is measured from zero
    prepare_for_training(model, gradient_checkpointing=context.spec.gradient_checkpointing)
    return model


def _batch(rankings: Sequence[RankingExample], size: int, step: int, seed: int) -> list[RankingExample]:
    """The prompts of a step: a slice of its epoch's order."""
    epoch, position = divmod(step, math.ceil(len(rankings) / size))
    order = shuffled(len(rankings), seed=seed, epoch=epoch, name="reward_model")
    return [rankings[index] for index in order[position * size : (position + 1) * size]]


@torch.no_grad()
def _scores(
    context: StageContext, config: RewardModelConfig, model: PreTrainedModel, examples: Sequence[RankingExample]
) -> list[list[float]]:
    """Rewards of the answers of each example, as in training."""
    scores: list[list[float]] = [[] for _ in examples]
    for positions in token_micro_batches([example.tokens for example in examples], config.micro_batch_tokens):
        for position, rewards in zip(positions, score_answers(model, [examples[p] for p in positions]), strict=True):
            scores[position] = rewards.tolist()
    return scores


def _evaluate(
    context: StageContext, config: RewardModelConfig, model: PreTrainedModel, held_out: Sequence[RankingExample]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Accuracy on held-out rankings: of the groups trained on, of every group, and that of "the longer answer wins"."""
    if not held_out:
        return {}, {}
    seed = context.seed(config.seed)
    lengths = [[float(len(answer)) for answer in example.answers] for example in held_out]
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, scores in (("accuracy", _scores(context, config, model, held_out)), ("longer_wins", lengths)):
        ranked = []
        trained = []
        for example, score in zip(held_out, scores, strict=True):
            for group, ranks in example.rankings:
                label = " ".join(filter(None, (example.source, group)))
                ranked.append(RankedAnswers(example.prompt_id, label, ranks, score))
                if in_groups(example.source, group, config.groups):
                    trained.append(ranked[-1])
        if overall := ranking_accuracy(trained, samples=config.bootstrap_samples, seed=seed, by_group=False):
            metrics |= overall[""].metrics(name)
            details[name] = asdict(overall[""])
        by_group = ranking_accuracy(ranked, samples=config.bootstrap_samples, seed=seed)
        details[f"{name}_by_group"] = {group: asdict(accuracy) for group, accuracy in by_group.items() if group}
    return metrics, details


def _example_tensors(examples: Sequence[RankingExample]) -> dict[str, Tensor]:
    """The examples as flat tensors, for the file of a batch that diverged."""
    rows = [row for example in examples for row in (example.prompt, *example.answers)]
    return {
        "token_ids": torch.tensor([token for row in rows for token in row]),
        "lengths": torch.tensor([len(row) for row in rows]),
        "answers": torch.tensor([len(example.answers) for example in examples]),
    }
