"""The model services on a GPU: the same numbers as on the CPU, bit-equal repeats, swaps, memory, refusals.

Skipped where torch has no CUDA device.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from running import client, running
from tiny_models import make_policy, make_tokenizer
from trimtab.client import Client
from trimtab.errors import ConfigError
from trimtab.types import (
    GenerateRequest,
    GenerationPrompt,
    LogProbsItem,
    LogProbsRequest,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
    VersionRequirement,
)
from trimtab_models.heads import read_rewards
from trimtab_models.loading import load_policy, load_reward_model, reward_model_from_policy, save_model
from trimtab_models.logprobs import completion_logprobs
from trimtab_models.versions import ModelPublisher
from trimtab_services.generation.engines.base import FinishedSequence, SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine

from .weights.conftest import RunningStore
from .weights.conftest import running as running_store

DEVICE = "cuda"
CHANNEL = "policy/latest"
TOLERANCES = {"float32": (2e-3, 2e-4), "bfloat16": (1.0, 0.05)}
"""Nats by which one token's log-prob, and their mean, may differ between two forwards: those of the trainer's gate."""

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with grouped key-value heads."""
    tokenizer = make_tokenizer()
    model = make_policy("llama", len(tokenizer), hidden=128, layers=4)
    with torch.no_grad():  # the shape's own weights are so large that bfloat16 rounds a tenth of a nat
        for matrix in (parameter for parameter in model.parameters() if parameter.ndim > 1):
            matrix *= 0.4
    folder = tmp_path_factory.mktemp("cuda") / "policy"
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def reward(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer()
    folder = tmp_path_factory.mktemp("cuda") / "reward"
    save_model(reward_model_from_policy(policy, tokenizer=tokenizer, seed=1), tokenizer, folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(store=str(tmp_path / "store")) as service:
        yield service


def requests(count: int = 12, tokens: int = 40, **sampling: object) -> list[SequenceRequest]:
    """Prompts of 3 to 90 tokens."""
    draw = np.random.default_rng(3)
    parameters = SamplingParams(max_new_tokens=tokens, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    lengths = draw.integers(3, 90, size=count)
    prompts = [tuple(draw.integers(5, 200, size=length).tolist()) for length in lengths]
    return [SequenceRequest(i, prompt, parameters, seed=100 + i) for i, prompt in enumerate(prompts)]


def finish(engine: TransformersEngine, asked: list[SequenceRequest]) -> dict[int, FinishedSequence]:
    for request in asked:
        engine.submit(request)
    done: dict[int, FinishedSequence] = {}
    while engine.has_work:
        done |= {one.sequence_id: one for one in engine.step()}
    return done


def full_forward(folder: Path, asked: list[SequenceRequest], done: dict[int, FinishedSequence]) -> list[np.ndarray]:
    """Log-probs of the completions by a float32 forward on the CPU."""
    model = load_policy(folder)
    found = []
    for request in asked:
        ids = torch.tensor([[*request.prompt_token_ids, *done[request.sequence_id].token_ids]])
        start = torch.tensor([len(request.prompt_token_ids)])
        with torch.no_grad():
            found.append(completion_logprobs(model, ids, start, ids.shape[1] - start)[0][0].numpy())
    return found


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], dtype: str) -> None:
    differences = np.abs(np.concatenate(found) - np.concatenate(expected))
    largest, mean = TOLERANCES[dtype]
    assert differences.max() < largest and differences.mean() < mean, (differences.max(), differences.mean())


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_sampled_logprobs_are_those_of_a_forward_on_the_cpu(policy: Path, dtype: str, deterministic: bool) -> None:
    model = load_policy(policy, dtype=dtype, device=DEVICE)
    asked = requests()
    done = finish(TransformersEngine(model, slots=5, deterministic=deterministic), asked)
    assert_close([done[r.sequence_id].logprobs for r in asked], full_forward(policy, asked, done), dtype)


def test_float32_samples_the_tokens_of_the_cpu(policy: Path) -> None:
    asked = requests(tokens=8, top_p=0.9)
    on_gpu = finish(TransformersEngine(load_policy(policy, device=DEVICE), slots=5), asked)
    on_cpu = finish(TransformersEngine(load_policy(policy), slots=5), asked)
    same = sum(on_gpu[r.sequence_id].token_ids == on_cpu[r.sequence_id].token_ids for r in asked)
    assert same >= len(asked) - 1  # a uniform number may fall into the rounding of a running sum


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7, "top_k": 5}, {"temperature": 0.0}, {"min_new_tokens": 3}]
)
def test_every_way_to_sample_gives_the_same_tokens_in_any_company(policy: Path, sampling: dict[str, float]) -> None:
    model = load_policy(policy, device=DEVICE)
    asked = requests(6, 10, **sampling)
    together = finish(TransformersEngine(model, slots=6, deterministic=True), asked)
    for request in asked:
        alone = finish(TransformersEngine(model, slots=6, deterministic=True), [request])[request.sequence_id]
        assert alone.token_ids == together[request.sequence_id].token_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_tokens_and_logprobs_are_bit_equal(policy: Path, dtype: str) -> None:
    model = load_policy(policy, dtype=dtype, device=DEVICE)
    asked = requests(16, 60)
    crowd = finish(TransformersEngine(model, slots=8, deterministic=True), asked)
    backwards = finish(TransformersEngine(model, slots=8, deterministic=True), asked[::-1])
    for request in asked:
        alone = finish(TransformersEngine(model, slots=8, deterministic=True), [request])
        for other in (alone, backwards):
            mine, theirs = other[request.sequence_id], crowd[request.sequence_id]
            assert mine.token_ids == theirs.token_ids
            assert np.array_equal(mine.logprobs, theirs.logprobs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_scores_are_bit_equal(policy: Path, reward: Path, dtype: str) -> None:
    ids = [request.prompt_token_ids for request in requests(24)]
    settings: dict[str, Any] = {"device": DEVICE, "dtype": dtype, "deterministic": True}
    with running("reward", model_folder=reward, **settings) as server, client(server) as connection:

        def scores(sequences: list[tuple[int, ...]]) -> list[float]:
            request = ScoreRequest(items=tuple(ScoreItem(token_ids=one) for one in sequences))
            return [score.reward for score in connection.score(request).scores]

        together = scores(ids)
        assert [scores([one])[0] for one in ids] == together
        assert scores(ids[::-1])[::-1] == together
    with running("reference", model_folder=policy, **settings) as server, client(server) as connection:

        def logprobs(sequences: list[tuple[int, ...]]) -> list[list[float]]:
            request = LogProbsRequest(items=tuple(LogProbsItem(token_ids=one, start_index=1) for one in sequences))
            return [result.logprobs.tolist() for result in connection.logprobs(request).results]

        apart = logprobs(ids)
        assert [logprobs([one])[0] for one in ids] == apart
        assert logprobs(ids[::-1])[::-1] == apart


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_generation_reference_and_trainer_agree(policy: Path, reward: Path, dtype: str) -> None:
    asked = requests()
    settings: dict[str, Any] = {"device": DEVICE, "dtype": dtype}
    prompts = tuple(
        GenerationPrompt(prompt_id=str(r.sequence_id), prompt=r.prompt_token_ids, seed=r.seed) for r in asked
    )
    sampling = SamplingParams(max_new_tokens=40, ignore_eos=True)
    with running("generation", model_folder=policy, slots=8, **settings) as server, client(server) as connection:
        assert connection.info().device == DEVICE
        results = connection.generate(GenerateRequest(prompts=prompts, sampling=sampling))
        sampled = {r.prompt_id: r.completion for r in results if r.completion is not None}
    completions = [sampled[prompt.prompt_id] for prompt in prompts]
    items = tuple(
        LogProbsItem(token_ids=(*r.prompt_token_ids, *c.token_ids), start_index=len(r.prompt_token_ids))
        for r, c in zip(asked, completions, strict=True)
    )
    with running("reference", model_folder=policy, **settings) as server, client(server) as connection:
        reference = [result.logprobs for result in connection.logprobs(LogProbsRequest(items=items)).results]
    trained = load_policy(policy, device=DEVICE)
    trainer = []
    with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        for item in items:
            ids = torch.tensor([item.token_ids], device=DEVICE)
            start = torch.tensor([item.start_index], device=DEVICE)
            rows = completion_logprobs(trained, ids, start, ids.shape[1] - start)[0]
            trainer.append(rows[0].cpu().numpy())
    generation = [completion.logprobs for completion in completions]
    assert_close(generation, reference, dtype)
    assert_close(generation, trainer, dtype)
    with running("reward", model_folder=reward, **settings) as server, client(server) as connection:
        answer = connection.score(ScoreRequest(items=tuple(ScoreItem(token_ids=item.token_ids) for item in items)))
    on_cpu = load_reward_model(reward)
    for item, score in zip(items, answer.scores, strict=True):
        ids = torch.tensor([item.token_ids])
        with torch.no_grad():
            expected = float(read_rewards(on_cpu, ids, torch.tensor([ids.shape[1]]))[0])
        assert score.reward == pytest.approx(expected, abs=0.2 if dtype == "bfloat16" else 1e-3)


def test_a_model_that_cannot_be_recorded_is_sampled_all_the_same(tmp_path: Path) -> None:
    """Its rotary frequencies depend on the longest position, which the host asks the device for in every forward."""
    tokenizer = make_tokenizer()
    model = make_policy("llama", len(tokenizer))
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    save_model(model, tokenizer, tmp_path / "dynamic")
    asked = requests(6, 20)
    on_gpu = finish(TransformersEngine(load_policy(tmp_path / "dynamic", device=DEVICE), slots=4), asked)
    on_cpu = finish(TransformersEngine(load_policy(tmp_path / "dynamic"), slots=4), asked)
    same = sum(on_gpu[r.sequence_id].token_ids == on_cpu[r.sequence_id].token_ids for r in asked)
    assert same >= len(asked) - 1


def test_published_differences_are_served_under_load(store: RunningStore, policy: Path) -> None:
    model, tokenizer = load_policy(policy, device=DEVICE), make_tokenizer()
    settings = {"weights": {"address": store.target, "channel": CHANNEL}, "device": DEVICE, "dtype": "bfloat16"}
    with Client(store.target) as weights:
        publisher = ModelPublisher(weights, model, tokenizer, channels=[CHANNEL], serving_dtype="bfloat16")
        publisher.publish(publisher.snapshot())
        with running("generation", slots=8, **settings) as server, client(server) as connection:
            for version in (2, 3, 4):
                with (
                    torch.no_grad()
                ):  # drawn on the host: while a service of this process records, nobody draws on the GPU
                    for parameter in model.parameters():
                        moved = torch.randn(parameter.shape) * (torch.rand(parameter.shape) < 0.05)
                        parameter += 0.02 * moved.to(DEVICE)
                publication = publisher.publish(publisher.snapshot())
                assert publication.manifest.version == version
                assert publication.payload_bytes < 0.5 * publication.dense_bytes
                asked = requests(8, 20)
                prompts = tuple(
                    GenerationPrompt(prompt_id=str(r.sequence_id), prompt=r.prompt_token_ids, seed=r.seed)
                    for r in asked
                )
                request = GenerateRequest(
                    prompts=prompts,
                    sampling=SamplingParams(max_new_tokens=20, ignore_eos=True),
                    version=VersionRequirement(exactly=version),
                    max_wait_ms=20_000,
                )
                found, expected = [], []
                for result in connection.generate(request):
                    assert result.completion is not None
                    prompt = asked[int(result.prompt_id)].prompt_token_ids
                    ids = torch.tensor([[*prompt, *result.completion.token_ids]], device=DEVICE)
                    start = torch.tensor([len(prompt)], device=DEVICE)
                    with torch.no_grad():
                        rows = completion_logprobs(model, ids, start, ids.shape[1] - start)[0]
                    found.append(result.completion.logprobs)
                    expected.append(rows[0].cpu().numpy())
                assert_close(found, expected, "bfloat16")


def test_memory_of_the_old_model_goes_when_another_architecture_takes_over(store: RunningStore) -> None:
    tokenizer = make_tokenizer()
    large = make_policy("llama", len(tokenizer), hidden=1024, layers=8)
    small = make_policy("gpt2", len(tokenizer))
    large_bytes = sum(4 * parameter.numel() for parameter in large.parameters())
    settings = {"weights": {"address": store.target, "channel": CHANNEL}, "device": DEVICE}
    gc.collect()
    before = torch.cuda.memory_allocated()

    def used() -> int:
        gc.collect()
        return torch.cuda.memory_allocated() - before

    with Client(store.target) as weights:

        def publish(model: torch.nn.Module) -> None:
            publisher = ModelPublisher(weights, model, tokenizer, channels=[CHANNEL])  # type: ignore[arg-type]
            publisher.publish(publisher.snapshot())

        def ask(version: int) -> GenerateRequest:
            return GenerateRequest(
                prompts=(GenerationPrompt(prompt_id="0", prompt=(5, 6)),),
                sampling=SamplingParams(max_new_tokens=5, ignore_eos=True),
                version=VersionRequirement(exactly=version),
                max_wait_ms=20_000,
            )

        publish(large)
        with running("generation", slots=4, **settings) as server, client(server) as connection:
            (first,) = connection.generate(ask(1))
            assert first.completion is not None and used() > large_bytes
            publish(small)
            (second,) = connection.generate(ask(2))
            assert second.completion is not None
            until(lambda: used() < large_bytes / 2)


def test_more_slots_than_memory_are_refused_with_both_numbers(policy: Path) -> None:
    model = load_policy(policy, device=DEVICE)
    slots = int(torch.cuda.get_device_properties(0).total_memory // (256 * 2 * 4 * 2 * 32 * 4)) * 2
    with pytest.raises(ConfigError, match=f"slots: {slots} .*GiB.*free") as caught:
        TransformersEngine(model, slots=slots)
    assert caught.value.field == "slots"
    fits = int(caught.value.limit or 0)
    assert 0 < fits < slots
