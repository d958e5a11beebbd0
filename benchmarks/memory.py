"""What a rank needs of memory while it trains, loads and saves, beside the formulas of docs/performance.md.

Real ranks on this machine (gloo), a model of random weights, the work of stage `sft`, batches of 64 tokens, so that
activations do not count. Resident memory beyond that of a process that has done all of it with the smallest model:

- `held`: between two steps; weights and the two moments of AdamW.
- `step`: the peak of two steps; gradients too, and what is whole of the layers at work.
- `save`: the peak of a checkpoint over `held`.
- `load`: the peak of sharding the model, which rank 0 has whole; the formula is that of rank 0.

    python benchmarks/memory.py [--shape 135m] [--ranks 1 2 4]

Claim: no rank needs more than its formula in a step. The last line is one JSON object, and `ratio` is the largest share
of its formula that a rank needed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from workloads.models import SHAPES, policy_model
from workloads.rank_memory import peaks, resident

from trimtab_trainer.checkpoint import CheckpointStore, Snapshot
from trimtab_trainer.config import OptimizerConfig, RunSpec
from trimtab_trainer.context import Orders
from trimtab_trainer.distributed import ranks, shard
from trimtab_trainer.language_modeling import Example, train_on
from trimtab_trainer.optimization import Learner, make_learner, prepare_for_training
from trimtab_trainer.places import Place
from trimtab_trainer.ranks import leading

GOAL = 1.0
MIB = 2**20
FILE_BYTES = 2**28
"""Of a checkpoint's file."""


def formulas(shape: str, size: int) -> dict[str, float]:
    """Bytes of the largest rank: those of docs/performance.md."""
    model = policy_model(shape, device="meta")
    everything = sum(parameter.numel() for parameter in model.parameters())
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    outside = everything - layer * len(model.model.layers)
    largest = max(parameter.numel() for parameter in model.parameters())
    return {
        "load": 4 * everything * (1 + 1 / size) + 4 * largest,
        "step": 16 * everything / size + 8 * (2 * layer + outside),
        "held": 12 * everything / size,
        "save": 2 * min(FILE_BYTES, 12 * everything / size),
    }


def started(shape: str) -> Learner:
    model = shard(policy_model(shape), torch.device("cpu"))
    prepare_for_training(model)
    return make_learner(model, OptimizerConfig(learning_rate=1e-4), total_steps=100)


def stepped(learner: Learner) -> None:
    batch = [Example(tuple(range(2, 18)), 1) for _ in range(4)]
    train_on(learner, batch, micro_batch_tokens=64)
    learner.update()


def saved(learner: Learner, folder: Path) -> None:
    CheckpointStore(folder).save(Snapshot(learner.step, parts=[learner]))


def measure(shape: str, folder: Path) -> dict[str, list[int]]:
    """Bytes of each rank beyond what it has without a model."""
    resident()
    first = started("10m")
    stepped(first)
    saved(first, folder / "first")
    del first
    empty = resident()
    learner = started(shape)
    found = {"load": _beyond(peaks(), empty)} if ranks() > 1 else {}
    resident()
    stepped(learner)
    stepped(learner)
    found["step"] = _beyond(peaks(), empty)
    now = resident()
    found["held"] = _beyond(now, empty)
    saved(learner, folder / "large")
    found["save"] = _beyond(peaks(), now)
    return found


def _beyond(bytes_now: Sequence[int], before: Sequence[int]) -> list[int]:
    return [one - other for one, other in zip(bytes_now, before, strict=True)]


def measured(shape: str, size: int) -> dict[str, Any]:
    """On that many ranks, which this process leads."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        place = Place.of({}, processes=size)
        spec = RunSpec(name="m", directory=folder, model="base", stages=("sft",), data_directory=folder, threads=1)
        follower = [sys.executable, "-m", "trimtab", "run", "-"]
        with leading(place, Orders(), spec, start=follower) if place is not None else nullcontext():
            assert ranks() == size
            return {"ranks": size, "bytes": measure(shape, folder), "formulas": formulas(shape, size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    rows = []
    for size in args.ranks:
        rows.append(measured(args.shape, size))
        tell(rows[-1])
    ratio = max(max(row["bytes"]["step"]) / row["formulas"]["step"] for row in rows)
    print(json.dumps({"benchmark": "memory", "ratio": round(ratio, 3), "goal": GOAL, "rows": rows}))


def tell(row: Mapping[str, Any]) -> None:
    """Prints the figures of one number of ranks."""
    print(f"{row['ranks']} ranks, MiB of rank 0, 1, ...", flush=True)
    for name, found in row["bytes"].items():
        formula = row["formulas"][name]
        print(f"  {name}: {', '.join(f'{one / MIB:,.0f}' for one in found)}; formula {formula / MIB:,.0f}", flush=True)


if __name__ == "__main__":
    main()
