"""Language modelling from nothing, for models as small as the miniature's: documents -> a base model.

Each document ends in EOS and is read on its own: documents are packed into rows, but none attends to another. Batches
are cut by tokens; they follow from the seed alone, so a resumed run goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab_models.loading import load_policy, max_sequence_tokens
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.checkpoint import Snapshot, capture_random_state, restore_random_state
from trimtab_trainer.config import PretrainConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.data import read_pretraining
from trimtab_trainer.distributed import save_whole, shard
from trimtab_trainer.examples import Reading, document_examples
from trimtab_trainer.language_modeling import (
    Example,
    counted_tokens,
    example_tensors,
    mean_loss,
    read_tokens,
    train_on,
)
from trimtab_trainer.optimization import make_learner, prepare_for_training, seed_step, shuffled

__all__ = ["pretrain"]


def pretrain(context: StageContext, config: PretrainConfig) -> StageResult:
    """Runs the stage: see the module."""
    folder = Path(context.untrained_model)
    tokenizer = load_tokenizer(folder)
    model = load_policy(folder)
    reading = Reading.of(context, config, tokenizer, max_sequence_tokens(model))
    text = _read(context, config.text, reading)
    held_out = _read(context, config.held_out, reading) if config.held_out else []
    seed = context.seed(config.seed)
    batches = _batches(text, config, seed)
    model = shard(model, context.device)
    prepare_for_training(model, dropout=config.dropout, gradient_checkpointing=context.spec.gradient_checkpointing)
    learner = make_learner(model, config.optimizer, total_steps=len(batches), precision=context.spec.precision)
    snapshot = context.checkpoints.load_latest()
    if snapshot is not None:
        learner.restore(snapshot.saved)
        restore_random_state(snapshot.saved)

    context.reporter.stage_started(context.stage, len(batches), step=learner.step)
    for step in range(learner.step, len(batches)):
        batch = [text[index] for index in batches[step]]
        seed_step(seed, step)
        with context.saving_batch(step + 1, lambda examples=batch: example_tensors(examples)):
            loss = train_on(learner, batch, micro_batch_tokens=config.micro_batch_tokens)
            update = learner.update()
        context.after_step(
            step + 1,
            len(batches),
            config.checkpoint_every,
            lambda: Snapshot(learner.step, capture_random_state(), parts=[learner]),
            metrics={
                "loss": loss,
                "learning_rate": update.learning_rate,
                "gradient_norm": update.gradient_norm,
                "tokens": float(counted_tokens(batch)),
                "tokens_trained": float(read_tokens(batch)),
                "sequences_trained": float(len(batch)),
            },
        )

    save_whole(model, tokenizer, context.models / "model")
    metrics = {"documents": float(len(text))}
    if held_out:
        metrics["held_out_loss"] = mean_loss(model, held_out, micro_batch_tokens=config.micro_batch_tokens)
        metrics["tokens_evaluated"] = float(read_tokens(held_out))
    return StageResult(model=context.relative(context.models / "model"), metrics=metrics)


def _read(context: StageContext, written: str, reading: Reading) -> list[Example]:
    path = context.spec.path(written)
    return document_examples(
        path, read_pretraining(path, skip_bad_rows=reading.skip_bad_rows, warn=reading.warn), reading
    )


def _batches(text: Sequence[Example], config: PretrainConfig, seed: int) -> list[list[int]]:
    """Positions in `text` of each step: the epochs' orders, cut where a batch has its tokens; the last may be short."""
    batches: list[list[int]] = [[]]
    tokens = 0
    for epoch in range(config.epochs):
        for index in shuffled(len(text), seed=seed, epoch=epoch, name="pretrain"):
            if batches[-1] and tokens + len(text[index].token_ids) > config.batch_tokens:
                batches.append([])
                tokens = 0
            batches[-1].append(index)
            tokens += len(text[index].token_ids)
    return batches[: config.max_steps]
