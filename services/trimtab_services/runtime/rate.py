"""How fast a compute thread is, as measured over the last half minute."""

from __future__ import annotations

from collections import deque

__all__ = ["Rate"]

_WINDOW_S = 30.0
_ENOUGH_BATCHES = 4
"""The first ones of a process are slow, and a small one says little of a large one."""


class Rate:
    """Tokens per second of compute over the last 30 seconds; keeps the last known when idle since. Not thread-safe."""

    def __init__(self) -> None:
        self._batches: deque[tuple[float, int, float]] = deque()
        self._tokens = 0
        self._seconds = 0.0
        self._known: float | None = None
        self._best: float | None = None
        self._count = 0

    def add(self, now: float, tokens: int, seconds: float) -> None:
        """Notes a batch that ended at `now` (`time.monotonic()`)."""
        self._batches.append((now, tokens, seconds))
        self._tokens += tokens
        self._seconds += seconds
        self._forget(now)
        self._count += 1
        if self._seconds > 0:
            self._known = self._tokens / self._seconds
        if self._count >= _ENOUGH_BATCHES:
            self._best = max((tokens / seconds for _, tokens, seconds in self._batches if seconds > 0), default=None)

    def busy_tokens_per_second(self) -> float | None:
        """While computing; None before the first batch."""
        return self._known

    def best_tokens_per_second(self) -> float | None:
        """Of the fastest batch: what a full queue can be computed at, at most. None before a few batches."""
        return self._best

    def recent_tokens_per_second(self, now: float) -> float:
        """Over the last 30 seconds of the clock, idle time included."""
        self._forget(now)
        return self._tokens / _WINDOW_S

    def _forget(self, now: float) -> None:
        while self._batches and self._batches[0][0] < now - _WINDOW_S:
            _, tokens, seconds = self._batches.popleft()
            self._tokens -= tokens
            self._seconds -= seconds
