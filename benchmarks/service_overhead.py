"""What the services cost: generation over its bare engine, reward and reference over bare forwards.

Each side has the same model (10.5 M parameters, random), the same work, the same number of threads, and runs in turn
several times in one run; the service is a process of its own, called over gRPC from this one. The last line is one JSON
object: `ratio` is the worst service's throughput over its bare side's, `overhead` what each adds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from workloads.models import SHAPES, VOCAB, make_folders
from workloads.served import served

from trimtab import Client
from trimtab.types import (
    GenerateRequest,
    GenerationPrompt,
    LogProbsItem,
    LogProbsRequest,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
)
from trimtab_models.heads import hidden_states, read_rewards
from trimtab_models.loading import load_policy, load_reward_model
from trimtab_models.logprobs import token_logprobs
from trimtab_models.packing import pad_right
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine

BATCH_TOKENS = 8192
GOALS = {"generation": 0.03, "reward": 0.05, "reference": 0.05}

Sequences = list[tuple[int, ...]]


def generation_sides(
    folder: Path, client: Client, work: list[tuple[tuple[int, ...], int]], place: dict[str, Any]
) -> dict[str, Callable[[], int]]:
    """Completions with their own limits: by the engine in this process, and by the service."""
    defaults = GenerationConfig(model_folder=folder, device=place["device"])
    engine = TransformersEngine(
        load_policy(folder, **place),
        slots=defaults.slots,
        prefill_tokens_per_step=defaults.prefill_tokens_per_step,
        prefill_chunk_tokens=defaults.prefill_chunk_tokens,
    )

    def bare() -> int:
        for index, (prompt, limit) in enumerate(work):
            sampling = SamplingParams(max_new_tokens=limit, ignore_eos=True)
            engine.submit(SequenceRequest(index, prompt, sampling, seed=index))
        made = 0
        while engine.has_work:
            made += sum(len(done.token_ids) for done in engine.step())
        return made

    prompts = tuple(
        GenerationPrompt(prompt_id=str(index), prompt=prompt, seed=index, max_new_tokens=limit)
        for index, (prompt, limit) in enumerate(work)
    )
    request = GenerateRequest(prompts=prompts, sampling=SamplingParams(ignore_eos=True))

    def served() -> int:
        return sum(len(r.completion.token_ids) for r in client.generate(request) if r.completion is not None)

    return {"bare": bare, "service": served}


def batches(sequences: Sequences) -> Iterator[Sequences]:
    """Length-sorted batches within a token budget: the best that a bare loop can do with all of them at hand."""
    ordered = sorted(sequences, key=len, reverse=True)
    while ordered:
        fit = max(1, BATCH_TOKENS // len(ordered[0]))
        yield ordered[:fit]
        ordered = ordered[fit:]


def reward_sides(
    folder: Path, client: Client, sequences: Sequences, place: dict[str, Any]
) -> dict[str, Callable[[], int]]:
    """Rewards of whole sequences."""
    model = load_reward_model(folder, **place)

    @torch.inference_mode()
    def bare() -> int:
        for batch in batches(sequences):
            input_ids, lengths = (tensor.to(model.device) for tensor in pad_right(batch))
            read_rewards(model, input_ids, lengths).tolist()
        return len(sequences)

    request = ScoreRequest(items=tuple(ScoreItem(token_ids=ids) for ids in sequences))
    return {"bare": bare, "service": lambda: len(client.score(request).scores)}


def reference_sides(
    folder: Path, client: Client, sequences: Sequences, place: dict[str, Any]
) -> dict[str, Callable[[], int]]:
    """Log-probs of the second half of each sequence."""
    model = load_policy(folder, **place)

    @torch.inference_mode()
    def bare() -> int:
        for batch in batches(sequences):
            input_ids, lengths = (tensor.to(model.device) for tensor in pad_right(batch))
            hidden = hidden_states(model, input_ids)
            columns = torch.arange(input_ids.shape[1], device=model.device)
            wanted = (columns >= (lengths // 2)[:, None]) & (columns < lengths[:, None])
            rows, at = wanted.nonzero(as_tuple=True)
            token_logprobs(model, hidden[rows, at - 1], input_ids[rows, at]).logprobs.tolist()
        return len(sequences)

    items = tuple(LogProbsItem(token_ids=ids, start_index=len(ids) // 2) for ids in sequences)
    request = LogProbsRequest(items=items)
    return {"bare": bare, "service": lambda: len(client.logprobs(request).results)}


def measure(sides: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Median throughput of each side, run in turn; the first pass warms up."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, once in sides.items():
            start = time.perf_counter()
            count = once()
            if repeat:
                rates[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    """Measures the three services and prints the figures."""
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--only", choices=sorted(GOALS), help="one service only")
    parser.add_argument("--model", choices=sorted(SHAPES), default="10m", help="shape of the model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    draw = random.Random(7)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, VOCAB) for _ in range(draw.randint(low, high)))

    sequences = [ids(32, 256) for _ in range(args.sequences)]
    work = [(ids(8, 128), draw.randint(8, 128)) for _ in range(64)]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        policy, reward = make_folders(directory, args.model, device=args.device)
        place: dict[str, Any] = {"device": args.device, "dtype": args.dtype}
        for kind, folder in (("generation", policy), ("reward", reward), ("reference", policy)):
            if args.only not in (None, kind):
                continue
            serving = served(kind, directory, model_folder=str(folder), threads=threads, **place)
            with serving as process, Client(process.grpc, timeout_s=600) as client:
                if kind == "generation":
                    sides = generation_sides(folder, client, work, place)
                elif kind == "reward":
                    sides = reward_sides(folder, client, sequences, place)
                else:
                    sides = reference_sides(folder, client, sequences, place)
                results[kind] = measure(sides, args.repeats)
            print(
                f"{kind:<12} bare {results[kind]['bare']:.1f}/s  service {results[kind]['service']:.1f}/s", flush=True
            )
    ratios = {kind: rates["service"] / rates["bare"] for kind, rates in results.items()}
    print(
        json.dumps(
            {
                "benchmark": "service_overhead",
                "ratio": round(min(ratios.values()), 3),
                "goal": round(1 - max(GOALS.values()), 3),
                "overhead": {kind: round(1 - ratio, 3) for kind, ratio in ratios.items()},
                "goals": GOALS,
                "per_second": {kind: {k: round(v, 1) for k, v in rates.items()} for kind, rates in results.items()},
                "tokens_per_sequence": round(statistics.mean(map(len, sequences)), 1),
                "model": args.model,
                **place,
                "threads": threads,
                "load_1m": round(os.getloadavg()[0], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
