"""A sequence in a slot: what it has sampled, what of it is computed, and how it goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from numpy.typing import NDArray

from trimtab_services.generation.engines.completion import Completion
from trimtab_services.generation.sampling import SamplingRow

__all__ = ["Running"]


@dataclass(slots=True, eq=False, kw_only=True)
class Running(Completion):
    """A sequence in a slot.

    Attributes:
        uniforms: [max_new_tokens] random numbers, one for each token.
        order: when it came in, counted by the lane; prefill follows it.
        slot: row of the cache.
        filled: tokens whose keys and values are in the slot.
        pure: whether those all come from the lane's present weights.
        leader: the sequence whose prompt prefill this one waits to copy.
        slot_time: it has a slot from the beginning.
    """

    uniforms: NDArray
    order: int = 0
    slot: int = -1
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
