"""Stage 1, supervised fine-tuning: demonstrations -> a model for each epoch, and the start of PPO.

Cross-entropy on completion tokens only, cosine to 10 %, residual dropout, an optional share of pretraining text in each
batch (InstructGPT 3.5, C.1, C.4). Two phases, each from the same start: the epochs, saved as `sft/epoch-N`, the last of
which is what the stage hands on; and `sft/rl_init`, the model that PPO starts from, where the spec asks for one.

Batches follow from the seed and the step alone, so a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trimtab.errors import DataError
from trimtab_models.loading import load_policy, max_sequence_tokens
from trimtab_models.tokenizer import leading_ids, load_tokenizer
from trimtab_trainer.checkpoint import Snapshot, capture_random_state, restore_random_state
from trimtab_trainer.config import OptimizerConfig, SFTConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.data import read_demonstrations, read_pretraining
from trimtab_trainer.data.splits import set_apart, split_by_prompt, warn_of_misspelt
from trimtab_trainer.distributed import save_whole, shard
from trimtab_trainer.examples import Reading, demonstration_examples, document_examples, first_of
from trimtab_trainer.language_modeling import (
    Example,
    counted_tokens,
    example_tensors,
    mean_loss,
    passages,
    read_tokens,
    train_on,
)
from trimtab_trainer.optimization import Learner, make_learner, prepare_for_training, seed_step, shuffled

__all__ = ["train"]


@dataclass(frozen=True)
class _Data:
    """Examples of the stage: demonstrations to train on, those held out, passages of the mix."""

    train: list[Example]
    held_out: list[Example]
    pretraining: list[Example]


@dataclass(frozen=True)
class _Phase:
    """A training from the stage's start: the epochs of SFT, or of `rl_init`.

    Attributes:
        name: folder under models/sft; `epoch` phases get the number of the epoch.
        start: steps of the stage before this phase.
        epochs: passes.
        steps_per_epoch: optimizer steps of one pass.
        mix: pretraining passages in each batch.
        optimizer: its schedule spans the phase.
    """

    name: str
    start: int
    epochs: int
    steps_per_epoch: int
    mix: int
    optimizer: OptimizerConfig

    @property
    def end(self) -> int:
        return self.start + self.epochs * self.steps_per_epoch


def train(context: StageContext, config: SFTConfig) -> StageResult:
    """Runs the stage: see the module."""
    folder = context.resolve_model(config.initial_model)
    tokenizer = load_tokenizer(folder)
    data = _read(context, config, tokenizer, folder)
    phases = _plan(config, data)
    snapshot = context.checkpoints.load_latest() or Snapshot(step=0, state={"epochs": {}})
    context.reporter.stage_started(context.stage, phases[-1].end, step=snapshot.step)
    for phase in phases:
        if snapshot.step < phase.end:
            snapshot = _train_phase(context, config, phase, phases[-1].end, data, tokenizer, folder, snapshot)
    return _result(context, config, data, snapshot.state["epochs"])


def _train_phase(
    context: StageContext,
    config: SFTConfig,
    phase: _Phase,
    total_steps: int,
    data: _Data,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    snapshot: Snapshot,
) -> Snapshot:
    """Trains from the snapshot to the end of the phase; returns the last state."""
    learner = _learner(context, config, phase, folder)
    if snapshot.step > phase.start:
        learner.restore(snapshot.saved)
        restore_random_state(snapshot.saved)
    state: dict[str, Any] = {"epochs": dict(snapshot.state["epochs"])}
    seed = context.seed(config.seed)
    for step in range(max(snapshot.step, phase.start), phase.end):
        batch = _batch(data, phase, config.batch_size, step - phase.start, seed)
        seed_step(seed, step)
        with context.saving_batch(step + 1, lambda examples=batch: example_tensors(examples)):
            loss = train_on(learner, batch, micro_batch_tokens=config.micro_batch_tokens)
            update = learner.update()
        metrics = {
            "loss": loss,
            "learning_rate": update.learning_rate,
            "gradient_norm": update.gradient_norm,
            "tokens": float(counted_tokens(batch)),
            "tokens_trained": float(read_tokens(batch)),
            "sequences_trained": float(len(batch)),
        }
        epoch, rest = divmod(step + 1 - phase.start, phase.steps_per_epoch)
        if rest == 0:
            metrics |= _end_epoch(context, config, phase, epoch, learner, data, tokenizer, state)
            metrics["tokens_evaluated"] = float(read_tokens(data.held_out))
        context.after_step(
            step + 1,
            total_steps,
            config.checkpoint_every,
            lambda done=step + 1: Snapshot(done, capture_random_state(), state, [learner]),
            metrics=metrics,
        )
    return Snapshot(phase.end, state=state)


def _end_epoch(
    context: StageContext,
    config: SFTConfig,
    phase: _Phase,
    epoch: int,
    learner: Learner,
    data: _Data,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any],
) -> dict[str, float]:
    """Measures the held-out loss and saves the model: each epoch of SFT, and the last of `rl_init`."""
    figures: dict[str, float] = {}
    if data.held_out:
        figures["held_out_loss"] = mean_loss(learner.model, data.held_out, micro_batch_tokens=config.micro_batch_tokens)
    name = f"epoch-{epoch}" if phase.name == "epoch" else phase.name
    if phase.name == "epoch" or epoch == phase.epochs:
        save_whole(learner.model, tokenizer, context.models / name)
        state["epochs"] = {**state["epochs"], name: figures}
    return figures


def _learner(context: StageContext, config: SFTConfig, phase: _Phase, folder: Path) -> Learner:
    model = shard(load_policy(folder), context.device)
    prepare_for_training(model, dropout=config.dropout, gradient_checkpointing=context.spec.gradient_checkpointing)
    return make_learner(model, phase.optimizer, total_steps=phase.end - phase.start, precision=context.spec.precision)


def _plan(config: SFTConfig, data: _Data) -> list[_Phase]:
    steps = math.ceil(len(data.train) / config.batch_size)
    mix = _passages_in_batch(config.batch_size, config.pretraining_mix)
    phases = [_Phase("epoch", 0, config.epochs, steps, mix, config.optimizer)]
    if (rl_init := config.rl_init) is not None:
        mix = _passages_in_batch(config.batch_size, rl_init.pretraining_mix)
        optimizer = rl_init.optimizer or config.optimizer
        phases.append(_Phase("rl_init", phases[0].end, rl_init.epochs, steps, mix, optimizer))
    return phases


def _passages_in_batch(batch_size: int, share: float) -> int:
    """Passages beside `batch_size` demonstrations that make up `share` of all examples; at least 1 of any share."""
    return max(1, round(batch_size * share / (1 - share))) if share > 0 else 0


def _batch(data: _Data, phase: _Phase, size: int, step: int, seed: int) -> list[Example]:
    """The examples of a step of a phase: a slice of the epoch's order, and the next passages of the mix."""
    epoch, position = divmod(step, phase.steps_per_epoch)
    order = shuffled(len(data.train), seed=seed, epoch=epoch, name=f"sft/{phase.name}")
    batch = [data.train[index] for index in order[position * size : (position + 1) * size]]
    return batch + list(_mix(data.pretraining, phase.mix, step, seed))


def _mix(pretraining: list[Example], count: int, step: int, seed: int) -> Iterator[Example]:
    for position in range(step * count, (step + 1) * count):
        epoch, index = divmod(position, len(pretraining))
        yield pretraining[shuffled(len(pretraining), seed=seed, epoch=epoch, name="sft/mix")[index]]


def _read(context: StageContext, config: SFTConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> _Data:
    seed = context.seed(config.seed)
    most = max_sequence_tokens(load_policy(folder))
    reading = Reading.of(context, config, tokenizer, most)
    path = context.spec.path(config.demonstrations)
    rows = read_demonstrations(path, skip_bad_rows=config.skip_bad_rows, warn=context.warn)
    train_rows, held_out_rows = split_by_prompt(rows, config.held_out_fraction, seed=seed)
    train_rows, theirs = set_apart(train_rows, lambda row: {row.group}, config.held_out_groups)
    warn_of_misspelt(path, (row.group for row in train_rows), config.held_out_groups, context.warn)
    if not train_rows:
        raise DataError(
            f"{path}: no row is left to train on: all {len(rows)} are held out, a prompt with all of its rows; lower "
            f"sft.held_out_fraction, which is {config.held_out_fraction}; sft.held_out_groups is "
            f"{config.held_out_groups}",
            field="sft.held_out_fraction",
            value=config.held_out_fraction,
            limit="at least 1 row to train on",
        )
    train, held_out = (demonstration_examples(path, side, reading) for side in (train_rows, [*held_out_rows, *theirs]))
    pretraining = []
    if config.pretraining is not None and (
        config.pretraining_mix or (config.rl_init and config.rl_init.pretraining_mix)
    ):
        # documents may be longer than the context: they are read as passages
        path = context.spec.path(config.pretraining)
        passage_rows = read_pretraining(path, skip_bad_rows=config.skip_bad_rows, warn=context.warn)
        documents = document_examples(path, passage_rows, replace(reading, max_tokens=None))
        ids = [document.token_ids for document in documents]
        pretraining = passages(ids, config.pretraining_tokens, bos=leading_ids(reading.tokenizer))
    return _Data(first_of(train, config.limit, seed=seed, name="sft/limit"), held_out, pretraining)


def _result(context: StageContext, config: SFTConfig, data: _Data, epochs: dict[str, dict[str, float]]) -> StageResult:
    last = f"epoch-{config.epochs}"
    metrics = {
        "demonstrations": float(len(data.train)),
        "demonstrations_held_out": float(len(data.held_out)),
        **epochs[last],
    }
    details = {"epochs": epochs, "rl_init": "sft/rl_init" if config.rl_init else "sft"}
    return StageResult(model=context.relative(context.models / last), metrics=metrics, details=details)
