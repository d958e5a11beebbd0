"""Counts by name of a field with few names: what comes after the first thousand of them is counted together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

__all__ = ["Tally"]

_MOST_NAMES = 1000
_REST = f"(after {_MOST_NAMES} other names)"


class Tally:
    """How often each value of a field was there, by the name of `add`.

    Args:
        known: names that always have a count of their own.
    """

    def __init__(self, known: Collection[str] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._known = known

    def add(self, name: str) -> str:
        """One more of that name; returns the name that it is counted by, one and the same for all beyond the limit."""
        is_known = name in self.counts or name in self._known
        counted = name if is_known or len(self.counts) < _MOST_NAMES else _REST
        self.counts[counted] += 1
        return counted
