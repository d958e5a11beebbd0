"""Rewards to zero mean and unit variance, by what has been seen so far.

Ziegler et al. 2019 (arXiv 1909.08593, section 2.1) normalise the reward model so that samples of the start have mean 0
and variance 1, which gives the KL coefficient the same meaning whatever the reward model's scale. Here mean and
variance run over all scores since the start (Welford 1962; batches merged by Chan et al. 1979), so that a policy that
leaves the start's range does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["RewardNormalizer"]

_LEAST_STD = 1e-4
"""A smaller spread is taken for this one: scores that do not differ are no reason to divide by nothing."""


@dataclass
class RewardNormalizer:
    """Running mean and variance of scores; its fields are its state in a checkpoint.

    Attributes:
        count: scores seen.
        mean: of them.
        squares: sum of squared distances from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation of all scores seen (biased); 1 before the second one."""
        if self.count < 2:
            return 1.0
        return max(math.sqrt(self.squares / self.count), _LEAST_STD)

    def normalized(self, scores: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Takes a batch of finite scores into account, then returns (score - mean) / std of each, float32."""
        batch = scores.double()
        if len(batch):
            batch_mean = float(batch.mean())
            total = self.count + len(batch)
            distance = batch_mean - self.mean
            self.squares += float(((batch - batch_mean) ** 2).sum()) + distance**2 * self.count * len(batch) / total
            self.mean += distance * len(batch) / total
            self.count = total
        return ((batch - self.mean) / self.std).to(torch.float32)
