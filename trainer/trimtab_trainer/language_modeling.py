"""Cross-entropy on packed sequences: what pretraining and supervised fine-tuning share.

An `Example` says which of its tokens count: all but the first of a text, the completion's of a demonstration. Examples
are packed into rows that share no attention, so packing changes nothing but the speed. The loss of a batch is the sum
over its counted tokens divided by their number in the *whole* batch, however it is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab_models.logprobs import sequence_logprobs
from trimtab_models.packing import first_fit_decreasing, pack_documents
from trimtab_trainer.distributed import added, apply, even_rounds, on_every_rank, own_share
from trimtab_trainer.optimization import Learner

__all__ = [
    "Example",
    "counted_tokens",
    "example_losses",
    "example_tensors",
    "mean_loss",
    "passages",
    "read_tokens",
    "train_on",
]


@dataclass(frozen=True)
class Example:
    """One sequence.

    Attributes:
        token_ids: all of it.
        first: index of the first token that counts, at least 1; all from there on count.
    """

    token_ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class _Forward:
    """Packed rows: input_ids, position_ids, counted and owner are [rows, seq], attention_mask [rows, 1, seq, seq].

    `owner` is the index of the example that a counted token belongs to.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    counted: Tensor
    owner: Tensor


def counted_tokens(examples: Sequence[Example]) -> int:
    """Tokens that count."""
    return sum(len(example.token_ids) - example.first for example in examples)


def read_tokens(examples: Sequence[Example]) -> int:
    """Tokens that a model reads, those too that do not count."""
    return sum(len(example.token_ids) for example in examples)


@on_every_rank
def train_on(learner: Learner, examples: Sequence[Example], *, micro_batch_tokens: int, scale: float = 1.0) -> float:
    """Adds the gradient of the mean cross-entropy of a batch (InstructGPT App. C.1); the caller makes the update.

    Args:
        learner: its model is in training mode.
        examples: the whole batch.
        micro_batch_tokens: most tokens of one forward.
        scale: of the gradient, such as PPO-ptx's gamma.

    Returns:
        The loss before scaling, nats per counted token.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    count = counted_tokens(examples)
    total = 0.0
    for forward, weight in _forwards(examples, micro_batch_tokens, learner.device):
        with learner.autocast():
            loss = -_logprobs(learner.model, forward).sum() / count * weight
        total += learner.backward(loss, scale=scale)
    return total


def mean_loss(model: PreTrainedModel, examples: Sequence[Example], *, micro_batch_tokens: int) -> float:
    """Mean cross-entropy of examples, nats per counted token, without dropout; leaves the model's mode as it was."""
    losses = example_losses(model, examples, micro_batch_tokens=micro_batch_tokens)
    return float(losses.sum()) / counted_tokens(examples)


@on_every_rank
@torch.no_grad()
def example_losses(
    model: PreTrainedModel, examples: Sequence[Example], *, micro_batch_tokens: int
) -> npt.NDArray[np.float64]:
    """[example] summed cross-entropy of each example's counted tokens, nats, without dropout; the mode stays."""
    was_training = model.training
    model.eval()
    losses = torch.zeros(len(examples), dtype=torch.float64)
    try:
        for forward, weight in _forwards(examples, micro_batch_tokens, next(model.parameters()).device):
            found = -_logprobs(model, forward).double().cpu()
            losses.index_add_(0, forward.owner[forward.counted].cpu(), found * weight)
    finally:
        model.train(was_training)
    return added(losses).numpy()


def passages(documents: Sequence[Sequence[int]], tokens: int, *, bos: Sequence[int] = ()) -> list[Example]:
    """Cuts documents into passages of at most `tokens` tokens; a rest that predicts nothing is left out.

    Args:
        documents: token ids.
        tokens: of a passage, `bos` included.
        bos: what every document begins with, and so every passage: without its BOS a model such as Gemma predicts prose
            at 5.5 instead of 2.9 nats a token, and would mostly learn to do without.
    """
    step = tokens - len(bos)
    pieces = [
        document[start : start + step] for document in documents for start in range(len(bos), len(document), step)
    ]
    return [Example((*bos, *piece), first=1) for piece in pieces if len(bos) + len(piece) >= 2]


def example_tensors(examples: Sequence[Example]) -> dict[str, Tensor]:
    """The examples as flat tensors, for the file of a batch that diverged."""
    return {
        "token_ids": torch.tensor([token for example in examples for token in example.token_ids]),
        "lengths": torch.tensor([len(example.token_ids) for example in examples]),
        "first": torch.tensor([example.first for example in examples]),
    }


def _forwards(
    examples: Sequence[Example], micro_batch_tokens: int, device: torch.device
) -> Iterator[tuple[_Forward, float]]:
    """This rank's share of a batch as forwards of at most `micro_batch_tokens` tokens, each with its weight.

    Rows are as long as the share's longest example, packed. A rank that has run out goes on with the batch's shortest.
    """
    lengths = [len(example.token_ids) for example in examples]
    shortest = min(range(len(examples)), key=lengths.__getitem__)
    own = own_share(lengths)
    row_tokens = max((lengths[index] for index in own), default=0)
    rows = first_fit_decreasing([lengths[index] for index in own], row_tokens)
    rows_at_once = max(1, micro_batch_tokens // row_tokens) if own else 1
    cuts = [
        [own[position] for row in rows[start : start + rows_at_once] for position in row]
        for start in range(0, len(rows), rows_at_once)
    ]
    for indices, weight in even_rounds(cuts, filler=[shortest]):
        yield _forward(examples, indices, row_tokens, device), weight


def _forward(examples: Sequence[Example], indices: Sequence[int], row_tokens: int, device: torch.device) -> _Forward:
    members = [examples[index] for index in indices]
    packed = pack_documents([example.token_ids for example in members], row_tokens)
    counted = torch.zeros_like(packed.input_ids, dtype=torch.bool)
    owner = torch.zeros_like(packed.input_ids)
    for (row, column), example, index in zip(packed.starts, members, indices, strict=True):
        counted[row, column + example.first : column + len(example.token_ids)] = True
        owner[row, column : column + len(example.token_ids)] = index
    return _Forward(
        packed.input_ids.to(device),
        packed.position_ids.to(device),
        packed.attention_mask.to(device),
        counted.to(device),
        owner.to(device),
    )


def _logprobs(model: PreTrainedModel, forward: _Forward) -> Tensor:
    """Log-probs of the counted tokens, float32 [tokens]."""
    return apply(
        model,
        sequence_logprobs,
        forward.input_ids,
        forward.counted,
        position_ids=forward.position_ids,
        attention_mask=forward.attention_mask,
    )
