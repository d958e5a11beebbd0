"""Sequences that a remote server samples: a request for each, a bounded number at a time, until their deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import DeadlineExceeded, InternalError, TrimtabError
from trimtab.types import FinishReason, VersionSpan
from trimtab_services.generation.engines.base import EngineLoad, FinishedSequence, SampledToken, SequenceRequest
from trimtab_services.generation.remote.answers import RemoteCompletion, RemoteToken
from trimtab_services.generation.remote.client import TGIClient
from trimtab_services.generation.remote.slots import PrioritySlots
from trimtab_services.generation.serving import Receive, ReceiveToken, refuse_overload

__all__ = ["VERSION", "RemoteHost", "seed_of"]

VERSION = 0
"""Of all that a remote server samples: its weights never change."""

_SEED_STEP = 0x9E3779B97F4A7C15


def seed_of(seed: int, sample_index: int) -> int:
    """The seed of one sample of a prompt: `seed` itself for the first, another one for each further.

    A Weyl sequence, as SplitMix64 steps (Steele, Lea and Flood, 2014): the step is odd, so no two indices share a seed.
    """
    return (seed + sample_index * _SEED_STEP) % 2**64


@dataclass(slots=True)
class _Held:
    """A sequence that is not finished; `task` asks for it."""

    tokens: int
    task: asyncio.Task[None]
    slot_time: float = 0.0


class RemoteHost:
    """Fills the role of `serving.SequenceHost` with requests to a TGI server.

    Args:
        client: asks it.
        slots: requests at a time.
        max_queue_tokens: most tokens held, waiting and running.
        text_of: the text that the server reads as given token ids.
        on_finished: called after each completion with (seconds, tokens sampled).
        on_load: called when sequences have come or gone.
    """

    def __init__(
        self,
        client: TGIClient,
        *,
        slots: int,
        max_queue_tokens: int,
        text_of: Callable[[Sequence[int]], str],
        on_finished: Callable[[float, int], None],
        on_load: Callable[[EngineLoad], None],
    ) -> None:
        self._client = client
        self._slot_count = slots
        self._max_queue_tokens = max_queue_tokens
        self._text_of = text_of
        self._on_finished = on_finished
        self._on_load = on_load
        self._slots = PrioritySlots(slots)
        self._held: dict[int, _Held] = {}
        self._next_id = 0
        self._read_tokens = 0
        self._sampled_tokens = 0

    @property
    def load(self) -> EngineLoad:
        """What is held now, and how much was done."""
        running = sum(held.slot_time > 0 for held in self._held.values())
        return EngineLoad(
            slots=self._slot_count,
            busy_slots=running,
            waiting_sequences=len(self._held) - running,
            outstanding_tokens=sum(held.tokens for held in self._held.values()),
            computed_prefill_tokens=self._read_tokens,
            computed_decode_tokens=self._sampled_tokens,
        )

    async def submit(
        self,
        requests: Sequence[SequenceRequest],
        receive: Receive,
        check: Callable[[int], None],
        deadline: float | None = None,
        receive_token: ReceiveToken | None = None,
    ) -> list[int]:
        """Admits sequences; see `serving.SequenceHost`.

        Raises:
            Unsupported: the remote server cannot read a prompt.
        """
        check(VERSION)
        refuse_overload(requests, self.load.outstanding_tokens, self._max_queue_tokens, 0.0)
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline had passed before the work could begin")
        texts = {ids: self._text_of(ids) for ids in dict.fromkeys(one.prompt_token_ids for one in requests)}
        ids: list[int] = []
        for request in requests:
            self._next_id += 1
            work = self._run(self._next_id, request, texts[request.prompt_token_ids], receive, deadline, receive_token)
            self._held[self._next_id] = _Held(request.most_tokens, asyncio.create_task(work))
            ids.append(self._next_id)
        self._on_load(self.load)
        return ids

    def cancel(self, sequence_ids: Sequence[int]) -> None:
        """Drops sequences; their connections are closed, which ends the work there."""
        for sequence_id in sequence_ids:
            if (held := self._held.pop(sequence_id, None)) is not None:
                held.task.cancel()
        self._on_load(self.load)

    async def close(self) -> None:
        """Drops all that is held."""
        tasks = [held.task for held in self._held.values()]
        self.cancel(list(self._held))
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self,
        sequence_id: int,
        request: SequenceRequest,
        text: str,
        receive: Receive,
        deadline: float | None,
        receive_token: ReceiveToken | None,
    ) -> None:
        """Asks for one sequence and hands it over, or why there is none: nobody waits for ever."""

        def told(token: RemoteToken) -> None:
            if receive_token is not None:
                is_last = token.finish_reason is not None
                receive_token(SampledToken(sequence_id, token.token_id, token.logprob, VERSION, is_last))

        held = self._held[sequence_id]
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                async with self._slots.take(request.priority):
                    held.slot_time = time.monotonic()
                    found = await self._client.sample(
                        text,
                        request.sampling,
                        seed_of(request.seed, request.sample_index),
                        None if receive_token is None else told,
                    )
            finished = _finished(sequence_id, found, held.slot_time)
            self._count(request, found, time.monotonic() - held.slot_time)
        except TimeoutError:
            late = DeadlineExceeded(f"{self._client.url} had not sampled the completion before the deadline")
            finished = _failed(sequence_id, late, held.slot_time)
        except TrimtabError as error:
            finished = _failed(sequence_id, error, held.slot_time)
        except Exception as error:
            fault = InternalError(f"asking {self._client.url} has failed: {type(error).__name__}: {error}")
            finished = _failed(sequence_id, fault, held.slot_time)
        del self._held[sequence_id]
        self._on_load(self.load)
        receive(finished)

    def _count(self, request: SequenceRequest, found: RemoteCompletion, seconds: float) -> None:
        self._read_tokens += len(request.prompt_token_ids)
        self._sampled_tokens += len(found.token_ids)
        self._on_finished(seconds, len(found.token_ids))


def _finished(sequence_id: int, found: RemoteCompletion, slot_time: float) -> FinishedSequence:
    spans = (VersionSpan(0, len(found.token_ids), VERSION),)
    return FinishedSequence(
        sequence_id, found.token_ids, found.logprobs, found.finish_reason, spans, slot_time=slot_time
    )


def _failed(sequence_id: int, error: TrimtabError, slot_time: float) -> FinishedSequence:
    nothing = np.empty(0, np.float32)
    return FinishedSequence(sequence_id, (), nothing, FinishReason.CANCELLED, (), error, slot_time)
