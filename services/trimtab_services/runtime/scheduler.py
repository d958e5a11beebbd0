"""Batches items of many callers by token budget onto one compute thread.

The event loop submits and awaits; the compute thread takes the next batch the moment the last one is done, so an idle
service adds no wait and a busy one no gap. The queue is bounded in tokens: what does not fit is refused with the time
after which it will, from the measured rate. Work that cannot meet its deadline is refused at once; work whose deadline
has passed or whose caller has gone leaves the queue and is never computed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from trimtab.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    Reason,
    TrimtabError,
    Unavailable,
)
from trimtab.v1 import info_pb2
from trimtab_services.runtime.attempts import compute_apart
from trimtab_services.runtime.metrics import Metrics
from trimtab_services.runtime.queue import Item, WorkQueue, level_of
from trimtab_services.runtime.rate import Rate

__all__ = ["Done", "Scheduler", "Work"]

_log = logging.getLogger(__name__)

PayloadT = TypeVar("PayloadT")
ResultT = TypeVar("ResultT")
JobT = TypeVar("JobT")

_RETRY_BOUNDS_S = (0.05, 60.0)


@dataclass(frozen=True, slots=True)
class Work(Generic[PayloadT]):
    """One item to compute.

    Attributes:
        payload: what `compute` gets.
        tokens: its length, at least 1.
        group: only items of one group share a batch: model name, options.
    """

    payload: PayloadT
    tokens: int
    group: Hashable = None


@dataclass(frozen=True, slots=True)
class Done(Generic[ResultT]):
    """What became of an item.

    Attributes:
        value: its result, or its own error.
        queue_s: seconds that it waited.
        compute_s: compute time of its batch in seconds.
        batch: number of its batch, from 1, growing.
    """

    value: ResultT | TrimtabError
    queue_s: float
    compute_s: float
    batch: int


class _Submission:
    """The items that one caller awaits together."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self.items: list[Item] = []
        self.results: list[Any] = [None] * count
        self.left = count
        self.future: asyncio.Future[None] = loop.create_future()


_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]
"""Something to run between two batches, and who waits for its result."""


class Scheduler(Generic[PayloadT, ResultT]):
    """One compute thread and the queue before it.

    Args:
        compute: computes the payloads of one batch, longest first, in the compute thread; returns a result or a
            `TrimtabError` for each. When it raises, the items are tried again in halves, so that a bad item does not
            fail its neighbours.
        max_batch_tokens: most tokens of a batch, padding included; a longer single item makes its own batch.
        max_queue_tokens: most tokens waiting.
        metrics: where it counts.
        prepare: run in the compute thread first, such as setting torch's number of threads.
        on_fault: called in the event loop when the compute thread has ended by an exception: nothing is computed after,
            and all work is refused with the exception as the reason.
        charge: takes the tokens of admitted work off its caller's quota; raises where that has too few left.
        aging_s: seconds after which waiting work moves up one priority.
    """

    def __init__(
        self,
        compute: Callable[[Hashable, list[PayloadT]], Sequence[ResultT | TrimtabError]],
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        metrics: Metrics,
        prepare: Callable[[], None] = lambda: None,
        on_fault: Callable[[BaseException], object] = lambda error: None,
        charge: Callable[[str, int], None] = lambda caller, tokens: None,
        aging_s: float = 20.0,
    ) -> None:
        self._compute = compute
        self._max_queue_tokens = max_queue_tokens
        self._metrics = metrics
        self._prepare = prepare
        self._on_fault = on_fault
        self._charge = charge
        self._loop = asyncio.get_running_loop()
        self._queue = WorkQueue(max_batch_tokens=max_batch_tokens, aging_s=aging_s)
        self._jobs: deque[_Job] = deque()
        self._job: _Job | None = None
        self._condition = threading.Condition()
        self._rate = Rate()
        self._running: list[Item] = []
        self._batches = 0
        self._closed = False
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="compute", daemon=True)
        self._thread.start()

    async def submit(
        self,
        works: Sequence[Work[PayloadT]],
        *,
        priority: int,
        deadline: float | None,
        caller: str,
        is_charged: bool = True,
    ) -> list[Done[ResultT]]:
        """Computes items, admitted all or none; cancelling it takes what still waits out of the queue.

        Args:
            works: at least one.
            priority: a `trimtab.v1.Priority`.
            deadline: `time.monotonic()` after which the answer is worthless; None: never.
            caller: whose work it is, for fairness.
            is_charged: whether its tokens are taken off the caller's quota.

        Returns:
            What became of each item, in order.

        Raises:
            Overloaded: the queue is full, or the caller's quota used up; `retry_after_s` says when there will be room.
            InvalidRequest: more tokens than the whole queue takes (TOO_MANY_ITEMS).
            DeadlineExceeded: the deadline passed, or could not have been met (DEADLINE_UNMEETABLE).
            Unavailable: the service drains.
            InternalError: computing failed, or the compute thread has ended by a fault.
        """
        submission = self._admit(works, level_of(priority), deadline, caller, is_charged)
        try:
            async with asyncio.timeout_at(
                None if deadline is None else self._loop.time() + deadline - time.monotonic()
            ):
                await submission.future
        except TimeoutError:
            self._withdraw(submission, "deadline")
            raise DeadlineExceeded(
                "the deadline passed before the work was done; what was left of it was not computed"
            ) from None
        except asyncio.CancelledError:
            self._withdraw(submission, "cancelled")
            raise
        except TrimtabError as error:
            self._withdraw(submission, "deadline" if isinstance(error, DeadlineExceeded) else "failed")
            raise
        return submission.results

    async def run_between(self, job: Callable[[], JobT]) -> JobT:
        """Runs `job` in the compute thread between two batches and returns what it returns."""
        future: asyncio.Future[JobT] = self._loop.create_future()
        with self._condition:
            self._check_open()
            self._jobs.append((job, future))
            self._condition.notify()
        return await future

    def load(self) -> info_pb2.Load:
        """Waiting and running work now."""
        with self._condition:
            return info_pb2.Load(
                waiting_items=self._queue.items,
                waiting_tokens=self._queue.tokens,
                running_items=len(self._running),
                tokens_per_second=self._rate.recent_tokens_per_second(time.monotonic()),
            )

    async def close(self) -> None:
        """Fails what waits and ends the compute thread after its batch."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        await asyncio.to_thread(self._thread.join)

    def _admit(
        self, works: Sequence[Work[PayloadT]], level: int, deadline: float | None, caller: str, is_charged: bool
    ) -> _Submission:
        total = sum(work.tokens for work in works)
        now = time.monotonic()
        submission = _Submission(len(works), self._loop)
        with self._condition:
            try:
                self._check_room(total, level, deadline, caller, now)
                if is_charged:
                    self._charge(caller, total)
            except TrimtabError as error:
                self._metrics.dropped_items.labels(error.reason.value.lower()).inc(len(works))
                raise
            for index, work in enumerate(works):
                item = Item(work.payload, work.tokens, work.group, level, caller, now, deadline, submission, index)
                submission.items.append(item)
                self._queue.add(item)
            self._show_queue()
            self._condition.notify()
        return submission

    def _check_room(self, total: int, level: int, deadline: float | None, caller: str, now: float) -> None:
        self._check_open()
        if total > self._max_queue_tokens:
            raise InvalidRequest(
                f"the request has {total} tokens, more than the whole queue takes: {self._max_queue_tokens}; split it",
                reason=Reason.TOO_MANY_ITEMS,
                value=total,
                limit=self._max_queue_tokens,
            )
        rate = self._rate.busy_tokens_per_second()
        over = self._queue.tokens + total - self._max_queue_tokens
        if over > 0:
            least, most = _RETRY_BOUNDS_S
            retry_after_s = 1.0 if rate is None else min(most, max(least, over / rate))
            raise Overloaded(
                f"the queue holds {self._queue.tokens} of at most {self._max_queue_tokens} tokens and the request has "
                f"{total}; come back in {retry_after_s:.2f} s",
                value=self._queue.tokens + total,
                limit=self._max_queue_tokens,
                retry_after_s=retry_after_s,
            )
        if deadline is None:
            return
        left = deadline - now
        if left <= 0:
            raise DeadlineExceeded("the deadline had passed on arrival", value=f"{left:.3f} s")
        best = self._rate.best_tokens_per_second()  # only what is hopeless is refused
        if best is None or not (self._running or self._queue.items):
            return  # idle: trying is the only way to learn a better rate
        running = sum(item.tokens for item in self._running)
        needed = (running + self._queue.ahead_of(caller, level, total)) / best
        if needed > left:
            raise DeadlineExceeded(
                f"the work would take about {needed:.2f} s at the present load and its deadline is in {left:.2f} s",
                reason=Reason.DEADLINE_UNMEETABLE,
                value=f"{needed:.3f} s",
                limit=f"{left:.3f} s",
            )

    def _check_open(self) -> None:
        if self._closed:
            raise _draining() if self._fault is None else _ended(self._fault)

    def _withdraw(self, submission: _Submission, cause: str) -> None:
        """Takes what still waits out of the queue."""
        with self._condition:
            waiting = [item for item in submission.items if item.waiting]
            for item in waiting:
                self._queue.remove(item)
            self._show_queue()
        self._metrics.dropped_items.labels(cause).inc(len(waiting))

    def _show_queue(self) -> None:
        self._metrics.queue_size.set(self._queue.items)
        self._metrics.queue_tokens.set(self._queue.tokens)

    # Below: the compute thread.

    def _serve(self) -> None:
        try:
            self._prepare()
            self._loop_batches()
        except BaseException as error:  # nothing may end this thread unnoticed: nobody else computes
            _log.exception("the compute thread has ended")
            with self._condition:
                self._closed, self._fault = True, error
            self._end(_ended(error))
            self._post(lambda error=error: self._on_fault(error))

    def _loop_batches(self) -> None:
        while True:
            with self._condition:
                batch, expired = self._queue.take(time.monotonic())
                while not (batch or expired or self._jobs or self._closed):
                    self._condition.wait()
                    batch, expired = self._queue.take(time.monotonic())
                self._job = self._jobs.popleft() if self._jobs else None
                self._running = batch
                closed = self._closed
                self._show_queue()
            if expired:
                self._metrics.dropped_items.labels("deadline").inc(len(expired))
                late = DeadlineExceeded("the deadline passed while the work waited; it was not computed")
                self._post(lambda owners={item.owner for item in expired}, error=late: _fail(owners, error))
            if closed:
                self._end(_draining())
                return
            if self._job is not None:
                self._run_job(*self._job)
            if batch:
                self._run_batch(batch)

    def _run_job(self, job: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        try:
            result = job()
        except Exception as error:
            self._post(lambda error=error: None if future.done() else future.set_exception(error))
        else:
            self._post(lambda: None if future.done() else future.set_result(result))
        self._job = None

    def _run_batch(self, batch: list[Item]) -> None:
        started = time.monotonic()
        values = compute_apart(self._compute, batch)
        now = time.monotonic()
        seconds = now - started
        tokens = sum(item.tokens for item in batch)
        with self._condition:
            self._batches += 1
            self._rate.add(now, tokens, seconds)
            self._running = []
        number = self._batches
        for item in batch:
            self._metrics.queue_wait_seconds.observe(started - item.enqueued)
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.batch_items.observe(len(batch))
        self._metrics.compute_seconds.observe(seconds)
        self._metrics.computed_tokens.inc(tokens)
        self._metrics.padding_tokens.inc(len(batch) * max(item.tokens for item in batch) - tokens)
        finished = [
            (item, Done(value, started - item.enqueued, seconds, number))
            for item, value in zip(batch, values, strict=True)
        ]
        self._post(lambda: _deliver(finished))

    def _end(self, error: TrimtabError) -> None:
        """Fails what was in work and whatever still waits."""
        with self._condition:
            owners = {item.owner for item in self._running}
            while self._queue.items:
                for items in self._queue.take(time.monotonic()):
                    owners |= {item.owner for item in items}
            jobs = [*([self._job] if self._job is not None else []), *self._jobs]
            self._running, self._job = [], None
            self._jobs.clear()
        self._post(lambda: _fail(owners, error))
        for _, future in jobs:
            self._post(lambda future=future: None if future.done() else future.set_exception(error))

    def _post(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            _log.debug("the event loop has ended; an answer has nobody to go to")


def _deliver(finished: list[tuple[Item, Done[Any]]]) -> None:
    for item, done in finished:
        submission: _Submission = item.owner
        submission.results[item.index] = done
        submission.left -= 1
        if submission.left == 0 and not submission.future.done():
            submission.future.set_result(None)


def _fail(submissions: set[_Submission], error: TrimtabError) -> None:
    for submission in submissions:
        if not submission.future.done():
            submission.future.set_exception(error)


def _draining() -> Unavailable:
    return Unavailable("the service drains and takes nothing new; send to another replica", reason=Reason.DRAINING)


def _ended(fault: BaseException) -> InternalError:
    return InternalError(f"the compute thread has ended: {type(fault).__name__}: {fault}")
