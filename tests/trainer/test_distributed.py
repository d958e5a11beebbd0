"""Training on several ranks: the same losses, updates, checkpoints and models as on one, each rank with its part.

Rank 0 is the process of the tests; the others are started as `trimtab run` starts them, and follow.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ppo_batches import config, plan, rollouts
from rank_calls import bytes_held, models_held, poison, whole
from trimtab.errors import TrainingDiverged
from trimtab_models.loading import load_policy, load_reward_model, named_parameter_tensors, reward_model_from_policy
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.actor_critic import ActorCritic, UpdateFigures
from trimtab_trainer.config import DPOConfig, OptimizerConfig, RunSpec
from trimtab_trainer.context import Orders
from trimtab_trainer.distributed import balanced, model_tensors, ranks, save_whole, shard
from trimtab_trainer.dpo_pairs import ReferencedExample, logprobs_of, train_on_pairs
from trimtab_trainer.examples import RankingExample
from trimtab_trainer.kl import AdaptiveKLController
from trimtab_trainer.language_modeling import Example, example_losses, train_on
from trimtab_trainer.optimization import make_learner, prepare_for_training, seed_step
from trimtab_trainer.places import Place
from trimtab_trainer.ppo import PPOState, build_experience
from trimtab_trainer.ranks import leading
from trimtab_trainer.reward_model import train_on_rankings
from trimtab_trainer.reward_model_accuracy import held_out_scores
from trimtab_trainer.running_mean import running_mean_of
from trimtab_trainer.stage_configs import RewardModelConfig

CPU = torch.device("cpu")
STEADY = OptimizerConfig(learning_rate=1e-2, schedule="constant", final_fraction=1.0, eps=1e-4)
"""Epsilon keeps Adam from blowing up what is but rounding: the gradient of a bias that softmax takes away again."""

pytestmark = pytest.mark.timeout(600)


def leading_ranks(size: int, directory: Path, orders: Orders | None = None) -> Any:
    spec = RunSpec(name="r", directory=directory, model="base", stages=("sft",), data_directory=directory, threads=1)
    place = Place.of({}, processes=size)
    assert place is not None
    return leading(place, orders or Orders(), spec, start=[sys.executable, "-m", "trimtab", "run", "-"])


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """That many ranks. What is called before the fixture is asked for runs on one."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]))
        with leading_ranks(request.param, tmp_path_factory.mktemp("ranks")):
            yield request.param


@pytest.fixture(scope="module", autouse=True)
def alone(llama_folder: Path, gpt2_folder: Path, qwen2_folder: Path, reward_folder: Path) -> dict[str, Any]:
    """What one process makes of everything, before there is a world."""
    assert ranks() == 1
    with one_thread():
        return {
            "sft-llama": fine_tuned(llama_folder),
            "sft-gpt2": fine_tuned(gpt2_folder),
            "sft-qwen2": fine_tuned(qwen2_folder),
            "reward model": reward_model_trained(llama_folder),
            "dpo": preferring(llama_folder),
            "ppo": improved(llama_folder, reward_folder),
        }


class one_thread:  # noqa: N801
    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *exc: object) -> None:
        torch.set_num_threads(self.before)


def batches(count: int = 3) -> list[list[Example]]:
    """Ragged examples; the last batch has fewer than there are ranks."""
    draw = np.random.default_rng(0)
    sizes = [7] * (count - 1) + [1]
    return [
        [
            Example(tuple(draw.integers(5, 290, n).tolist()), int(draw.integers(1, n)))
            for n in draw.integers(2, 30, size)
        ]
        for size in sizes
    ]


def fine_tuned(folder: Path, **preparation: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    model = shard(load_policy(folder), CPU)
    prepare_for_training(model, **preparation)
    learner = make_learner(model, STEADY, total_steps=10)
    figures: dict[str, Any] = {"loss": [], "norm": []}
    for step, batch in enumerate(batches()):
        seed_step(0, step)
        figures["loss"].append(train_on(learner, batch, micro_batch_tokens=64))
        figures["norm"].append(learner.update().gradient_norm)
    figures["held out"] = example_losses(model, batches()[0], micro_batch_tokens=64)
    return figures, whole(learner)


def rankings() -> list[RankingExample]:
    draw = np.random.default_rng(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.integers(5, 290, count).tolist())

    return [
        RankingExample(
            str(number),
            "",
            ids(int(draw.integers(2, 9))),
            tuple(ids(int(n)) for n in draw.integers(1, 7, count)),
            (("a", tuple(draw.permutation(count).tolist())),),
        )
        for number, count in enumerate((2, 9, 4, 5, 3))
    ]


def reward_model_trained(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    made = reward_model_from_policy(folder, tokenizer=load_tokenizer(folder), seed=1)
    model = shard(made, CPU)
    prepare_for_training(model)
    learner = make_learner(model, STEADY, total_steps=10)
    figures: dict[str, Any] = {}
    for step in range(2):
        for name, value in train_on_rankings(learner, rankings(), micro_batch_tokens=40).items():
            figures[f"{name} {step}"] = value
        figures[f"norm {step}"] = learner.update().gradient_norm
    settings = RewardModelConfig(micro_batch_tokens=40)
    figures["held out"] = np.concatenate(held_out_scores(settings, model, rankings()))
    return figures, whole(learner)


def preferring(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Two updates of DPO on rankings whose reference is another model."""
    model = shard(load_policy(folder), CPU)
    prepare_for_training(model)
    learner = make_learner(model, STEADY, total_steps=10)
    draw = np.random.default_rng(2)
    examples = [ReferencedExample(one, draw.normal(-25, 5, len(one.answers))) for one in rankings()]
    settings = DPOConfig(beta=0.2, label_smoothing=0.1, micro_batch_tokens=40)
    figures: dict[str, Any] = {}
    for step in range(2):
        for name, value in train_on_pairs(learner, examples, settings).items():
            figures[f"{name} {step}"] = value
        figures[f"norm {step}"] = learner.update().gradient_norm
    own = logprobs_of(model, rankings(), micro_batch_tokens=40)
    figures["held out"] = np.concatenate([one.numpy() for one in own])
    return figures, whole(learner)


def improved(policy: Path, reward: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """One PPO-ptx update of two minibatches, with everything that has a state."""
    settings = config(micro_batch_tokens=60, clip_range=0.01, max_lag=1, optimizer=STEADY, value_optimizer=STEADY)
    models = [shard(load_policy(policy), CPU), shard(load_reward_model(reward), CPU)]
    for model in models:
        prepare_for_training(model)
    agent = ActorCritic(
        policy=make_learner(models[0], settings.optimizer, total_steps=10, name="policy"),
        values=make_learner(models[1], settings.value_optimizer, total_steps=10, name="values"),
        kl=AdaptiveKLController(settings.kl_coef, None, settings.kl_horizon),
        average=running_mean_of(models[0]),
    )
    batch = rollouts()
    minibatches = plan(batch, settings, ranks=ranks())
    experience = build_experience(agent, batch, minibatches, settings, PPOState())
    figures = UpdateFigures()
    found: dict[str, Any] = {"first kl": None}
    for number, minibatch in enumerate(minibatches):
        kl = agent.update(
            minibatch,
            experience,
            batches()[number],
            settings,
            figures,
            policy_moves=True,
            measure_norms=number == 0,
        )
        found["first kl"] = kl if number == 0 else found["first kl"]
    assert agent.average is not None
    tensors = whole(agent.policy, agent.values, agent.average)
    found |= figures.means()
    found["old"], found["values"] = experience.old_logprobs.numpy(), experience.values.numpy()
    return found, tensors


def assert_same(found: tuple[dict[str, Any], dict[str, torch.Tensor]], expected: tuple[Any, Any]) -> None:
    assert found[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    assert found[1].keys() == expected[1].keys()
    for name, tensor in expected[1].items():
        torch.testing.assert_close(
            found[1][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("shape", ["llama", "gpt2", "qwen2"])
def test_fine_tuning_is_that_of_one_process(
    alone: dict[str, Any], world: int, shape: str, request: pytest.FixtureRequest
) -> None:
    assert ranks() == world
    assert_same(fine_tuned(request.getfixturevalue(f"{shape}_folder")), alone[f"sft-{shape}"])


def test_a_reward_model_is_that_of_one_process(alone: dict[str, Any], world: int, llama_folder: Path) -> None:
    assert_same(reward_model_trained(llama_folder), alone["reward model"])


def test_dpo_is_that_of_one_process(alone: dict[str, Any], world: int, llama_folder: Path) -> None:
    assert_same(preferring(llama_folder), alone["dpo"])


def test_an_update_of_ppo_ptx_is_that_of_one_process(
    alone: dict[str, Any], world: int, llama_folder: Path, reward_folder: Path
) -> None:
    found = improved(llama_folder, reward_folder)
    assert found[0]["first kl"] == 0.0  # old log-probs come from the very micro-batches of the update
    assert found[0]["clip_fraction"] > 0
    assert_same(found, alone["ppo"])


def test_the_same_ranks_give_the_same_bits(world: int, llama_folder: Path, reward_folder: Path) -> None:
    for work in (lambda: improved(llama_folder, reward_folder), lambda: fine_tuned(llama_folder, dropout=0.2)):
        one, other = work(), work()
        for name, value in one[0].items():
            np.testing.assert_array_equal(value, other[0][name], err_msg=name)
        assert [name for name, tensor in one[1].items() if not torch.equal(tensor, other[1][name])] == []


@pytest.mark.parametrize("preparation", [{"gradient_checkpointing": True}])
def test_recomputed_activations_change_nothing(
    alone: dict[str, Any], world: int, llama_folder: Path, preparation: dict[str, Any]
) -> None:
    assert_same(fine_tuned(llama_folder, **preparation), alone["sft-llama"])


def test_a_loss_that_is_not_finite_on_one_rank_is_one_of_all(world: int, llama_folder: Path) -> None:
    learner = make_learner(shard(load_policy(llama_folder), CPU), STEADY, total_steps=10)
    poison(learner, token_id=7)
    with pytest.raises(TrainingDiverged, match="loss is nan"):
        train_on(learner, [Example((5, 6), 1), Example((5, 7, 5, 5), 1)], micro_batch_tokens=64)
    assert math.isfinite(train_on(learner, [Example((5, 6), 1), Example((5, 5, 5, 5), 1)], micro_batch_tokens=64))


def test_a_saved_model_is_whole(world: int, tmp_path: Path, policy_folder: Path) -> None:
    model = shard(load_policy(policy_folder), CPU)
    save_whole(model, load_tokenizer(policy_folder), tmp_path / "saved")
    one, other = (load_file(folder / "model.safetensors") for folder in (policy_folder, tmp_path / "saved"))
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []
    assert type(load_policy(tmp_path / "saved")) is type(load_policy(policy_folder))
    rounded = model_tensors(model, dtype=torch.bfloat16)
    for name, tensor in named_parameter_tensors(load_policy(policy_folder)).items():
        torch.testing.assert_close(rounded[name], tensor.bfloat16(), rtol=0, atol=0)


def test_each_rank_holds_its_part_and_no_more(world: int, llama_folder: Path) -> None:
    """Weights and the two moments of AdamW, 12 bytes a parameter, over the ranks; tensors are cut along their rows."""
    gc.collect()
    model = shard(load_policy(llama_folder), CPU)
    prepare_for_training(model)
    learner = make_learner(model, STEADY, total_steps=10)
    train_on(learner, batches()[0], micro_batch_tokens=64)
    learner.update()
    expected = [
        sum(
            4 * len(torch.arange(len(t)).chunk(world)[rank]) * t[0].numel()
            for t in load_policy(llama_folder).parameters()
        )
        for rank in range(world)
    ]
    assert bytes_held(learner) == [(weights, 2 * weights) for weights in expected]
    held = models_held()
    del model, learner
    gc.collect()
    assert [now < before for now, before in zip(models_held(), held, strict=True)] == [True] * (world - 1)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_work_is_cut_evenly(parts: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 100, 64).tolist()
    shares = balanced(sizes, parts)
    assert sorted(position for share in shares for position in share) == list(range(64))
    loads = [sum(sizes[position] for position in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)
