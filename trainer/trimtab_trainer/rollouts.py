"""Rollouts: prompts out to generation, each completion on to reward and reference the moment it ends, all or an error.

`RolloutDispatcher` owns an event loop in a thread of its own, so that generation can go on while the trainer computes
(`max_lag` above 0). Of several collections the older is given out first; the next takes the slots that it leaves. How
samples are given out to the replicas of generation, whichever come, go, fail or are slow, is the matter of `handout`.
The result is ordered by prompt and sample index and complete, whatever the order of arrival; a collection that cannot
be completed raises.

It may not know models, losses or tensors: token ids, log-probs and rewards are all it handles.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trimtab.errors import DeadlineExceeded, InternalError, InvalidRequest, TrimtabError
from trimtab.types import (
    Completion,
    FinishReason,
    LogProbsItem,
    LogProbsOptions,
    LogProbsRequest,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
    VersionRequirement,
    VersionSpan,
)
from trimtab_trainer.fleet import Fleet
from trimtab_trainer.handout import Handout
from trimtab_trainer.rollout_work import RolloutPrompt, Sample, most_items

__all__ = ["Rollout", "RolloutDispatcher", "RolloutPrompt", "first_error", "token_counts"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_SCORE_CALLS_IN_FLIGHT = 2
_SCORE_ITEMS = 64
_SCORE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Rollout:
    """One finished completion with what the services said of it.

    Attributes:
        generation_logprobs: float32 [completion tokens], by the sampler at the stated temperature.
        ref_logprobs: float32 [completion tokens], by the reference at the same temperature; None when not asked for.
        reward: raw score of the reward model; None when not asked for.
        ended: True when it ended by itself (an EOS or a stop), False at max_new_tokens.
        version_spans: which policy version sampled which tokens.
    """

    prompt_id: str
    sample_index: int
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    generation_logprobs: npt.NDArray[np.float32]
    ended: bool
    version_spans: tuple[VersionSpan, ...]
    reward: float | None = None
    ref_logprobs: npt.NDArray[np.float32] | None = None

    @property
    def known_reward(self) -> float:
        """`reward` of a rollout that was scored; InternalError where it was not."""
        if self.reward is None:
            raise InternalError(f"rollout {self.prompt_id}/{self.sample_index} came without reward", field="reward")
        return self.reward

    @property
    def known_ref_logprobs(self) -> npt.NDArray[np.float32]:
        """`ref_logprobs` of a rollout that was scored; InternalError where it was not."""
        if self.ref_logprobs is None:
            raise InternalError(
                f"rollout {self.prompt_id}/{self.sample_index} came without ref_logprobs", field="ref_logprobs"
            )
        return self.ref_logprobs


def token_counts(prompts: Sequence[RolloutPrompt], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What a collection cost in tokens, for the compute ledger (`eval.compute.run`).

    Args:
        prompts: that were asked, each `prompt_id` once.
        rollouts: all that came of them.

    Returns:
        `tokens_sampled`: read by the sampler, the prompt once for each sample; `tokens_in_answers`: of them, sampled;
        `sequences_sampled`; and `tokens_scored`, read by the reward model and by the reference, where they were asked.
    """
    shown = {prompt.prompt_id: len(prompt.shown or prompt.token_ids) for prompt in prompts}
    answers = sum(len(rollout.token_ids) for rollout in rollouts)
    scored = [rollout for rollout in rollouts if rollout.reward is not None]
    counts = {
        "tokens_sampled": float(answers + sum(shown[rollout.prompt_id] for rollout in rollouts)),
        "tokens_in_answers": float(answers),
        "sequences_sampled": float(len(rollouts)),
    }
    read = sum(len(rollout.prompt_token_ids) + len(rollout.token_ids) for rollout in scored)
    return {**counts, "tokens_scored": float(read)} if scored else counts


@dataclass
class _Collection:
    """One batch under way."""

    sampling: SamplingParams
    version: VersionRequirement
    score: bool
    deadline: float
    given_out: asyncio.Event
    """Set once every sample is with a replica: the next collection's turn."""
    generated: dict[Sample, Rollout] = field(default_factory=dict)
    scored: dict[Sample, Rollout] = field(default_factory=dict)
    to_score: asyncio.Queue[Rollout | None] = field(default_factory=asyncio.Queue)
    """Rollouts that ended, in order of arrival; None once generation is over, one for each scorer."""


class RolloutDispatcher:
    """Collects rollouts over the replicas of generation, reward and reference.

    Args:
        make_fleets: called once on the dispatcher's own event loop; returns the fleets generation, reward, reference.
        timeout_s: a collection that is not complete that long after its turn came raises DeadlineExceeded; what was
            sampled is lost.
        on_queue: called with (waiting, running, replicas) whenever the work given out changes.
    """

    def __init__(
        self,
        make_fleets: Callable[[], tuple[Fleet, Fleet, Fleet]],
        *,
        timeout_s: float,
        on_queue: Callable[[int, int, int], None] = lambda waiting, running, replicas: None,
    ) -> None:
        self._hedged = 0
        self._timeout_s = timeout_s
        self._on_queue = on_queue
        self._handouts: list[Handout] = []
        self._newest_given_out = asyncio.Event()
        """Of the collection that was submitted last."""
        self._newest_given_out.set()
        self._queues: dict[asyncio.Event, tuple[int, int]] = {}
        """Samples (waiting, running) of each collection, by its `given_out`."""
        self._told = 0, 0, 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()

        async def build() -> tuple[Fleet, Fleet, Fleet]:
            return make_fleets()

        self.generation, self.reward, self.reference = self.run(build())

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        """Runs a coroutine on the dispatcher's loop and returns its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def run_beside(self, coroutine: Coroutine[object, object, None]) -> None:
        """Runs a coroutine on the dispatcher's loop, beside all else, until it ends or the dispatcher is closed.

        Nobody waits for it: an error that ends it is logged.
        """
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).add_done_callback(_log_failure)

    def collect(
        self, prompts: Sequence[RolloutPrompt], sampling: SamplingParams, version: VersionRequirement, *, score: bool
    ) -> list[Rollout]:
        """`submit` and wait."""
        return self.submit(prompts, sampling, version, score=score).result()

    def submit(
        self, prompts: Sequence[RolloutPrompt], sampling: SamplingParams, version: VersionRequirement, *, score: bool
    ) -> concurrent.futures.Future[list[Rollout]]:
        """Starts a collection; the future has its rollouts, ordered by (position of the prompt, sample index).

        Args:
            prompts: prompt_ids must be unique.
            sampling: how tokens are drawn.
            version: which policy version may sample them.
            score: True also asks for rewards and reference log-probs, as soon as each completion ends.

        Raises (from the future):
            DeadlineExceeded: not complete after `timeout_s`.
            Unavailable: no replica of a service was well for its fleet's patience.
            TrimtabError: the work itself was refused, or failed on every replica tried.
        """
        return asyncio.run_coroutine_threadsafe(self._collect(list(prompts), sampling, version, score), self._loop)

    def rewards(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Rewards of finished rollouts by the model that the reward service has now, in their order.

        Raises:
            TrimtabError: the reward service refused them, or no replica was well for its patience.
        """

        return self.run(self._rewards(list(rollouts)))

    def take_hedged(self) -> int:
        """Samples since the last call that a second replica was given too, since the first was slow."""
        hedged, self._hedged = self._hedged, 0
        return hedged

    def close(self) -> None:
        """Ends what is under way, closes every connection and ends the thread."""

        async def shut() -> None:
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            for fleet in (self.generation, self.reward, self.reference):
                await fleet.close()

        self.run(shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _collect(
        self, prompts: list[RolloutPrompt], sampling: SamplingParams, version: VersionRequirement, score: bool
    ) -> list[Rollout]:
        expected = [(prompt.prompt_id, index) for prompt in prompts for index in range(prompt.num_samples)]
        if len(set(expected)) != len(expected):
            raise InvalidRequest("prompt_id: two prompts of one collection have the same id", field="prompts.prompt_id")
        given_out = asyncio.Event()
        turn, self._newest_given_out = self._newest_given_out, given_out
        self._queues[given_out] = len(expected), 0
        try:
            await turn.wait()
            collection = _Collection(sampling, version, score, time.monotonic() + self._timeout_s, given_out)
            await self._complete(prompts, collection, len(expected))
        finally:
            given_out.set()
            del self._queues[given_out]
            self._tell_queues(self._told[2])
        finished = collection.scored if score else collection.generated
        return [finished[key] for key in expected]

    async def _complete(self, prompts: list[RolloutPrompt], collection: _Collection, expected: int) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._generate_and_score(prompts, collection)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{len(collection.generated)} of {expected} rollouts were generated and {len(collection.scored)} "
                f"scored after {self._timeout_s:.0f} s; generation: {self.generation.describe()}; "
                f"reward: {self.reward.describe()}; reference: {self.reference.describe()}",
                field="rollout_timeout_s",
                value=self._timeout_s,
            ) from None

    async def _generate_and_score(self, prompts: list[RolloutPrompt], collection: _Collection) -> None:
        scorers = _SCORE_CALLS_IN_FLIGHT if collection.score else 0
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(scorers):
                    group.create_task(self._score_all(collection))
                await self._generate(prompts, collection)
                for _ in range(scorers):
                    collection.to_score.put_nowait(None)
        except BaseExceptionGroup as errors:
            raise first_error(errors) from errors

    async def _generate(self, prompts: list[RolloutPrompt], collection: _Collection) -> None:
        handout = Handout(
            self.generation,
            prompts,
            collection.sampling,
            collection.version,
            deadline=collection.deadline,
            among=self._handouts,
            given_out=collection.given_out,
            on_completion=lambda prompt, completion: self._add(prompt, completion, collection),
            on_queue=partial(self._tell_queue, collection),
        )
        self._handouts.append(handout)
        try:
            await handout.run()
        finally:
            self._handouts.remove(handout)
            self._hedged += handout.hedged

    def _tell_queue(self, collection: _Collection, waiting: int, running: int, replicas: int) -> None:
        self._queues[collection.given_out] = waiting, running
        self._tell_queues(replicas)

    def _tell_queues(self, replicas: int) -> None:
        told = sum(one for one, _ in self._queues.values()), sum(one for _, one in self._queues.values()), replicas
        if told != self._told:
            self._told = told
            self._on_queue(*told)

    def _add(self, prompt: RolloutPrompt, completion: Completion, collection: _Collection) -> None:
        rollout = Rollout(
            prompt_id=prompt.prompt_id,
            sample_index=completion.sample_index,
            prompt_token_ids=prompt.token_ids,
            token_ids=completion.token_ids,
            generation_logprobs=completion.logprobs,
            ended=completion.finish_reason is FinishReason.STOP,
            version_spans=completion.version_spans,
        )
        collection.generated[rollout.prompt_id, rollout.sample_index] = rollout
        if collection.score:
            collection.to_score.put_nowait(rollout)

    async def _score_all(self, collection: _Collection) -> None:
        """One scorer: takes all that has ended since it last looked, so batches grow with the load."""
        while batch := await _next_batch(collection.to_score):
            rewards, ref_logprobs = await asyncio.gather(
                self._rewards(batch), self._ref_logprobs(batch, collection.sampling.temperature)
            )
            for rollout, reward, logprobs in zip(batch, rewards, ref_logprobs, strict=True):
                key = rollout.prompt_id, rollout.sample_index
                collection.scored[key] = replace(rollout, reward=reward, ref_logprobs=logprobs)

    async def _rewards(self, batch: list[Rollout]) -> list[float]:
        async def score(part: list[Rollout]) -> list[float]:
            items = tuple(ScoreItem(prompt=rollout.prompt_token_ids, completion=rollout.token_ids) for rollout in part)
            response = await self.reward.call(
                lambda client: client.score(ScoreRequest(items=items), timeout_s=_SCORE_TIMEOUT_S),
                cost=_token_count(part),
                timeout_s=self._timeout_s,
            )
            return [score.reward for score in response.scores]

        return await self._in_parts(self.reward, batch, score)

    async def _ref_logprobs(self, batch: list[Rollout], temperature: float) -> list[npt.NDArray[np.float32]]:
        async def logprobs(part: list[Rollout]) -> list[npt.NDArray[np.float32]]:
            items = tuple(
                LogProbsItem(
                    token_ids=rollout.prompt_token_ids + rollout.token_ids, start_index=len(rollout.prompt_token_ids)
                )
                for rollout in part
            )
            request = LogProbsRequest(items=items, options=LogProbsOptions(temperature=temperature))
            response = await self.reference.call(
                lambda client: client.logprobs(request, timeout_s=_SCORE_TIMEOUT_S),
                cost=_token_count(part),
                timeout_s=self._timeout_s,
            )
            return [result.logprobs for result in response.results]

        return await self._in_parts(self.reference, batch, logprobs)

    async def _in_parts(
        self, fleet: Fleet, batch: list[Rollout], ask: Callable[[list[Rollout]], Awaitable[list[T]]]
    ) -> list[T]:
        """Answers to a batch, asked in as many calls as the replicas' own limits make it."""
        most = min(most_items(replica, _SCORE_ITEMS) for replica in await fleet.wait_well())
        return [answer for i in range(0, len(batch), most) for answer in await ask(batch[i : i + most])]


def _log_failure(ended: concurrent.futures.Future[None]) -> None:
    if not ended.cancelled() and (error := ended.exception()) is not None:
        _log.error("what ran beside the rollouts has failed", exc_info=error)


async def _next_batch(queue: asyncio.Queue[Rollout | None]) -> list[Rollout]:
    """Waits for a rollout and takes all others that wait, up to one call's worth; empty once generation is over."""
    batch: list[Rollout] = []
    item = await queue.get()
    while item is not None:
        batch.append(item)
        if len(batch) == _SCORE_ITEMS or queue.empty():
            return batch
        item = queue.get_nowait()
    if batch:
        queue.put_nowait(None)  # this scorer comes back for its end mark
    return batch


def _token_count(batch: list[Rollout]) -> int:
    return sum(len(rollout.prompt_token_ids) + len(rollout.token_ids) for rollout in batch)


def first_error(errors: BaseExceptionGroup) -> BaseException:
    """The first error of ours in a group, else the first of any kind: one cause is told, the rest follow from it."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [errors]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, TrimtabError)), leaves[0])
