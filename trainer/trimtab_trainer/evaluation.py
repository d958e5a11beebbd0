"""How good a reward model is: agreement with rankings over pairs, its interval, and the trivial rule beside it.

Pure functions over numbers: scores and rankings in, figures out. A pair that a labeler called a tie is left out; a pair
to which the model gives equal scores counts one half. Pairs of one prompt are no independent draws, so intervals come
from a bootstrap that resamples prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from trimtab_trainer.bootstrap import LEAST_CLUSTERS, clustered_interval

__all__ = [
    "Accuracy",
    "Calibration",
    "CalibrationBin",
    "RankedAnswers",
    "calibration",
    "labeler_agreement",
    "pair_agreement",
    "ranking_accuracy",
]

_CALIBRATION_BINS = 10


@dataclass(frozen=True)
class RankedAnswers:
    """One labeler's ranking of one prompt's answers, beside the scores to compare with it.

    Attributes:
        prompt: what makes two rankings the same cluster of the bootstrap.
        group: the labeler's group; "" when none is known.
        ranks: of each answer: 0 is best, ties share one.
        scores: of each answer: higher is better.
    """

    prompt: str
    group: str
    ranks: Sequence[int]
    scores: Sequence[float]


@dataclass(frozen=True)
class Accuracy:
    """Agreement over pairs.

    Attributes:
        value: share of pairs whose order agrees, 0..1.
        low: lower end of the 95 % interval; None below 5 prompts, of which no bootstrap makes an interval.
        high: upper end; None likewise.
        pairs: decided pairs.
        prompts: clusters.
    """

    value: float
    low: float | None
    high: float | None
    pairs: int
    prompts: int

    def metrics(self, name: str) -> dict[str, float]:
        """As flat figures `name`, `name_low`, `name_high` (where there is an interval), `name_pairs`."""
        interval = {f"{name}_low": self.low, f"{name}_high": self.high}
        known = {key: end for key, end in interval.items() if end is not None}
        return {name: self.value, **known, f"{name}_pairs": float(self.pairs)}


def pair_agreement(ranks: Sequence[int], scores: Sequence[float]) -> tuple[float, int]:
    """Agreeing pairs (an equal score counts one half) and decided pairs of one ranking."""
    rank = np.asarray(ranks)
    score = np.asarray(scores, dtype=np.float64)
    better = rank[:, None] < rank[None, :]
    difference = score[:, None] - score[None, :]
    agree = (difference > 0) + 0.5 * (difference == 0)
    return float(agree[better].sum()), int(better.sum())


def labeler_agreement(rankings: Iterable[Sequence[Sequence[int]]]) -> tuple[float, int]:
    """How often two labelers of the same answers order a pair alike; pairs that either one ties are left out.

    The yardstick of InstructGPT 3.4: 72.6 % among its training labelers.

    Args:
        rankings: for each prompt the ranks by each of its labelers.

    Returns:
        The share of agreeing decisions in [0, 1] (nan without any), and their number.
    """
    agree = total = 0
    for labelers in rankings:
        for one, other in combinations(np.asarray(labelers), 2):
            product = np.subtract.outer(one, one) * np.subtract.outer(other, other)
            agree += int((product > 0).sum()) // 2  # each pair is there twice
            total += int((product != 0).sum()) // 2
    return (agree / total if total else float("nan")), total


def ranking_accuracy(
    rankings: Iterable[RankedAnswers], *, samples: int, seed: int, by_group: bool = True
) -> Mapping[str, Accuracy]:
    """Agreement of scores with rankings: over all of them under "", and for each labeler group under its name.

    Args:
        rankings: those without a decided pair add nothing.
        samples: bootstrap resamples of the prompts.
        seed: of the bootstrap.
        by_group: False leaves the groups out.

    Returns:
        Accuracy by group; empty when no pair is decided.
    """
    agree: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    for ranking in rankings:
        found = np.array(pair_agreement(ranking.ranks, ranking.scores), dtype=np.float64)
        if found[1] == 0:
            continue
        for group in {"", ranking.group} if by_group else {""}:
            clusters = agree.setdefault(group, {})
            clusters[ranking.prompt] = clusters.get(ranking.prompt, np.zeros(2)) + found
    return {group: _accuracy(np.stack(list(c.values())), samples, seed) for group, c in sorted(agree.items())}


@dataclass(frozen=True)
class CalibrationBin:
    """Decided pairs whose predicted probability lies in one tenth of 0.5..1.

    Attributes:
        predicted: mean probability that the answer with the higher score is the better one.
        observed: how often it was.
        pairs: of the bin.
        low: lower end of the 95 % interval of `observed`; None where none was asked for, or of too few prompts.
        high: upper end; None likewise.
    """

    predicted: float
    observed: float
    pairs: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Whether sigmoid(r_i - r_j) is the share of labelers who prefer i.

    Attributes:
        error: expected calibration error, 0..0.5: mean over pairs of |predicted - observed| of their bin.
        bins: those that hold a pair, least sure first.
    """

    error: float
    bins: tuple[CalibrationBin, ...]


def calibration(rankings: Iterable[RankedAnswers], *, samples: int = 0, seed: int = 0) -> Calibration | None:
    """Predicted against observed preferences over decided pairs; None when none is decided.

    The probability of the pairwise loss is p = sigmoid(|r_i - r_j|) for the answer with the higher score (InstructGPT
    3.5, equation 1); the error is that of Guo et al. 2017 (arXiv 1706.04599), equation 3, over ten bins of 0.5..1. An
    equal score has p = 0.5 and counts as one half observed.

    Args:
        rankings: those without a decided pair add nothing.
        samples: bootstrap resamples of the prompts, for intervals of the bins; 0 for none.
        seed: of the bootstrap.
    """
    predicted: list[npt.NDArray[np.float64]] = []
    observed: list[npt.NDArray[np.float64]] = []
    prompts: list[npt.NDArray[np.int64]] = []
    numbers: dict[str, int] = {}
    for ranking in rankings:
        rank, score = np.asarray(ranking.ranks), np.asarray(ranking.scores, np.float64)
        better = rank[:, None] < rank[None, :]
        difference = (score[:, None] - score[None, :])[better]
        predicted.append(1 / (1 + np.exp(-np.abs(difference))))
        observed.append((difference > 0) + 0.5 * (difference == 0))
        prompts.append(np.full(len(difference), numbers.setdefault(ranking.prompt, len(numbers))))
    if not predicted or not (total := sum(map(len, predicted))):
        return None
    p, seen, prompt = np.concatenate(predicted), np.concatenate(observed), np.concatenate(prompts)
    place = np.minimum(((p - 0.5) * 2 * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    bins = tuple(
        CalibrationBin(
            float(p[inside].mean()),
            float(seen[inside].mean()),
            int(inside.sum()),
            *_interval_over_prompts(seen[inside], prompt[inside], samples, seed),
        )
        for number in range(_CALIBRATION_BINS)
        if (inside := place == number).any()
    )
    return Calibration(sum(abs(one.predicted - one.observed) * one.pairs for one in bins) / total, bins)


def _interval_over_prompts(
    values: npt.NDArray[np.float64], prompts: npt.NDArray[np.int64], samples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Interval of the mean of values whose prompts are known by number; none of too few prompts or without samples."""
    counts = np.bincount(prompts).astype(np.float64)
    present = counts > 0
    if not samples or present.sum() < LEAST_CLUSTERS:
        return None, None
    sums = np.bincount(prompts, weights=values).astype(np.float64)
    return clustered_interval(sums[present], counts[present], samples=samples, seed=seed)


def _accuracy(clusters: npt.NDArray[np.float64], samples: int, seed: int) -> Accuracy:
    sums, counts = clusters[:, 0], clusters[:, 1]
    low = high = None
    if len(clusters) >= LEAST_CLUSTERS:
        low, high = clustered_interval(sums, counts, samples=samples, seed=seed)
    return Accuracy(float(sums.sum() / counts.sum()), low, high, int(counts.sum()), len(clusters))
