"""A sequence in a slot: what it has sampled, what of it is computed, and how it goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from numpy.typing import NDArray

from trimtab_services.generation.engines.base import SequenceRequest
from trimtab_services.generation.sampling import SamplingRow

__all__ = ["Running"]


@dataclass(slots=True, eq=False)
class Running:
    """A sequence in a slot.

    Attributes:
        request: what was asked.
        uniforms: [max_new_tokens] random numbers, one for each token.
        stop_ids: ids that end it.
        suppressed: ids that it cannot sample before `min_new_tokens`.
        order: when it came in, counted by the lane; prefill follows it.
        slot: row of the cache.
        generated: the completion so far.
        logprobs: one for each token of `generated`.
        spans: (first token, version, kv_kept) of each set of weights, in order.
        filled: tokens whose keys and values are in the slot.
        pure: whether those all come from the lane's present weights.
        leader: the sequence whose prompt prefill this one waits to copy.
        slot_time: `time.monotonic()` at which it first had a slot.
    """

    request: SequenceRequest
    uniforms: NDArray
    stop_ids: frozenset[int]
    suppressed: tuple[int, ...]
    order: int = 0
    slot: int = -1
    generated: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int, bool]] = field(default_factory=list)
    filled: int = 0
    pure: bool = True
    leader: Running | None = None
    slot_time: float = field(default_factory=time.monotonic)

    @property
    def target(self) -> int:
        """Tokens that must be in the slot before the next decode step: all but the last."""
        return len(self.request.prompt_token_ids) + len(self.generated) - 1

    @property
    def ready(self) -> bool:
        """Whether the next step can decode it."""
        return self.filled >= self.target

    @property
    def last_token(self) -> int:
        """The token that the next decode step takes as its query."""
        return self.generated[-1] if self.generated else self.request.prompt_token_ids[-1]

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens [start, end) of prompt plus completion."""
        prompt = self.request.prompt_token_ids
        n = len(prompt)
        return [*prompt[start:end], *self.generated[max(start - n, 0) : max(end - n, 0)]]

    def sampling_row(self) -> SamplingRow:
        """How its next token is sampled."""
        sampling, n = self.request.sampling, len(self.generated)
        return SamplingRow(
            uniform=float(self.uniforms[n]),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            suppressed=self.suppressed if n < sampling.min_new_tokens else (),
        )
