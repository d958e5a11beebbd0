"""Losses of every stage: pure functions of tensors, each with its source.

Every loss of a batch that is cut into micro-batches is a sum over its tokens divided by the token count of the *whole*
batch, so that the micro-batches' gradients add up to the batch's; a mean of micro-batch means would not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

__all__ = ["PolicyLoss", "dpo_loss", "importance_weights", "policy_loss", "ranking_loss", "token_mean", "value_loss"]


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped policy loss of some tokens, with what its update looks like.

    Attributes:
        loss: scalar, differentiable.
        clipped_tokens: tokens whose ratio was beyond the clip range, in whichever direction.
        clamped_tokens: tokens whose log-ratio was beyond the clamp.
        kl_sum: sum over tokens of (ratio - 1) - log ratio, an estimate of KL(old || new) (Schulman's k3).
    """

    loss: Float[Tensor, ""]
    clipped_tokens: int
    clamped_tokens: int
    kl_sum: float


def policy_loss(
    logprobs: Float[Tensor, "batch completion"],
    old_logprobs: Float[Tensor, "batch completion"],
    advantages: Float[Tensor, "batch completion"],
    mask: Bool[Tensor, "batch completion"],
    *,
    token_count: int,
    clip_range: float,
    log_ratio_clamp: float,
    weights: Float[Tensor, "batch completion"] | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate, negated: -mean of min(r A, clip(r, 1 - c, 1 + c) A), r = exp(logprobs - old_logprobs).

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7; clip 0.2 in InstructGPT C.4.

    Args:
        logprobs: of the policy now, with gradient.
        old_logprobs: of the policy before the update.
        advantages: estimates A.
        mask: true on real completion tokens.
        token_count: completion tokens of the whole minibatch, the divisor.
        clip_range: c.
        log_ratio_clamp: log-ratios beyond it are clamped, and counted, before the exponential.
        weights: truncated importance weights of stale samples; None is 1 everywhere.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    clamped = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp)
    ratio = clamped.exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    if weights is not None:
        surrogate = surrogate * weights
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip_range) & mask
        kl = torch.where(mask, (ratio - 1) - clamped, 0.0).sum()
        beyond = (log_ratio.abs() > log_ratio_clamp) & mask
    return PolicyLoss(
        loss=-torch.where(mask, surrogate, 0.0).sum() / token_count,
        clipped_tokens=int(outside.sum()),
        clamped_tokens=int(beyond.sum()),
        kl_sum=float(kl),
    )


def value_loss(
    values: Float[Tensor, "batch completion"],
    old_values: Float[Tensor, "batch completion"],
    returns: Float[Tensor, "batch completion"],
    mask: Bool[Tensor, "batch completion"],
    *,
    token_count: int,
    clip_range: float | None,
) -> Float[Tensor, ""]:
    """Half the squared error of the values, the worse of clipped and not: mean of max((V - R)^2, (V_clip - R)^2) / 2.

    V_clip stays within `clip_range`, absolute and in reward units, of the value before the update.
    Source: Ziegler et al. 2019, code (train_policy.py); Huang et al. 2024 (N+), detail on value clipping.

    Args:
        values: now, with gradient.
        old_values: before the update.
        returns: targets R: advantages before whitening plus old values.
        mask: true on real completion tokens.
        token_count: completion tokens of the whole minibatch, the divisor.
        clip_range: None does not clip.
    """
    # Masked before the arithmetic: what is not finite on padding would come back as a NaN gradient (0 * NaN).
    values, old_values, returns = (torch.where(mask, tensor, 0.0) for tensor in (values, old_values, returns))
    error = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * error.sum() / token_count


def importance_weights(
    old_logprobs: Float[Tensor, "batch completion"],
    generation_logprobs: Float[Tensor, "batch completion"],
    mask: Bool[Tensor, "batch completion"],
    *,
    cap: float,
) -> Float[Tensor, "batch completion"]:
    """Truncated importance weights min(cap, exp(old - generation)) of tokens sampled by an older policy; 1 on padding.

    Source: Ionides 2008, truncated importance sampling; per token as in asynchronous RLHF frameworks.
    """
    ratio = torch.where(mask, old_logprobs - generation_logprobs, 0.0).exp()
    return torch.where(mask, ratio.clamp(max=cap), 1.0)


def token_mean(logprobs: Float[Tensor, " tokens"], *, token_count: int) -> Float[Tensor, ""]:
    """Language-model loss: the negated sum of log-probs over the token count of the whole batch.

    With pretraining text it is the ptx term of InstructGPT equation 2, E[log pi(x)], as a mean over tokens.
    """
    return -logprobs.sum() / token_count


def ranking_loss(
    rewards: Float[Tensor, " answers"],
    better: Int[Tensor, " pairs"],
    worse: Int[Tensor, " pairs"],
    *,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Reward-model loss of one prompt: -1/P * sum over its P decided pairs of log sigmoid(r_better - r_worse).

    Source: InstructGPT 3.5, equation 1, where P = C(K, 2) without ties. Tied pairs are dropped: P counts those that are
    left, and a prompt without any has loss 0.

    Args:
        rewards: of the K answers, with gradient.
        better, worse: indices of the answers of each decided pair.
        margin: subtracted from the difference.
        label_smoothing: share of the opposite label.
    """
    if better.numel() == 0:
        return rewards.sum() * 0.0
    difference = rewards[better.to(rewards.device)] - rewards[worse.to(rewards.device)] - margin
    loss = -functional.logsigmoid(difference)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * functional.logsigmoid(-difference)
    return loss.mean()


def dpo_loss(
    log_ratios: Float[Tensor, " answers"],
    better: Int[Tensor, " pairs"],
    worse: Int[Tensor, " pairs"],
    *,
    beta: float,
    kind: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Loss of direct preference optimisation of one prompt, a mean over its P decided pairs.

    With h = log_ratio_better - log_ratio_worse and e the label smoothing:

    - sigmoid: -1/P * sum of (1 - e) log sigmoid(beta h) + e log sigmoid(-beta h). Source: Rafailov et al. 2023 (arXiv
      2305.18290), equation 7: the reward model's loss on the implicit reward beta * log_ratio. Smoothed: Mitchell 2023,
      "A note on DPO with noisy preferences".
    - ipo: 1/P * sum of (h - 1 / (2 beta))^2. Source: Azar et al. 2023 (arXiv 2310.12036), equation 17, beta is its tau.

    Args:
        log_ratios: log pi(y | x) - log pi_ref(y | x) of the K answers, summed over their tokens, with gradient.
        better, worse: indices of the answers of each decided pair; without any the loss is 0.
        beta: above 0.
        kind: which of the two.
        label_smoothing: share of the opposite label; 0 with ipo.
    """
    if kind == "sigmoid":
        return ranking_loss(beta * log_ratios, better, worse, label_smoothing=label_smoothing)
    if better.numel() == 0:
        return log_ratios.sum() * 0.0
    difference = log_ratios[better.to(log_ratios.device)] - log_ratios[worse.to(log_ratios.device)]
    return (difference - 1 / (2 * beta)).square().mean()
