"""The stage of PPO between its batches: its cut, its warnings, what it saves and what it goes on from."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from ppo_batches import agent, config, plan, rollouts
from trimtab.errors import TrainingDiverged
from trimtab_trainer.actor_critic import UpdateFigures
from trimtab_trainer.checkpoint import CheckpointStore
from trimtab_trainer.config import RunSpec
from trimtab_trainer.context import Orders, StageContext
from trimtab_trainer.divergence import saving_experience
from trimtab_trainer.language_modeling import Example
from trimtab_trainer.ppo import (
    PPOState,
    _plan,
    _snapshot,
    _start_or_resume,
    _update,
    _watch_health,
    build_experience,
)
from trimtab_trainer.ppo_data import PPOData
from trimtab_trainer.reporter import Reporter
from trimtab_trainer.reward_normalizer import RewardNormalizer


def stage(directory: Path, policy: str | Path = "base", reward_model: str | Path = "base") -> StageContext:
    """The stage in a folder of its own, before it has done anything."""
    spec = RunSpec.model_validate(
        {
            "name": "r",
            "directory": directory,
            "model": "base",
            "data_directory": directory,
            "stages": ["ppo"],
            "services": {"endpoints_file": directory / "endpoints.json"},
            "ppo": {"policy": str(policy), "reward_model": str(reward_model)},
        }
    )
    reporter = Reporter(directory, console=Console(file=io.StringIO()))
    return StageContext(spec, "ppo", reporter, CheckpointStore(directory / "checkpoints"), {}, Orders())


def told(directory: Path) -> str:
    return (directory / "events.jsonl").read_text()


def test_old_logprobs_come_from_the_updates_own_micro_batches(
    tmp_path: Path, llama_folder: Path, reward_folder: Path
) -> None:
    """Whether another cut of the batch would give the same bits is up to the machine, so the forwards are compared."""
    settings, batch, state = config(micro_batch_tokens=40), rollouts(), PPOState()
    context, learner = stage(tmp_path), agent(llama_folder, reward_folder, settings)
    forwards: list[torch.Tensor] = []
    learner.policy.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: forwards.append(kwargs["input_ids"]), with_kwargs=True
    )
    minibatches = _plan(context, settings, batch, 0, epoch=0)
    experience = build_experience(learner, batch, minibatches, settings, state)
    old, forwards[:] = list(forwards), []
    _update(context, settings, learner, experience, minibatches, PPOData([], [], [], [], 1.0, 0), state)
    assert len(old) > 2 and len(old) == len(forwards)
    assert all(torch.equal(one, other) for one, other in zip(old, forwards, strict=True))


def test_the_stage_warns_of_a_kl_that_stays_below_zero(tmp_path: Path, llama_folder: Path, reward_folder: Path) -> None:
    settings, batch, state = config(), rollouts(), PPOState(iteration=1)
    learner, context = agent(llama_folder, reward_folder, settings), stage(tmp_path)
    experience = build_experience(learner, batch, plan(batch, settings), settings, state)
    above = torch.rand(experience.mask.shape, generator=torch.Generator().manual_seed(0))
    below = replace(experience, ref_logprobs=experience.old_logprobs + above)
    for _ in range(2):
        _watch_health(context, below, state)
    assert "mean KL is" not in told(tmp_path)
    _watch_health(context, below, state)
    assert "below 0 by more than 2 standard errors for 3 iterations" in told(tmp_path)
    _watch_health(context, replace(experience, ref_logprobs=experience.old_logprobs - above), state)
    assert state.negative_kl_iterations == 0


def test_the_stage_warns_where_ending_does_not_pay(tmp_path: Path, llama_folder: Path, reward_folder: Path) -> None:
    settings, batch, state = config(missing_eos_score=9.0), rollouts(), PPOState()
    learner, context = agent(llama_folder, reward_folder, settings), stage(tmp_path)
    experience = build_experience(learner, batch, plan(batch, settings), settings, state)
    _watch_health(context, experience, state)
    assert "100.0% of the finished completions score below missing_eos_score 9" in told(tmp_path)


@pytest.mark.parametrize("name", ["scores", "advantages", "returns", "values", "ref_logprobs", "generation_logprobs"])
def test_a_batch_that_is_not_finite_stops_the_stage_and_is_saved(
    tmp_path: Path, llama_folder: Path, reward_folder: Path, name: str
) -> None:
    settings, batch, state = config(), rollouts(), PPOState(iteration=6)
    experience = build_experience(
        agent(llama_folder, reward_folder, settings), batch, plan(batch, settings), settings, state
    )
    broken = getattr(experience, name).clone()
    broken[0] = float("nan")
    with pytest.raises(TrainingDiverged, match=f"ppo: step 7: {name} of the batch are not finite") as caught:
        with saving_experience(stage(tmp_path), replace(experience, **{name: broken}), state.iteration):
            pytest.fail("the batch was trained on")
    saved = load_file(caught.value.metadata["batch"])
    assert saved[name].isnan().any() and torch.equal(saved["mask"], experience.mask)
    assert saved["token_ids"].tolist() == [i for r in batch for i in (*r.prompt_token_ids, *r.token_ids)]


@pytest.mark.parametrize(("saved", "recent"), [(0, []), (5, [5])])
def test_checkpoints_from_when_the_lag_was_at_most_one_are_read(
    tmp_path: Path, llama_folder: Path, reward_folder: Path, saved: int, recent: list[int]
) -> None:
    context = stage(tmp_path, llama_folder, reward_folder)
    agent, state = _start_or_resume(context, context.spec.ppo)
    snapshot = _snapshot(agent, state)
    del snapshot.state["progress"]["recent_versions"]
    snapshot.state["progress"]["rollout_version"] = saved
    context.checkpoints.save(snapshot)
    assert _start_or_resume(context, context.spec.ppo)[1].recent_versions == recent


def test_what_a_stage_resumes_from_is_what_it_saved(tmp_path: Path, llama_folder: Path, reward_folder: Path) -> None:
    context = stage(tmp_path, llama_folder, reward_folder)
    saved, fresh = _start_or_resume(context, context.spec.ppo)
    assert fresh == PPOState() and saved.average is not None
    for learner in (saved.policy, saved.values):  # moves the weights and fills the moments of Adam
        for parameter in learner.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        learner.update()
    for tensor in saved.average.capture().values():
        tensor.add_(1.0)
    saved.kl.coef = 0.7
    state = PPOState(
        iteration=3,
        missing_eos_score=-2.5,
        passages_used=7,
        stopped_by_kl=True,
        recent_versions=[4, 5],
        negative_kl_iterations=2,
        normalizer=RewardNormalizer(count=9, mean=0.5, squares=4.0),
    )
    context.checkpoints.save(_snapshot(saved, state))
    resumed, found = _start_or_resume(context, context.spec.ppo)
    assert found == state and resumed.kl.coef == 0.7 and resumed.average is not None
    mean, expected = resumed.average.capture(), saved.average.capture()
    assert all(torch.equal(mean[name], tensor) for name, tensor in expected.items()) and mean.keys() == expected.keys()
    for learner, before in ((resumed.policy, saved.policy), (resumed.values, saved.values)):
        tensors, expected = learner.capture(), before.capture()
        assert learner.step == 1 and tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_each_iteration_and_epoch_has_a_cut_of_its_own(tmp_path: Path) -> None:
    context, settings, batch = stage(tmp_path), config(prompts_per_iteration=64), rollouts(64)
    cuts = {
        tuple(tuple(micro.rows.tolist()) for one in minibatches for micro in one.micro_batches)
        for minibatches in (
            _plan(context, settings, batch, iteration, epoch=epoch) for iteration in (0, 1) for epoch in (0, 1)
        )
    }
    assert len(cuts) == 4


@pytest.mark.parametrize("name", ["value loss", "policy loss", "pretraining loss"])
def test_a_loss_beyond_its_bound_makes_no_step(llama_folder: Path, reward_folder: Path, name: str) -> None:
    settings, batch = config(loss_limit=20.0), rollouts()
    learner = agent(llama_folder, reward_folder, settings)
    minibatches = plan(batch, settings)
    experience = build_experience(learner, batch, minibatches, settings, PPOState())
    experience = replace(experience, returns=experience.values.clone(), advantages=torch.ones_like(experience.values))
    ptx = [Example((5, 6, 7, 8), first=1)]
    match name:
        case "value loss":
            experience = replace(experience, returns=experience.values + 100.0)
        case "policy loss":
            experience = replace(experience, advantages=torch.full_like(experience.values, 100.0))
        case _:
            learner.policy.model.lm_head.weight.data.mul_(1000.0)
            experience = replace(experience, old_logprobs=learner.logprobs(minibatches, experience.mask.shape, 1.0))
    before = {key: tensor.clone() for key, tensor in learner.policy.capture().items()}
    with pytest.raises(TrainingDiverged, match=f"{name} of a minibatch is .*; allowed by ppo.loss_limit: at most 20"):
        learner.update(
            minibatches[0], experience, ptx, settings, UpdateFigures(), policy_moves=True, measure_norms=False
        )
    assert all(torch.equal(tensor, before[key]) for key, tensor in learner.policy.capture().items())
