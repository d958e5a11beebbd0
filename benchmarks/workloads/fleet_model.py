"""A model of a fleet, for what a machine of two cores cannot show: a discrete-event simulation fed with measured times.

Of one on-policy batch: samples are dispatched by one thread, one after the other, to whichever replica has a free slot;
a replica makes one token of each running sequence in a step, whose time grows with their number; when all samples are
done the policy is published and every replica reads the difference from one weights service before the next batch. The
update in between is left out: it is the same for any number of replicas.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

__all__ = ["Measured", "batch_seconds", "efficiencies"]


@dataclass(frozen=True)
class Measured:
    """What the model is fed with.

    Attributes:
        step_fixed_s, step_sequence_s: time of a decode step, and what each running sequence adds.
        dispatch_s: time of the dispatching thread for one sample.
        lengths: tokens of completions, drawn from with equal chances.
        slots: sequences that a replica runs at a time.
        publish_s: from the optimizer step to the first replica serving.
        payload_bytes: of a publication.
        egress_bytes_per_s: of the weights service.
    """

    step_fixed_s: float
    step_sequence_s: float
    dispatch_s: float
    lengths: tuple[int, ...]
    slots: int
    publish_s: float
    payload_bytes: float
    egress_bytes_per_s: float


def batch_seconds(measured: Measured, replicas: int, samples: int, seed: int = 0) -> float:
    """Seconds of a batch on so many replicas, publication included."""
    draw = random.Random(seed)
    waiting = [draw.choice(measured.lengths) for _ in range(samples)]
    running: list[list[int]] = [[] for _ in range(replicas)]
    stepping = [False] * replicas
    events: list[tuple[float, int]] = []  # the end of a step of a replica
    now, dispatched_at = 0.0, 0.0

    def step(replica: int) -> None:
        seconds = measured.step_fixed_s + measured.step_sequence_s * len(running[replica])
        heapq.heappush(events, (max(now, dispatched_at) + seconds, replica))
        stepping[replica] = True

    def dispatch() -> None:
        nonlocal dispatched_at
        for replica in sorted(range(replicas), key=lambda r: len(running[r])):
            while waiting and len(running[replica]) < measured.slots:
                running[replica].append(waiting.pop())
                dispatched_at = max(now, dispatched_at) + measured.dispatch_s
                if replicas > 1 and len(running[replica]) * replicas >= samples:
                    break  # work is spread evenly where all have room
            if running[replica] and not stepping[replica]:
                step(replica)

    dispatch()
    while events:
        now, replica = heapq.heappop(events)
        stepping[replica] = False
        before = len(running[replica])
        running[replica] = [left - 1 for left in running[replica] if left > 1]
        if waiting and len(running[replica]) < before:
            dispatch()
        if running[replica] and not stepping[replica]:
            step(replica)
    return now + measured.publish_s + replicas * measured.payload_bytes / measured.egress_bytes_per_s


def efficiencies(measured: Measured, counts: tuple[int, ...], samples_per_replica: int) -> dict[int, float]:
    """Samples a second of each replica, over those of one alone; the batch grows with the fleet."""
    alone = samples_per_replica / batch_seconds(measured, 1, samples_per_replica)
    return {
        count: round(samples_per_replica / batch_seconds(measured, count, count * samples_per_replica) / alone, 3)
        for count in counts
    }
