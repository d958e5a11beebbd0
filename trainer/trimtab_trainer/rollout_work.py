"""What is given out to replicas: prompts with the samples still to be made, split and taken up again as replicas need.

Pure functions over records, for `handout`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace

from trimtab_trainer.fleet import Replica

__all__ = [
    "RolloutPrompt",
    "Sample",
    "Work",
    "free_slots",
    "left_of",
    "most_items",
    "needs_more",
    "samples_of",
    "slots_of",
    "take",
]

Sample = tuple[str, int]
"""One completion to make: prompt_id and sample index."""


@dataclass(frozen=True)
class RolloutPrompt:
    """One prompt of a collection.

    Attributes:
        prompt_id: unique within the run; orders the result, so equal runs see equal batches.
        token_ids: the rendered prompt.
        seed: key of the random draws of its completions.
        num_samples: completions wanted.
        shown: what only the sampler sees in place of the prompt, such as the prompt behind demonstrations; empty: the
            prompt.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    seed: int
    num_samples: int = 1
    shown: tuple[int, ...] = ()


@dataclass
class Work:
    """Samples of one prompt that are still to be made: indices from `first` on, `count` of them."""

    prompt: RolloutPrompt
    first: int
    count: int
    tries: int = 0


def slots_of(replica: Replica) -> int:
    """Sequences that a replica runs at a time, as it said when it was greeted."""
    return max(1, replica.info.limits.max_concurrent_sequences if replica.info else 0)


def free_slots(replica: Replica, slowness: float = 1.0, *, ahead: bool = True) -> int:
    """Sequences that a replica can be given now; of a slow one a share, by which it can show that it is slow no more.

    Args:
        replica: well.
        slowness: as `Fleet.slowness`.
        ahead: half as many as it has slots may wait there, so that none stands empty. Not for the last of a collection:
            one that ends early would find them given away.
    """
    slots = slots_of(replica)
    if slowness != 1:
        return max(1, int(slots / slowness)) - replica.outstanding
    return (slots * 3 // 2 if ahead else slots) - replica.outstanding


def needs_more(replica: Replica) -> bool:
    """Whether the next sequence of a replica to end leaves a slot empty."""
    return replica.outstanding <= slots_of(replica)


def most_items(replica: Replica, most: int) -> int:
    """Items of one request to a replica: `most`, or what it says it takes where that is less."""
    allowed = replica.info.limits.max_items_per_request if replica.info else 0
    return min(most, allowed) if allowed > 0 else most


def take(waiting: deque[Work], room: int) -> list[Work]:
    """Takes up to `room` sequences off the queue; splits the samples of a prompt where needed."""
    chunk: list[Work] = []
    while waiting and room > 0:
        work = waiting.popleft()
        if work.count > room:
            waiting.appendleft(replace(work, first=work.first + room, count=work.count - room))
            work = replace(work, count=room)
        chunk.append(work)
        room -= work.count
    return chunk


def samples_of(work: Work) -> Iterator[Sample]:
    """The samples of `work`, in order."""
    return ((work.prompt.prompt_id, index) for index in range(work.first, work.first + work.count))


def left_of(work: Work, done: Container[Sample], *, tries: int) -> list[Work]:
    """The samples of `work` that are not done, as runs of neighbouring indices, `tries` more noted."""
    runs: list[Work] = []
    for sample in samples_of(work):
        if sample in done:
            continue
        index = sample[1]
        if runs and runs[-1].first + runs[-1].count == index:
            runs[-1].count += 1
        else:
            runs.append(Work(work.prompt, index, 1, work.tries + tries))
    return runs
