"""The gate before an update: who disagrees with whom, by how much, and at which precision that is too much."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.errors import Mismatch
from trimtab.types import VersionSpan
from trimtab_trainer.experience import Experience
from trimtab_trainer.logprob_gate import check_logprobs
from trimtab_trainer.ppo_config import PPOConfig
from trimtab_trainer.rollouts import Rollout

SHAPE = (4, 6)
MASK = torch.arange(6) < torch.tensor([6, 3, 1, 5])[:, None]


NEWEST = 9


def rollout(length: int, *spans: VersionSpan) -> Rollout:
    tokens = tuple(range(5, 5 + length))
    whole = (VersionSpan(0, length, NEWEST),)
    return Rollout("p", 0, (5, 6), tokens, np.zeros(length, np.float32), True, spans or whole)


def experience(*spans: VersionSpan, **off: float) -> Experience:
    """Log-probs that all agree, but for one token of those named, the last of the second row; padding disagrees wildly.

    Args:
        spans: of the second row; the newest version sampled all others.
        off: by how much that token is off.
    """
    base = torch.linspace(-5, -1, 24).reshape(SHAPE)
    tensors: dict[str, Any] = {}
    for name in ("trainer_logprobs", "generation_logprobs", "ref_logprobs"):
        tensors[name] = base.clone()
        tensors[name][1, 2] += off.get(name, 0.0)
        tensors[name][~MASK] = torch.randn(int((~MASK).sum())) * 100
    rest = ("old_logprobs", "values", "advantages", "returns", "importance_weights")
    return Experience(
        rollouts=(rollout(6), rollout(3, *spans), rollout(1), rollout(5)),
        mask=MASK,
        scores=torch.zeros(4),
        **tensors,
        **{name: torch.zeros(SHAPE) for name in rest},
    )


def config(**changes: Any) -> PPOConfig:
    return PPOConfig(ptx_coef=0.0, pretraining=None, **changes)


@pytest.mark.parametrize(
    ("off", "words"),
    [
        ({"generation_logprobs": 0.01}, "generation and trainer differ by up to 0.01 .* ppo.gate_tolerance: 0.002"),
        ({"ref_logprobs": -0.01}, "reference and trainer differ by up to 0.01"),
        ({"generation_logprobs": math.nan}, "generation and trainer differ by up to nan"),
    ],
)
def test_a_first_batch_that_disagrees_is_refused(off: dict[str, float], words: str) -> None:
    check_logprobs(config(), experience(), NEWEST, precision="float32", first=True)
    with pytest.raises(Mismatch, match=words):
        check_logprobs(config(), experience(**off), NEWEST, precision="float32", first=True)


def test_the_mean_has_a_bound_of_its_own() -> None:
    with pytest.raises(Mismatch, match="on average by .* ppo.gate_mean_tolerance: 1e-05"):
        check_logprobs(
            config(gate_mean_tolerance=1e-5), experience(ref_logprobs=1e-3), NEWEST, precision="float32", first=True
        )


def test_bounds_follow_the_precision_unless_given() -> None:
    off = experience(generation_logprobs=0.3)
    check_logprobs(config(), off, NEWEST, precision="bfloat16", first=True)
    with pytest.raises(Mismatch, match="ppo.gate_tolerance: 0.1"):
        check_logprobs(config(gate_tolerance=0.1), off, NEWEST, precision="bfloat16", first=True)


def test_later_batches_are_held_to_the_sampler_alone() -> None:
    check_logprobs(config(), experience(ref_logprobs=5.0), NEWEST, precision="float32", first=False)
    off = experience(generation_logprobs=5.0)
    with pytest.raises(Mismatch, match="ppo.mismatch_tolerance: 0.05"):
        check_logprobs(config(), off, NEWEST, precision="float32", first=False)


@pytest.mark.parametrize(
    ("spans", "is_held"),
    [
        ((VersionSpan(0, 2, 8), VersionSpan(2, 3, 9)), True),  # the policy took over just before the token
        ((VersionSpan(0, 3, 8),), False),  # an older policy sampled it
        ((VersionSpan(0, 2, 8), VersionSpan(2, 3, 9, kv_kept=True)), False),  # over an older one's keys and values
    ],
)
def test_of_a_batch_of_several_policies_the_newest_is_held_to_the_sampler(
    spans: tuple[VersionSpan, ...], is_held: bool
) -> None:
    off = experience(*spans, generation_logprobs=5.0)
    with pytest.raises(Mismatch, match="ppo.mismatch_tolerance") if is_held else nullcontext():
        check_logprobs(config(max_lag=2), off, NEWEST, precision="float32", first=False)


def test_a_batch_without_a_token_of_the_newest_policy_is_not_held() -> None:
    check_logprobs(config(max_lag=1), experience(generation_logprobs=5.0), None, precision="float32", first=False)


def test_a_sampler_whose_weights_were_rounded_has_wider_bounds() -> None:
    rounded = config(serving_dtype="bfloat16")
    check_logprobs(rounded, experience(generation_logprobs=0.3), NEWEST, precision="float32", first=True)
    with pytest.raises(Mismatch, match="reference and trainer differ by up to 0.01"):  # nobody rounded that one
        check_logprobs(rounded, experience(ref_logprobs=0.01), NEWEST, precision="float32", first=True)
