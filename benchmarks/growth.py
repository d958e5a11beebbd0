"""What an iteration of PPO-ptx costs as models, batches, sequences and fleets grow: measured, then by a stated model.

- `measured`: the rates of this machine by small programs of their own (matrix products, memory, a decode step, codec,
  SHA-256), and from them, without fitting, the phases of iterations that are then run: 10 M to 135 M parameters, 16 to
  64 prompts, 32 to 128 new tokens.
- `model`: the same formula (`workloads/growth_model.py`) for 1 B to 70 B parameters and 8 to 256 GPUs of generation: a
  model, not a measurement. What it assumes is printed with it.

    python benchmarks/growth.py [--parts measured model] [--iterations 2]

The last line is one JSON object; `ratio` is the median of predicted over measured seconds of an iteration.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from workloads.growth_model import Deployment, Machine, Model, Work, iteration, largest
from workloads.models import SHAPES, make_folders, policy_model
from workloads.ppo_iterations import make_prompts, medians, trimtab_side

from trimtab.types import SamplingParams
from trimtab.weights import decode_delta, encode_delta
from trimtab_services.generation.engines.base import SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine
from trimtab_trainer.ppo_config import PPOConfig

GOAL = 1.0
SHOWN = ("sampling", "update", "publication", "iteration")
PHASES = ("rollouts", "experience", "update", "publication")
CASES = (  # shape, prompts, new tokens
    ("10m", 32, 64),
    ("10m", 16, 64),
    ("10m", 64, 64),
    ("10m", 32, 32),
    ("10m", 32, 128),
    ("40m", 32, 64),
    ("135m", 16, 32),
)
PROMPT_TOKENS = 48

H100 = Machine(
    name="H100 80GB, bfloat16",
    width=2,
    forward_flops_per_s=0.5 * 989e12,
    train_flops_per_s=0.4 * 989e12,
    decode_flops_per_s=0.5 * 989e12,
    memory_bytes_per_s=2.97e12,
    layer_overhead_s=40e-6,
    encode_bytes_per_s=1.4e9,
    digest_bytes_per_s=1.5e9,
    apply_bytes_per_s=3.9e9,
    egress_bytes_per_s=3.4e9,
    dispatch_s=0.7e-3,
    encoders=16,
    checkers=32,
    decoders=8,
)
ASSUMED = (
    "50 % of 989 TFLOP/s in forwards, 40 % in training, 40 us a layer and decode step beside reading weights, 80 % of\n"
    "each GPU where a replica spans 8, 1.5 GB/s of SHA-256, 64 cores for trainer and weights service and 32 for a\n"
    "replica: assumed. 2.97 TB/s of memory: measured on one H100. Codec, egress and dispatch: measured on CPUs. 2 %\n"
    "of the bytes change. Not in it: networks between GPUs, uneven lengths, an engine over 8 GPUs (ours has none)."
)
MODELS = (
    Model("1 B", body=0.97e9, vocab=128_256, hidden=2048, layers=16, kv_heads=8, head_size=64),
    Model("8 B", body=6.98e9, vocab=128_256, hidden=4096, layers=32, kv_heads=8, head_size=128),
    Model("70 B", body=68.5e9, vocab=128_256, hidden=8192, layers=80, kv_heads=8, head_size=128),
)
WORKS = {
    "InstructGPT: 512 episodes of 256 + 256 tokens, 8 passages of 512 each": Work(512, 1, 256, 256, 1, 8.0, 512),
    "4,096 episodes of 512 + 2,048 tokens, no pretraining mix": Work(1024, 4, 512, 2048),
}
FLEETS = {
    "1 B": (Deployment(8, 1, 1, 8, 256), Deployment(64, 8, 8, 8, 256), Deployment(256, 16, 16, 8, 256)),
    "8 B": (Deployment(8, 2, 2, 16, 128), Deployment(64, 8, 8, 32, 128), Deployment(256, 32, 32, 64, 128)),
    "70 B": (
        Deployment(8, 8, 8, 64, 128, generation_span=8),
        Deployment(64, 16, 16, 128, 128, generation_span=8),
        Deployment(256, 64, 64, 256, 128, generation_span=8),
    ),
}
MOVED_BY = {
    "sampling": "generation replicas, slots; `max_lag` hides it",
    "reward": "reward replicas",
    "reference": "reference replicas",
    "dispatch": "fewer, longer samples; several runs",
    "experience": "trainer ranks",
    "update": "trainer ranks; ptx_ratio",
    "publication": "cores; read replicas of the weights service; `max_lag` 1 hides it",
}


def seconds_of(work: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def this_machine() -> Machine:
    """Rates of this machine, each by a program that does nothing else."""
    square, rows, wide = 1024, 32, torch.randn(1024, 4096)
    long, thin = torch.randn(2048, square), torch.randn(rows, square)
    flops = 2 * 2048 * square * 4096 / seconds_of(lambda: long @ wide)
    thin_flops = 2 * rows * square * 4096 / seconds_of(lambda: thin @ wide, 50)
    large = torch.randn(64_000_000)
    memory = large.numel() * 4 / seconds_of(large.sum)
    before = np.random.default_rng(0).standard_normal(4_000_000, dtype=np.float32)
    moved = (before + np.random.default_rng(1).standard_normal(before.size, dtype=np.float32) * 1e-5).astype(np.float32)
    old, new = before.view(np.uint8).data, moved.view(np.uint8).data
    encoded = encode_delta(old, new, 4)
    if encoded is None:
        raise SystemExit("a difference was no smaller than the bytes")
    size = len(new)
    return Machine(
        name=f"this machine, {torch.get_num_threads()} threads, float32",
        width=4,
        forward_flops_per_s=flops,
        train_flops_per_s=flops,
        decode_flops_per_s=thin_flops,
        memory_bytes_per_s=memory,
        layer_overhead_s=layer_overhead(),
        encode_bytes_per_s=size / seconds_of(lambda: encode_delta(old, new, 4)),
        digest_bytes_per_s=size / seconds_of(lambda: hashlib.sha256(new).digest()),
        apply_bytes_per_s=size / seconds_of(lambda: decode_delta(memoryview(encoded), old, 4)),
        egress_bytes_per_s=3.4e9,
        dispatch_s=0.7e-3,
        is_shared=True,
    )


def layer_overhead() -> float:
    """Seconds of a decode step of one sequence, by layer, of a model so small that its work takes no time."""
    shape = {**SHAPES["10m"], "hidden_size": 64, "intermediate_size": 64, "vocab_size": 256}
    engine = TransformersEngine(policy_model(shape), version=1, slots=1, max_sequence_tokens=256)
    sampling = SamplingParams(max_new_tokens=64, min_new_tokens=64)
    engine.submit(SequenceRequest(1, tuple(range(5, 45)), sampling, seed=1))
    times = []
    while engine.has_work:
        began = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:]) / shape["num_hidden_layers"]


def model_of(shape: str) -> Model:
    """A shape of the benchmarks as the formula has it."""
    sizes = SHAPES[shape]
    hidden, layers, heads = sizes["hidden_size"], sizes["num_hidden_layers"], sizes["num_attention_heads"]
    kv_heads, head = sizes["num_key_value_heads"], sizes["hidden_size"] // sizes["num_attention_heads"]
    layer = hidden * head * (2 * heads + 2 * kv_heads) + 3 * hidden * sizes["intermediate_size"]
    return Model(shape, layers * layer, sizes["vocab_size"], hidden, layers, kv_heads, head)


def measured(iterations: int) -> Iterator[dict[str, Any]]:
    """Of each case, the measured and the predicted seconds of every phase."""
    machine = this_machine()
    print(
        f"rates: { {key: float(f'{value:.3g}') for key, value in vars(machine).items() if isinstance(value, float)} }"
    )
    for shape, count, new_tokens in CASES:
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            policy, reward = make_folders(work, shape)
            ours = medians(
                trimtab_side(
                    work,
                    policy,
                    reward,
                    make_prompts(count, PROMPT_TOKENS, PROMPT_TOKENS),
                    iterations + 1,
                    device="cpu",
                    precision="float32",
                    micro_batch_tokens=PPOConfig().micro_batch_tokens,
                    new_tokens=new_tokens,
                )
            )
        fleet = Deployment(1, 1, 1, 1, slots=count, changed=0.6)
        predicted = iteration(model_of(shape), Work(count, 1, PROMPT_TOKENS, new_tokens), machine, fleet)
        row = {
            "model": shape,
            "prompts": count,
            "new_tokens": new_tokens,
            "measured": {phase: ours[{"publication": "publish"}.get(phase, phase)] for phase in (*PHASES, "iteration")},
            "predicted": {phase: round(predicted[phase], 3) for phase in (*PHASES, "iteration")},
        }
        print(row, flush=True)
        yield row


def modelled() -> list[dict[str, Any]]:
    """The table of large models and fleets."""
    rows = []
    for title, work in WORKS.items():
        print(f"\n{title}. A model, not a measurement.\n")
        heads = ["model", "GPUs: generation, reward, reference, trainer", *SHOWN, "longest", "moved by"]
        print("| " + " | ".join(heads) + " |")
        print("| --- " * 8 + "|")
        for model in MODELS:
            for fleet in FLEETS[model.name]:
                seconds = iteration(model, work, H100, fleet)
                limit = largest(seconds)
                gpus = fleet.generation, fleet.reward, fleet.reference, fleet.trainer
                cells = [
                    model.name,
                    ", ".join(map(str, gpus)),
                    *(f"{seconds[key]:.1f}" for key in SHOWN),
                ]
                print("| " + " | ".join([*cells, limit, MOVED_BY[limit]]) + " |")
                rows.append(
                    {
                        "work": title,
                        "model": model.name,
                        "gpus": gpus,
                        "longest": limit,
                        **{key: round(value, 2) for key, value in seconds.items()},
                    }
                )
    print(f"\n{ASSUMED}\n")
    return rows


def main() -> None:
    """Runs the parts that are asked for and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["measured", "model"], default=["measured", "model"])
    parser.add_argument(
        "--iterations", type=int, default=2, help="measured iterations of each case, after one that warms up"
    )
    args = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    cases = list(measured(args.iterations)) if "measured" in args.parts else []
    table = modelled() if "model" in args.parts else []
    shares = [case["predicted"]["iteration"] / case["measured"]["iteration"] for case in cases]
    result = {
        "benchmark": "growth",
        "ratio": round(statistics.median(shares), 2) if shares else None,
        "goal": GOAL,
        "predicted_over_measured": [round(share, 2) for share in shares],
        "cases": cases,
        "modelled": table,
        "load_1m": round(load, 2),
        "wall_s": round(time.monotonic() - began),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
