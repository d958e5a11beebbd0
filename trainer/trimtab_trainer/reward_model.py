"""Stage 2, the reward model: rankings -> a scalar score, with the demonstrations' mean as its zero.

One prompt with K ranked answers is one batch element: its answers are packed behind the prompt, which is read once, and
all pairs of the ranking enter the loss together (InstructGPT 3.5, equation 1; C.2). One epoch, since more overfits. The
offset is set afterwards so that demonstrations have mean reward 0, and lives in `config.json` as `reward_bias`.

A stage may train several members: as an ensemble, or on disjoint parts of the rankings, so that one can judge a policy
that was optimised against another. What they are worth is measured by `reward_model_accuracy`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import ConfigError, DataError
from trimtab_models.loading import (
    load_reward_model,
    max_sequence_tokens,
    reward_bias,
    reward_model_from_policy,
    set_reward_bias,
)
from trimtab_models.tokenizer import check_same_tokenizer, load_tokenizer
from trimtab_trainer.checkpoint import Snapshot, capture_random_state, restore_random_state
from trimtab_trainer.config import RewardModelConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.data import Ranking, read_demonstrations, read_rankings
from trimtab_trainer.data.splits import keep_groups, keep_sources, set_apart, split_by_prompt, warn_of_misspelt
from trimtab_trainer.distributed import joined, on_every_rank, save_whole, shard, sums
from trimtab_trainer.evaluation import pair_agreement
from trimtab_trainer.examples import (
    RankingExample,
    Reading,
    demonstration_examples,
    first_of,
    ranking_examples,
)
from trimtab_trainer.losses import ranking_loss
from trimtab_trainer.optimization import (
    Learner,
    in_evaluation,
    make_learner,
    prepare_for_training,
    seed_step,
    shuffled,
)
from trimtab_trainer.reward_model_accuracy import measure, ranking_micro_batches, score_answers

__all__ = [
    "Course",
    "RewardModelSetup",
    "decided_pairs",
    "example_tensors",
    "learnt",
    "parts_of_members",
    "read_rankings_of",
    "read_sources",
    "train",
    "train_member",
    "train_on_rankings",
]


def train(context: StageContext, config: RewardModelConfig) -> StageResult:
    """Runs the stage: see the module."""
    setup = RewardModelSetup.of(context, config)
    rankings, held_out = read_rankings_of(context, config, setup.reading)
    parts = parts_of_members(rankings, config)
    course = Course.of(context, config, parts)
    folders = []
    for number in range(len(parts)):
        folder = context.models / f"member-{number + 1}"
        if not course.is_over(number):
            model = train_member(context, config, setup, course, number)
            _set_offset(context, config, model, setup.reading)
            save_whole(model, setup.tokenizer, folder)
        folders.append(folder)
    members = [shard(load_reward_model(folder), context.device) for folder in folders]
    metrics, details = measure(context, config, members, held_out)
    counts = {
        "rankings": float(len(rankings)),
        "rankings_held_out": float(len(held_out)),
        "reward_bias": reward_bias(members[0]),
        "tokens_evaluated": float(len(members) * sum(example.tokens for example in held_out)),
    }
    return StageResult(model=context.relative(folders[0]), metrics={**metrics, **counts}, details=details)


@dataclass(frozen=True)
class RewardModelSetup:
    """What every member starts from.

    Attributes:
        folder: of the model to start from.
        tokenizer: its tokenizer, checked against the base model's.
        reading: how rows are read for its context length.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    reading: Reading

    @classmethod
    def of(cls, context: StageContext, config: RewardModelConfig) -> RewardModelSetup:
        """Resolves the model reference.

        Raises:
            ConfigError: there is no such model.
            Mismatch: its tokenizer is not the base model's.
        """
        folder = context.resolve_model(config.initial_model)
        tokenizer = load_tokenizer(folder)
        check_same_tokenizer("reward_model.initial_model", folder, Path(context.base_model))
        most = max_sequence_tokens(_load(config, folder, tokenizer, seed=0))
        return cls(folder, tokenizer, Reading.of(context, config, tokenizer, most))


@dataclass(frozen=True)
class Course:
    """The steps of a stage that trains several reward models one after another, as one sequence of steps.

    Attributes:
        parts: rankings of each member.
        ends: steps of the stage done when each member is trained.
        snapshot: where the stage was left; None at its start.
    """

    parts: Sequence[Sequence[RankingExample]]
    ends: Sequence[int]
    snapshot: Snapshot | None

    @classmethod
    def of(cls, context: StageContext, config: RewardModelConfig, parts: Sequence[Sequence[RankingExample]]) -> Course:
        """Plans the steps, takes up the stage's last checkpoint and tells that the stage has started."""
        steps = [math.ceil(len(part) / config.batch_size) * config.epochs for part in parts]
        course = cls(parts, tuple(accumulate(steps)), context.checkpoints.load_latest())
        context.reporter.stage_started(context.stage, course.ends[-1], step=course.done)
        return course

    @property
    def done(self) -> int:
        """Steps of the stage that its last checkpoint holds."""
        return self.snapshot.step if self.snapshot else 0

    def start(self, number: int) -> int:
        """Steps of the stage before a member's first."""
        return self.ends[number - 1] if number else 0

    def is_over(self, number: int) -> bool:
        """Whether a later member has begun, so that this one is saved."""
        return self.done > self.ends[number]


def train_member(
    context: StageContext, config: RewardModelConfig, setup: RewardModelSetup, course: Course, number: int
) -> PreTrainedModel:
    """Trains one member of a course from its start, or from the stage's checkpoint; returns it in evaluation mode.

    Raises:
        TrainingDiverged: a loss or gradient is not finite; the batch is saved.
        StageStopped: a stop was asked for.
    """
    rankings, start = course.parts[number], course.start(number)
    seed = int(np.random.SeedSequence([context.seed(config.seed), number]).generate_state(1, np.uint64)[0] >> 1)
    model = shard(_load(config, setup.folder, setup.tokenizer, seed=seed), context.device)
    prepare_for_training(model, gradient_checkpointing=context.spec.gradient_checkpointing)
    learner = make_learner(
        model, config.optimizer, total_steps=course.ends[number] - start, precision=context.spec.precision
    )
    if course.snapshot is not None and course.done > start:
        learner.restore(course.snapshot.saved)
        restore_random_state(course.snapshot.saved)
    for step in range(learner.step, learner.total_steps):
        batch = _batch(rankings, config.batch_size, step, seed)
        seed_step(seed, step)
        with context.saving_batch(start + step + 1, lambda examples=batch: example_tensors(examples)):
            figures = train_on_rankings(
                learner,
                batch,
                micro_batch_tokens=config.micro_batch_tokens,
                margin=config.margin,
                label_smoothing=config.label_smoothing,
            )
            update = learner.update()
        context.after_step(
            start + step + 1,
            course.ends[-1],
            config.checkpoint_every,
            lambda at=start + step + 1: Snapshot(at, capture_random_state(), parts=[learner]),
            metrics={**figures, "learning_rate": update.learning_rate, "gradient_norm": update.gradient_norm},
        )
    return in_evaluation(model)


@on_every_rank
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
    for positions, weight in ranking_micro_batches(examples, micro_batch_tokens):
        micro = [examples[position] for position in positions]
        with learner.autocast():
            scores = score_answers(learner.model, micro)
        losses = [
            ranking_loss(score, *decided_pairs(example), margin=margin, label_smoothing=label_smoothing)
            for score, example in zip(scores, micro, strict=True)
        ]
        loss_sum += learner.backward(torch.stack(losses).sum() / len(examples) * weight)
        if not weight:
            continue
        for score, example in zip(scores, micro, strict=True):
            rewards += score.tolist()
            for _, ranks in example.rankings:
                found = pair_agreement(ranks, score.tolist())
                agree, pairs = agree + found[0], pairs + found[1]
    agree, pairs = sums(agree, pairs)
    spread = torch.tensor(joined(rewards))
    return {
        "loss": loss_sum,
        "accuracy": agree / pairs,
        "mean_reward": float(spread.mean()),
        "std_reward": float(spread.std(unbiased=False)),
        "pairs": pairs,
        "tokens_trained": float(sum(example.tokens for example in examples)),
        "sequences_trained": float(len(examples)),
    }


def decided_pairs(example: RankingExample) -> tuple[Tensor, Tensor]:
    """Indices of the better and the worse answer of all decided pairs of all labelers of a prompt."""
    pairs = [
        (better, worse)
        for _, ranks in example.rankings
        for better, worse in permutations(range(len(ranks)), 2)
        if ranks[better] < ranks[worse]
    ]
    better, worse = torch.tensor(pairs).T
    return better, worse


def read_rankings_of(
    context: StageContext, config: RewardModelConfig, reading: Reading
) -> tuple[list[RankingExample], list[RankingExample]]:
    """Rankings to train on, of the groups asked for, and those held out, of every group.

    Without a file of held-out rankings these are `held_out_fraction` of the prompts, and where `groups` names none the
    prompts that only labelers of held-out groups ranked.

    Raises:
        ConfigError: no decided ranking is left to train on.
        DataError: a bad row, a row that is too long, or a filter that names nobody.
    """
    seed = context.seed(config.seed)
    path = other = context.spec.path(config.rankings)
    train_rows = read_sources(context, config, path)
    if config.rankings_held_out is not None:
        other = context.spec.path(config.rankings_held_out)
        held_out_rows = read_sources(context, config, other)
    else:
        train_rows, held_out_rows = split_by_prompt(train_rows, config.held_out_fraction, seed=seed)
        if config.groups is None:
            train_rows, theirs = set_apart(train_rows, _groups_of, config.held_out_groups)
            held_out_rows += theirs
    train = ranking_examples(path, learnt(context, config, path, train_rows), reading)
    held_out = ranking_examples(other, held_out_rows, reading)
    return (
        first_of(_decided(context, config, path, train), config.limit, seed=seed, name="reward_model/limit"),
        first_of(held_out, config.limit_held_out, seed=seed, name="reward_model/limit_held_out"),
    )


def parts_of_members(rankings: list[RankingExample], config: RewardModelConfig) -> list[list[RankingExample]]:
    """The rankings of each member: all of them, or parts with no `prompt_id` in two of them."""
    if not config.disjoint_members:
        return [rankings] * config.members
    prompts = {example.prompt_id: None for example in rankings}
    member = {prompt: number % config.members for number, prompt in enumerate(prompts)}
    parts = [[one for one in rankings if member[one.prompt_id] == number] for number in range(config.members)]
    if not all(parts):
        raise ConfigError(
            f"reward_model.members: {config.members} disjoint members cannot share {len(prompts)} prompts",
            field="reward_model.members",
            value=config.members,
            limit=f"at most {len(prompts)}",
        )
    return parts


def read_sources(context: StageContext, config: RewardModelConfig, path: Path) -> list[Ranking]:
    """The rankings of a file, of the sources asked for."""
    rows = read_rankings(path, skip_bad_rows=config.skip_bad_rows, warn=context.warn)
    return rows if config.sources is None else keep_sources(rows, config.sources)


def learnt(context: StageContext, config: RewardModelConfig, path: Path, rows: Sequence[Ranking]) -> list[Ranking]:
    """The rows with the labels of the groups trained on; a group that is one of them by its spelling alone is told."""
    kept = keep_groups(rows, config.groups_trained_on)
    if config.groups is None:
        groups = {group for row in kept for group in _groups_of(row)}
        warn_of_misspelt(path, groups, config.held_out_groups, context.warn)
    return kept


def _groups_of(ranking: Ranking) -> set[str]:
    return {labeling.group for labeling in ranking.labelings}


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
            f"held_out_groups {config.held_out_groups}, sources {config.sources}",
            field="reward_model.groups",
            value=config.groups,
        )
    return decided


def _set_offset(context: StageContext, config: RewardModelConfig, model: PreTrainedModel, reading: Reading) -> None:
    """Sets the offset so that demonstrations have mean reward 0 (InstructGPT 3.5)."""
    if config.demonstrations is None:
        return
    seed = context.seed(config.seed)
    path = context.spec.path(config.demonstrations)
    demonstrations = [
        row
        for row in read_demonstrations(path, skip_bad_rows=config.skip_bad_rows, warn=context.warn)
        if row.group not in config.held_out_groups
    ]
    if not demonstrations:
        raise DataError(
            f"{path}: no demonstration is left to set the offset by; reward_model.held_out_groups is "
            f"{', '.join(config.held_out_groups)}",
            field="reward_model.demonstrations",
        )
    rows = demonstration_examples(path, demonstrations, reading)
    rows = first_of(rows, config.offset_rows, seed=seed, name="reward_model/offset")
    answers = [RankingExample("", "", row.token_ids[: row.first], (row.token_ids[row.first :],), ()) for row in rows]
    set_reward_bias(model, _sum_of_scores(model, answers, config.micro_batch_tokens) / len(rows))


@on_every_rank
@torch.no_grad()
def _sum_of_scores(model: PreTrainedModel, answers: Sequence[RankingExample], micro_batch_tokens: int) -> float:
    total = 0.0
    for positions, weight in ranking_micro_batches(answers, micro_batch_tokens):
        scores = score_answers(model, [answers[position] for position in positions])
        total += weight * sum(float(rewards[0]) for rewards in scores)
    return sums(total)[0]


def _load(config: RewardModelConfig, folder: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """The model to train: a policy's backbone under a new head drawn by `seed`, or a reward model that goes on."""
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    if architectures[0].endswith("ForSequenceClassification"):
        model = load_reward_model(folder)
    else:
        model = reward_model_from_policy(folder, tokenizer=tokenizer, seed=seed)
    set_reward_bias(model, 0.0)  # the loss does not see it, and the offset is measured from zero
    return model


def _batch(rankings: Sequence[RankingExample], size: int, step: int, seed: int) -> list[RankingExample]:
    """The prompts of a step: a slice of its epoch's order."""
    epoch, position = divmod(step, math.ceil(len(rankings) / size))
    order = shuffled(len(rankings), seed=seed, epoch=epoch, name="reward_model")
    return [rankings[index] for index in order[position * size : (position + 1) * size]]


def example_tensors(examples: Sequence[RankingExample]) -> dict[str, Tensor]:
    """The examples as flat tensors, for the file of a batch that diverged."""
    rows = [row for example in examples for row in (example.prompt, *example.answers)]
    return {
        "token_ids": torch.tensor([token for row in rows for token in row]),
        "lengths": torch.tensor([len(row) for row in rows]),
        "answers": torch.tensor([len(example.answers) for example in examples]),
    }
