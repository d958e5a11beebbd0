"""From scores and log-probs to advantages: pure functions over right-padded completions.

All tensors are float32 [batch, completion] with a mask that is true on real tokens; what lies on padding never matters
and comes back as 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "explained_variance",
    "generalized_advantages",
    "kl_penalties",
    "kl_k3",
    "replace_missing_eos",
    "shaped_rewards",
    "whiten",
]


def kl_penalties(
    logprobs: Float[Tensor, "batch completion"],
    ref_logprobs: Float[Tensor, "batch completion"],
    mask: Bool[Tensor, "batch completion"],
) -> Float[Tensor, "batch completion"]:
    """log pi(y_t) - log pi_ref(y_t): the per-token penalty of InstructGPT equation 2, and Schulman's estimate k1 of KL.

    In nats. Its sum over a sequence is an unbiased estimate of the sequence's KL where tokens were drawn from pi.
    """
    return torch.where(mask, logprobs - ref_logprobs, 0.0)


def kl_k3(
    logprobs: Float[Tensor, "batch completion"],
    ref_logprobs: Float[Tensor, "batch completion"],
    mask: Bool[Tensor, "batch completion"],
) -> Float[Tensor, "batch completion"]:
    """exp(-d) - 1 + d with d = log pi - log pi_ref: never negative, same mean as k1 (Schulman 2020, estimate k3)."""
    difference = torch.where(mask, logprobs - ref_logprobs, 0.0)
    return torch.expm1(-difference) + difference


def replace_missing_eos(
    scores: Float[Tensor, " batch"], ended: Bool[Tensor, " batch"], missing_eos_score: float | None
) -> Float[Tensor, " batch"]:
    """Scores with those of completions that did not end *replaced*, not reduced.

    Source: Ziegler et al. 2019, code; Huang et al. 2024 (N+): -1. None keeps them.
    """
    if missing_eos_score is None:
        return scores
    return torch.where(ended, scores, missing_eos_score)


def shaped_rewards(
    scores: Float[Tensor, " batch"],
    penalties: Float[Tensor, "batch completion"],
    mask: Bool[Tensor, "batch completion"],
    *,
    kl_coef: float,
) -> Float[Tensor, "batch completion"]:
    """Per-token rewards: -kl_coef * penalty, plus the score on the last real token, which the reward model read.

    A row without a real token has no token to land on and stays 0.

    Source: InstructGPT 3.5, equation 2; Ziegler et al. 2019, equation 2.
    """
    rewards = torch.where(mask, -kl_coef * penalties, 0.0)
    rows = torch.arange(len(scores), device=scores.device)
    last = (mask.sum(-1) - 1).clamp(min=0)
    landing = torch.where(mask.any(-1), scores, 0.0)  # -1 would be the last column: padding
    return rewards.index_put((rows, last), landing, accumulate=True)


def generalized_advantages(
    rewards: Float[Tensor, "batch completion"],
    values: Float[Tensor, "batch completion"],
    mask: Bool[Tensor, "batch completion"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "batch completion"], Float[Tensor, "batch completion"]]:
    """GAE: A_t = sum over l of (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t, with V = 0 after the
    end.

    Source: Schulman et al. 2016 (arXiv 1506.02438), equations 11-16; InstructGPT C.4: no discount.

    Args:
        rewards: per token.
        values: of the state before each token.
        mask: true on real tokens; each row has at least one.
        gamma: discount.
        lam: lambda.

    Returns:
        Advantages, and returns = advantages + values; both before any whitening, both 0 on padding.
    """
    advantages = torch.zeros_like(rewards)
    following_advantage = torch.zeros_like(rewards[:, 0])
    following_value = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        advantage = torch.where(mask[:, t], delta + gamma * lam * following_advantage, 0.0)
        advantages[:, t] = advantage
        following_advantage = advantage
        following_value = torch.where(mask[:, t], values[:, t], 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(
    values: Float[Tensor, "batch completion"], mask: Bool[Tensor, "batch completion"], *, shift_mean: bool = True
) -> Float[Tensor, "batch completion"]:
    """Scales masked entries to variance 1 and, with `shift_mean`, mean 0; biased variance plus 1e-8.

    Source: Ziegler et al. 2019, code (`whiten`); Huang et al. 2024 (N+). Padding comes back as 0.
    """
    chosen = values[mask]
    if not chosen.numel():
        return torch.zeros_like(values)
    mean = chosen.mean()
    whitened = (values - mean) * torch.rsqrt(chosen.var(unbiased=False) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0.0)


def explained_variance(
    values: Float[Tensor, "batch completion"],
    returns: Float[Tensor, "batch completion"],
    mask: Bool[Tensor, "batch completion"],
) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 a constant one, below 0 worse than that.

    0 where the returns do not vary, or where there is none.
    """
    if not mask.any():
        return 0.0
    variance = returns[mask].var(unbiased=False)
    if float(variance) == 0.0:
        return 0.0
    return float(1 - (returns - values)[mask].var(unbiased=False) / variance)
