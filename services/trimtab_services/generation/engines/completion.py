"""A completion as an engine builds it: what has been sampled, by which weights, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from trimtab.errors import InternalError, Reason, TrimtabError
from trimtab.types import FinishReason, VersionSpan
from trimtab_services.generation.engines.base import FinishedSequence, SampledToken, SequenceRequest
from trimtab_services.generation.engines.stops import ends_with_stop_string

__all__ = ["Completion"]


@dataclass(slots=True, eq=False, kw_only=True)
class Completion:
    """A sequence that an engine holds.

    Attributes:
        request: what was asked.
        eos: ids that end a completion of the model.
        stop_ids: ids that end this one.
        suppressed: the same, in order: what cannot be sampled before `min_new_tokens`.
        generated: the completion so far.
        logprobs: one for each token of `generated`.
        spans: (first token, version, kv_kept) of each set of weights, in order.
        slot_time: `time.monotonic()` at which it first had a slot; 0 before.
    """

    request: SequenceRequest
    eos: frozenset[int]
    stop_ids: frozenset[int] = field(init=False)
    suppressed: tuple[int, ...] = field(init=False)
    generated: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int, bool]] = field(default_factory=list)
    slot_time: float = 0.0

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        self.stop_ids = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self.eos)
        self.suppressed = tuple(sorted(self.stop_ids))

    @property
    def left(self) -> int:
        """New tokens still allowed."""
        return self.request.sampling.max_new_tokens - len(self.generated)

    def continue_under(self, version: int, *, kv_kept: bool) -> None:
        """The next token is sampled by other weights."""
        start = len(self.generated)
        self.spans = [span for span in self.spans if span[0] < start]
        self.spans.append((start, version, kv_kept))

    def add(self, token: int, logprob: float, tokenizer: PreTrainedTokenizerBase | None) -> FinishReason | None:
        """Appends a token, and tells it to who waits for it.

        Returns:
            Why the completion has ended; None where it goes on.
        """
        self.generated.append(token)
        self.logprobs.append(logprob)
        request, sampling = self.request, self.request.sampling
        stopped = token in self.stop_ids
        if not stopped and sampling.stop_strings and tokenizer and len(self.generated) >= sampling.min_new_tokens:
            stopped = ends_with_stop_string(tokenizer, self.generated, sampling.stop_strings)
        ended = stopped or self.left == 0
        if request.on_token is not None:
            request.on_token(SampledToken(request.sequence_id, token, logprob, self.spans[-1][1], ended))
        if not ended:
            return None
        return FinishReason.STOP if stopped else FinishReason.LENGTH

    def not_finite(self, version: int) -> InternalError:
        """The error of a completion whose next token has no distribution."""
        return InternalError(
            f"logits of sequence {self.request.sequence_id} are not finite at token {len(self.generated)}"
            f" under version {version}",
            reason=Reason.NOT_FINITE,
            field="logits",
            value="not finite",
            limit="finite values",
        )

    def finished(self, reason: FinishReason, error: TrimtabError | None = None) -> FinishedSequence:
        """What the engine hands out; empty spans are left out."""
        ends = [start for start, _, _ in self.spans[1:]] + [len(self.generated)]
        spans = tuple(
            VersionSpan(start_token=start, end_token=end, version=version, kv_kept=kept)
            for (start, version, kept), end in zip(self.spans, ends, strict=True)
            if end > start
        )
        return FinishedSequence(
            self.request.sequence_id,
            tuple(self.generated),
            np.asarray(self.logprobs, dtype=np.float32),
            reason,
            spans,
            error,
            slot_time=self.slot_time,
        )
