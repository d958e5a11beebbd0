"""Reward-model training from rankings: a prompt read once for all its answers, against TRL's pairs.

Claim: at least 15 times the rankings/s of RewardTrainer on all pairs at K = 9, 5 times at K = 4. Both sides start from
the same reward model (8.4 M parameters), make the same optimizer steps on the same rankings (2 a step, prompts of 96
tokens, answers of 32 to 64) with AdamW, and must report equal losses. TRL 1.16 runs in its own environment, without
gradient checkpointing, which is faster for it. The first step of each side warms up; the ratio is of the medians.

    python benchmarks/reward_model_training.py [--steps 5] [--k 4 9]

The last line is one JSON object; its ratio is that of the largest K.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from peers.environment import run_peer
from workloads.models import EOS, VOCAB, make_folders

from trimtab_models.loading import load_reward_model
from trimtab_trainer.config import OptimizerConfig
from trimtab_trainer.examples import RankingExample
from trimtab_trainer.optimization import Learner, prepare_for_training
from trimtab_trainer.reward_model import train_on_rankings

GOALS = {4: 5.0, 9: 15.0}
PEER = ["torch==2.13.0", "trl==1.16.0 transformers>=5.16.1,<5.20 datasets accelerate"]
LEARNING_RATE = 1e-5
PROMPT_TOKENS = 96

Step = list[tuple[list[int], list[list[int]]]]


def make_steps(k: int, count: int, per_step: int) -> list[Step]:
    """Optimizer steps of rankings (prompt, answers best first); answers end in EOS."""
    draw = random.Random(k)

    def text(length: int) -> list[int]:
        return [draw.randrange(2, VOCAB) for _ in range(length)]

    return [
        [(text(PROMPT_TOKENS), [[*text(draw.randint(31, 63)), EOS] for _ in range(k)]) for _ in range(per_step)]
        for _ in range(count)
    ]


def trimtab_side(folder: Path, steps: list[Step]) -> dict[str, list[float]]:
    """Seconds and loss of each step."""
    model = load_reward_model(folder)
    prepare_for_training(model)
    config = OptimizerConfig(learning_rate=LEARNING_RATE, schedule="constant", final_fraction=1.0, beta2=0.999)
    learner = Learner(model, config, total_steps=len(steps), precision="float32")
    seconds, losses = [], []
    for step in steps:
        examples = [
            RankingExample(
                str(number), "", tuple(prompt), tuple(map(tuple, answers)), (("", tuple(range(len(answers)))),)
            )
            for number, (prompt, answers) in enumerate(step)
        ]
        began = time.perf_counter()
        losses.append(train_on_rankings(learner, examples, micro_batch_tokens=8192)["loss"])
        learner.update()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "losses": losses}


def main() -> None:
    """Runs both sides for each K and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[4, 9], help="answers of a ranking")
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after one that warms up")
    parser.add_argument("--per-step", type=int, default=2, help="rankings of an optimizer step")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _, reward = make_folders(work)
        for k in args.k:
            steps = make_steps(k, args.steps + 1, args.per_step)
            file = work / f"steps-{k}.json"
            file.write_text(json.dumps(steps))
            given = {
                "model": str(reward),
                "steps": str(file),
                "learning_rate": LEARNING_RATE,
                "work": str(work / "trl"),
            }
            peer = run_peer("trl_reward_trainer.py", PEER, given, timeout_s=1800)
            ours = trimtab_side(reward, steps)
            difference = max(abs(a - b) for a, b in zip(ours["losses"], peer["losses"], strict=True))
            if difference > 1e-3:
                raise SystemExit(f"K = {k}: losses differ by {difference}: {ours['losses']} and {peer['losses']}")
            rates = {
                side: args.per_step / statistics.median(times["seconds"][1:])
                for side, times in (("trimtab", ours), ("trl", peer))
            }
            ratio = rates["trimtab"] / rates["trl"]
            found[k] = {
                "ratio": round(ratio, 2),
                "rankings_per_s": {side: round(rate, 3) for side, rate in rates.items()},
                "largest_loss_difference": difference,
            }
            print(f"K = {k}: {rates['trimtab']:.2f} rankings/s against {rates['trl']:.3f}: {ratio:.1f}")
    largest = max(found)
    result = {
        "benchmark": "reward_model_training",
        "ratio": found[largest]["ratio"],
        "goal": GOALS.get(largest),
        "by_k": found,
        "steps": args.steps,
        "threads": torch.get_num_threads(),
        "load_1m": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
