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
import tempfile
import time
from pathlib import Path

import torch
from peers.environment import run_peer
from workloads.models import SHAPES, make_folders
from workloads.ppo_iterations import KL_COEF, LEARNING_RATE, NEW_TOKENS, make_prompts, medians, trimtab_side

from trimtab_trainer.ppo_config import PPOConfig

GOAL = 2.0
PEER = ["torch==2.13.0", "trl==0.22.2 transformers==4.56.2 datasets accelerate"]
PROMPTS = 32


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
    if args.only is None and args.device != "cpu":
        parser.error("--device: the peer runs on a CPU; add --only trimtab")
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
