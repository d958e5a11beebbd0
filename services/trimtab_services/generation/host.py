"""The engine's thread: commands in from the event loop, finished sequences out to it.

An engine may be touched by one thread only. The host owns that thread: it runs what callers ask for between two steps,
steps as long as there is work, and hands each finished sequence to the call that waits for it. Admission and the
version check happen in the same command, so what is promised to a caller cannot change before its sequences are in.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

import numpy as np

from trimtab.errors import InternalError, Overloaded
from trimtab.types import FinishReason
from trimtab_services.generation.engines.base import Engine, EngineLoad, FinishedSequence, SequenceRequest

__all__ = ["EngineHost"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class EngineHost:
    """Runs one engine in a thread of its own.

    Args:
        engine: touched by that thread only from now on.
        max_queue_tokens: most tokens held, waiting and running.
        loop: where finished sequences are handed over.
        on_step: called in the engine's thread after each step with (seconds, tokens sampled, load).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_queue_tokens: int,
        loop: asyncio.AbstractEventLoop,
        on_step: Callable[[float, int, EngineLoad], None] = lambda seconds, tokens, load: None,
    ) -> None:
        self._engine = engine
        self._max_queue_tokens = max_queue_tokens
        self._loop = loop
        self._on_step = on_step
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._receivers: dict[int, Callable[[FinishedSequence], None]] = {}
        self._next_id = 0
        self._closing = False
        self._load = engine.load()
        self._rate = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> EngineLoad:
        """The engine's load after its last step or command."""
        return self._load

    @property
    def tokens_per_second(self) -> float:
        """Tokens sampled each second while it works, a moving mean."""
        return self._rate

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Runs a function on the engine between two steps and returns its result."""
        done: Future[T] = Future()

        def command() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(function(self._engine))
            except BaseException as error:
                done.set_exception(error)

        self._commands.put(command)
        return await asyncio.wrap_future(done)

    async def submit(
        self,
        requests: Sequence[SequenceRequest],
        receive: Callable[[FinishedSequence], None],
        check: Callable[[Engine], None],
    ) -> list[int]:
        """Admits sequences, all or none.

        Args:
            requests: their sequence_id is replaced by the host's own.
            receive: gets each finished sequence, in the event loop.
            check: run in the same command just before; raises when they must not be admitted now.

        Returns:
            The sequence ids, in order.

        Raises:
            Overloaded: the engine holds too many tokens; says when to come back.
            TrimtabError: what `check` or the engine raised.
        """

        def admit(engine: Engine) -> list[int]:
            check(engine)
            self._refuse_overload(engine, requests)
            ids: list[int] = []
            try:
                for request in requests:
                    self._next_id += 1
                    engine.submit(replace(request, sequence_id=self._next_id))
                    ids.append(self._next_id)
            except BaseException:
                for sequence_id in ids:
                    engine.cancel(sequence_id)
                raise
            self._receivers.update(dict.fromkeys(ids, receive))
            return ids

        return await self.call(admit)

    def cancel(self, sequence_ids: Sequence[int]) -> None:
        """Drops sequences; their slots are free before the next step. Does not wait."""

        def command() -> None:
            for sequence_id in sequence_ids:
                if self._receivers.pop(sequence_id, None) is not None:
                    self._engine.cancel(sequence_id)

        self._commands.put(command)

    async def close(self) -> None:
        """Ends the thread; whatever it still holds is dropped."""

        def command() -> None:
            self._closing = True

        self._commands.put(command)
        await asyncio.to_thread(self._thread.join)

    def _refuse_overload(self, engine: Engine, requests: Sequence[SequenceRequest]) -> None:
        held = engine.load().outstanding_tokens
        wanted = sum(len(r.prompt_token_ids) + r.sampling.max_new_tokens for r in requests)
        if held == 0 or held + wanted <= self._max_queue_tokens:
            return
        excess = held + wanted - self._max_queue_tokens
        raise Overloaded(
            f"prompts: {wanted} tokens are asked for while {held} are held; allowed: {self._max_queue_tokens} in all",
            field="prompts",
            value=wanted,
            limit=self._max_queue_tokens,
            retry_after_s=min(60.0, max(0.1, excess / self._rate)) if self._rate else 1.0,
        )

    def _run(self) -> None:
        while not self._closing:
            try:
                self._commands_now(wait=not self._engine.has_work)
                if self._engine.has_work and not self._closing:
                    self._step()
            except Exception as error:
                _log.exception("engine failed")
                self._fail_all(error)

    def _commands_now(self, *, wait: bool) -> None:
        if wait:
            self._commands.get()()
        while not self._closing:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                break
            command()
        self._load = self._engine.load()

    def _step(self) -> None:
        before = self._load.computed_decode_tokens
        began = time.perf_counter()
        finished = self._engine.step()
        seconds = time.perf_counter() - began
        self._load = self._engine.load()
        tokens = self._load.computed_decode_tokens - before
        if tokens:
            self._rate = 0.9 * self._rate + 0.1 * tokens / seconds if self._rate else tokens / seconds
        self._on_step(seconds, tokens, self._load)
        deliveries = [(self._receivers.pop(one.sequence_id, None), one) for one in finished]
        if deliveries:
            self._loop.call_soon_threadsafe(_deliver, deliveries)

    def _fail_all(self, error: Exception) -> None:
        """After a fault of the engine: every caller is told, nobody waits for ever."""
        receivers, self._receivers = self._receivers, {}
        deliveries = []
        for sequence_id, receive in receivers.items():
            try:
                left = self._engine.cancel(sequence_id)
            except Exception:
                left = None
            told = InternalError(f"the engine failed: {type(error).__name__}: {error}")
            deliveries.append((receive, _failed(sequence_id, left, told)))
        self._loop.call_soon_threadsafe(_deliver, deliveries)


def _failed(sequence_id: int, left: FinishedSequence | None, error: InternalError) -> FinishedSequence:
    spans = left.version_spans if left else ()
    return FinishedSequence(sequence_id, (), np.empty(0, np.float32), FinishReason.CANCELLED, spans, error)


def _deliver(deliveries: Sequence[tuple[Callable[[FinishedSequence], None] | None, FinishedSequence]]) -> None:
    for receive, finished in deliveries:
        if receive is not None:
            receive(finished)
