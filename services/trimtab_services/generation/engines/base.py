"""What an engine is: the one interface between the generation servicer and whatever samples tokens.

The servicer owns sequence ids, versions asked for, deadlines and the wire; an engine owns slots, weights and sampling.
An engine is driven from ONE thread: none of its methods is safe to call while another one runs, but for `stage`, which
reads the weights that serve and changes nothing else, so that sampling goes on beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import TrimtabError
from trimtab.types import FinishReason, SamplingParams, VersionSpan

__all__ = ["Engine", "EngineLoad", "FinishedSequence", "SampledToken", "SequenceRequest"]


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token of a sequence that goes on or has just ended.

    Attributes:
        sequence_id: as submitted.
        token_id: of the token.
        logprob: in nats, as in `FinishedSequence`.
        version: of the weights that sampled it.
        is_last: whether the sequence ends with it.
    """

    sequence_id: int
    token_id: int
    logprob: float
    version: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One sequence to sample.

    Attributes:
        sequence_id: the caller's name for it, unique among the sequences that the engine holds.
        prompt_token_ids: at least one id.
        sampling: temperature, truncation, limits and stops.
        seed: unsigned 64 bit; tokens are a function of weights, prompt, sampling, seed and sample index.
        sample_index: which of the prompt's samples this is, from 0.
        finish_on_version: a weight swap must not touch this sequence, running or waiting; it is sampled, whole, on the
            weights that served when it was submitted.
        priority: smaller starts sooner; equals start in order of arrival.
        on_token: told each token the moment it is sampled, in the engine's thread; None where nobody waits for it.
    """

    sequence_id: int
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    sample_index: int = 0
    finish_on_version: bool = False
    priority: int = 0
    on_token: Callable[[SampledToken], None] | None = None

    @property
    def most_tokens(self) -> int:
        """Tokens that it may come to: its prompt and all that it may sample."""
        return len(self.prompt_token_ids) + self.sampling.max_new_tokens


@dataclass(frozen=True, slots=True)
class FinishedSequence:
    """A sequence that has left the engine.

    Attributes:
        sequence_id: as submitted.
        token_ids: the completion, with the EOS or stop token that ended it.
        logprobs: float32 [tokens] in nats, of the policy at the stated temperature before truncation.
        finish_reason: STOP, LENGTH or CANCELLED.
        version_spans: which weights sampled which tokens; they cover the completion without gaps.
        error: set when the sequence failed (logits not finite); the tokens before the failure are still there.
        slot_time: `time.monotonic()` at which it first had a slot; 0 when it never had one.
    """

    sequence_id: int
    token_ids: tuple[int, ...]
    logprobs: NDArray[np.float32]
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]
    error: TrimtabError | None = None
    slot_time: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine holds and has done; counters only grow.

    Attributes:
        slots: sequences that can run at once.
        busy_slots: sequences that run now (prefill included).
        waiting_sequences: submitted, not yet in a slot.
        outstanding_tokens: prompt tokens still to be computed and new tokens still allowed, over all sequences held.
        computed_prefill_tokens: prompt tokens computed so far; a prompt shared by several samples counts once.
        computed_decode_tokens: tokens sampled so far.
    """

    slots: int
    busy_slots: int
    waiting_sequences: int
    outstanding_tokens: int
    computed_prefill_tokens: int
    computed_decode_tokens: int


class Engine(Protocol):
    """Continuous batching behind a few verbs."""

    @property
    def model(self) -> PreTrainedModel | None:
        """The model that new sequences start on, to score given tokens with between two steps; None: not at hand."""
        ...

    @property
    def version(self) -> int:
        """The version that new sequences start on."""
        ...

    @property
    def staged_version(self) -> int | None:
        """The version that the next `swap` brings in, or None."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether tokens and log-probs are bit-equal whatever the neighbours, the load and the order."""
        ...

    @property
    def max_sequence_tokens(self) -> int:
        """Most tokens of prompt plus completion."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        ...

    def load(self) -> EngineLoad:
        """Slots, queue and counters now."""
        ...

    def new_tokens_before(self, priority: int) -> int:
        """New tokens still allowed to what runs and to what waits before a newcomer of this priority."""
        ...

    def submit(self, request: SequenceRequest) -> None:
        """Queue a sequence.

        Raises:
            InvalidRequest: empty prompt, token id outside the vocabulary, id already held, or a field out of bounds.
            SequenceTooLong: prompt plus `max_new_tokens` exceeds `max_sequence_tokens`.
            Unsupported: the engine cannot do what the request asks.
        """
        ...

    def cancel(self, sequence_id: int) -> FinishedSequence | None:
        """Drop a waiting or running sequence; its slot is free before the next step.

        Returns:
            What had been sampled, with reason CANCELLED, or None when the engine does not hold the sequence.
        """
        ...

    def step(self) -> list[FinishedSequence]:
        """One bounded piece of prefill for newcomers and one token for every running sequence.

        Returns:
            The sequences that ended in this step, each exactly once.
        """
        ...

    def stage(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Check new weights on a second copy; the old ones go on serving, whatever happens.

        May run in another thread, beside any method but `stage` and `swap`. Floating-point tensors are rounded to the
        dtype that is served.

        Raises:
            Mismatch: a tensor is missing, unknown, of another shape, or floating-point on one side only; the message
                names it.
            CorruptData: a tensor, as rounded, or the logits of the canary prompt are not finite (reason NOT_FINITE).
        """
        ...

    @property
    def can_swap(self) -> bool:
        """Whether `swap` need not wait for sequences to end; once it has become True, only newcomers undo that."""
        ...

    def swap(self) -> int:
        """Serve the staged weights from the next step on; returns their version.

        Raises:
            FailedPrecondition: nothing is staged, or `can_swap` is False.
        """
        ...

    def renumber(self, version: int) -> None:
        """Give the served weights another version number: a version with the very same weights was published."""
        ...
