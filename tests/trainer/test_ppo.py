"""PPO-ptx without services: experience, the update, and what must hold exactly."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_models import make_policy, make_tokenizer
from trimtab.types import VersionSpan
from trimtab_models.loading import load_policy, load_reward_model, reward_model_from_policy, save_model
from trimtab_trainer.actor_critic import ActorCritic, UpdateFigures
from trimtab_trainer.experience import plan_minibatches
from trimtab_trainer.kl import AdaptiveKLController
from trimtab_trainer.language_modeling import Example
from trimtab_trainer.optimization import Learner, prepare_for_training
from trimtab_trainer.ppo import PPOState, build_experience, missing_eos_score
from trimtab_trainer.ppo_config import PPOConfig
from trimtab_trainer.rollout_work import RolloutPrompt, Work, left_of, take
from trimtab_trainer.rollouts import Rollout, _next_batch
from trimtab_trainer.stage_configs import OptimizerConfig

CPU = torch.device("cpu")


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


def plan(batch: list[Rollout], settings: PPOConfig, seed: int = 0):
    return plan_minibatches(
        batch,
        minibatches=settings.minibatches,
        micro_batch_tokens=settings.micro_batch_tokens,
        generator=torch.Generator().manual_seed(seed),
        device=CPU,
    )


def test_the_first_ratio_is_exactly_one(llama_folder: Path, reward_folder: Path) -> None:
    settings = config(micro_batch_tokens=40, clip_range=1e-6)
    learner, batch = agent(llama_folder, reward_folder, settings), rollouts()
    minibatches = plan(batch, settings)
    experience = build_experience(learner, batch, minibatches, settings, PPOState())
    figures = UpdateFigures()
    learner.update(minibatches[0], experience, [], settings, figures, policy_moves=True, measure_norms=False)
    means = figures.means()
    assert means["update_kl"] == 0.0 and means["clip_fraction"] == 0.0  # any ratio but exactly 1 would be clipped
    learner.update(minibatches[0], experience, [], settings, figures, policy_moves=True, measure_norms=False)
    assert figures.means()["clip_fraction"] > 0


def test_micro_batches_change_nothing(llama_folder: Path, reward_folder: Path) -> None:
    ptx = [Example((5, 6, 7, 8, 9), 1), Example((9, 8, 7), 1)]
    found = []
    for tokens in (10_000, 24):
        settings = config(micro_batch_tokens=tokens, minibatches=1)
        learner, batch = agent(llama_folder, reward_folder, settings), rollouts()
        minibatches = plan(batch, settings)
        experience = build_experience(learner, batch, minibatches, settings, PPOState())
        figures = UpdateFigures()
        learner.update(minibatches[0], experience, ptx, settings, figures, policy_moves=True, measure_norms=True)
        found.append(figures.means())
    for name in ("policy_loss", "value_loss", "policy_gradient_norm", "ptx_loss", "ptx_gradient_norm"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3, abs=1e-6), name


def test_measuring_norms_keeps_the_sum_of_gradients(llama_folder: Path, reward_folder: Path) -> None:
    ptx = [Example((5, 6, 7, 8, 9), 1)]
    norms = []
    for measured in (False, True):
        settings = config(minibatches=1)
        learner, batch = agent(llama_folder, reward_folder, settings), rollouts()
        minibatches = plan(batch, settings)
        experience = build_experience(learner, batch, minibatches, settings, PPOState())
        figures = UpdateFigures()
        learner.update(minibatches[0], experience, ptx, settings, figures, policy_moves=True, measure_norms=measured)
        norms.append(figures.means()["policy_gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_critic_warm_up_leaves_the_policy_alone(llama_folder: Path, reward_folder: Path) -> None:
    settings = config()
    learner, batch = agent(llama_folder, reward_folder, settings), rollouts()
    before = [p.detach().clone() for p in learner.policy.model.parameters()]
    values = [p.detach().clone() for p in learner.values.model.parameters()]
    minibatches = plan(batch, settings)
    experience = build_experience(learner, batch, minibatches, settings, PPOState())
    learner.update(minibatches[0], experience, [], settings, UpdateFigures(), policy_moves=False, measure_norms=False)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.policy.model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values, learner.values.model.parameters(), strict=True))


@pytest.mark.parametrize(("shape", "hidden"), [("llama", 64), ("gpt2", 16)])
def test_the_value_model_may_be_of_another_size(tmp_path: Path, llama_folder: Path, shape: str, hidden: int) -> None:
    """Twice and half the policy's width, another architecture: only the tokenizer must be the same."""
    tokenizer = make_tokenizer()
    save_model(make_policy(shape, len(tokenizer), hidden=hidden), tokenizer, tmp_path / "base")
    reward = reward_model_from_policy(tmp_path / "base", tokenizer=tokenizer, seed=1)
    save_model(reward, tokenizer, tmp_path / "reward")
    settings = config()
    learner, batch = agent(llama_folder, tmp_path / "reward", settings), rollouts()
    minibatches = plan(batch, settings)
    experience = build_experience(learner, batch, minibatches, settings, PPOState())
    figures = UpdateFigures()
    for minibatch in minibatches:
        learner.update(minibatch, experience, [], settings, figures, policy_moves=True, measure_norms=False)
    assert figures.steps == 2 and np.isfinite(list(figures.means().values())).all()


def test_missing_eos_replaces_the_score(llama_folder: Path, reward_folder: Path) -> None:
    settings = config(missing_eos_score=-3.0)
    learner, batch = agent(llama_folder, reward_folder, settings), rollouts()
    experience = build_experience(learner, batch, plan(batch, settings), settings, PPOState())
    for rollout, score in zip(batch, experience.scores.tolist(), strict=True):
        assert score == pytest.approx(rollout.reward if rollout.ended else -3.0)
    scores = torch.linspace(-5, 5, 201)
    assert missing_eos_score(config(), scores) == pytest.approx(float(scores.quantile(0.01)))
    assert missing_eos_score(config(), scores + 10) == -1.0
    assert missing_eos_score(config(missing_eos_score="none"), scores) is None


def test_a_batch_is_cut_by_ids_and_lengths_only() -> None:
    settings, batch = config(micro_batch_tokens=30), rollouts()
    one, other = plan(batch, settings, seed=3), plan(batch, settings, seed=3)
    rows = [micro.rows.tolist() for minibatch in one for micro in minibatch.micro_batches]
    assert rows == [micro.rows.tolist() for minibatch in other for micro in minibatch.micro_batches]
    assert sorted(row for part in rows for row in part) == list(range(8))
    assert sum(minibatch.token_count for minibatch in one) == sum(len(r.token_ids) for r in batch)


def test_work_is_split_and_taken_up_again() -> None:
    waiting = deque([Work(RolloutPrompt("a", (1,), 0, 5), 0, 5), Work(RolloutPrompt("b", (2,), 0, 2), 0, 2)])
    chunk = take(waiting, 3)
    assert [(w.prompt.prompt_id, w.first, w.count) for w in chunk] == [("a", 0, 3)]
    assert [(w.prompt.prompt_id, w.first, w.count) for w in take(waiting, 99)] == [("a", 3, 2), ("b", 0, 2)]
    left = left_of(chunk[0], {("a", 1)}, tries=1)
    assert [(w.first, w.count, w.tries) for w in left] == [(0, 1, 1), (2, 1, 1)]


def test_a_scorer_takes_all_that_waits_and_then_ends() -> None:
    import asyncio

    async def drain() -> list[int]:
        queue: asyncio.Queue[Rollout | None] = asyncio.Queue()
        for rollout in rollouts(5):
            queue.put_nowait(rollout)
        queue.put_nowait(None)
        sizes = []
        while batch := await _next_batch(queue):
            sizes.append(len(batch))
        return sizes

    assert asyncio.run(drain()) == [5]
