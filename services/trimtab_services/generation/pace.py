"""How fast an engine works, as measured, and what that says about work that is asked for with a deadline."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

__all__ = ["Pace"]

_STEPS = 64
_LEAST_STEPS = 8
_MEMORY = 0.95
"""What a finished sequence counts for after each further one: the last few dozen decide."""


class Pace:
    """Step time and share of the allowed tokens that sequences really take. Not thread-safe.

    A step gives each sequence in a slot one token. So a sequence of n tokens takes n steps, and the tokens of all that
    goes before it are shared out over the slots. The estimate leaves prefill out and takes the step time of today's
    load: it errs on the short side, so what it says cannot be done cannot be done.

    Args:
        slots: sequences that run at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._step_seconds: deque[float] = deque(maxlen=_STEPS)
        self._sampled = 0.0
        self._allowed = 0.0

    def note_step(self, seconds: float) -> None:
        """A step that sampled tokens."""
        self._step_seconds.append(seconds)

    def note_finished(self, sampled: int, allowed: int) -> None:
        """A sequence that ended by itself or at its limit, of the tokens that it was allowed."""
        self._sampled = _MEMORY * self._sampled + sampled
        self._allowed = _MEMORY * self._allowed + allowed

    def seconds(self, ahead: int, wanted: Sequence[int]) -> float | None:
        """Seconds until the last of some sequences ends, at least; None while too little is known.

        Args:
            ahead: new tokens still allowed to what goes before them.
            wanted: new tokens allowed to each of them; not empty.
        """
        if len(self._step_seconds) < _LEAST_STEPS or not self._allowed:
            return None
        share = self._sampled / self._allowed
        steps = max(share * max(wanted), math.floor(share * (ahead + sum(wanted)) / self._slots))
        return steps * statistics.median(self._step_seconds)
