"""A batch of rollouts made by hand, and what the trainer meets it with: models, settings, a cut into minibatches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from trimtab.types import VersionSpan
from trimtab_models.loading import load_policy, load_reward_model
from trimtab_trainer.actor_critic import ActorCritic
from trimtab_trainer.experience import Minibatch, plan_minibatches
from trimtab_trainer.kl import AdaptiveKLController
from trimtab_trainer.optimization import Learner, prepare_for_training
from trimtab_trainer.ppo_config import PPOConfig
from trimtab_trainer.rollouts import Rollout
from trimtab_trainer.stage_configs import OptimizerConfig


def config(**changes: object) -> PPOConfig:
    steady = {"schedule": "constant", "final_fraction": 1.0}
    base = dict(
        pretraining="x.jsonl",
        prompts_per_iteration=8,
        minibatches=2,
        optimizer=OptimizerConfig(learning_rate=1e-3, **steady),
        value_optimizer=OptimizerConfig(learning_rate=1e-3, **steady),
    )
    return PPOConfig(**{**base, **changes})  # type: ignore[arg-type]


def agent(policy: Path, reward: Path, settings: PPOConfig) -> ActorCritic:
    models = load_policy(policy), load_reward_model(reward)
    for model in models:
        prepare_for_training(model)
    return ActorCritic(
        policy=Learner(models[0], settings.optimizer, total_steps=10),
        values=Learner(models[1], settings.value_optimizer, total_steps=10),
        kl=AdaptiveKLController(settings.kl_coef, None, settings.kl_horizon),
        average=None,
    )


def rollouts(count: int = 8) -> list[Rollout]:
    draw = np.random.default_rng(0)
    made = []
    for i in range(count):
        prompt, completion = (tuple(draw.integers(5, 200, n).tolist()) for n in draw.integers(1, 12, 2))
        logprobs = draw.normal(-4, 1, len(completion)).astype(np.float32)
        made.append(
            Rollout(
                str(i),
                0,
                prompt,
                completion,
                logprobs,
                i % 4 != 0,
                (VersionSpan(0, len(completion), 1),),
                float(draw.normal()),
                logprobs - 0.1,
            )  # fmt: skip
        )
    return made


def plan(batch: list[Rollout], settings: PPOConfig, seed: int = 0, ranks: int = 1) -> list[Minibatch]:
    return plan_minibatches(
        batch,
        minibatches=settings.minibatches,
        micro_batch_tokens=settings.micro_batch_tokens,
        generator=torch.Generator().manual_seed(seed),
        ranks=ranks,
    )
