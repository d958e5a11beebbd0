"""One iteration of PPO through the services, against TRL's PPOTrainer in one process.

Claim: at least twice as fast, services and publication included. Both sides have the same policy (10.5 M parameters),
reference, reward and value model, the same 32 prompts of 32 to 64 tokens, 64 new tokens each, one epoch, one optimizer
step, float32, the same threads. Random weights hardly ever end an answer early, so both sides make the same tokens. The
first iteration of each side warms up; the ratio is of the medians. TRL 0.22.2, the last with a PPOTrainer, runs in an
environment of its own, with the micro-batch that it is given (8, or as many as fit: `--micro-batch 32`).

    python benchmarks/ppo_iteration.py [--iterations 5] [--only trimtab]
    python benchmarks/ppo_iteration.py --only trimtab --device cuda --precision bfloat16 --model 360m --prompts 256

The last line is one JSON object; it has the seconds of every phase of both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from peers.environment import run_peer
from workloads.models import SHAPES, VOCAB, make_folders

from trimtab import Client
from trimtab.local import LocalServices, read_endpoints
from trimtab.v1 import trainer_pb2 as pb
from trimtab_trainer.ppo_config import PPOConfig
from trimtab_trainer.reporter import step_metrics

GOAL = 2.0
PEER = ["torch==2.13.0", "trl==0.22.2 transformers==4.56.2 datasets accelerate"]
PROMPTS = 32
NEW_TOKENS = 64
LEARNING_RATE = 1e-5
KL_COEF = 0.05
STEADY = {"learning_rate": LEARNING_RATE, "schedule": "constant", "final_fraction": 1.0, "eps": 1e-5}


def make_prompts(count: int) -> list[list[int]]:
    """Token ids of the prompts of an iteration."""
    draw = random.Random(7)
    return [[draw.randrange(2, VOCAB) for _ in range(draw.randint(32, 64))] for _ in range(count)]


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
) -> list:
    """Seconds of each iteration by phase, from a run that the trainer service starts."""
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
        "sampling": {"max_new_tokens": NEW_TOKENS},
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


def main() -> None:
    """Runs both sides and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=5, help="measured iterations, after one that warms up")
    parser.add_argument("--micro-batch", type=int, default=8, help="rows of TRL's micro-batch")
    parser.add_argument("--only", choices=["trimtab"], help="leaves the peer out")
    parser.add_argument("--model", choices=sorted(SHAPES), default="10m", help="shape of the models")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of an iteration")
    parser.add_argument("--device", default="cpu", help="of services and trainer")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: on a GPU")
    parser.add_argument("--micro-batch-tokens", type=int, default=PPOConfig().micro_batch_tokens, help="of our trainer")
    args = parser.parse_args()
    if args.only is None and (args.device, args.model) != ("cpu", "10m"):
        parser.error("--device and --model: the peer runs on a CPU with 10m alone; add --only trimtab")
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        policy, reward = make_folders(work, args.model, device=args.device)
        prompts = make_prompts(args.prompts)
        ours = medians(
            trimtab_side(
                work,
                policy,
                reward,
                prompts,
                args.iterations + 1,
                device=args.device,
                precision=args.precision,
                micro_batch_tokens=args.micro_batch_tokens,
            )
        )
        print(f"trimtab: {ours}")
        theirs = None
        if args.only is None:
            (work / "ids.json").write_text(json.dumps(prompts))
            given = {
                "policy": str(policy),
                "reward": str(reward),
                "prompts": str(work / "ids.json"),
                "new_tokens": NEW_TOKENS,
                "iterations": args.iterations + 1,
                "micro_batch": args.micro_batch,
                "learning_rate": LEARNING_RATE,
                "kl_coef": KL_COEF,
                "work": str(work / "trl"),
            }
            theirs = medians(run_peer("trl_ppo.py", PEER, given, timeout_s=3600)["iterations"])
            print(f"trl: {theirs}")
    result = {
        "benchmark": "ppo_iteration",
        "ratio": round(theirs["iteration"] / ours["iteration"], 2) if theirs else None,
        "goal": GOAL,
        "trimtab": ours,
        "trl": theirs,
        "micro_batch": args.micro_batch,
        "model": args.model,
        "prompts": args.prompts,
        "device": args.device,
        "precision": args.precision,
        "iterations": args.iterations,
        "threads": torch.get_num_threads(),
        "load_1m": round(load, 2),
        "wall_s": round(time.monotonic() - began),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
