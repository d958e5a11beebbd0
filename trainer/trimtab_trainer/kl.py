"""The KL coefficient of PPO: fixed, or steered towards a target."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AdaptiveKLController", "ema_decay_at"]


@dataclass
class AdaptiveKLController:
    """Steers the coefficient so that the KL of a sequence approaches a target.

    error = clip(KL / target - 1, -0.2, 0.2); coef *= 1 + error * n / horizon, with n the episodes of the batch and KL
    the batch mean of the *sum* over tokens. Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.

    Attributes:
        coef: the coefficient now.
        target: nats of a sequence; None keeps the coefficient fixed.
        horizon: episodes.
    """

    coef: float
    target: float | None
    horizon: int

    def update(self, mean_kl: float, episodes: int) -> None:
        """Moves the coefficient after a batch."""
        if self.target is None:
            return
        error = min(max(mean_kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * episodes / self.horizon


def ema_decay_at(step: int, decay: float) -> float:
    """Decay of the averaged weights at optimizer step `step`, from 0: min(decay, (1 + step) / (10 + step)).

    InstructGPT C.4 has 0.992; the warm-up keeps the untrained start from weighing for hundreds of steps.
    """
    return min(decay, (1 + step) / (10 + step))
