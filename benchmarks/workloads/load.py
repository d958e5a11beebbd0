"""Load on a service: callers that wait for their answers, and callers that come whether or not it keeps up."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc

__all__ = ["Outcome", "closed_loop", "open_loop", "percentile"]

Call = Callable[[int], Awaitable[int]]
"""Makes the request of a number; returns how many items were answered. Raises when it was refused."""


@dataclass
class Outcome:
    """What became of requests.

    Attributes:
        items: answered.
        latencies_s: of the requests that were answered.
        refused_s: of those that were refused.
        refusals: how many of each kind.
        wall_s, own_cpu_s: of all of it; the second is this process's own.
    """

    items: int = 0
    latencies_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    own_cpu_s: float = 0.0

    @property
    def items_per_s(self) -> float:
        """Goodput, over the time that requests came in."""
        return self.items / self.wall_s

    def __add__(self, other: Outcome) -> Outcome:
        """Both together."""
        kinds = self.refusals.keys() | other.refusals.keys()
        return Outcome(
            self.items + other.items,
            self.latencies_s + other.latencies_s,
            self.refused_s + other.refused_s,
            {kind: self.refusals.get(kind, 0) + other.refusals.get(kind, 0) for kind in kinds},
            self.wall_s + other.wall_s,
            self.own_cpu_s + other.own_cpu_s,
        )

    async def note(self, call: Call, number: int) -> None:
        """Makes a request and notes what became of it."""
        began = time.perf_counter()
        try:
            answered = await call(number)
        except Exception as error:
            self.refused_s.append(time.perf_counter() - began)
            name = error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
            self.refusals[name] = self.refusals.get(name, 0) + 1
        else:
            self.items += answered
            self.latencies_s.append(time.perf_counter() - began)


async def closed_loop(call: Call, *, clients: int, seconds: float) -> Outcome:
    """Clients that each ask again as soon as they are answered."""
    outcome = Outcome()
    began, cpu = time.perf_counter(), _cpu_s()

    async def client(first: int) -> None:
        number = first
        while time.perf_counter() - began < seconds:
            await outcome.note(call, number)
            number += clients

    await asyncio.gather(*(client(first) for first in range(clients)))
    outcome.wall_s, outcome.own_cpu_s = time.perf_counter() - began, _cpu_s() - cpu
    return outcome


async def open_loop(call: Call, *, per_s: float, seconds: float, seed: int = 1) -> Outcome:
    """Requests that arrive as a Poisson process of a given rate, however slow the answers are."""
    draw, outcome, running = random.Random(seed), Outcome(), set[asyncio.Task[None]]()
    began, cpu = time.perf_counter(), _cpu_s()
    at, number = 0.0, 0
    while (at := at + draw.expovariate(per_s)) < seconds:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        task = asyncio.create_task(outcome.note(call, number))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1
    outcome.wall_s = time.perf_counter() - began
    await asyncio.gather(*running)
    outcome.own_cpu_s = _cpu_s() - cpu
    return outcome


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies; infinite where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
