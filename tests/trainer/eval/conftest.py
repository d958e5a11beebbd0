"""One run of the miniature, of every stage that the evaluations read, which their tests share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trimtab.local import LocalServices
from trimtab_trainer.config import RunSpec, load_run_spec
from trimtab_trainer.run import RunOutcome

SETTINGS = {"deterministic": True, "threads": 1}
ITERATIONS = 9
STAGES = ["pretrain", "sft", "collect_rankings", "reward_model", "reward_model_folds", "ppo", "dpo", "evaluate"]
SMALL = {
    "stages": STAGES,
    "miniature.pretrain": 400,
    "miniature.pretrain_held_out": 20,
    "miniature.demonstrations": 40,
    "miniature.prompts": 200,
    "miniature.prompts_held_out": 40,
    "pretrain.max_steps": 8,
    "sft.epochs": 1,
    "sft.rl_init": None,
    "collect_rankings.limit": 60,
    "reward_model.folds": 2,
    "reward_model.bootstrap_samples": 100,
    "ppo.policy": "sft",
    "ppo.iterations": ITERATIONS,
    "ppo.prompts_per_iteration": 16,
    "ppo.minibatches": 2,
    "ppo.critic_warmup_iterations": 1,
    "ppo.optimizer.learning_rate": 1e-3,
    "ppo.kl_stop": None,
    "evaluate.models": {
        "base": None,
        "few_shot": None,
        "ppo": None,
        "ptx_control": None,
        "sft": {"model": "sft"},
        "ppo_ptx": {"model": "ppo"},
    },
    "evaluate.prompts": 10,
    "evaluate.samples_per_prompt": 2,
    "evaluate.bootstrap_samples": 100,
}


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    settings = {"generation": {**SETTINGS, "slots": 16}, "reward": SETTINGS, "reference": SETTINGS}
    with LocalServices(tmp_path_factory.mktemp("services"), settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, services: LocalServices, go: Callable[..., RunOutcome]
) -> RunSpec:
    """The spec of a run that has succeeded; its reward model is what the reward service serves."""
    directory = tmp_path_factory.mktemp("runs") / "small"
    given = directory.parent / "spec.yaml"
    given.write_text(json.dumps({"preset": "tiny", "name": "small", "directory": str(directory)}))
    overrides = [f"{key}={json.dumps(value)}" for key, value in SMALL.items()]
    spec = load_run_spec(Path(given), overrides, endpoints_file=services.endpoints_file)
    go(spec)
    return spec
