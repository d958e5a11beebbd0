"""What labels say of single answers: ratings from 1 to 7, and the questions of the paper's metadata (its table 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from trimtab_trainer.eval.preference.bootstrap import Figure
from trimtab_trainer.eval.preference.labels import Label, bootstrap_of

__all__ = ["AnswerMeans", "flag_names", "flag_rates", "mean_ratings"]


class AnswerMeans:
    """Means by contestant of values that labels give to answers; every value counts once.

    Attributes:
        names: contestants that got a value, in order.

    Args:
        labels: at least one.
        values: of each label: the value of the answer at each place that has one.
        samples: bootstrap resamples.
        seed: of the bootstrap.
    """

    def __init__(
        self, labels: Sequence[Label], values: Sequence[Mapping[int, float]], *, samples: int, seed: int
    ) -> None:
        self._bootstrap = bootstrap_of(labels, samples=samples, seed=seed)
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, npt.NDArray[np.float64]] = {}
        for number, (label, given) in enumerate(zip(labels, values, strict=True)):
            for place, value in given.items():
                name = label.contestants[place]
                self._sums.setdefault(name, np.zeros(len(labels)))[number] += value
                self._counts.setdefault(name, np.zeros(len(labels)))[number] += 1
        self.names = sorted(self._sums)

    def mean(self, name: str) -> Figure:
        """Of a contestant."""
        return self._bootstrap.ratio(self._sums[name], self._counts[name])

    def difference(self, name: str, other: str) -> Figure:
        """Mean of a contestant minus that of another, on the same draws of prompts and labelers."""
        return self._bootstrap.difference(self._sums[name], self._counts[name], self._sums[other], self._counts[other])


def mean_ratings(labels: Sequence[Label], *, samples: int, seed: int) -> AnswerMeans | None:
    """Mean rating, 1 to 7; None where there are no ratings."""
    rated = [label for label in labels if label.ratings]
    if not rated:
        return None
    return AnswerMeans(rated, [dict(enumerate(label.ratings)) for label in rated], samples=samples, seed=seed)


def flag_names(labels: Sequence[Label]) -> list[str]:
    """Questions that some label answers, in the order in which they come."""
    return list(dict.fromkeys(name for label in labels for flags in label.flags for name in flags))


def flag_rates(labels: Sequence[Label], flag: str, *, samples: int, seed: int) -> AnswerMeans | None:
    """Share of "yes" among the labels that answer a question; one left open does not count. None without any."""
    values = [{place: float(flags[flag]) for place, flags in enumerate(one.flags) if flag in flags} for one in labels]
    if not any(values):
        return None
    return AnswerMeans(labels, values, samples=samples, seed=seed)
