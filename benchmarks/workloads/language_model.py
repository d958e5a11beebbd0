"""A real language model and a short PPO-ptx run on it, for what depends on how trained weights move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.gguf import smollm2_folder
from trimtab_trainer.miniature.files import Sizes, write_datasets

EPISODES = 16
_SIZES = Sizes(pretrain=400, pretrain_held_out=10, demonstrations=40, prompts=400, prompts_held_out=10)


def smollm2(folder: Path) -> tuple[Path, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct; ConfigError where its package is not installed."""
    policy = smollm2_folder(folder)
    return policy, load_tokenizer(policy)


def untrained_reward_model(policy: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """The policy under a random head: its scores mean nothing, the gradients that they make are those of PPO."""
    save_model(reward_model_from_policy(policy, tokenizer=tokenizer, seed=7), tokenizer, folder)
    return folder


def ppo_ptx_spec(
    directory: Path, policy: Path, reward: Path, *, learning_rate: float, steps_per_publication: int, iterations: int
) -> dict[str, Any]:
    """A run of the stage `ppo` alone: 16 episodes of up to 32 new tokens an iteration, passages besides."""
    data = write_datasets(directory / "data", seed=7, sizes=_SIZES)
    steady = {"learning_rate": learning_rate, "schedule": "constant", "final_fraction": 1.0, "warmup_steps": 0}
    return {
        "name": directory.name,
        "directory": str(directory / "run"),
        "model": str(policy),
        "stages": ["ppo"],
        "threads": torch.get_num_threads(),
        "ppo": {
            "policy": str(policy),
            "reward_model": str(reward),
            "prompts": str(data["prompts"]),
            "pretraining": str(data["pretrain"]),
            "held_out_fraction": 0.0,
            "serving_dtype": "bfloat16",
            "iterations": iterations,
            "prompts_per_iteration": EPISODES,
            "minibatches": steps_per_publication,
            "sampling": {"max_new_tokens": 32},
            "ptx_coef": 1.0,
            "ptx_ratio": 1,
            "ptx_passage_tokens": 64,
            "ema_decay": 0.0,
            "micro_batch_tokens": 2048,
            "optimizer": steady,
            "value_optimizer": steady,
            "checkpoint_every": 1000,
        },
    }
