"""The claims of the paper beside what a run measured: win rates, hallucination, alignment tax, reward-model accuracy.

Pure functions over numbers. Samples of one prompt are no independent draws, so every interval is a bootstrap over
prompts (or over passages). A claim holds only where its whole 95 % interval is on the claimed side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab_trainer.bootstrap import clustered_interval, percentile_interval, resampled_sums

__all__ = ["Claim", "Estimate", "GiveBack", "WinRate", "give_back", "mean_difference", "sample_mean", "win_rate"]

Samples = Sequence[Sequence[float]]
"""Scores of the samples of each prompt; the numbers of samples may differ."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class WinRate(Estimate):
    """How often one side is preferred; `ties` is the share of pairs with equal scores, each counted as one half."""

    ties: float
    prompts: int


@dataclass(frozen=True)
class Claim:
    """One line of the table.

    Attributes:
        claim: what the paper says, in words.
        paper: its figure, in words.
        measured: ours.
        low, high: its 95 % interval; None where there is none.
        holds: whether ours is on the claimed side, interval included.
        note: how it was counted, and what stands beside it.
    """

    claim: str
    paper: str
    measured: float
    low: float | None
    high: float | None
    holds: bool
    note: str


def win_rate(ours: Samples, theirs: Samples, *, samples: int, seed: int) -> WinRate:
    """Share of pairs that we win, over all pairs of our and their samples of a prompt; a tie counts one half.

    Args:
        ours: scores of our samples of each prompt.
        theirs: of theirs, of the same prompts in the same order.
        samples: bootstrap resamples of the prompts.
        seed: of the bootstrap.
    """
    wins = np.empty(len(ours))
    ties = np.empty(len(ours))
    for index, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        difference = np.subtract.outer(np.asarray(left, float), np.asarray(right, float))
        ties[index] = np.mean(difference == 0)
        wins[index] = np.mean(difference > 0) + ties[index] / 2
    low, high = _interval(wins, samples, seed)
    return WinRate(float(wins.mean()), low, high, ties=float(ties.mean()), prompts=len(wins))


def sample_mean(values: Samples, *, samples: int, seed: int) -> Estimate:
    """Mean over prompts of the mean of their samples."""
    means = np.array([np.mean(one) for one in values], np.float64)
    low, high = _interval(means, samples, seed)
    return Estimate(float(means.mean()), low, high)


def mean_difference(ours: Samples, theirs: Samples, *, samples: int, seed: int) -> Estimate:
    """Mean over prompts of our mean minus their mean, paired by prompt."""
    means = np.array([np.mean(one) - np.mean(other) for one, other in zip(ours, theirs, strict=True)], np.float64)
    low, high = _interval(means, samples, seed)
    return Estimate(float(means.mean()), low, high)


@dataclass(frozen=True)
class GiveBack:
    """What pretraining gradients give back of the pretraining loss that PPO costs.

    Attributes:
        tax: loss after PPO minus loss at its start, nats of a token.
        returned: (loss after PPO - loss after PPO-ptx) / tax; above 1 where PPO-ptx ends below the start.
    """

    tax: Estimate
    returned: Estimate


def give_back(
    losses: Mapping[str, npt.NDArray[np.float64]], tokens: npt.NDArray[np.float64], *, samples: int, seed: int
) -> GiveBack:
    """(L_PPO - L_ptx) / (L_PPO - L_start) over held-out passages, with a bootstrap that resamples passages.

    Args:
        losses: [passage] summed losses of the models `start`, `ppo` and `ptx`, in nats.
        tokens: [passage] counted tokens.
        samples: resamples.
        seed: of the draws.
    """
    of_passage = np.stack([tokens, *(losses[name] for name in ("start", "ppo", "ptx"))], axis=1)

    def figures(sums: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        start, ppo, ptx = sums[..., 1:].T / sums[..., 0]
        return ppo - start, (ppo - ptx) / (ppo - start)

    tax, returned = figures(of_passage.sum(axis=0))
    taxes, all_returned = figures(resampled_sums(of_passage, samples=samples, seed=seed))
    return GiveBack(_estimate(float(tax), taxes), _estimate(float(returned), all_returned))


def _estimate(value: float, resampled: npt.NDArray[np.float64]) -> Estimate:
    return Estimate(value, *percentile_interval(resampled))


def _interval(values: npt.NDArray[np.float64], samples: int, seed: int) -> tuple[float, float]:
    return clustered_interval(values, np.ones(len(values)), samples=samples, seed=seed)
