"""Counts by name, of few names: a field that has a name of its own in each row is no category or group."""

from __future__ import annotations

from collections import Counter

from trimtab.errors import DataError

__all__ = ["Tally"]

_MOST_NAMES = 1000


class Tally:
    """How often each value of a field was there.

    Args:
        field: named in the error.
    """

    def __init__(self, field: str) -> None:
        self.counts: Counter[str] = Counter()
        self._field = field

    def add(self, name: str) -> None:
        """One more of that name.

        Raises:
            DataError: more different names than such a field has.
        """
        self.counts[name] += 1
        if len(self.counts) > _MOST_NAMES:
            limit = f"at most {_MOST_NAMES}"
            raise DataError(
                f"{self._field} has more than {_MOST_NAMES} different values; allowed: {limit}",
                field=self._field,
                limit=limit,
            )
