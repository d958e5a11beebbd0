"""Which model people prefer: win rates and Bradley-Terry strengths over blind labels.

Pure functions over labels. A ranking of K answers counts as the comparisons of all its pairs; a pair of answers of the
same contestant tells nothing about contestants and is left out. Every comparison counts once, a tie one half for each
side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from trimtab.errors import DataError
from trimtab_trainer.eval.preference.bootstrap import Figure
from trimtab_trainer.eval.preference.bradley_terry import check_estimable, fit, is_estimable
from trimtab_trainer.eval.preference.labels import Label, bootstrap_of, contestants_of

__all__ = ["Comparison", "Comparisons", "first_shown", "strengths"]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One contestant against another.

    Attributes:
        model, other: names.
        win_rate: of `model`, ties one half.
        ties: share of comparisons without a preference.
    """

    model: str
    other: str
    win_rate: Figure
    ties: Figure


class Comparisons:
    """All comparisons in some labels.

    Attributes:
        names: the contestants.
        bootstrap: over the labels.
        same: pairs of answers of one contestant, which are left out.

    Args:
        labels: at least one.
        samples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        DataError: no two answers of different contestants are compared.
    """

    def __init__(self, labels: Sequence[Label], *, samples: int, seed: int) -> None:
        self.names = contestants_of(labels)
        self.bootstrap = bootstrap_of(labels, samples=samples, seed=seed)
        self.same = 0
        self._wins: dict[tuple[str, str], Vector] = {}  # [label] by (preferred, other), half of the ties included
        self._ties: dict[tuple[str, str], Vector] = {}  # [label] by (name, name) in order
        for number, label in enumerate(labels):
            for one, other in combinations(range(len(label.ranks)), 2):
                self._add(number, len(labels), label, one, other)
        if not self._wins:
            known = ", ".join(self.names)
            raise DataError(f"sources: all answers are of {known}; two contestants are compared", field="sources")

    def _add(self, number: int, count: int, label: Label, one: int, other: int) -> None:
        names = label.contestants[one], label.contestants[other]
        if names[0] == names[1]:
            self.same += 1
            return
        won = _preference(label.ranks[one], label.ranks[other])
        for pair, part in ((names, won), ((names[1], names[0]), 1 - won)):
            self._wins.setdefault(pair, np.zeros(count))[number] += part
        self._ties.setdefault((min(names), max(names)), np.zeros(count))[number] += won == 0.5

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Contestants that were compared, each pair once, in order."""
        return sorted(self._ties)

    def between(self, model: str, other: str) -> Comparison:
        """How one did against the other, of `pairs`."""
        wins, lost = self._wins[model, other], self._wins[other, model]
        ties = self._ties[min(model, other), max(model, other)]
        ratio = self.bootstrap.ratio
        return Comparison(model, other, ratio(wins, wins + lost), ratio(ties, wins + lost))

    def counts_of(self, model: str) -> Vector:
        """[label] comparisons that a contestant was in."""
        some = [wins for pair, wins in self._wins.items() if model in pair]
        return np.sum(some, axis=0)

    def wins(self) -> Vector:
        """[model, model] comparisons that the first won, half of the ties included."""
        return self._matrix({pair: wins.sum() for pair, wins in self._wins.items()}, ())

    def resampled_wins(self) -> tuple[Vector, Vector]:
        """[sample, model, model] the same over resampled prompts, and over both resampled."""
        totals = {pair: self.bootstrap.totals(wins) for pair, wins in self._wins.items()}
        samples = next(iter(totals.values()))[0].shape
        over_prompts, over_both = (
            self._matrix({pair: both[which] for pair, both in totals.items()}, samples) for which in (0, 1)
        )
        return over_prompts, over_both

    def _matrix(self, cells: Mapping[tuple[str, str], Vector], before: tuple[int, ...]) -> Vector:
        matrix = np.zeros((*before, len(self.names), len(self.names)))
        for (model, other), values in cells.items():
            matrix[..., self.names.index(model), self.names.index(other)] = values
        return matrix


def strengths(comparisons: Comparisons, baseline: str | None) -> dict[str, Figure]:
    """Bradley-Terry strengths in nats of log-odds, strongest first.

    A resample of which no finite strengths follow is left out; where these are more than a tail of 2.5 %, there is no
    interval.

    Args:
        comparisons: of all contestants.
        baseline: has strength 0; None: the mean of all is 0.

    Raises:
        DataError: contestants that no comparison links, or that never win: there is no finite estimate.
    """
    names, wins = comparisons.names, comparisons.wins()
    check_estimable(wins, names)

    def above(matrix: Vector) -> Vector:
        fitted = fit(matrix)
        return fitted if baseline is None else fitted - fitted[names.index(baseline)]

    nothing = np.full(len(names), np.nan)
    over_prompts, over_both = (
        np.stack([above(matrix) if is_estimable(matrix) else nothing for matrix in matrices])
        for matrices in comparisons.resampled_wins()
    )
    value = above(wins)
    found = {
        name: comparisons.bootstrap.figure(
            float(value[place]), (over_prompts[:, place], over_both[:, place]), comparisons.counts_of(name)
        )
        for place, name in enumerate(names)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].value))


def first_shown(labels: Sequence[Label], *, samples: int, seed: int) -> Figure | None:
    """How often the answer that stands first of two on the page is preferred, ties one half: 0.5 without a bias.

    None where the labels do not say in which order answers were shown.
    """
    known = [label for label in labels if label.order]
    if not known:
        return None
    wins, counts = np.zeros(len(known)), np.zeros(len(known))
    for number, label in enumerate(known):
        for first, later in combinations(label.order, 2):
            wins[number] += _preference(label.ranks[first], label.ranks[later])
            counts[number] += 1
    return bootstrap_of(known, samples=samples, seed=seed).ratio(wins, counts)


def _preference(rank: int, other: int) -> float:
    return 0.5 if rank == other else float(rank < other)
