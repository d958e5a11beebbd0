"""Experience: a batch of rollouts joined with what the trainer itself computes of them, as one frozen record.

Rows keep the order of the prompts, whatever the order in which rollouts arrived. Tensors are [batch, completion]: entry
(i, t) belongs to completion token t of rollout i, right-padded; `mask` is true on real tokens, by position and never by
token id. The value at (i, t) is that of the state before token t.

Minibatches are random; inside one, rollouts are sorted by length and cut into micro-batches by tokens, so that little
is padded. `old_logprobs` are computed in the very micro-batches of the first update, which makes its ratio exactly 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trimtab_trainer.distributed import balanced
from trimtab_trainer.rollouts import Rollout

__all__ = ["Experience", "MicroBatch", "Minibatch", "Targets", "pad_rows", "plan_minibatches"]


@dataclass(frozen=True)
class MicroBatch:
    """Some rollouts as the tensors of one forward.

    Attributes:
        rows: [micro] their rows in the experience.
        input_ids: [micro, seq] prompt and completion, right-padded.
        prompt_lengths: [micro].
        completion_lengths: [micro].
        rank: whose work it is, of the processes that the run spans.
    """

    rows: Int[Tensor, " micro"]
    input_ids: Int[Tensor, "micro seq"]
    prompt_lengths: Int[Tensor, " micro"]
    completion_lengths: Int[Tensor, " micro"]
    rank: int = 0

    @property
    def lengths(self) -> Int[Tensor, " micro"]:
        """Tokens of each row."""
        return self.prompt_lengths + self.completion_lengths

    @property
    def mask(self) -> Bool[Tensor, "micro completion"]:
        """True on real completion tokens."""
        longest = int(self.completion_lengths.max())
        return torch.arange(longest, device=self.input_ids.device) < self.completion_lengths[:, None]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        return replace(
            self,
            rows=self.rows.to(device),
            input_ids=self.input_ids.to(device),
            prompt_lengths=self.prompt_lengths.to(device),
            completion_lengths=self.completion_lengths.to(device),
        )


@dataclass(frozen=True)
class Targets:
    """What the losses of a micro-batch compare with; each [micro, completion], as in `Experience`."""

    old_logprobs: Float[Tensor, "micro completion"]
    values: Float[Tensor, "micro completion"]
    returns: Float[Tensor, "micro completion"]
    advantages: Float[Tensor, "micro completion"]
    importance_weights: Float[Tensor, "micro completion"]

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        return Targets(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})


@dataclass(frozen=True)
class Minibatch:
    """The rollouts of one optimizer step.

    Attributes:
        micro_batches: they cover it without overlap.
        token_count: completion tokens of all of them: the divisor of every loss.
    """

    micro_batches: tuple[MicroBatch, ...]
    token_count: int

    @property
    def episodes(self) -> int:
        """Rollouts of the step."""
        return sum(len(micro.rows) for micro in self.micro_batches)


@dataclass(frozen=True)
class Experience:
    """One batch, ready for the update. All tensors are [batch, completion] float32 unless said otherwise.

    Attributes:
        rollouts: row i of every tensor belongs to rollout i.
        mask: bool, true on real completion tokens.
        trainer_logprobs: of the policy before the update, by the trainer; None where they were not computed.
        old_logprobs: those that the ratio divides by: the trainer's, or the sampler's where the spec says so.
        generation_logprobs: of the sampler.
        ref_logprobs: of the KL reference.
        values: of the state before each token, before the update.
        advantages: whitened where the configuration says so.
        returns: advantages before whitening plus values.
        importance_weights: truncated old/generation ratios; they weigh the loss at `max_lag` above 0 only.
        scores: [batch] reward model's score after the missing-EOS replacement.
    """

    rollouts: tuple[Rollout, ...]
    mask: Bool[Tensor, "batch completion"]
    trainer_logprobs: Float[Tensor, "batch completion"] | None
    old_logprobs: Float[Tensor, "batch completion"]
    generation_logprobs: Float[Tensor, "batch completion"]
    ref_logprobs: Float[Tensor, "batch completion"]
    values: Float[Tensor, "batch completion"]
    advantages: Float[Tensor, "batch completion"]
    returns: Float[Tensor, "batch completion"]
    importance_weights: Float[Tensor, "batch completion"]
    scores: Float[Tensor, " batch"]

    def targets(self, micro: MicroBatch) -> Targets:
        """The rows and columns that a micro-batch covers, of what its losses compare with."""
        longest = int(micro.completion_lengths.max())
        return Targets(**{item.name: getattr(self, item.name)[micro.rows, :longest] for item in fields(Targets)})


def plan_minibatches(
    rollouts: Sequence[Rollout],
    *,
    minibatches: int,
    micro_batch_tokens: int,
    generator: torch.Generator,
    ranks: int = 1,
) -> list[Minibatch]:
    """Cuts a batch into random minibatches, and each into micro-batches of similar lengths, on the CPU.

    The cut depends on the generator, the ranks and the lengths only, never on the order of arrival, so that a repeated
    run sums its gradients in the same order.

    Args:
        rollouts: the batch in its own order.
        minibatches: optimizer steps of the epoch; divides the batch.
        micro_batch_tokens: most tokens of one forward, padding included; one longer rollout goes alone.
        generator: a CPU generator.
        ranks: processes that share each minibatch, by tokens.
    """
    order = torch.randperm(len(rollouts), generator=generator).tolist()
    size = len(rollouts) // minibatches
    plan = []
    for start in range(0, size * minibatches, size):
        chosen = order[start : start + size]
        micro_batches = []
        for rank, share in enumerate(balanced([_length(rollouts[row]) for row in chosen], ranks)):
            rows = sorted((chosen[i] for i in share), key=lambda row: (-_length(rollouts[row]), row))
            while rows:
                fit = max(1, micro_batch_tokens // _length(rollouts[rows[0]]))
                micro_batches.append(_micro_batch(rollouts, rows[:fit], rank))
                rows = rows[fit:]
        tokens = sum(int(micro.completion_lengths.sum()) for micro in micro_batches)
        plan.append(Minibatch(tuple(micro_batches), tokens))
    return plan


def pad_rows(rows: Sequence[np.ndarray]) -> Float[Tensor, "batch completion"]:
    """Right-pads float rows with zeros."""
    padded = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.float32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def _length(rollout: Rollout) -> int:
    return len(rollout.prompt_token_ids) + len(rollout.token_ids)


def _micro_batch(rollouts: Sequence[Rollout], rows: list[int], rank: int) -> MicroBatch:
    longest = max(_length(rollouts[row]) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)  # padding is masked by length: any id would do
    for index, row in enumerate(rows):
        sequence = rollouts[row].prompt_token_ids + rollouts[row].token_ids
        input_ids[index, : len(sequence)] = torch.tensor(sequence)
    return MicroBatch(
        rows=torch.tensor(rows),
        input_ids=input_ids,
        prompt_lengths=torch.tensor([len(rollouts[row].prompt_token_ids) for row in rows]),
        completion_lengths=torch.tensor([len(rollouts[row].token_ids) for row in rows]),
        rank=rank,
    )
