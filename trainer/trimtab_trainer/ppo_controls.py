"""Controls of PPO-ptx: the same stage with one of its restraints taken away, to tell what the restraint does."""

from __future__ import annotations

from trimtab_trainer.config import PPOConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.ppo import train

__all__ = ["train_without_kl", "train_without_ptx", "without_kl", "without_ptx"]

_FARTHER = 3
"""Iterations of the control without KL penalty, for each of `ppo`: it is to go where the penalty would not let it."""


def train_without_ptx(context: StageContext, config: PPOConfig) -> StageResult:
    """PPO with gamma 0, over as many iterations as `ppo` made: what pretraining gradients save shows beside it."""
    return train(context, without_ptx(config, _iterations_made(context)))


def train_without_kl(context: StageContext, config: PPOConfig) -> StageResult:
    """PPO with gamma 0 and no KL penalty, three times as long: how far the reward model can be trusted.

    What a policy gains by the reward model beyond what it is worth is over-optimisation (Gao et al. 2022, arXiv
    2210.10760; InstructGPT 3.5 adds the penalty "to mitigate over-optimization of the reward model").
    """
    return train(context, without_kl(config, _iterations_made(context)))


def without_ptx(config: PPOConfig, made: int | None) -> PPOConfig:
    """The section with gamma 0; `made` iterations where `ppo` has run, whatever the KL."""
    changes: dict[str, object] = {"ptx_coef": 0.0}
    if made is not None:
        changes |= {"iterations": made, "kl_stop": None}
    return config.model_copy(update=changes)


def without_kl(config: PPOConfig, made: int | None) -> PPOConfig:
    """The section with gamma 0 and nothing that keeps the policy near its start."""
    free = {"kl_coef": 0.0, "kl_controller": "fixed", "kl_stop": None, "kl_limit": None, "update_kl_stop": None}
    iterations = _FARTHER * (made or config.iterations)
    return config.model_copy(update={"ptx_coef": 0.0, "iterations": iterations, **free})


def _iterations_made(context: StageContext) -> int | None:
    return int(context.results["ppo"].metrics["iterations"]) if "ppo" in context.results else None
