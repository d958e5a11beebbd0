"""Signs that a PPO run is going wrong though nothing fails: told as warnings, with what to look at."""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["KL_ALARM_ITERATIONS", "is_negative_kl", "warn_of_low_scores", "warn_of_negative_kl"]

KL_ALARM_ITERATIONS = 3
"""Iterations in a row with a negative KL estimate after which it is no chance."""
_LOW_SCORE_SHARE = 0.01


def is_negative_kl(per_sequence: Float[Tensor, " batch"]) -> bool:
    """Whether the k1 estimate of the KL is below 0 by more than two standard errors of its mean.

    The KL itself is never negative; its k1 estimate (the mean log-ratio of sampled tokens) is, by chance. Beyond chance
    it says that tokens were not sampled from the policy that they are scored under.

    Args:
        per_sequence: log-ratio of policy and reference, summed over the tokens of each completion, in nats.
    """
    if len(per_sequence) < 2:
        return False
    error = float(per_sequence.std()) / len(per_sequence) ** 0.5
    return float(per_sequence.mean()) < -2 * error and error > 0


def warn_of_negative_kl(iterations: int, mean_kl: float, warn: Callable[[str], None]) -> None:
    """Warns once a negative KL has lasted for `KL_ALARM_ITERATIONS` iterations, and each time as many have passed."""
    if iterations and iterations % KL_ALARM_ITERATIONS == 0:
        warn(
            f"mean KL is {mean_kl:.3g}, below 0 by more than 2 standard errors for {iterations} iterations: a KL is "
            "never negative, so completions do not come from the policy that scores them; look at the log-prob mismatch"
        )


def warn_of_low_scores(
    scores: Float[Tensor, " batch"],
    ended: Bool[Tensor, " batch"],
    missing_eos_score: float | None,
    warn: Callable[[str], None],
) -> None:
    """Warns when more than 1 % of finished completions score below what replaces the score of unfinished ones.

    More than 1 % beyond two standard errors: the replacement is by default the 1 % quantile of these very scores.

    Args:
        scores: of the reward model, before the replacement.
        ended: whether the completion has its EOS.
        missing_eos_score: the replacement; None replaces nothing.
        warn: takes the sentence.
    """
    if missing_eos_score is None or not ended.any():
        return
    share = float((scores[ended] < missing_eos_score).float().mean())
    error = math.sqrt(_LOW_SCORE_SHARE * (1 - _LOW_SCORE_SHARE) / int(ended.sum()))
    if share > _LOW_SCORE_SHARE + 2 * error:
        warn(
            f"{share:.1%} of the finished completions score below missing_eos_score {missing_eos_score:.3g}: not "
            "ending pays for them"
        )
