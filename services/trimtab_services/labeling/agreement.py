"""How well labelers agree: pure functions of rankings; `agreement_report.py` feeds them.

Two labelers agree on a pair of answers where both order it alike; pairs that either of them ties are left out, as the
trainer leaves them out. InstructGPT reports this share (72.6 +- 1.5 % among training labelers). Pairs of one task
depend on one another, so the interval is Wilson's at the effective number of pairs n p (1 - p) / v, with v the variance
of the ratio estimator over tasks (Korn and Graubard 1998, Survey Methodology 24). Where every task has one pair this is
Wilson's own interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

__all__ = ["Proportion", "Share", "agreeing_pairs", "gold_pairs", "kendall_tau_b", "pair_share", "proportion"]

Ranking = Sequence[Sequence[int]]

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Share:
    """Pairs of answers of one task that both order, and those of them that they order alike."""

    agreeing: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share with its 95 % interval, the pairs and the tasks that it was measured on."""

    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    count: int = 0
    tasks: int = 0


def ranks(ranking: Ranking) -> list[int]:
    """The place of each answer; ties share one."""
    places = {index: place for place, group in enumerate(ranking) for index in group}
    return [places[index] for index in range(len(places))]


def pair_share(one: Ranking, other: Ranking) -> Share:
    """How many pairs of answers two rankings of one task order alike, of those that neither ties."""
    a, b = ranks(one), ranks(other)
    products = [(a[i] - a[j]) * (b[i] - b[j]) for i, j in combinations(range(len(a)), 2)]
    return Share(sum(product > 0 for product in products), sum(product != 0 for product in products))


def gold_pairs(gold: Ranking) -> int:
    """Pairs of answers that a gold ranking orders; those that it ties say nothing."""
    a = ranks(gold)
    return sum(a[i] != a[j] for i, j in combinations(range(len(a)), 2))


def agreeing_pairs(gold: Ranking, ranking: Ranking) -> int:
    """Pairs that a gold ranking orders and a labeler's orders alike; a tie is not alike."""
    a, b = ranks(gold), ranks(ranking)
    return sum(a[i] != a[j] and _sign(a[i] - a[j]) == _sign(b[i] - b[j]) for i, j in combinations(range(len(a)), 2))


def kendall_tau_b(one: Ranking, other: Ranking) -> float | None:
    """Kendall's tau-b of two rankings, which accounts for ties; None where one of them ties all answers."""
    a, b = ranks(one), ranks(other)
    signs = [(_sign(a[i] - a[j]), _sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    ordered = math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
    return sum(x * y for x, y in signs) / ordered if ordered else None


def proportion(shares: Iterable[Share]) -> Proportion:
    """The share over tasks, each of them one entry, with its interval; all 0 where there are no pairs."""
    counted = [share for share in shares if share.pairs]
    total = sum(share.pairs for share in counted)
    if not total:
        return Proportion()
    value = sum(share.agreeing for share in counted) / total
    spread = sum((share.agreeing - value * share.pairs) ** 2 for share in counted)
    # without spread between tasks, as where all agree, only the number of tasks is known to be independent
    size = total**2 * value * (1 - value) / spread if spread else len(counted)
    low, high = _wilson(value, min(size, total))
    return Proportion(value, low, high, total, len(counted))


def _wilson(value: float, size: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share measured on `size` independent trials."""
    center = value + Z**2 / (2 * size)
    half = Z * math.sqrt(value * (1 - value) / size + Z**2 / (4 * size**2))
    scale = 1 + Z**2 / size
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def _sign(difference: int) -> int:
    return (difference > 0) - (difference < 0)
