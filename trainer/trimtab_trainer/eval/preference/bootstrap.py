"""Shares and means over labels, with bootstrap intervals over prompts, and over prompts and labelers.

Labels of one prompt are no independent draws, and neither are those of one labeler: the two are crossed. Two intervals
answer two questions.

- Over prompts: prompts are resampled whole, labelers stay. What would these labelers say of other prompts?
- Over prompts and labelers: both are resampled, independently, and a label counts as often as its prompt was drawn
  times as often as its labeler was: the pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied
  Statistics 1(2)). What would other such labelers say of other prompts? No bootstrap of crossed factors is exact
  (McCullagh 2000); this one errs to the wide side.

Both are percentile intervals of 95 %. Below five prompts, or five labelers, there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab_trainer.bootstrap import LEAST_CLUSTERS, cluster_draws, percentile_interval

__all__ = ["Bootstrap", "Figure", "Interval", "interval_of"]

Vector = npt.NDArray[np.float64]
Interval = tuple[float, float]

_TAIL = 0.025


@dataclass(frozen=True)
class Figure:
    """A share or a mean.

    Attributes:
        value: measured.
        over_prompts: its 95 % interval for other prompts; None where none can be given.
        over_both: for other prompts and other labelers; None where none can be given.
        count: what it is measured on: comparisons, ratings or answers to a question.
        prompts, labelers: how many of each these come from; of the smaller part of a difference.
    """

    value: float
    over_prompts: Interval | None
    over_both: Interval | None
    count: int
    prompts: int
    labelers: int


class Bootstrap:
    """One set of draws, so that figures of it can be subtracted draw by draw.

    Args:
        prompts: of each label.
        labelers: of each label.
        samples: resamples.
        seed: of the draws.
    """

    def __init__(self, prompts: Sequence[str], labelers: Sequence[str], *, samples: int, seed: int) -> None:
        self._prompt_of, prompt_count = _codes(prompts)
        self._labeler_of, labeler_count = _codes(labelers)
        generator = np.random.default_rng(seed)
        self._prompt_weights = _weights(generator, samples, prompt_count)
        self._labeler_weights = _weights(generator, samples, labeler_count)

    def totals(self, values: Vector) -> tuple[Vector, Vector]:
        """Sums of a value of each label, [sample]: over resampled prompts, and over both resampled."""
        table = np.zeros((self._prompt_weights.shape[1], self._labeler_weights.shape[1]))
        np.add.at(table, (self._prompt_of, self._labeler_of), values)
        by_labeler = self._prompt_weights @ table
        return by_labeler.sum(axis=1), (by_labeler * self._labeler_weights).sum(axis=1)

    def ratio(self, sums: Vector, counts: Vector) -> Figure:
        """sum(sums) / sum(counts) over the labels.

        Args:
            sums: [label] sum of its values.
            counts: [label] how many values it has; at least one label has one.
        """
        over = self._ratios(sums, counts)
        return self.figure(float(sums.sum() / counts.sum()), over, counts)

    def difference(self, sums: Vector, counts: Vector, other_sums: Vector, other_counts: Vector) -> Figure:
        """One ratio minus another, on the same draws; it counts the values of the smaller part."""
        pairs = zip(self._ratios(sums, counts), self._ratios(other_sums, other_counts), strict=True)
        over_prompts, over_both = (one - other for one, other in pairs)
        value = sums.sum() / counts.sum() - other_sums.sum() / other_counts.sum()
        return self.figure(float(value), (over_prompts, over_both), counts, other_counts)

    def figure(self, value: float, resampled: tuple[Vector, Vector], *counts: Vector) -> Figure:
        """A figure that was computed from `totals`.

        Args:
            value: of the labels as they are.
            resampled: [sample] of the resampled prompts, and of both resampled; nan where there is none.
            counts: [label] how many values each gives; of a figure of several parts, of each part.
        """
        prompts = min(len(np.unique(self._prompt_of[one > 0])) for one in counts)
        labelers = min(len(np.unique(self._labeler_of[one > 0])) for one in counts)
        enough = prompts >= LEAST_CLUSTERS
        return Figure(
            value,
            interval_of(resampled[0]) if enough else None,
            interval_of(resampled[1]) if enough and labelers >= LEAST_CLUSTERS else None,
            min(int(one.sum()) for one in counts),
            prompts,
            labelers,
        )

    def _ratios(self, sums: Vector, counts: Vector) -> tuple[Vector, Vector]:
        with np.errstate(invalid="ignore"):  # a resample without any is nan
            over_prompts, over_both = (a / b for a, b in zip(self.totals(sums), self.totals(counts), strict=True))
        return over_prompts, over_both


def interval_of(resampled: Vector) -> Interval | None:
    """Percentile interval of 95 % over the resamples that have a figure; None where more than a tail has none."""
    known = resampled[~np.isnan(resampled)]
    if len(known) < (1 - _TAIL) * len(resampled):
        return None
    return percentile_interval(known)


def _codes(names: Sequence[str]) -> tuple[npt.NDArray[np.int64], int]:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64), len(numbers)


def _weights(generator: np.random.Generator, samples: int, clusters: int) -> Vector:
    """[sample, cluster] how often each cluster is drawn, with replacement, as many as there are."""
    return np.concatenate(list(cluster_draws(np.ones(clusters), samples=samples, generator=generator)))
