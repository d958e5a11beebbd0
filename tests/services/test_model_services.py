"""Generation, reward and reference as callers meet them: real servers, real gRPC (TLS and tokens: `test_tls.py`)."""

from __future__ import annotations

import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from running import RunningServer, client, running
from trimtab import Client
from trimtab.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    Reason,
    SequenceTooLong,
    TrimtabError,
    Unavailable,
    VersionUnavailable,
)
from trimtab.types import (
    ChatMessage,
    GenerateRequest,
    GenerationPrompt,
    LogProbsItem,
    LogProbsOptions,
    LogProbsRequest,
    RankRequest,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
    ServiceState,
    TruncationSide,
    VersionRequirement,
)
from trimtab.v1 import reference_pb2
from trimtab_models.loading import load_policy
from trimtab_models.tokenizer import encode_completion, encode_prompt, load_tokenizer

IDS = [(5, 6, 7, 8), (9,) * 30, (11, 12), tuple(range(20, 60))]


@pytest.fixture(scope="module")
def generation(llama_folder: Path):
    with running("generation", model_folder=llama_folder, slots=2, max_queue_tokens=600) as server:
        yield server


@pytest.fixture(scope="module")
def reward(reward_folder: Path):
    with running("reward", model_folder=reward_folder, max_batch_tokens=128) as server:
        yield server


@pytest.fixture(scope="module")
def reference(llama_folder: Path):
    with running("reference", model_folder=llama_folder, max_batch_tokens=128) as server:
        yield server


def ask(*prompts: object, tokens: int = 5, **fields: object) -> GenerateRequest:
    made = tuple(GenerationPrompt(prompt_id=str(i), prompt=p, seed=i) for i, p in enumerate(prompts))  # type: ignore[arg-type]
    sampling = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    return GenerateRequest(prompts=made, sampling=sampling, **fields)  # type: ignore[arg-type]


# Generation


def test_each_completion_comes_when_it_ends(generation: RunningServer) -> None:
    prompts = tuple(
        GenerationPrompt(prompt_id=name, prompt=(5, 6), seed=1, max_new_tokens=n)
        for name, n in {"long": 60, "a": 2}.items()
    )
    with client(generation) as connection:
        results = list(
            connection.generate(
                GenerateRequest(prompts=prompts, sampling=SamplingParams(ignore_eos=True), return_text=True)
            )
        )
    assert [result.prompt_id for result in results] == ["a", "long"]
    assert [len(result.completion.token_ids) for result in results] == [2, 60]  # type: ignore[union-attr]
    assert results[0].served.version == 0 and results[0].served.tokenizer_digest


def test_draws_do_not_depend_on_the_request_they_came_in(generation: RunningServer) -> None:
    many = tuple(GenerationPrompt(prompt_id="p", prompt=(5, 6), seed=7, num_samples=4) for _ in range(1))
    one = GenerationPrompt(prompt_id="p", prompt=(5, 6), seed=7, first_sample_index=2)
    sampling = SamplingParams(max_new_tokens=8, ignore_eos=True)
    with client(generation) as connection:
        together = {
            r.completion.sample_index: r.completion.token_ids  # type: ignore[union-attr]
            for r in connection.generate(GenerateRequest(prompts=many, sampling=sampling))
        }
        (alone,) = connection.generate(GenerateRequest(prompts=(one,), sampling=sampling))
    assert sorted(together) == [0, 1, 2, 3] and len(set(together.values())) > 1
    assert alone.completion is not None and together[2] == alone.completion.token_ids


@pytest.mark.parametrize(
    ("request_", "reason", "field", "limit"),
    [
        (ask((5, 400)), Reason.TOKEN_ID_OUT_OF_RANGE, "prompts[0].prompt.token_ids[1]", "319"),
        (ask((5, 6), (7,) * 300), Reason.SEQUENCE_TOO_LONG, "prompts[1].prompt", "256"),
        (ask((5, 6), "w" * (64 * 256 + 1)), Reason.SEQUENCE_TOO_LONG, "prompts[1].prompt", str(64 * 256)),  # characters
        (ask((5, 6), version=VersionRequirement(exactly=3)), Reason.VERSION_UNAVAILABLE, "version", "0"),
        (ask((5, 6), model="other"), Reason.NOT_FOUND, "model", ""),
    ],
)
def test_bad_requests_name_field_and_limit(
    generation: RunningServer, request_: GenerateRequest, reason: Reason, field: str, limit: str
) -> None:
    with client(generation) as connection, pytest.raises(TrimtabError) as caught:
        list(connection.generate(request_))
    assert (caught.value.reason, caught.value.field, caught.value.limit) == (reason, field, limit)


def test_per_item_errors_leave_the_others_alone(generation: RunningServer) -> None:
    with client(generation) as connection:
        results = {r.prompt_id: r for r in connection.generate(ask((5, 400), (5, 6), per_item_errors=True))}
    assert results["0"].error is not None and results["0"].error.reason is Reason.TOKEN_ID_OUT_OF_RANGE
    assert results["1"].completion is not None


def test_times_tell_waiting_from_computing(generation: RunningServer) -> None:
    """Two slots, three equal sequences: the third one waits about as long as the others compute."""
    with client(generation) as connection:
        done = [r.completion for r in connection.generate(ask((5, 6), (5, 7), (5, 8), tokens=60))]
    first, second, last = sorted((one for one in done if one), key=lambda one: one.queue_ms)
    assert 0 <= first.queue_ms <= second.queue_ms < 0.5 * last.queue_ms
    assert last.queue_ms > 0.5 * min(first.compute_ms, second.compute_ms) > 0


def test_a_full_queue_says_when_to_come_back(generation: RunningServer) -> None:
    refused: list[Overloaded] = []

    def call(connection: Client) -> None:
        try:
            list(connection.generate(ask(*[(5, 6)] * 2, tokens=240)))
        except Overloaded as error:
            refused.append(error)

    with client(generation) as connection:
        callers = [threading.Thread(target=call, args=(connection,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert refused and len(refused) < len(callers)  # there is room for one at a time
    assert all(error.retry_after_s is not None and error.limit == "600" for error in refused)


def test_a_caller_that_goes_away_frees_its_slots(generation: RunningServer) -> None:
    with client(generation) as connection:
        stream = connection.generate(ask((5, 6), (7, 8), tokens=200))

        def read() -> None:
            with suppress(TrimtabError):  # the connection is closed under it
                list(stream)

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        busy = False
        for _ in range(500):
            if connection.info().load.running_items:
                busy = True
                break
        connection.close()
    with client(generation) as connection:
        deadline = time.monotonic() + 5
        while connection.info().load.running_items and time.monotonic() < deadline:
            time.sleep(0.01)
        assert busy and connection.info().load.running_items == 0


def test_a_deadline_ends_the_work(generation: RunningServer) -> None:
    with client(generation) as connection:
        with pytest.raises(DeadlineExceeded, match="0.02 s"):
            list(connection.generate(ask(*[(5, 6)] * 2, tokens=240), timeout_s=0.02))
        time.sleep(0.3)
        assert connection.info().load.running_items == 0


def test_a_service_without_a_version_waits_and_says_so() -> None:
    source = {"address": "127.0.0.1:9", "channel": "policy/latest"}
    with running("generation", serving=False, weights=source) as server, client(server) as connection:
        deadline = time.monotonic() + 10
        while (info := connection.info()).state is not ServiceState.WAITING_FOR_VERSION:
            assert time.monotonic() < deadline, info
        assert info.models[0].channel == "policy/latest"
        with pytest.raises(Unavailable) as caught:
            list(connection.generate(ask((5, 6)), timeout_s=2))
        assert caught.value.reason is Reason.WAITING_FOR_VERSION
        assert not connection.health("readiness") and connection.health("liveness")


# Reward


def test_scores_equal_the_stock_model_minus_the_offset(reward: RunningServer, reward_folder: Path) -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    with torch.no_grad():
        expected = [stock(torch.tensor([ids])).logits[0, 0].item() - 0.25 for ids in IDS]
    items = tuple(ScoreItem(token_ids=ids) for ids in IDS)
    with client(reward) as connection:
        together = [score.reward for score in connection.score(ScoreRequest(items=items)).scores]
        alone = [connection.score(ScoreRequest(items=(item,))).scores[0].reward for item in items]
    assert np.allclose(together, expected, atol=1e-5) and np.allclose(alone, expected, atol=1e-5)


def test_text_messages_and_ids_are_one_sequence(reward: RunningServer, reward_folder: Path) -> None:
    tokenizer = load_tokenizer(reward_folder)
    ids = (*encode_prompt(tokenizer, "the dog"), *encode_completion(tokenizer, "It sleeps."))
    messages = (ChatMessage(role="user", content="the dog"), ChatMessage(role="assistant", content="It sleeps."))
    items = (
        ScoreItem(prompt="the dog", completion="It sleeps."),
        ScoreItem(messages=messages),
        ScoreItem(token_ids=ids),
        ScoreItem(prompt=ids[:3], completion=ids[3:]),
    )
    with client(reward) as connection:
        scores = connection.score(ScoreRequest(items=items)).scores
    assert len({round(score.reward, 5) for score in scores}) == 1
    assert {score.token_count for score in scores} == {len(ids)}


def test_too_long_is_an_error_unless_a_side_may_be_cut(reward: RunningServer) -> None:
    item = ScoreItem(token_ids=tuple(range(5, 305)))
    with client(reward) as connection:
        with pytest.raises(SequenceTooLong) as caught:
            connection.score(ScoreRequest(items=(ScoreItem(token_ids=(5,)), item)))
        assert (caught.value.field, caught.value.value, caught.value.limit) == ("items[1].token_ids", "300", "256")
        left = connection.score(ScoreRequest(items=(item,), truncation=TruncationSide.LEFT)).scores[0]
        kept = connection.score(ScoreRequest(items=(ScoreItem(token_ids=tuple(range(49, 305))),))).scores[0]
    assert left.truncated_token_count == 44 and left.reward == pytest.approx(kept.reward, abs=1e-6)


def test_item_errors_and_order(reward: RunningServer) -> None:
    items = (ScoreItem(token_ids=(5, 6)), ScoreItem(token_ids=(5, 999)), ScoreItem(token_ids=(7,)))
    with client(reward) as connection:
        with pytest.raises(InvalidRequest, match=r"items\[1\]\.token_ids\[1\]: 999"):
            connection.score(ScoreRequest(items=items))
        scores = connection.score(ScoreRequest(items=items, per_item_errors=True)).scores
        assert scores[1].error is not None and scores[1].error.reason is Reason.TOKEN_ID_OUT_OF_RANGE
        assert scores[0].error is None and scores[2].token_count == 1
        with pytest.raises(NotFound, match="'other' is not served"):
            connection.score(ScoreRequest(items=items[:1], model="other"))
        with pytest.raises(VersionUnavailable):
            connection.score(ScoreRequest(items=items[:1], version=VersionRequirement(at_least=1)))


def test_rank_orders_by_reward(reward: RunningServer) -> None:
    answers = ("It sleeps.", "no", "what does the fox do?")
    with client(reward) as connection:
        found = connection.rank(RankRequest(prompt="the dog", answers=answers))
    rewards = [score.reward for score in found.scores]
    assert list(found.order) == sorted(range(3), key=lambda i: -rewards[i])
    expected = 1 / (1 + np.exp(-np.subtract.outer(rewards, rewards)))
    assert np.allclose(found.pairwise_probabilities, expected, atol=1e-6)


def test_deterministic_scores_are_bit_equal(reward_folder: Path) -> None:
    with running("reward", model_folder=reward_folder, deterministic=True) as server, client(server) as connection:
        alone = [connection.score(ScoreRequest(items=(ScoreItem(token_ids=i),))).scores[0].reward for i in IDS]
        together = connection.score(ScoreRequest(items=tuple(ScoreItem(token_ids=i) for i in reversed(IDS)))).scores
    assert [score.reward for score in reversed(together)] == alone


def test_deterministic_logprobs_are_bit_equal(llama_folder: Path) -> None:
    items = tuple(LogProbsItem(token_ids=ids) for ids in IDS)
    with running("reference", model_folder=llama_folder, deterministic=True) as server, client(server) as connection:
        alone = [connection.logprobs(LogProbsRequest(items=(item,))).results[0].logprobs for item in items]
        together = connection.logprobs(LogProbsRequest(items=items[::-1])).results[::-1]
    assert all(np.array_equal(one.logprobs, other) for one, other in zip(together, alone, strict=True))


def test_metrics_count_the_work(reward: RunningServer) -> None:
    with client(reward) as connection:
        connection.score(ScoreRequest(items=(ScoreItem(token_ids=(5, 6)),)))
    text = urllib.request.urlopen(reward.metrics_url, timeout=5).read().decode()
    assert 'trimtab_request_total{caller="127.0.0.1",code="OK",method="Score"}' in text
    assert "trimtab_computed_tokens_total" in text


# Reference


def test_logprobs_equal_a_full_log_softmax(reference: RunningServer, llama_folder: Path) -> None:
    model = load_policy(llama_folder)
    items = tuple(LogProbsItem(token_ids=ids, start_index=1 + i % 2) for i, ids in enumerate(IDS) if len(ids) > 2)
    options = LogProbsOptions(temperature=0.5, entropy=True, top_n=2)
    with client(reference) as connection:
        results = connection.logprobs(LogProbsRequest(items=items, options=options)).results
    for item, result in zip(items, results, strict=True):
        with torch.no_grad():
            full = torch.log_softmax(model(torch.tensor([item.token_ids])).logits[0].float() / 0.5, dim=-1)
        at = range(item.start_index, len(item.token_ids))
        assert np.allclose(result.logprobs, [full[t - 1, item.token_ids[t]].item() for t in at], atol=1e-4)
        entropies = [-(full[t - 1].exp() * full[t - 1]).sum().item() for t in at]
        assert result.entropies is not None and np.allclose(result.entropies, entropies, atol=1e-3)
        assert [top[0] for top in result.top_tokens] == [tuple(full[t - 1].topk(2).indices.tolist()) for t in at]


def test_streams_answer_every_item_and_its_errors(reference: RunningServer) -> None:
    def requests():
        for name, ids in (("a", (5, 6, 7)), ("bad", (5, 999)), ("b", (8, 9))):
            yield reference_pb2.LogProbsStreamRequest(item=reference_pb2.LogProbsItem(item_id=name, token_ids=ids))

    with client(reference) as connection:
        found = {reply.result.item_id: reply.result for reply in connection.logprobs_stream(requests())}
    assert set(found) == {"a", "b", "bad"}
    assert len(found["a"].logprobs) == 2 and found["bad"].error.reason == 5


def test_a_drain_refuses_new_work_and_finishes_the_old(llama_folder: Path) -> None:
    with running("generation", model_folder=llama_folder, slots=2) as server, client(server) as connection:
        results: list[object] = []
        working = threading.Thread(target=lambda: results.extend(connection.generate(ask((5, 6), tokens=240))))
        working.start()
        while not connection.info().load.running_items:
            time.sleep(0.002)
        draining = threading.Thread(target=lambda: server.run(server.server.drain()))
        draining.start()
        with client(server) as other, pytest.raises(Unavailable):
            list(other.generate(ask((5, 6)), timeout_s=0.5))
        working.join(20)
        draining.join(20)
        assert len(results) == 1
