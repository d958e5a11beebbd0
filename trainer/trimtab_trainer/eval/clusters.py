"""Means with intervals by a bootstrap that resamples clusters: prompts, questions, occupations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab_trainer.bootstrap import LEAST_CLUSTERS, clustered_interval

__all__ = ["Measure", "clustered_mean"]


@dataclass(frozen=True)
class Measure:
    """A figure with its 95 % interval, whose ends are None below 5 clusters, of which no bootstrap makes one."""

    value: float
    low: float | None
    high: float | None


def clustered_mean(
    values: npt.NDArray[np.float64], clusters: Sequence[Hashable], *, samples: int, seed: int
) -> Measure:
    """Mean over values with its 95 % interval, percentile bootstrap over clusters.

    Args:
        values: [value], at least one.
        clusters: [value] what each value's cluster is known by.
        samples: resamples.
        seed: of the draws.
    """
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    if len(numbers) < LEAST_CLUSTERS:
        return Measure(float(values.mean()), None, None)
    of_value = np.array([numbers[cluster] for cluster in clusters])
    sums = np.bincount(of_value, weights=values).astype(np.float64)
    counts = np.bincount(of_value).astype(np.float64)
    return Measure(float(values.mean()), *clustered_interval(sums, counts, samples=samples, seed=seed))
