"""PPO-ptx without services: experience, the update, and what must hold exactly."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_batches import agent, config, plan, rollouts
from tiny_models import make_policy, make_tokenizer
from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_trainer.actor_critic import UpdateFigures
from trimtab_trainer.experience import pad_rows
from trimtab_trainer.language_modeling import Example
from trimtab_trainer.ppo import PPOState, build_experience, missing_eos_score
from trimtab_trainer.ppo_metrics import Clock, iteration_metrics
from trimtab_trainer.rollout_work import RolloutPrompt, Work, left_of, take
from trimtab_trainer.rollouts import Rollout, _next_batch


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


def test_the_missing_eos_score_is_that_of_the_first_batch(llama_folder: Path, reward_folder: Path) -> None:
    settings, batch, state = config(), rollouts(), PPOState()
    learner, minibatches = agent(llama_folder, reward_folder, settings), plan(batch, settings)
    build_experience(learner, batch, minibatches, settings, state)
    first = state.missing_eos_score
    state.iteration = 1
    lower = [replace(rollout, reward=rollout.known_reward - 50) for rollout in batch]
    later = build_experience(learner, lower, minibatches, settings, state)
    assert first is not None and state.missing_eos_score == first
    unfinished = torch.tensor([not rollout.ended for rollout in batch])
    torch.testing.assert_close(later.scores[unfinished], torch.full((2,), first))


def test_pad_and_eos_ids_are_tokens_like_any_other(llama_folder: Path, reward_folder: Path) -> None:
    """Prompts and completions full of ids 0 and 1: what is real is known by position."""
    settings, draw = config(micro_batch_tokens=40), np.random.default_rng(1)
    batch = [
        replace(
            rollout,
            prompt_token_ids=tuple(draw.integers(0, 3, len(rollout.prompt_token_ids)).tolist()),
            token_ids=tuple(draw.integers(0, 2, len(rollout.token_ids)).tolist()),
        )
        for rollout in rollouts()
    ]
    learner, minibatches = agent(llama_folder, reward_folder, settings), plan(batch, settings)
    experience = build_experience(learner, batch, minibatches, settings, PPOState())
    assert experience.mask.sum(-1).tolist() == [len(rollout.token_ids) for rollout in batch]
    for name in ("old_logprobs", "values", "advantages", "returns"):
        tensor = getattr(experience, name)
        assert (tensor[experience.mask] != 0).all() and not tensor[~experience.mask].any(), name
    for minibatch in minibatches:
        assert sum(int(micro.mask.sum()) for micro in minibatch.micro_batches) == minibatch.token_count


def test_returns_do_not_see_the_whitening(llama_folder: Path, reward_folder: Path) -> None:
    made = []
    for whitened in (False, True):
        settings, batch = config(whiten_advantages=whitened), rollouts()
        learner = agent(llama_folder, reward_folder, settings)
        made.append(build_experience(learner, batch, plan(batch, settings), settings, PPOState()))
    plain, white = made
    assert torch.equal(white.returns, plain.returns)
    assert not torch.allclose(white.advantages, plain.advantages)
    torch.testing.assert_close(plain.returns, torch.where(plain.mask, plain.advantages + plain.values, 0.0))


def test_old_logprobs_may_be_the_samplers(llama_folder: Path, reward_folder: Path) -> None:
    batch = rollouts()
    sampled = pad_rows([rollout.generation_logprobs for rollout in batch])
    for choice, expected in (("generation", True), ("recompute", False)):
        settings = config(old_logprobs=choice)
        learner = agent(llama_folder, reward_folder, settings)
        experience = build_experience(learner, batch, plan(batch, settings), settings, PPOState())
        assert torch.equal(experience.old_logprobs, sampled) is expected
        assert experience.trainer_logprobs is not None  # the first batch is held to them either way


@pytest.mark.parametrize("max_lag", [0, 1])
def test_stale_samples_are_weighed_and_fresh_ones_are_not(
    llama_folder: Path, reward_folder: Path, max_lag: int
) -> None:
    """At ratio 1 the loss is -mean(w A); w is min(cap, old / generation) where samples may be of an older policy."""
    settings = config(max_lag=max_lag, importance_weight_cap=1.5, minibatches=1, micro_batch_tokens=40)
    learner, batch = agent(llama_folder, reward_folder, settings), rollouts()
    minibatches = plan(batch, settings)
    experience = build_experience(learner, batch, minibatches, settings, PPOState())
    mask = experience.mask
    ratio = (experience.old_logprobs - experience.generation_logprobs)[mask].exp()
    weights = ratio.clamp(max=1.5)
    torch.testing.assert_close(experience.importance_weights[mask], weights)
    assert (ratio > 1.5).any() and (ratio < 1.5).any()
    figures = UpdateFigures()
    learner.update(minibatches[0], experience, [], settings, figures, policy_moves=True, measure_norms=False)
    advantages = experience.advantages[mask]
    expected = -float((weights * advantages if max_lag else advantages).mean())
    assert figures.means()["policy_loss"] * figures.steps == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_metrics_of_a_batch_are_counted_by_hand(llama_folder: Path, reward_folder: Path) -> None:
    settings = config(old_logprobs="generation", log_ratio_clamp=0.5, minibatches=1)
    learner, batch = agent(llama_folder, reward_folder, settings), rollouts()
    minibatches, clock = plan(batch, settings), Clock()
    experience = build_experience(learner, batch, minibatches, settings, PPOState())
    experience = replace(experience, ref_logprobs=experience.ref_logprobs + 0.3 * experience.values)
    figures = UpdateFigures()
    with clock.phase("update"):
        learner.update(minibatches[0], experience, [], settings, figures, policy_moves=True, measure_norms=False)
    found = iteration_metrics(experience, figures, learner, clock)
    mask, own = experience.mask, experience.trainer_logprobs
    assert own is not None
    away = torch.where(mask, experience.old_logprobs - experience.ref_logprobs, 0.0)
    ratio = (own - experience.old_logprobs)[mask]
    expected = {
        "mean_kl": away.sum() / 8,
        "kl_k3": (torch.exp(-away) - 1 + away).sum() / 8,
        "ended_fraction": 6 / 8,
        "mismatch_mean": ratio.abs().mean(),
        "mismatch_max": ratio.abs().max(),
        "clamped_fraction": (ratio.abs() > 0.5).float().mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-4), name
    assert 0 < found["clamped_fraction"] < 1 and found["kl_k3"] != pytest.approx(found["mean_kl"], rel=0.1)


def test_minibatches_are_random_and_sorted_inside_only() -> None:
    settings, batch = config(minibatches=4, prompts_per_iteration=64, micro_batch_tokens=60), rollouts(64)
    lengths = [len(r.prompt_token_ids) + len(r.token_ids) for r in batch]

    def rows(seed: int) -> list[list[list[int]]]:
        return [[micro.rows.tolist() for micro in one.micro_batches] for one in plan(batch, settings, seed)]

    members = [sorted(row for micro in minibatch for row in micro) for minibatch in rows(0)]
    assert members != [sorted(row for micro in minibatch for row in micro) for minibatch in rows(1)]
    assert all(len(one) == 16 for one in members)
    assert all(one != list(range(one[0], one[0] + 16)) for one in members)  # not the order of the prompts
    longest = [max(lengths[row] for row in one) for one in members]
    shortest = [min(lengths[row] for row in one) for one in members]
    assert max(shortest) < min(longest)  # not the order of lengths
    for minibatch in rows(0):
        inside = [lengths[row] for micro in minibatch for row in micro]
        assert inside == sorted(inside, reverse=True)
        assert all(len(micro) * lengths[micro[0]] <= 60 for micro in minibatch)


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
