"""The engine's thread: commands in from the event loop, tokens and finished sequences out to it.

An engine may be touched by one thread only. The host owns that thread: it runs what callers ask for between two steps,
steps as long as there is work, and hands each finished sequence to the call that waits for it. Admission and the
version check happen in the same command, so what is promised to a caller cannot change before its sequences are in.

An engine that raises where it must not is not trusted again: every caller is told, `on_fault` is called, and all that
comes later is refused with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from torch import Tensor

from trimtab.errors import DeadlineExceeded, InternalError, Overloaded, Reason
from trimtab.types import FinishReason
from trimtab_services.generation.engines.base import Engine, EngineLoad, FinishedSequence, SampledToken, SequenceRequest
from trimtab_services.generation.pace import Pace
from trimtab_services.generation.serving import Receive, ReceiveToken, refuse_overload
from trimtab_services.runtime.threads import in_own_thread

__all__ = ["EngineHost"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Held:
    """Who waits for a sequence, and how many tokens it may sample."""

    receive: Receive
    allowed_tokens: int


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """Sequences that wait for a swap before they are admitted."""

    requests: Sequence[SequenceRequest]
    admission: Future[list[int]]
    admit: Callable[[], None]


class EngineHost:
    """Runs one engine in a thread of its own.

    Args:
        engine: touched by that thread only from now on.
        max_queue_tokens: most tokens held: running, waiting, and of those who wait for a swap.
        loop: where finished sequences are handed over.
        on_step: called in the engine's thread after each step with (seconds, tokens sampled, load).
        on_fault: called in the loop when the engine has failed: nothing is computed after.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_queue_tokens: int,
        loop: asyncio.AbstractEventLoop,
        on_step: Callable[[float, int, EngineLoad], None] = lambda seconds, tokens, load: None,
        on_fault: Callable[[BaseException], object] = lambda error: None,
    ) -> None:
        self._engine = engine
        self._max_queue_tokens = max_queue_tokens
        self._loop = loop
        self._on_step = on_step
        self._on_fault = on_fault
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._held: dict[int, _Held] = {}
        self._deliveries: list[Callable[[], None]] = []
        self._swap: Callable[[], None] | None = None
        self._newcomers: list[_Newcomer] = []
        self._next_id = 0
        self._closing = False
        self._fault: BaseException | None = None
        self._load = engine.load()
        self._rate = 0.0
        self._pace = Pace(self._load.slots)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> EngineLoad:
        """The engine's load after its last step or command, with what waits for a swap."""
        return self._load

    @property
    def tokens_per_second(self) -> float:
        """Tokens sampled each second while it works, a moving mean."""
        return self._rate

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Runs a function on the engine between two steps and returns its result.

        Raises:
            InternalError: the engine has failed.
        """
        return await asyncio.wrap_future(self._ask(function))

    async def stage(self, version: int, read: Callable[[], Mapping[str, Tensor]]) -> None:
        """Stages a version beside the engine's thread: sampling goes on meanwhile. Never two at once.

        Args:
            version: its number.
            read: returns its tensors; called in the thread that stages.

        Raises:
            TrimtabError: as `Engine.stage`, or what `read` raised.
        """
        await in_own_thread(lambda: self._engine.stage(version, read()))

    async def swap(self) -> float:
        """Swaps between two steps, to what was staged; where sequences must end first, newcomers wait until then.

        Returns:
            Seconds that the swap itself took.

        Raises:
            TrimtabError: as `Engine.swap`.
            InternalError: the engine has failed.
        """
        swapped, command = self._command(_timed_swap)

        def request() -> None:
            self._swap = command

        self._commands.put(request)
        return await asyncio.wrap_future(swapped)

    async def submit(
        self,
        requests: Sequence[SequenceRequest],
        receive: Receive,
        check: Callable[[int], None],
        deadline: float | None = None,
        receive_token: ReceiveToken | None = None,
    ) -> list[int]:
        """Admits sequences, all or none; cancelled, none.

        Args:
            requests: their sequence_id is replaced by the host's own.
            receive: gets each finished sequence, in the event loop.
            check: called with the engine's version in the same command just before; raises when they must not be
                admitted now.
            deadline: `time.monotonic()` after which the last of them is worthless; None: never.
            receive_token: gets each token after the step that sampled it, in the event loop and before the finished
                sequence; None: nobody waits for single tokens.

        Returns:
            The sequence ids, in order.

        Raises:
            Overloaded: the engine and those who wait for a swap hold too many tokens; says when to come back.
            DeadlineExceeded: the deadline has passed, or could not be met (DEADLINE_UNMEETABLE).
            InternalError: the engine has failed.
            TrimtabError: what `check` or the engine raised.
        """

        on_token = None if receive_token is None else partial(self._note, receive_token)

        def admit(engine: Engine) -> list[int]:
            check(engine.version)
            self._refuse_overload(requests)
            if deadline is not None:
                self._refuse_late(engine, requests, deadline - time.monotonic())
            ids: list[int] = []
            try:
                for request in requests:
                    self._next_id += 1
                    engine.submit(replace(request, sequence_id=self._next_id, on_token=on_token))
                    ids.append(self._next_id)
            except BaseException:
                for sequence_id in ids:
                    engine.cancel(sequence_id)
                raise
            for sequence_id, request in zip(ids, requests, strict=True):
                self._held[sequence_id] = _Held(receive, request.sampling.max_new_tokens)
            return ids

        admission, command = self._command(admit)

        def admit_or_wait() -> None:
            if self._swap is None:
                return command()
            self._newcomers = [one for one in self._newcomers if not one.admission.cancelled()]
            try:
                self._refuse_overload(requests)
            except Overloaded as refusal:
                if admission.set_running_or_notify_cancel():
                    admission.set_exception(refusal)
            else:
                self._newcomers.append(_Newcomer(requests, admission, command))

        self._commands.put(admit_or_wait)
        try:
            return await asyncio.wrap_future(admission)
        except asyncio.CancelledError:
            admission.add_done_callback(self._give_back)  # admitted or not by now, nobody knows the ids any more
            raise

    def cancel(self, sequence_ids: Sequence[int]) -> None:
        """Drops sequences; their slots are free before the next step. Does not wait."""

        def command() -> None:
            for sequence_id in sequence_ids:
                if self._held.pop(sequence_id, None) is not None:
                    self._engine.cancel(sequence_id)

        self._commands.put(command)

    async def close(self) -> None:
        """Ends the thread; whatever it still holds is dropped."""

        def command() -> None:
            self._closing = True

        self._commands.put(command)
        await asyncio.to_thread(self._thread.join)

    def _ask(self, function: Callable[[Engine], T]) -> Future[T]:
        done, command = self._command(function)
        self._commands.put(command)
        return done

    def _command(self, function: Callable[[Engine], T]) -> tuple[Future[T], Callable[[], None]]:
        """What the engine's thread is to run, and where its result will be."""
        done: Future[T] = Future()

        def command() -> None:
            if not done.set_running_or_notify_cancel():
                return
            if self._fault is not None:
                done.set_exception(_failed(self._fault))
                return
            try:
                done.set_result(function(self._engine))
            except BaseException as error:
                done.set_exception(error)

        return done, command

    def _give_back(self, admission: Future[list[int]]) -> None:
        """Drops what was admitted for a caller that went away before it was told."""
        if not admission.cancelled() and admission.exception() is None:
            self.cancel(admission.result())

    def _refuse_late(self, engine: Engine, requests: Sequence[SequenceRequest], left_s: float) -> None:
        if left_s <= 0:
            raise DeadlineExceeded("the deadline had passed before the work could begin", value=f"{left_s:.3f} s")
        if not engine.has_work:
            return  # idle: trying is the only way to learn a better pace
        ahead = engine.new_tokens_before(max(request.priority for request in requests))
        needed_s = self._pace.seconds(ahead, [request.sampling.max_new_tokens for request in requests])
        if needed_s is not None and needed_s > left_s:
            raise DeadlineExceeded(
                f"the work would take about {needed_s:.2f} s at the present load and its deadline is in {left_s:.2f} s",
                reason=Reason.DEADLINE_UNMEETABLE,
                value=f"{needed_s:.3f} s",
                limit=f"{left_s:.3f} s",
            )

    # Below: the engine's thread.

    def _refuse_overload(self, requests: Sequence[SequenceRequest]) -> None:
        refuse_overload(requests, self._load_now().outstanding_tokens, self._max_queue_tokens, self._rate)

    def _load_now(self) -> EngineLoad:
        """The engine's load, and those that wait for a swap before they are admitted."""
        load = self._engine.load()
        waiting = [request for one in self._newcomers if not one.admission.cancelled() for request in one.requests]
        return replace(
            load,
            waiting_sequences=load.waiting_sequences + len(waiting),
            outstanding_tokens=load.outstanding_tokens + sum(request.most_tokens for request in waiting),
        )

    def _run(self) -> None:
        try:
            while not self._closing:
                self._commands_now(wait=not self._engine.has_work)
                if self._engine.has_work and not self._closing:
                    self._step()
                    self._swap_if_possible()  # what held it up may be finished, and no command may come any more
        except BaseException as error:  # nothing may end this thread unnoticed: nobody else samples
            _log.exception("the engine has failed")
            self._fail(error)
        while not self._closing:
            self._swap_if_possible()
            self._commands.get()()

    def _commands_now(self, *, wait: bool) -> None:
        if wait:
            self._commands.get()()
        for _ in range(
            self._commands.qsize()
        ):  # what comes meanwhile waits for the next step: nobody holds up sampling
            if not self._closing:
                self._commands.get_nowait()()
        self._swap_if_possible()
        self._load = self._load_now()

    def _swap_if_possible(self) -> None:
        """Swaps where that was asked for and nothing holds it up, then admits who has waited for it."""
        if self._swap is None or (self._fault is None and not self._engine.can_swap):
            return
        swap, self._swap = self._swap, None
        swap()
        newcomers, self._newcomers = self._newcomers, []
        for one in newcomers:
            one.admit()
        self._load = self._load_now()

    def _step(self) -> None:
        before = self._load.computed_decode_tokens
        began = time.perf_counter()
        finished = self._engine.step()
        seconds = time.perf_counter() - began
        self._load = self._load_now()
        tokens = self._load.computed_decode_tokens - before
        if tokens:
            self._pace.note_step(seconds)
            self._rate = 0.9 * self._rate + 0.1 * tokens / seconds if self._rate else tokens / seconds
        self._on_step(seconds, tokens, self._load)
        for one in finished:
            held = self._held.pop(one.sequence_id)
            self._deliveries.append(partial(held.receive, one))
            if one.error is None:
                self._pace.note_finished(len(one.token_ids), held.allowed_tokens)
        if self._deliveries:
            deliveries, self._deliveries = self._deliveries, []
            self._post(partial(_deliver, deliveries))

    def _note(self, receive_token: ReceiveToken, token: SampledToken) -> None:
        self._deliveries.append(partial(receive_token, token))

    def _fail(self, fault: BaseException) -> None:
        """After a fault of the engine: every caller is told, nobody waits for ever, nothing new is taken."""
        self._fault = fault
        held, self._held = self._held, {}
        nothing = np.empty(0, np.float32)
        deliveries = [
            partial(one.receive, FinishedSequence(sequence_id, (), nothing, FinishReason.CANCELLED, (), _failed(fault)))
            for sequence_id, one in held.items()
        ]
        self._post(partial(_deliver, deliveries))
        self._post(partial(self._on_fault, fault))

    def _post(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            _log.debug("the event loop has ended; an answer has nobody to go to")


def _timed_swap(engine: Engine) -> float:
    began = time.perf_counter()
    engine.swap()
    return time.perf_counter() - began


def _failed(fault: BaseException) -> InternalError:
    return InternalError(f"the engine has failed: {type(fault).__name__}: {fault}")


def _deliver(deliveries: Sequence[Callable[[], None]]) -> None:
    for deliver in deliveries:
        deliver()
