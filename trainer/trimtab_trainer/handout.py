"""One collection's samples, out to the generation replicas until each has been made.

Work is pulled: a replica gets samples as long as it has free slots, so a fast one does more, a newcomer gets its share
at once, and what a failed one had not answered goes to another. Once nothing waits any more, samples that a slow
replica still holds are given to another one too. The first answer of a sample counts; whose it is makes no difference,
since weights, prompt, seed and sample index decide the draw. A call that has nothing left to answer is cancelled. At
any moment at most two replicas have the same sample.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from trimtab import AsyncClient
from trimtab.errors import InternalError, TrimtabError, Unavailable
from trimtab.types import Completion, GenerateRequest, GenerationPrompt, SamplingParams, VersionRequirement
from trimtab_trainer.fleet import Call, Fleet, Replica, counts_as_try, worth_another_replica
from trimtab_trainer.rollout_work import (
    RolloutPrompt,
    Sample,
    Work,
    free_slots,
    left_of,
    most_items,
    needs_more,
    samples_of,
    slots_of,
    take,
)

__all__ = ["Handout"]

_MOST_TRIES = 5
_MOST_SEQUENCES = 32
"""Of one call."""
_TICK_S = 0.5
"""Within so much a newcomer or a free slot is seen, and a replica that has become slow."""
_VERSION_WAIT_MS = 30_000


@dataclass(eq=False)
class _Chunk:
    """What one call was given."""

    works: Sequence[Work]
    left: set[Sample]
    """Samples of it that no replica has answered yet."""
    call: Call[None] = field(init=False)


class Handout:
    """Has every sample of some prompts made once.

    Args:
        fleet: of generation.
        prompts: prompt_ids are unique.
        sampling: how tokens are drawn.
        version: which policy version may sample them.
        deadline: `time.monotonic()` by which all must be done; each call is told.
        among: all handouts under way on the fleet, this one included, the oldest first: whichever frees a slot wakes
            those that want it.
        given_out: set the first time that no sample waits any more.
        on_completion: called once for each sample, in any order.
        on_queue: called with (waiting, running, replicas) again and again.
    """

    def __init__(
        self,
        fleet: Fleet,
        prompts: Sequence[RolloutPrompt],
        sampling: SamplingParams,
        version: VersionRequirement,
        *,
        deadline: float,
        among: Collection[Handout],
        given_out: asyncio.Event,
        on_completion: Callable[[RolloutPrompt, Completion], None],
        on_queue: Callable[[int, int, int], None],
    ) -> None:
        self.hedged = 0
        """Samples given to another replica too, since the one that had them was slow."""
        self._fleet = fleet
        self._sampling = sampling
        self._version = version
        self._deadline = deadline
        self._among = among
        self._given_out = given_out
        self._on_completion = on_completion
        self._on_queue = on_queue
        self._waiting = deque(Work(prompt, 0, prompt.num_samples) for prompt in prompts)
        self._chunks: list[_Chunk] = []
        self._done: set[Sample] = set()
        self._needed = asyncio.Event()
        """A replica is about to run out of work while some waits."""

    async def run(self) -> None:
        """Returns once every sample is made.

        Raises:
            Unavailable: no replica was well for the fleet's patience.
            TrimtabError: the work itself was refused, or failed on every replica tried.
        """
        try:
            while self._waiting or any(chunk.left for chunk in self._chunks):
                replicas = await (self._fleet.well() if self._chunks else self._fleet.wait_well())
                is_oldest = next(iter(self._among)) is self
                more = _count(self._waiting) > sum(map(slots_of, replicas))
                self._spread(self._waiting, replicas, ahead=is_oldest and more)
                if not self._waiting:
                    self._given_out.set()
                    self._hedge(replicas)
                self._tell_queue(len(replicas))
                await self._wait()
        finally:
            for chunk in self._chunks:
                chunk.call.task.cancel()
            self._chunks.clear()
            self._waiting.clear()
            self._tell_queue(len(await self._fleet.well()))

    def wake(self) -> None:
        """A replica has room: if samples wait, looks at once whether it is for them."""
        if self._waiting:
            self._needed.set()

    def _spread(self, waiting: deque[Work], replicas: Sequence[Replica], *, ahead: bool) -> list[_Chunk]:
        """Gives out what waits, so that each replica has as much to do as the others where all have room for it.

        Some may wait at a replica (`ahead`) if there are more than all slots and no older collection has samples that
        would have to wait behind them, or if they are late samples of the older one.
        """
        given: list[_Chunk] = []
        order = sorted(replicas, key=lambda replica: self._room(replica, ahead))
        for position, replica in enumerate(order):
            rest = order[position:]
            level = -(-(_count(waiting) + sum(one.outstanding for one in rest)) // len(rest))
            room = min(level - replica.outstanding, self._room(replica, ahead))
            while works := take(waiting, min(room, most_items(replica, _MOST_SEQUENCES))):
                room -= _count(works)
                given.append(self._start(replica, works))
        return given

    def _hedge(self, replicas: Sequence[Replica]) -> None:
        """Gives what only a slow replica has to others that have room."""
        late = [chunk for chunk in self._chunks if self._fleet.late(chunk.call, self._sampling.max_new_tokens)]
        slow = {chunk.call.replica for chunk in late}
        holders = Counter(sample for chunk in self._chunks for sample in chunk.left)
        settled = self._done | {sample for sample, count in holders.items() if count > 1}
        again = deque(rest for chunk in late for work in chunk.works for rest in left_of(work, settled, tries=0))
        well = [replica for replica in replicas if replica not in slow]
        beside_younger = len(self._among) > 1
        given = self._spread(again, well, ahead=beside_younger or _count(again) > sum(map(slots_of, well)))
        self.hedged += sum(len(chunk.left) for chunk in given)

    def _room(self, replica: Replica, ahead: bool) -> int:
        return free_slots(replica, self._fleet.slowness(replica), ahead=ahead)

    def _start(self, replica: Replica, works: Sequence[Work]) -> _Chunk:
        chunk = _Chunk(works, {sample for work in works for sample in samples_of(work)})
        chunk.call = self._fleet.start(replica, partial(self._generate, chunk), cost=len(chunk.left))
        self._chunks.append(chunk)
        return chunk

    async def _generate(self, chunk: _Chunk, client: AsyncClient) -> None:
        """Has one replica make a chunk."""
        by_id = {str(position): work for position, work in enumerate(chunk.works)}
        request = GenerateRequest(
            prompts=tuple(
                GenerationPrompt(
                    prompt_id=prompt_id,
                    prompt=work.prompt.shown or work.prompt.token_ids,
                    seed=work.prompt.seed,
                    num_samples=work.count,
                    first_sample_index=work.first,
                )
                for prompt_id, work in by_id.items()
            ),
            sampling=self._sampling,
            version=self._version,
            max_wait_ms=_VERSION_WAIT_MS,
        )
        remaining_s = max(0.1, self._deadline - time.monotonic())
        async for result in client.generate(request, timeout_s=remaining_s):
            if result.completion is not None:
                self._completed(chunk, by_id[result.prompt_id].prompt, result.completion)
        if chunk.left:
            raise InternalError(f"{client.target} ended its answer before all completions had come")

    def _completed(self, chunk: _Chunk, prompt: RolloutPrompt, completion: Completion) -> None:
        chunk.call.cost -= 1  # its slot is free
        sample = prompt.prompt_id, completion.sample_index
        if sample in self._done:
            return
        self._done.add(sample)
        holders = [holder for holder in self._chunks if sample in holder.left]
        self._fleet.answered(len(completion.token_ids), by=chunk.call, among=[holder.call for holder in holders])
        for holder in holders:
            holder.left.remove(sample)
            if holder is not chunk and not holder.left:
                holder.call.task.cancel()
        self._on_completion(prompt, completion)
        if needs_more(chunk.call.replica):
            for handout in self._among:
                handout.wake()

    async def _wait(self) -> None:
        """Until a call has ended, a replica needs more, or a moment.

        What a failed call had not answered, and nobody else has, waits again.
        """
        if not self._chunks:
            await asyncio.sleep(0.1)
            return
        needed = asyncio.ensure_future(self._needed.wait())
        tasks = [chunk.call.task for chunk in self._chunks]
        await asyncio.wait([needed, *tasks], timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        needed.cancel()
        self._needed.clear()
        for chunk in [chunk for chunk in self._chunks if chunk.call.task.done()]:
            self._chunks.remove(chunk)
            if not chunk.left:
                continue
            is_cancelled = chunk.call.task.cancelled()  # by whoever closes the connection
            error = Unavailable("the call was cancelled") if is_cancelled else chunk.call.task.exception()
            if error is not None:
                self._waiting.extendleft(reversed(self._lost(chunk, error)))

    def _lost(self, chunk: _Chunk, error: BaseException) -> list[Work]:
        """What is to be given out again of a chunk whose call has failed; raises where trying again is no use."""
        if not isinstance(error, TrimtabError) or not worth_another_replica(error):
            raise error
        self._fleet.failed(chunk.call.replica, error)
        settled = self._done.union(*(other.left for other in self._chunks))
        lost = [rest for work in chunk.works for rest in left_of(work, settled, tries=counts_as_try(error))]
        if any(work.tries >= _MOST_TRIES for work in lost):
            raise error
        return lost

    def _tell_queue(self, replicas: int) -> None:
        running = sum(_count(chunk.works) for chunk in self._chunks)
        self._on_queue(_count(self._waiting), running, replicas)


def _count(works: Sequence[Work] | deque[Work]) -> int:
    return sum(work.count for work in works)
