"""The bootstrap of everything that is measured: clusters, such as prompts or labelers, are resampled whole.

Drawing n clusters with replacement draws how often each comes from a multinomial distribution, so equal clusters are
drawn together and held once. Draws come a part at a time: memory grows neither with samples times clusters nor, of
clusters of few kinds, with their number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_CLUSTERS", "cluster_draws", "clustered_interval", "percentile_interval", "resampled_sums"]

Array = npt.NDArray[np.float64]

LEAST_CLUSTERS = 5
"""Of fewer prompts, labelers, documents or what else is resampled, no bootstrap makes an interval."""

_PART = 1 << 20
"""Most draws held at once: 8 MiB of them."""


def cluster_draws(times: Array, *, samples: int, generator: np.random.Generator) -> Iterator[Array]:
    """How often each kind of cluster is drawn, with replacement and as many clusters as there are: [part, kind] each.

    Args:
        times: [kind] clusters of that kind.
        samples: resamples, over all parts.
        generator: of the draws.
    """
    count = int(times.sum())
    part = max(1, _PART // len(times))
    for start in range(0, samples, part):
        drawn = generator.multinomial(count, times / count, size=min(part, samples - start))
        yield drawn.astype(np.float64)


def resampled_sums(clusters: Array, *, samples: int, seed: int, times: Array | None = None) -> Array:
    """Sums over resampled clusters, [sample, column].

    Args:
        clusters: [cluster, column] values; the columns of a sample are of the same clusters.
        samples: resamples.
        seed: of the draws.
        times: [cluster] clusters with just these values; None for one each.
    """
    kinds, places = np.unique(clusters, axis=0, return_inverse=True)
    of_kind = np.bincount(places.ravel(), weights=times).astype(np.float64)
    drawn = cluster_draws(of_kind, samples=samples, generator=np.random.default_rng(seed))
    return np.concatenate([part @ kinds for part in drawn])


def clustered_interval(
    sums: Array, counts: Array, *, samples: int, seed: int, times: Array | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of sum(sums) / sum(counts), resampling clusters (Efron and Tibshirani 1993, chapter 13).

    Args:
        sums: [cluster] sum of the values of each cluster.
        counts: [cluster] number of values of each cluster; all above 0.
        samples: resamples.
        seed: of the draws.
        times: [cluster] clusters with just these two; None for one each.
        level: of the interval.
    """
    over = resampled_sums(np.stack([sums, counts], axis=1), samples=samples, seed=seed, times=times)
    return percentile_interval(over[:, 0] / over[:, 1], level=level)


def percentile_interval(resampled: Array, *, level: float = 0.95) -> tuple[float, float]:
    """The ends between which the middle `level` of the resampled figures lies."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
