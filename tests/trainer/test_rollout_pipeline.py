"""Policies that take over while they are sampled from: generation goes on, and no token is older than `max_lag`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tiny_models import make_policy, make_tokenizer
from trimtab.local import LocalServices
from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_trainer.config import RunSpec
from trimtab_trainer.reporter import RunState, step_metrics
from trimtab_trainer.rollout_pipeline import _followed_by
from trimtab_trainer.run import RunOutcome

Go = Callable[..., RunOutcome]

THREADS = {"threads": 1}
STEADY = {"learning_rate": 1e-3, "schedule": "constant", "final_fraction": 1.0}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """Services that need not be deterministic, with few slots, so that a batch takes longer than an update."""
    settings = {"generation": {**THREADS, "slots": 4}, "reward": THREADS, "reference": THREADS}
    with LocalServices(tmp_path_factory.mktemp("services"), settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that is slow to sample from, and a reward model over it."""
    tokenizer, folder = make_tokenizer(), tmp_path_factory.mktemp("models")
    save_model(make_policy("llama", len(tokenizer), hidden=64, layers=4), tokenizer, folder / "policy")
    save_model(reward_model_from_policy(folder / "policy", tokenizer=tokenizer, seed=1), tokenizer, folder / "reward")
    return folder


def spec(directory: Path, services: LocalServices, models: Path, **ppo: Any) -> RunSpec:
    prompts = directory.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the dog {n}"}) + "\n" for n in range(64)))
    section = {
        "policy": str(models / "policy"),
        "reward_model": str(models / "reward"),
        "prompts": str(prompts),
        "held_out_fraction": 0.1,
        "pretraining": None,
        "ptx_coef": 0.0,
        "iterations": 8,
        "prompts_per_iteration": 16,
        "minibatches": 1,
        "sampling": {"max_new_tokens": 48},
        "optimizer": STEADY,
        "value_optimizer": STEADY,
        "checkpoint_every": 3,
    }
    return RunSpec.model_validate(
        {
            "name": directory.name,
            "directory": directory,
            "model": str(models / "policy"),
            "stages": ["ppo"],
            "threads": 1,
            "services": {"endpoints_file": services.endpoints_file},
            "ppo": {**section, **ppo},
        }
    )


def figures(run: RunSpec) -> list[dict[str, float]]:
    return list(step_metrics(run.directory / "events.jsonl", "ppo").values())


@pytest.mark.parametrize("max_lag", [1, 2])
def test_a_policy_takes_over_in_the_middle_of_completions(
    tmp_path: Path, services: LocalServices, models: Path, go: Go, max_lag: int
) -> None:
    run = spec(tmp_path / "run", services, models, max_lag=max_lag)
    assert go(run).state is RunState.SUCCEEDED
    steps = figures(run)
    assert len(steps) == 8
    assert steps[0]["lag"] == 0 and 1 <= max(row["lag"] for row in steps) <= max_lag  # by the pace of sampling
    assert all(0 <= row["mean_lag"] <= row["lag"] for row in steps)
    assert sum(row["mixed_fraction"] for row in steps) > 0
    assert all(0 < row["importance_weight"] <= 2 for row in steps)


def test_a_stopped_run_goes_on_with_batches_of_its_present_policy(
    tmp_path: Path, services: LocalServices, models: Path, go: Go
) -> None:
    run = spec(tmp_path / "halves", services, models, max_lag=2)
    assert go(run, stop_after=3).state is RunState.STOPPED
    before = len(figures(run))
    assert go(run, resume=True).state is RunState.SUCCEEDED
    steps = figures(run)
    assert len(steps) == 8
    assert steps[before]["lag"] == 0 and max(row["lag"] for row in steps[before + 1 :]) <= 2


def test_what_is_given_up_before_its_policy_is_there_never_begins() -> None:
    first: Future[int] = Future()
    begun: list[int] = []

    def then(version: int) -> Future[int]:
        begun.append(version)
        return Future()

    both = _followed_by(first, then)
    assert both.cancel()
    first.set_result(7)
    assert begun == []


def test_what_is_given_up_after_it_began_is_cancelled() -> None:
    first: Future[int] = Future()
    second: Future[int] = Future()
    both = _followed_by(first, lambda version: second)
    first.set_result(7)
    assert both.cancel() and second.cancelled()


def test_a_lag_beyond_the_limit_is_refused(tmp_path: Path, services: LocalServices, models: Path) -> None:
    with pytest.raises(ValidationError, match=r"ppo\.max_lag\n.*less than or equal to 16"):
        spec(tmp_path / "far", services, models, max_lag=17)
