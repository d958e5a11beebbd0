"""Iterations of PPO through local services, on prompts and models that are the same in every run."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from workloads.models import VOCAB

from trimtab import Client
from trimtab.local import LocalServices, read_endpoints
from trimtab.v1 import trainer_pb2 as pb
from trimtab_trainer.reporter import step_metrics

__all__ = ["KL_COEF", "LEARNING_RATE", "NEW_TOKENS", "make_prompts", "medians", "trimtab_side"]

NEW_TOKENS = 64
LEARNING_RATE = 1e-5
KL_COEF = 0.05
STEADY = {"learning_rate": LEARNING_RATE, "schedule": "constant", "final_fraction": 1.0, "eps": 1e-5}


def make_prompts(count: int, shortest: int = 32, longest: int = 64) -> list[list[int]]:
    """Token ids of the prompts of an iteration."""
    draw = random.Random(7)
    return [[draw.randrange(2, VOCAB) for _ in range(draw.randint(shortest, longest))] for _ in range(count)]


def trimtab_side(
    work: Path,
    policy: Path,
    reward: Path,
    prompts: Sequence[Sequence[int]],
    iterations: int,
    *,
    device: str,
    precision: str,
    micro_batch_tokens: int,
    new_tokens: int = NEW_TOKENS,
) -> list[dict[str, float]]:
    """Seconds of each iteration by phase, from a run that the trainer service starts.

    Args:
        work: a new folder for services and run.
        policy, reward: folders of the models.
        prompts: token ids, all of them in every iteration.
        iterations: how many.
        device, precision: of services and trainer.
        micro_batch_tokens: of the trainer.
        new_tokens: of each completion.
    """
    rows = [{"prompt": " ".join(f"w{token}" for token in prompt)} for prompt in prompts]
    (work / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ppo = {
        "policy": str(policy),
        "reward_model": str(reward),
        "prompts": str(work / "prompts.jsonl"),
        "held_out_fraction": 0.0,
        "pretraining": None,
        "ptx_coef": 0.0,
        "ema_decay": 0.0,
        "iterations": iterations,
        "prompts_per_iteration": len(prompts),
        "micro_batch_tokens": micro_batch_tokens,
        "serving_dtype": precision,
        "minibatches": 1,
        "sampling": {"max_new_tokens": new_tokens},
        "optimizer": STEADY,
        "value_optimizer": STEADY,
        "kl_coef": KL_COEF,
        "checkpoint_every": 1000,
    }
    spec = {
        "name": "bench",
        "directory": str(work / "bench"),
        "model": str(policy),
        "stages": ["ppo"],
        "threads": torch.get_num_threads(),
        "device": device,
        "precision": precision,
        "ppo": ppo,
    }
    settings: dict[str, dict[str, Any]] = {
        name: {"threads": torch.get_num_threads(), "device": device, "dtype": precision}
        for name in ("generation", "reward", "reference")
    }
    settings["generation"]["slots"] = len(prompts)
    with LocalServices(work / "services", settings=settings) as services:
        with Client(read_endpoints(services.directory)["trainer"][0]["grpc"]) as client:
            client.start_run(pb.StartRunRequest(name="bench", spec_yaml=yaml.safe_dump(spec)), timeout_s=120)
            for _ in client.watch_run(pb.WatchRunRequest(name="bench"), timeout_s=3600):
                pass
            run = client.get_run(pb.GetRunRequest(name="bench")).run
            if run.state != pb.RUN_STATE_SUCCEEDED:
                raise SystemExit(f"the run failed: {run.error}")
        directory = Path(run.directory)
        ends = [
            event["time"]
            for event in map(json.loads, (directory / "events.jsonl").read_text().splitlines())
            if event["event"] in ("stage_started", "step_done")
        ]
        metrics = step_metrics(directory / "events.jsonl", "ppo").values()
    return [
        {
            "iteration": after - before,
            "tokens": len(prompts) * row["completion_tokens"],
            **{key.removeprefix("seconds_"): value for key, value in row.items() if key.startswith("seconds_")},
        }
        for before, after, row in zip(ends, ends[1:], metrics, strict=False)
    ]


def medians(iterations: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median of every figure after the first iteration, which warms up."""
    return {key: round(statistics.median(row[key] for row in iterations[1:]), 4) for key in iterations[1]}
