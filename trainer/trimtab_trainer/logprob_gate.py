"""The gate before an update: sampler, trainer and reference must give the same tokens the same log-probs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trimtab.errors import Mismatch
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.experience import Experience

__all__ = ["check_logprobs"]

_LARGEST = {"float32": 2e-3, "bfloat16": 1.0}
_MEAN = {"float32": 2e-4, "bfloat16": 0.05}
"""Nats by which the same tokens may differ on the first batch. Two correct bfloat16 forwards that batch differently
round each logit to 3 digits, so single tokens differ by tenths of a nat and the mean by a few hundredths."""


def check_logprobs(
    config: PPOConfig,
    experience: Experience,
    newest: int | None,
    *,
    precision: Literal["float32", "bfloat16"],
    first: bool,
) -> None:
    """Refuses to train where sampler, trainer and reference disagree about the same tokens.

    Does nothing where the trainer's own log-probs were not computed.

    Args:
        config: its bounds `gate_tolerance`, `gate_mean_tolerance` and `mismatch_tolerance`, in nats.
        experience: the batch, before the update.
        newest: version of the policy that is to be updated. Of a later batch its tokens are compared, but for those
            over keys and values kept from an older one; what older policies sampled is meant to differ.
        precision: the trainer's, which the bounds follow where the spec gives none; those of the sampler follow
            `serving_dtype` where it is coarser.
        first: the stage's first batch, whose policy is the reference itself.

    Raises:
        Mismatch: on the first batch the largest or the mean difference is beyond its bound; on a later one the mean
            difference to the sampler is beyond `mismatch_tolerance`.
    """
    own, mask = experience.trainer_logprobs, experience.mask
    if own is None:
        return
    sampler = (experience.generation_logprobs - own)[mask].abs()
    if first:
        reference = (experience.ref_logprobs - own)[mask].abs()
        served = precision if config.serving_dtype in (None, "float32") else "bfloat16"
        for name, differences, dtype in (("generation", sampler, served), ("reference", reference, precision)):
            largest = config.gate_tolerance if config.gate_tolerance is not None else _LARGEST[dtype]
            mean = config.gate_mean_tolerance if config.gate_mean_tolerance is not None else _MEAN[dtype]
            _hold(name, "by up to", differences.max(), "ppo.gate_tolerance", largest)
            _hold(name, "on average by", differences.mean(), "ppo.gate_mean_tolerance", mean)
        return
    fresh = _sampled_by(newest, experience)
    if bool(fresh.any()):
        mean_now = (experience.generation_logprobs - own)[fresh].abs().mean()
        _hold("generation", "on average by", mean_now, "ppo.mismatch_tolerance", config.mismatch_tolerance)


def _sampled_by(version: int | None, experience: Experience) -> Tensor:
    """Bool [batch, completion]: tokens that a version sampled over keys and values of its own."""
    mask = torch.zeros_like(experience.mask)
    for row, rollout in enumerate(experience.rollouts):
        for span in rollout.version_spans:
            if span.version == version and not span.kv_kept:
                mask[row, span.start_token : span.end_token] = True
    return mask & experience.mask


def _hold(name: str, how: str, difference: Tensor, key: str, limit: float) -> None:
    found = float(difference)
    if not found <= limit:
        raise Mismatch(
            f"log-probs of {name} and trainer differ {how} {found:.3g} nats on the same tokens; allowed by {key}: "
            f"{limit:g}. Training on this would optimise the difference",
            field=key,
            value=found,
            limit=limit,
        )
