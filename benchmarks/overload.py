"""The reward service when more is asked than it can do, when one caller asks a lot, and when callers go away.

- `overload`: requests of 4 pairs at 0.8 times the measured capacity, then at 3 times for a minute. What is admitted
  must be answered about as fast as before, the rest refused at once, and no capacity lost to refusing.
- `fairness`: one item at a time as INTERACTIVE while another caller's 10,000 BULK items wait.
- `cancelled`: 10,000 calls that are cancelled while they wait; the tokens computed for them.

The last line is one JSON object. `ratio` is goodput at 3 times the capacity over the capacity.

    python benchmarks/overload.py [--parts overload fairness cancelled] [--seconds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import grpc
import torch
from reward_serving import BATCH_TOKENS, make_pairs
from workloads.load import Outcome, closed_loop, open_loop, percentile
from workloads.metrics import metric
from workloads.models import make_folders
from workloads.served import ServedProcess, served

from trimtab.convert import score_item_to_message
from trimtab.types import ScoreItem
from trimtab.v1 import reward_pb2, reward_pb2_grpc, types_pb2

GOAL = 0.9
QUEUE_S = 0.4
"""The queue holds so much work: the bound of how long what is admitted can wait."""
PER_REQUEST = 4
ITEMS_AHEAD = 2048
"""Items of a request that the cancelled calls wait behind."""
OVER = 3.0
BULK_ITEMS = 10_000
CANCELLED_CALLS = 10_000
TOKENS_OF_A_PAIR = 144


class Caller:
    """Requests of some pairs each, as one caller makes them. A refused one is not tried again.

    Args:
        target: of the service.
    """

    def __init__(self, target: str) -> None:
        items = [ScoreItem(prompt=prompt, completion=completion) for prompt, completion in make_pairs()]
        self._items = [score_item_to_message(item) for item in items]
        self._channel = grpc.aio.insecure_channel(target, options=[("grpc.max_send_message_length", -1)])
        self._service = reward_pb2_grpc.RewardServiceStub(self._channel)

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()

    async def score(self, number: int, count: int = PER_REQUEST, priority: str = "ROLLOUT") -> int:
        """Scores pairs; returns how many."""
        first = number * count
        request = reward_pb2.ScoreRequest(
            items=[self._items[(first + offset) % len(self._items)] for offset in range(count)],
            priority=types_pb2.Priority.Value(f"PRIORITY_{priority}"),
        )
        return len((await self._service.Score(request, timeout=600)).scores)


async def capacity(target: str, seconds: float) -> Outcome:
    """As many pairs a second as it can do: enough callers that each wait for their answer."""
    async with Caller(target) as caller:
        await closed_loop(caller.score, clients=24, seconds=3.0)
        return await closed_loop(caller.score, clients=24, seconds=seconds)


async def at_rate(target: str, pairs_per_s: float, seconds: float) -> Outcome:
    async with Caller(target) as caller:
        return await open_loop(caller.score, per_s=pairs_per_s / PER_REQUEST, seconds=seconds)


def overload(directory: Path, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The part `overload`."""
    with served("reward", directory, **settings) as process:
        before = asyncio.run(capacity(process.grpc, 20.0)).items_per_s
    queue = int(QUEUE_S * before * TOKENS_OF_A_PAIR)
    with served("reward", directory, **settings, max_queue_tokens=queue) as process:
        asyncio.run(at_rate(process.grpc, 0.5 * before, 5.0))
        below = asyncio.run(at_rate(process.grpc, 0.8 * before, seconds / 2))
        above = asyncio.run(at_rate(process.grpc, OVER * before, seconds))
    with served("reward", directory, **settings) as process:
        after = asyncio.run(capacity(process.grpc, 20.0)).items_per_s
    most = (before + after) / 2  # the machine is not equally fast all the time
    figures = {
        "capacity_pairs_per_s": [round(before, 1), round(after, 1)],
        "queue_tokens": queue,
        "goodput_over_capacity": round(above.items_per_s / most, 3),
        "p99_ms_at_0.8": round(1000 * percentile(below.latencies_s, 0.99)),
        "p99_ms_at_3.0": round(1000 * percentile(above.latencies_s, 0.99)),
        "refused_at_0.8": below.refusals,
        "refused_at_3.0": above.refusals,
        "refused_p99_ms": round(1000 * percentile(above.refused_s, 0.99), 1),
        "cores_of_the_load": round(above.own_cpu_s / above.wall_s, 2),
    }
    print(f"overload: {figures}", flush=True)
    return figures


def computed(process: ServedProcess) -> tuple[float, float]:
    """Batches so far, and the seconds that they took."""
    count, total = (metric(process.metrics, f"trimtab_compute_seconds_{part}") for part in ("count", "sum"))
    return count, total


async def ask_beside_bulk(process: ServedProcess, asks: int) -> tuple[Outcome, float]:
    """Asks for one item again and again while another caller's items are in the queue.

    Returns:
        What the asks took, and the mean seconds of a batch of the other caller's.
    """
    async with Caller(process.grpc) as bulk, Caller(process.grpc) as interactive:
        await interactive.score(0, 1, "INTERACTIVE")
        waiting = asyncio.create_task(bulk.score(0, BULK_ITEMS, "BULK"))
        await asyncio.sleep(2.0)
        before = computed(process)
        await asyncio.sleep(5.0)
        batches, seconds = (now - then for now, then in zip(computed(process), before, strict=True))

        async def call(number: int) -> int:
            return await interactive.score(number, 1, "INTERACTIVE")

        outcome = Outcome()
        for number in range(asks):
            await outcome.note(call, number)
        if waiting.done():
            raise SystemExit("the bulk work was done before the last question: nothing was shown")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    return outcome, seconds / batches


def fairness(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The part `fairness`."""
    with served("reward", directory, **settings, max_items_per_request=BULK_ITEMS) as process:
        outcome, batch_s = asyncio.run(ask_beside_bulk(process, asks=40))
    figures = {
        "bulk_items": BULK_ITEMS,
        "interactive_p50_ms": round(1000 * percentile(outcome.latencies_s, 0.5)),
        "interactive_p99_ms": round(1000 * percentile(outcome.latencies_s, 0.99)),
        "bulk_batch_ms": round(1000 * batch_s),
        "p99_over_batch": round(percentile(outcome.latencies_s, 0.99) / batch_s, 2),
        "p99_over_batch_goal": 2.0,
    }
    print(f"fairness: {figures}", flush=True)
    return figures


async def ask_and_leave(target: str, calls: int) -> int:
    """Makes calls and cancels them while they wait behind other work; returns the items of that work."""
    done = 0
    async with Caller(target) as busy, Caller(target) as leaving:
        ahead = asyncio.create_task(busy.score(0, ITEMS_AHEAD, "INTERACTIVE"))
        await asyncio.sleep(1.0)
        for first in range(0, calls, 500):
            tasks = [asyncio.create_task(leaving.score(number, 1)) for number in range(first, first + 500)]
            await asyncio.sleep(0.5)
            if ahead.done():
                done += await ahead
                ahead = asyncio.create_task(busy.score(0, ITEMS_AHEAD, "INTERACTIVE"))
                await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return done + await ahead


def cancelled(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The part `cancelled`."""
    with served("reward", directory, **settings) as process:
        ahead = asyncio.run(ask_and_leave(process.grpc, CANCELLED_CALLS))
        items = metric(process.metrics, "trimtab_batch_items_sum")
        dropped = metric(process.metrics, "trimtab_dropped_items_total", cause="cancelled")
    computed_for_them = items - ahead
    figures = {
        "calls": CANCELLED_CALLS,
        "taken_out_of_the_queue": int(dropped),
        "computed_share": round(computed_for_them / CANCELLED_CALLS, 4),
        "computed_share_goal": 0.01,
    }
    print(f"cancelled: {figures}", flush=True)
    return figures


def main() -> None:
    """Runs the parts that are asked for and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = ["overload", "fairness", "cancelled"]
    parser.add_argument("--parts", nargs="+", choices=everything, default=everything)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    args = parser.parse_args()
    load, figures = os.getloadavg()[0], dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _, folder = make_folders(directory)
        settings = {
            "model_folder": str(folder),
            "threads": torch.get_num_threads(),
            "max_batch_tokens": BATCH_TOKENS,
            "default_deadline_s": 600,
            "log": {"calls": False},
        }
        if "overload" in args.parts:
            figures["overload"] = overload(directory, settings, args.seconds)
        if "fairness" in args.parts:
            figures["fairness"] = fairness(directory, settings)
        if "cancelled" in args.parts:
            figures["cancelled"] = cancelled(directory, settings)
    ratio = figures.get("overload", {}).get("goodput_over_capacity")
    print(json.dumps({"benchmark": "overload", "ratio": ratio, "goal": GOAL, **figures, "load_1m": round(load, 2)}))


if __name__ == "__main__":
    main()
