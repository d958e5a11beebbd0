"""The engine's thread: admission, deadlines, callers that go away, staging beside it, and its end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from trimtab.errors import DeadlineExceeded, InternalError, Overloaded, Reason
from trimtab.types import SamplingParams
from trimtab_models.loading import load_policy, named_parameter_tensors
from trimtab_services.generation.engines.base import Engine, FinishedSequence, SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine
from trimtab_services.generation.host import EngineHost
from trimtab_services.generation.pace import Pace


def sequences(tokens: int, count: int = 1, priority: int = 1) -> list[SequenceRequest]:
    sampling = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    return [SequenceRequest(0, (5, 6, 7 + i), sampling, seed=i, priority=priority) for i in range(count)]


def anything(version: int) -> None:
    """Every version will do."""


class Bench:
    """A host over a real engine with two slots."""

    def __init__(
        self, folder: Path, engine: type[TransformersEngine] = TransformersEngine, max_queue_tokens: int = 10_000
    ) -> None:
        self.faults: list[BaseException] = []
        self.host = EngineHost(
            engine(load_policy(folder), version=1, slots=2),
            max_queue_tokens=max_queue_tokens,
            loop=asyncio.get_running_loop(),
            on_fault=self.faults.append,
        )
        self.finished: asyncio.Queue[FinishedSequence] = asyncio.Queue()

    async def submit(self, work: list[SequenceRequest], deadline_s: float | None = None) -> list[int]:
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        return await self.host.submit(work, self.finished.put_nowait, anything, deadline)

    async def learn(self) -> None:
        """Lets the host measure its pace."""
        await self.submit(sequences(40, 2))
        for _ in range(2):
            await self.finished.get()

    async def idle(self) -> None:
        async with asyncio.timeout(10):
            while await self.host.call(lambda engine: engine.has_work):
                await asyncio.sleep(0.005)


def run(folder: Path, body: Callable[[Bench], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        bench = Bench(folder, **options)
        try:
            async with asyncio.timeout(60):
                await body(bench)
        finally:
            await bench.host.close()

    asyncio.run(main())


@pytest.mark.parametrize("is_running", [True, False])
def test_a_caller_that_goes_away_while_it_is_admitted_leaves_nothing(llama_folder: Path, is_running: bool) -> None:
    async def body(bench: Bench) -> None:
        entered, go_on = threading.Event(), threading.Event()

        def hold(engine_or_version: object) -> None:
            entered.set()
            assert go_on.wait(10)

        holder = None if is_running else asyncio.create_task(bench.host.call(hold))
        check = hold if is_running else anything
        admission = asyncio.create_task(bench.host.submit(sequences(200, 2), bench.finished.put_nowait, check))
        await asyncio.to_thread(entered.wait, 10)
        await asyncio.sleep(0)
        admission.cancel()
        with pytest.raises(asyncio.CancelledError):
            await admission
        go_on.set()
        if holder is not None:
            await holder
        await bench.idle()
        load = await bench.host.call(lambda engine: engine.load())
        assert load.computed_decode_tokens < 100 and bench.finished.empty()  # of 400 that were asked for

    run(llama_folder, body)


def test_work_that_cannot_meet_its_deadline_is_refused_at_once(llama_folder: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.submit(sequences(240), deadline_s=0.1)  # idle, and nothing is known: it is tried
        await bench.finished.get()
        await bench.learn()
        await bench.idle()
        blockers = await bench.submit(sequences(240, 6))
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await bench.submit(sequences(200), deadline_s=0.02)
        assert caught.value.reason is Reason.DEADLINE_UNMEETABLE and time.monotonic() - began < 1
        with pytest.raises(DeadlineExceeded) as caught:
            await bench.submit(sequences(1), deadline_s=-1)
        assert caught.value.reason is Reason.DEADLINE_EXCEEDED
        fits = await bench.submit(sequences(2), deadline_s=60)
        bench.host.cancel([*blockers, *fits])

    run(llama_folder, body)


def test_urgent_work_is_not_held_against_what_it_overtakes(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder), slots=1)
    for number, priority in enumerate((1, 1, 2, 0)):
        sampling = SamplingParams(max_new_tokens=10 + number, ignore_eos=True)
        engine.submit(SequenceRequest(number, (5, 6), sampling, priority=priority))
    engine.step()  # the urgent one runs and has made a token
    assert [engine.new_tokens_before(priority) for priority in (0, 1, 2)] == [12, 33, 45]


def test_pace_is_known_once_measured_and_errs_on_the_short_side() -> None:
    pace = Pace(slots=4)
    assert pace.seconds(0, [10]) is None
    for seconds in [5.0, *[0.01] * 20]:  # the first step warms up
        pace.note_step(seconds)
    assert pace.seconds(0, [10]) is None
    for _ in range(10):
        pace.note_finished(25, 100)  # sequences end at a quarter of what they may take
    assert pace.seconds(0, [100]) == pytest.approx(25 * 0.01)
    assert pace.seconds(1200, [100] * 4) == pytest.approx(100 * 0.01)


def test_sampling_goes_on_while_a_version_is_staged(llama_folder: Path) -> None:
    async def body(bench: Bench) -> None:
        reading, go_on = threading.Event(), threading.Event()

        def read() -> Mapping[str, Tensor]:
            reading.set()
            assert go_on.wait(30)  # a slow disk
            return {name: t + 0.05 for name, t in named_parameter_tensors(load_policy(llama_folder)).items()}

        staging = asyncio.create_task(bench.host.stage(2, read))
        await asyncio.to_thread(reading.wait, 10)
        await bench.submit(sequences(20))
        done = await bench.finished.get()
        assert len(done.token_ids) == 20 and not staging.done()
        go_on.set()
        await staging
        await bench.submit(sequences(100))
        await bench.host.call(lambda engine: engine.swap())
        spans = (await bench.finished.get()).version_spans
        assert spans[-1].version == 2 and spans[-1].end_token == 100

    run(llama_folder, body)


class OneSetOfWeights(TransformersEngine):
    """Has room for one set of weights, as vLLM has: a swap waits for sequences that finish on theirs."""

    @property
    def can_swap(self) -> bool:
        lane = self._lanes[-1]
        return not self._is_promised(lane) and not any(self._stays(one.request) for one in lane.running())


def test_a_swap_that_is_held_up_comes_when_the_last_ends_that_holds_it_up_though_nobody_calls(
    llama_folder: Path,
) -> None:
    async def body(bench: Bench) -> None:
        pinned = [replace(one, finish_on_version=True) for one in sequences(100)]
        await bench.submit(pinned)
        tensors = named_parameter_tensors(load_policy(llama_folder))
        await bench.host.stage(2, lambda: tensors)
        swap = asyncio.create_task(bench.host.swap())
        await asyncio.sleep(0)
        newcomer = asyncio.create_task(bench.submit(sequences(3)))
        async with asyncio.timeout(20):
            assert [span.version for span in (await bench.finished.get()).version_spans] == [1]
            await swap
            await newcomer
            assert [span.version for span in (await bench.finished.get()).version_spans] == [2]

    run(llama_folder, body, engine=OneSetOfWeights)


def test_those_who_come_while_a_swap_is_held_up_count_as_load_and_are_refused_beyond_the_limit(
    llama_folder: Path,
) -> None:
    most = 2000

    async def body(bench: Bench) -> None:
        pinned = [replace(one, finish_on_version=True) for one in sequences(230, 6)]
        holds_up = await bench.submit(pinned)
        tensors = named_parameter_tensors(load_policy(llama_folder))
        await bench.host.stage(2, lambda: tensors)
        swap = asyncio.create_task(bench.host.swap())
        await asyncio.sleep(0)
        went_away = [asyncio.create_task(bench.submit(sequences(47))) for _ in range(4)]
        await asyncio.sleep(0)
        for one in went_away:
            one.cancel()
        await asyncio.wait(went_away)
        flood = [asyncio.create_task(bench.submit(sequences(47))) for _ in range(100)]  # of 50 tokens each
        first, _ = await asyncio.wait(flood, return_when=asyncio.FIRST_EXCEPTION)
        refused = [one for one in first if one.exception() is not None]
        assert refused and not swap.done()  # at once, not when the swap is over
        while sum(one.done() for one in flood) < 60:
            await asyncio.sleep(0.001)
        await bench.host.call(lambda engine: engine.version)  # behind all of the flood
        waiting = [one for one in flood if not one.done()]
        assert 12 <= len(waiting) <= 40 and not swap.done()
        while bench.host.load.waiting_sequences < len(waiting):  # until the next step
            await asyncio.sleep(0.001)
        assert bench.host.load.outstanding_tokens <= most
        for one in flood:
            if one.done():
                error = one.exception()
                assert isinstance(error, Overloaded) and error.reason is Reason.QUEUE_FULL, error
                assert error.limit == str(most) and error.retry_after_s
        bench.host.cancel(holds_up)
        await swap
        assert all([await one for one in waiting])
        for _ in waiting:
            assert [span.version for span in (await bench.finished.get()).version_spans] == [2]

    run(llama_folder, body, engine=OneSetOfWeights, max_queue_tokens=most)


def test_an_engine_that_failed_tells_everybody_and_takes_nothing_more(llama_folder: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.submit(sequences(240, 3))

        def lose_device(engine: Engine) -> None:
            assert isinstance(engine, TransformersEngine)
            engine.model.register_forward_pre_hook(_lost)

        await bench.host.call(lose_device)
        for _ in range(3):
            error = (await bench.finished.get()).error
            assert isinstance(error, InternalError) and "device lost" in error.message
        with pytest.raises(InternalError, match="device lost"):
            await bench.submit(sequences(1))
        assert [str(fault) for fault in bench.faults] == ["device lost"]

    run(llama_folder, body)


def _lost(*args: object) -> None:
    raise RuntimeError("device lost")
