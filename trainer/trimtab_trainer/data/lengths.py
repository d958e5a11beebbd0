"""Length tables in the form of the paper's (InstructGPT, tables 8 to 11): mean, std, min, quartiles, max."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

__all__ = ["LengthTable", "Lengths"]


@dataclass(frozen=True)
class LengthTable:
    """Figures of a set of lengths, all in its unit.

    Attributes:
        count: how many there are.
        std: of a sample, n - 1 below the line; None of one length.
        quarter, median, three_quarters: between two lengths, on the straight line from one to the other, as numpy's
            and pandas' default.
    """

    count: int
    mean: float
    std: float | None
    min: int
    quarter: float
    median: float
    three_quarters: float
    max: int


class Lengths:
    """Lengths one after another, held as how often each was there.

    n different lengths add up to at least n²/2, so the file itself bounds them by the square root of its size: 10 GB
    have at most 141,000.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        """One length more."""
        self._counts[length] += 1

    def table(self) -> LengthTable | None:
        """Exact figures; None without any length."""
        count = self._counts.total()
        if not count:
            return None
        total = sum(length * times for length, times in self._counts.items())
        squares = sum(length * length * times for length, times in self._counts.items())
        order = sorted(self._counts.items())
        std = math.sqrt((count * squares - total * total) / (count * (count - 1))) if count > 1 else None
        quarter, median, three_quarters = (_quantile(order, count, q) for q in (0.25, 0.5, 0.75))
        return LengthTable(count, total / count, std, order[0][0], quarter, median, three_quarters, order[-1][0])


def _quantile(order: list[tuple[int, int]], count: int, q: float) -> float:
    """Linear interpolation between the two lengths around place q · (count - 1)."""
    place = q * (count - 1)
    lower = math.floor(place)
    below = _at(order, lower)
    return below + (place - lower) * (_at(order, min(lower + 1, count - 1)) - below)


def _at(order: list[tuple[int, int]], place: int) -> int:
    """The length at a place from 0, in rising order."""
    for length, times in order:
        if place < times:
            return length
        place -= times
    raise IndexError(place)
