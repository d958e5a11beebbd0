"""The reward service under many clients, against a bare forward and against a server as users write them.

Pairs of 32 to 256 tokens as text, 1 or 16 in a request, from 1, 8 or 32 clients that each wait for their answer. Each
cell is measured on

- `bare`: the model in this process, on as many pairs at once as are in flight there, sorted by length, in batches of
  the service's budget; without tokenizing and without a wire;
- `service`: `trimtab serve reward`, over gRPC;
- `fastapi`: a FastAPI server in the shape of OpenRLHF's `serve_rm`, in an environment of its own.

The last line is one JSON object. `ratio` is the worst of the cells with 16 pairs and 8 or 32 clients against `bare`.

    python benchmarks/reward_serving.py [--seconds 12] [--no-peer]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import torch
from peers.environment import peer_process
from workloads.load import Outcome, closed_loop, percentile
from workloads.models import VOCAB, make_folders
from workloads.served import served

from trimtab import AsyncClient
from trimtab.types import ScoreItem, ScoreRequest
from trimtab_models.heads import read_rewards
from trimtab_models.loading import load_reward_model
from trimtab_models.packing import pad_right

GOAL = 0.95
PEER_GOALS = {16: 2.0, 1: 1.2}
"""Least throughput over the FastAPI server's with so many pairs in a request, at 8 clients and more."""
PEER = ["torch==2.13.0", "transformers==5.16.1 fastapi==0.139.0 uvicorn==0.51.0"]
PAIRS = 512
BATCH_TOKENS = 1024
"""What the service chooses on a CPU; the bare forward has the same."""
TURNS = 3
CELLS = [(per_request, clients) for per_request in (1, 16) for clients in (1, 8, 32)]

Pair = tuple[str, str]


def make_pairs(seed: int = 7) -> list[Pair]:
    draw = random.Random(seed)
    pairs = []
    for _ in range(PAIRS):
        words = [f"w{draw.randrange(2, VOCAB)}" for _ in range(draw.randint(32, 256) - 1)]  # and the EOS
        cut = max(1, int(len(words) * draw.uniform(0.3, 0.7)))
        pairs.append((" ".join(words[:cut]), " ".join(words[cut:])))
    return pairs


def ids_of(pair: Pair) -> tuple[int, ...]:
    return (*(int(word[1:]) for text in pair for word in text.split()), 1)


def batches(sequences: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    ordered = sorted(sequences, key=len, reverse=True)
    while ordered:
        fit = max(1, BATCH_TOKENS // len(ordered[0]))
        yield ordered[:fit]
        ordered = ordered[fit:]


@torch.inference_mode()
def bare(model: Any, sequences: Sequence[tuple[int, ...]], in_flight: int, seconds: float) -> Outcome:
    """As many at once as are in flight, again and again."""
    outcome, number = Outcome(), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        started = time.perf_counter()
        chunk = [sequences[(number + offset) % len(sequences)] for offset in range(in_flight)]
        for batch in batches(chunk):
            outcome.items += len(read_rewards(model, *pad_right(batch)).tolist())
        number += in_flight
        outcome.latencies_s.append(time.perf_counter() - started)
    outcome.wall_s = time.perf_counter() - began
    return outcome


async def of_service(target: str, pairs: list[Pair], per_request: int, clients: int, seconds: float) -> Outcome:
    items = [ScoreItem(prompt=prompt, completion=completion) for prompt, completion in pairs]

    async with AsyncClient(target, timeout_s=600) as client:

        async def call(number: int) -> int:
            start = number * per_request
            chosen = tuple(items[(start + offset) % len(items)] for offset in range(per_request))
            return len((await client.score(ScoreRequest(items=chosen))).scores)

        return await closed_loop(call, clients=clients, seconds=seconds)


async def of_peer(url: str, pairs: list[Pair], per_request: int, clients: int, seconds: float) -> Outcome:
    texts = [f"{prompt} {completion} <eos>" for prompt, completion in pairs]
    limits = httpx.Limits(max_connections=clients)

    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def call(number: int) -> int:
            start = number * per_request
            chosen = [texts[(start + offset) % len(texts)] for offset in range(per_request)]
            answer = await client.post(url, json={"query": chosen})
            return len(answer.raise_for_status().json()["rewards"])

        return await closed_loop(call, clients=clients, seconds=seconds)


def figures(outcome: Outcome) -> dict[str, float]:
    return {
        "pairs_per_s": round(outcome.items_per_s, 1),
        "p50_ms": round(1000 * percentile(outcome.latencies_s, 0.5), 1),
        "p99_ms": round(1000 * percentile(outcome.latencies_s, 0.99), 1),
    }


def start_peer(stack: ExitStack, folder: Path) -> str:
    """Starts the FastAPI server; returns its URL once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    stack.enter_context(peer_process("fastapi_reward.py", PEER, {"folder": str(folder), "port": port}))
    url, give_up = f"http://127.0.0.1:{port}/get_reward", time.monotonic() + 120
    while True:
        try:
            httpx.post(url, json={"query": ["w5 w6"]}, timeout=60).raise_for_status()
            return url
        except httpx.TransportError:
            if time.monotonic() > give_up:
                raise SystemExit("the FastAPI server did not start") from None
            time.sleep(0.2)


def compared(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Worst shares over the cells that the goals speak of."""
    busy = [name for name, cell in cells.items() if cell["clients"] > 1]
    wide = [name for name in busy if cells[name]["pairs_per_request"] == 16]

    def over(name: str, side: str) -> float:
        return cells[name]["service"]["pairs_per_s"] / cells[name][side]["pairs_per_s"]

    result: dict[str, Any] = {"ratio": round(min(over(name, "bare") for name in wide), 3)}
    alone = cells["1x1"]
    result["latency_alone_over_bare"] = round(alone["service"]["p50_ms"] / alone["bare"]["p50_ms"], 3)
    if "fastapi" in alone:
        for count, goal in PEER_GOALS.items():
            names = [name for name in busy if cells[name]["pairs_per_request"] == count]
            result[f"over_fastapi_{count}_pairs"] = round(min(over(name, "fastapi") for name in names), 2)
            result[f"over_fastapi_{count}_pairs_goal"] = goal
        worst = max(cells[name]["service"]["p99_ms"] / cells[name]["fastapi"]["p99_ms"] for name in busy)
        result["p99_over_fastapi"] = round(worst, 3)
    return result


def main() -> None:
    """Measures every cell on every side and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each side of each cell")
    parser.add_argument("--no-peer", action="store_true", help="leave the FastAPI server out")
    args = parser.parse_args()
    pairs, load = make_pairs(), os.getloadavg()[0]
    sequences = [ids_of(pair) for pair in pairs]
    cells: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        _, folder = make_folders(directory)
        model, threads = load_reward_model(folder), torch.get_num_threads()
        url = "" if args.no_peer else start_peer(stack, folder)
        settings = {"model_folder": str(folder), "threads": threads, "max_batch_tokens": BATCH_TOKENS}
        process = stack.enter_context(served("reward", directory, **settings))
        bare(model, sequences, 64, 2.0)
        asyncio.run(of_service(process.grpc, pairs, 16, 4, 2.0))
        for per_request, clients in CELLS:
            sides = {"bare": Outcome(), "service": Outcome(), **({"fastapi": Outcome()} if url else {})}
            for _ in range(TURNS):  # side by side: the machine is not equally fast all the time
                seconds = args.seconds / TURNS
                sides["bare"] += bare(model, sequences, per_request * clients, seconds)
                sides["service"] += asyncio.run(of_service(process.grpc, pairs, per_request, clients, seconds))
                if url:
                    sides["fastapi"] += asyncio.run(of_peer(url, pairs, per_request, clients, seconds))
            failed = {side: outcome.refusals for side, outcome in sides.items() if outcome.refusals}
            if failed:
                raise SystemExit(f"requests failed: {failed}")
            cell = {side: figures(outcome) for side, outcome in sides.items()}
            cells[f"{per_request}x{clients}"] = {"pairs_per_request": per_request, "clients": clients, **cell}
            print(f"{per_request:>2} pairs x {clients:>2} clients: {cell}", flush=True)
    result = {"benchmark": "reward_serving", "goal": GOAL, **compared(cells), "cells": cells}
    print(json.dumps({**result, "threads": threads, "load_1m": round(load, 2)}))


if __name__ == "__main__":
    main()
