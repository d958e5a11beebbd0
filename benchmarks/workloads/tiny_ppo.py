"""A deterministic PPO-ptx run of a model of 30,000 parameters, with everything on that has a state to lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.miniature.files import Sizes, write_datasets
from trimtab_trainer.miniature.tokenizer import save_base

__all__ = ["PROMPTS", "SAMPLES", "SERVICE_SETTINGS", "make_inputs", "write_spec"]

PROMPTS, SAMPLES = 16, 2
"""Prompts of an iteration, completions of a prompt."""

_SAME = {"deterministic": True, "threads": 1}
SERVICE_SETTINGS: dict[str, dict[str, Any]] = {
    "generation": {**_SAME, "slots": 16},
    "reward": _SAME,
    "reference": _SAME,
}
_PATIENCE_S = 120.0
"""A machine that restarts processes all the time is slow to bring one back."""


def make_inputs(folder: Path) -> None:
    """Writes the policy, the reward model and the data that every run of the benchmark shares."""
    save_base(folder / "policy", seed=1, width=32)
    tokenizer = load_tokenizer(folder / "policy")
    reward = reward_model_from_policy(folder / "policy", tokenizer=tokenizer, seed=2)
    save_model(reward, tokenizer, folder / "reward")
    sizes = Sizes(pretrain=400, pretrain_held_out=20, demonstrations=1, prompts=400, prompts_held_out=20)
    write_datasets(folder / "data", seed=1, sizes=sizes)


def write_spec(inputs: Path, directory: Path, endpoints_file: Path, *, iterations: int, max_lag: int) -> Path:
    """Writes the run spec; only `directory` and `endpoints_file` differ between two runs that must end alike.

    Args:
        inputs: what `make_inputs` wrote.
        directory: of the run.
        endpoints_file: of the services.
        iterations: of PPO.
        max_lag: 0 or 1.
    """
    rates = {"learning_rate": 1e-3, "schedule": "constant", "final_fraction": 1.0}
    spec = {
        "name": "chaos",
        "directory": str(directory),
        "model": str(inputs / "policy"),
        "data_directory": str(inputs / "data"),
        "stages": ["ppo"],
        "deterministic": True,
        "threads": 1,
        "services": {
            "endpoints_file": str(endpoints_file),
            "patience_s": _PATIENCE_S,
            "start_timeout_s": _PATIENCE_S,
        },
        "ppo": {
            "policy": "base",
            "reward_model": str(inputs / "reward"),
            "prompts": "{data}/prompts.jsonl",
            "prompts_held_out": "{data}/prompts_held_out.jsonl",
            "pretraining": "{data}/pretrain.jsonl",
            "pretraining_held_out": "{data}/pretrain_held_out.jsonl",
            "ptx_ratio": 1,
            "ptx_passage_tokens": 32,
            "iterations": iterations,
            "prompts_per_iteration": PROMPTS,
            "samples_per_prompt": SAMPLES,
            "minibatches": 2,
            "epochs": 2,
            "max_lag": max_lag,
            "sampling": {"max_new_tokens": 24},
            "kl_controller": "adaptive",
            "kl_horizon": 1000,
            "normalize_rewards": True,
            "critic_warmup_iterations": 1,
            "ema_decay": 0.9,
            "optimizer": rates,
            "value_optimizer": rates,
            "kl_limit": None,
            "loss_limit": None,
            "checkpoint_every": 3,
        },
    }
    path = directory.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(spec))
    return path
