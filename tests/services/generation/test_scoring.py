"""Log-probs of given tokens between the engine's steps: right, in pieces, by one policy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import torch

from trimtab.errors import Overloaded, VersionUnavailable
from trimtab.types import SamplingParams
from trimtab_models.loading import load_policy, named_parameter_tensors
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import Engine, FinishedSequence, SampledToken, SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine
from trimtab_services.generation.host import EngineHost
from trimtab_services.generation.http.scoring import ScoredTokens, SequenceScorer

IDS = tuple((7 * i) % 300 + 5 for i in range(90))
PIECE = 8


class Bench:
    """A scorer over a real engine of version 1."""

    def __init__(self, folder: Path, **settings: object) -> None:
        config = GenerationConfig(model_folder=folder, prefill_chunk_tokens=PIECE, **settings)  # type: ignore[arg-type]
        self.scorer = SequenceScorer(config)
        self.host = EngineHost(
            TransformersEngine(load_policy(folder), version=1, slots=2),
            max_queue_tokens=10_000,
            loop=asyncio.get_running_loop(),
        )

    async def score(self, **options: object) -> ScoredTokens:
        wanted = {"start": 1, "temperature": 1.0, "top_n": 0, **options}
        return await self.scorer.score(self.host, IDS, **wanted)  # type: ignore[arg-type]


def run(folder: Path, body: Callable[[Bench], Awaitable[None]], **settings: object) -> None:
    async def main() -> None:
        bench = Bench(folder, **settings)
        try:
            async with asyncio.timeout(60):
                await body(bench)
        finally:
            await bench.host.close()

    asyncio.run(main())


@pytest.mark.parametrize(("temperature", "deterministic"), [(0.0, False), (1.0, True), (0.5, False)])
def test_logprobs_equal_a_plain_forward(policy_folder: Path, temperature: float, deterministic: bool) -> None:
    model = load_policy(policy_folder)
    with torch.inference_mode():
        logits = model(torch.tensor([IDS])).logits[0].float() / (temperature or 1.0)
    expected = torch.log_softmax(logits, dim=-1)

    async def body(bench: Bench) -> None:
        for start in (1, 40):
            scored = await bench.score(start=start, temperature=temperature, top_n=3)
            rows = expected[start - 1 : -1]
            wanted = rows.gather(-1, torch.tensor(IDS[start:])[:, None])[:, 0]
            assert torch.tensor(scored.logprobs) == pytest.approx(wanted, abs=1e-4) and scored.version == 1
            values, _ = rows.topk(3)
            assert torch.tensor([[value for _, value in top] for top in scored.top]) == pytest.approx(values, abs=1e-4)
            for row, top in zip(rows, scored.top, strict=True):
                assert [row[token].item() for token, _ in top] == pytest.approx([value for _, value in top], abs=1e-4)

    run(policy_folder, body, deterministic=deterministic)


def test_sampling_goes_on_between_the_pieces(llama_folder: Path) -> None:
    async def body(bench: Bench) -> None:
        finished: asyncio.Queue[FinishedSequence] = asyncio.Queue()
        sampling = SamplingParams(max_new_tokens=250, ignore_eos=True)
        await bench.host.submit([SequenceRequest(0, (5, 6), sampling)], finished.put_nowait, lambda version: None)
        while bench.host.load.computed_decode_tokens == 0:
            await asyncio.sleep(0.001)
        before = bench.host.load.computed_decode_tokens
        await asyncio.gather(*(bench.score() for _ in range(4)))
        pieces = 4 * -(-(len(IDS) - 1) // PIECE)
        assert bench.host.load.computed_decode_tokens - before >= pieces - 1  # a step between any two pieces

    run(llama_folder, body)


def test_a_sequence_is_scored_by_the_weights_that_it_began_with(llama_folder: Path) -> None:
    async def body(bench: Bench) -> None:
        alone = await bench.score()
        tensors = {name: t + 0.05 for name, t in named_parameter_tensors(load_policy(llama_folder)).items()}
        await bench.host.stage(2, lambda: tensors)
        begun, swap = asyncio.create_task(bench.score()), asyncio.create_task(bench.host.call(_swap))
        assert await swap == 2
        across, after = await begun, await bench.score()
        assert (across.version, after.version) == (1, 2)
        assert across.logprobs == alone.logprobs != after.logprobs
        with pytest.raises(VersionUnavailable, match="from version 1 to 2"):
            await bench.score(sampled_by=(1,))

    run(llama_folder, body)


def test_too_much_to_score_says_when_to_come_back(llama_folder: Path) -> None:
    async def body(bench: Bench) -> None:
        found = await asyncio.gather(*(bench.score() for _ in range(3)), return_exceptions=True)
        refused = [error for error in found if isinstance(error, Overloaded)]
        assert len(refused) == 1 and refused[0].limit == "200" and refused[0].retry_after_s
        assert isinstance(await bench.score(), ScoredTokens)

    run(llama_folder, body, max_queue_tokens=200)


def test_a_caller_that_goes_away_is_scored_no_further(llama_folder: Path) -> None:
    async def body(bench: Bench) -> None:
        task = asyncio.create_task(bench.score())
        await bench.host.call(lambda engine: None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len((await bench.score()).logprobs) == len(IDS) - 1

    run(llama_folder, body)


def test_tokens_are_told_as_they_are_sampled_and_before_the_sequence(llama_folder: Path) -> None:
    async def body(bench: Bench) -> None:
        events: asyncio.Queue[SampledToken | FinishedSequence] = asyncio.Queue()
        work = [
            SequenceRequest(0, (5, 6), SamplingParams(max_new_tokens=n, ignore_eos=True), seed=n) for n in (5, 9, 30)
        ]
        ids = await bench.host.submit(work, events.put_nowait, lambda version: None, None, events.put_nowait)
        told: dict[int, list[SampledToken]] = {name: [] for name in ids}
        while ids:
            event = await events.get()
            if isinstance(event, SampledToken):
                told[event.sequence_id].append(event)
                continue
            ids.remove(event.sequence_id)
            tokens = told[event.sequence_id]
            assert tuple(token.token_id for token in tokens) == event.token_ids
            assert [token.logprob for token in tokens] == pytest.approx(event.logprobs, abs=1e-6)
            assert [token.is_last for token in tokens] == [False] * (len(tokens) - 1) + [True]
            assert {token.version for token in tokens} == {1}

    run(llama_folder, body)


def test_each_token_names_the_version_that_sampled_it(llama_folder: Path) -> None:
    async def body(bench: Bench) -> None:
        events: asyncio.Queue[SampledToken | FinishedSequence] = asyncio.Queue()
        work = [SequenceRequest(0, (5, 6), SamplingParams(max_new_tokens=250, ignore_eos=True))]
        tensors = {name: t + 0.05 for name, t in named_parameter_tensors(load_policy(llama_folder)).items()}
        await bench.host.stage(2, lambda: tensors)
        await bench.host.submit(work, events.put_nowait, lambda version: None, None, events.put_nowait)
        told = [await events.get()]
        await bench.host.call(_swap)
        while not isinstance(told[-1], FinishedSequence):
            told.append(await events.get())
        *tokens, finished = told
        assert isinstance(finished, FinishedSequence) and len(finished.version_spans) == 2
        spans = [span.version for span in finished.version_spans for _ in range(span.start_token, span.end_token)]
        assert [token.version for token in tokens if isinstance(token, SampledToken)] == spans

    run(llama_folder, body)


def _swap(engine: Engine) -> int:
    return engine.swap()
