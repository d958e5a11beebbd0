"""Engine `tgi` against a server that answers as TGI's public API documentation says, its errors included."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from documented_tgi import Answer, DocumentedTGI, documented_tgi, result
from running import RunningServer, client, running, wait_serving
from trimtab.errors import (
    ConfigError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    Reason,
    SequenceTooLong,
    TrimtabError,
    Unavailable,
)
from trimtab.types import (
    ChatMessage,
    Completion,
    FinishReason,
    GenerateRequest,
    GenerationPrompt,
    Priority,
    SamplingParams,
)
from trimtab_models.tokenizer import load_tokenizer

EOS = 1
HI = (ChatMessage(role="user", content="hi"),)


@pytest.fixture(scope="module")
def tokenizer(llama_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(llama_folder)


@pytest.fixture
def tgi(tokenizer: PreTrainedTokenizerBase) -> Iterator[DocumentedTGI]:
    with documented_tgi(tokenizer) as server:
        server.answers = [result(tokenizer, [40, 41, 42])]
        yield server


@pytest.fixture
def near(tgi: DocumentedTGI, llama_folder: Path) -> Iterator[RunningServer]:
    with running("generation", **settings(tgi, llama_folder)) as server:
        yield server


def settings(tgi: DocumentedTGI, folder: Path, **remote: Any) -> dict[str, Any]:
    return {"engine": "tgi", "tgi": {"url": tgi.url, "tokenizer_folder": folder, **remote}, "slots": 2}


def generate(
    server: RunningServer, prompt: tuple[ChatMessage, ...] | tuple[int, ...] = HI, **sampling: Any
) -> Completion:
    asked = GenerationPrompt(prompt_id="p", prompt=prompt, seed=11)
    with client(server) as connection:
        request = GenerateRequest(prompts=(asked,), sampling=SamplingParams(**sampling), return_text=True)
        (found,) = connection.generate(request)
    assert found.completion is not None
    return found.completion


def refused(server: RunningServer, kind: type[TrimtabError], **sampling: Any) -> TrimtabError:
    with pytest.raises(kind) as found:
        generate(server, **sampling)
    return found.value


def post(server: RunningServer, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(server.server.runtime.http_url + path, json=body, timeout=30)


def wait_until_waiting(server: RunningServer) -> str:
    deadline = time.monotonic() + 30
    while server.server.runtime.state != 2:
        assert time.monotonic() < deadline, server.server.runtime.state
        time.sleep(0.02)
    return server.server.runtime.state_reason


@pytest.mark.parametrize(
    ("ids", "told", "reason", "text"),
    [
        ([40, 41, 42], "length", FinishReason.LENGTH, 3),
        ([40, 41, EOS], "eos_token", FinishReason.STOP, 2),
        ([40, 41, 42], "stop_sequence", FinishReason.STOP, 3),
    ],
)
def test_a_documented_answer_is_a_completion(
    tgi: DocumentedTGI,
    near: RunningServer,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    told: str,
    reason: FinishReason,
    text: int,
) -> None:
    tgi.answers = [result(tokenizer, ids, told)]
    found = generate(near)
    assert found.token_ids == tuple(ids) and found.logprobs.tolist() == [-0.5, -1.5, -2.5]
    assert (found.finish_reason, found.text) == (reason, tokenizer.decode(ids[:text]))


def test_every_parameter_arrives_and_nothing_else(tgi: DocumentedTGI, near: RunningServer) -> None:
    generate(near, temperature=0.5, top_p=0.5, top_k=7, max_new_tokens=9, stop_strings=("a", "b"))
    generate(near, temperature=0, top_p=0.5, top_k=7, max_new_tokens=9)
    generate(near, max_new_tokens=9)
    text = "<|user|>hi<|end|><|assistant|>"
    common = {"details": True, "max_new_tokens": 9}
    drawn = {"do_sample": True, "temperature": 0.5, "top_p": 0.5, "top_k": 7, "seed": 11, "stop": ["a", "b"]}
    assert tgi.asked == [
        {"inputs": text, "parameters": {**common, **drawn}},
        {"inputs": text, "parameters": {**common, "do_sample": False}},
        {"inputs": text, "parameters": {**common, "do_sample": True, "temperature": 1.0, "seed": 11}},
    ]


def test_tokens_are_streamed(tgi: DocumentedTGI, near: RunningServer, tokenizer: PreTrainedTokenizerBase) -> None:
    tgi.answers = [result(tokenizer, [40, 41, EOS], "eos_token", stream=True)]
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "logprobs": True}
    text = post(near, "/v1/chat/completions", body).text
    assert tgi.asked[0]["stream"] is True and text.endswith("data: [DONE]\n\n")
    assert text.count('"logprob": -0.5') and text.count('"logprob": -1.5') and '"finish_reason": "stop"' in text


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer({"error": "Input validation error", "error_type": "validation"}, 422), InvalidRequest, "Input valid"),
        (Answer({"error": "Input validation error"}, 422), InvalidRequest, "Input validation error"),
        (Answer({"error": "Model is overloaded", "error_type": "overloaded"}, 429), Overloaded, "overloaded"),
        (Answer({"error": "Model is overloaded"}, 429), Overloaded, "Model is overloaded"),
        (Answer({"error": "Request failed during generation", "error_type": "generation"}, 424), InternalError, "fail"),
        (Answer({"error": "Incomplete generation", "error_type": "incomplete_generation"}, 500), InternalError, "Inco"),
        (Answer({"error": "unhealthy", "error_type": "healthcheck"}, 503), Unavailable, "unhealthy"),
        (Answer(b"<html>", 502), Unavailable, "502"),
        (Answer({"error": "no"}, 401), Unavailable, "tgi.token_file"),
        (Answer(b"<html>"), InternalError, "no result of TGI's"),
        (Answer({"generated_text": "a"}), InternalError, "without details"),
    ],
)
def test_errors_are_ours_with_the_servers_words(
    tgi: DocumentedTGI, near: RunningServer, answer: Answer, kind: type[TrimtabError], words: str
) -> None:
    tgi.answers = [answer]
    error = refused(near, kind)
    assert type(error) is kind and words in error.message and tgi.url in error.message


@pytest.mark.parametrize(
    ("kind", "status"), [("validation", 422), ("overloaded", 429), ("generation", 500), ("incomplete_generation", 500)]
)
def test_errors_inside_a_stream_too(tgi: DocumentedTGI, near: RunningServer, kind: str, status: int) -> None:
    tgi.answers = [Answer([{"error": "what happened", "error_type": kind}], events=True)]
    found = post(near, "/generate_stream", {"inputs": "a"})
    assert found.status_code == status and "what happened" in found.json()["error"]


@pytest.mark.parametrize(("headers", "seconds"), [({"Retry-After": "7"}, 7.0), ({}, 1.0), ({"Retry-After": "x"}, 1.0)])
def test_an_overload_says_when_to_come_back(
    tgi: DocumentedTGI, near: RunningServer, headers: dict[str, str], seconds: float
) -> None:
    tgi.answers = [Answer({"error": "Model is overloaded", "error_type": "overloaded"}, 429, headers)]
    assert refused(near, Overloaded).retry_after_s == seconds


def test_half_a_completion_is_none(tgi: DocumentedTGI, near: RunningServer, tokenizer: PreTrainedTokenizerBase) -> None:
    for change in ({"generated_tokens": 4}, {"tokens": []}, {"finish_reason": "because"}):
        good = result(tokenizer, [40, 41, 42]).body[0]
        tgi.answers = [Answer([{**good, "details": {**good["details"], **change}}])]
        assert "the remote server" in refused(near, InternalError).message
    good["details"]["tokens"][1]["logprob"] = None
    tgi.answers = [Answer([good])]
    assert refused(near, InternalError).reason is Reason.NOT_FINITE
    events = result(tokenizer, [40, 41, 42], stream=True).body
    tgi.answers = [Answer(events[:2], events=True)]
    streamed = post(near, "/generate_stream", {"inputs": "a"}).text
    assert "in the middle of a completion" in streamed.strip().rsplit("\n\n", 1)[-1]


def test_a_server_that_dies_is_named(tokenizer: PreTrainedTokenizerBase, llama_folder: Path) -> None:
    with ExitStack() as stack:
        with documented_tgi(tokenizer) as dying:
            near = stack.enter_context(running("generation", **settings(dying, llama_folder)))
            dying.answers = [Answer(None, breaks=True)]
            error = refused(near, Unavailable)
            assert error.reason is Reason.UNREACHABLE and dying.url in error.message
            found = post(near, "/generate_stream", {"inputs": "a"})
            assert found.status_code == 503 and dying.url in found.json()["error"]
        assert dying.url in wait_until_waiting(near)
        assert dying.url in refused(near, Unavailable).message


def test_only_so_many_requests_at_a_time_the_urgent_ones_first(tgi: DocumentedTGI, near: RunningServer) -> None:
    tgi.answers = [Answer(tgi.answers[0].body, after_s=0.2)]

    def ask(name: str, count: int, priority: Priority) -> None:
        prompt = GenerationPrompt(prompt_id="p", prompt=(ChatMessage(role="user", content=name),), num_samples=count)
        with client(near) as connection:
            list(connection.generate(GenerateRequest(prompts=(prompt,), priority=priority)))

    slow = threading.Thread(target=ask, args=("bulk", 6, Priority.BULK))
    slow.start()
    while not tgi.asked:
        time.sleep(0.01)
    ask("urgent", 1, Priority.INTERACTIVE)
    slow.join(30)
    names = ["urgent" if "urgent" in body["inputs"] else "bulk" for body in tgi.asked]
    assert tgi.most_at_once == 2 and names.index("urgent") <= 3 and len(names) == 7
    assert (
        len({body["parameters"]["seed"] for body in tgi.asked}) == 6
    )  # of six samples; the urgent one has the first's


def test_a_caller_that_goes_away_ends_the_work_there(tgi: DocumentedTGI, near: RunningServer) -> None:
    tgi.answers = [Answer(tgi.answers[0].body, after_s=30)]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(near.server.runtime.http_url + "/generate", json={"inputs": "a"}, timeout=1)
    assert tgi.hung_up.wait(10)
    tgi.answers = [Answer(tgi.answers[0].body)]
    assert generate(near).token_ids == (40, 41, 42)


def test_the_deadline_goes_with_the_request(tgi: DocumentedTGI, near: RunningServer) -> None:
    tgi.answers = [Answer(tgi.answers[0].body, after_s=30)]
    prompt = GenerationPrompt(prompt_id="p", prompt=HI)
    with client(near) as connection, pytest.raises(DeadlineExceeded):
        list(connection.generate(GenerateRequest(prompts=(prompt,)), timeout_s=1))
    assert tgi.hung_up.wait(10)


def test_the_remote_server_gets_no_more_than_its_time(tgi: DocumentedTGI, llama_folder: Path) -> None:
    tgi.answers = [Answer(tgi.answers[0].body, after_s=30)]
    with running("generation", **settings(tgi, llama_folder, timeout_s=0.3)) as near:
        error = refused(near, Unavailable)
    assert error.field == "tgi.timeout_s" and tgi.url in error.message and tgi.hung_up.wait(10)


def test_the_state_follows_the_servers_health_and_model(tgi: DocumentedTGI, near: RunningServer) -> None:
    with client(near) as connection:
        before = connection.info().models[0].served
        tgi.healthy = False
        assert "/health answered 503" in wait_until_waiting(near) and tgi.url in wait_until_waiting(near)
        assert tgi.url in refused(near, Unavailable).message
        tgi.info = {**tgi.info, "model_sha": "0" * 40}
        tgi.healthy = True
        wait_serving(near)
        after = connection.info().models[0].served
    assert before.version == after.version == 0 and before.weights_digest != after.weights_digest


def test_a_server_that_comes_back_is_got_to_know_again(tgi: DocumentedTGI, near: RunningServer) -> None:
    tgi.healthy = False
    wait_until_waiting(near)
    tgi.tokenize = lambda text: [5, 6, 7]  # the same model by name, another tokenizer
    tgi.healthy = True
    deadline = time.monotonic() + 30
    while "tgi.tokenizer_folder" not in near.server.runtime.state_reason:
        assert near.server.runtime.state == 2 and time.monotonic() < deadline
        time.sleep(0.02)


def test_the_servers_limits_are_ours(
    tgi: DocumentedTGI, near: RunningServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tuple(tokenizer(" the dog" * 60)["input_ids"])
    with pytest.raises(SequenceTooLong) as found:
        generate(near, ids[:101], max_new_tokens=1)
    assert (found.value.value, found.value.limit) == ("101", "100")
    with pytest.raises(SequenceTooLong) as found:
        generate(near, ids[:90], max_new_tokens=111)
    assert (found.value.value, found.value.limit) == ("201", "200") and not tgi.asked


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"tokenize": lambda text: [5, 6, 7]}, "tgi.tokenizer_folder: its tokenizer is not the remote server's"),
        ({"tokenize": None}, "/tokenize answered 404"),
        ({"info": {"model_id": "m"}}, "/info tells no max_input_tokens"),
        ({"info": "text"}, "/info"),
    ],
)
def test_a_server_that_cannot_be_used_is_waited_for_with_the_reason(
    tgi: DocumentedTGI, llama_folder: Path, broken: dict[str, Any], words: str
) -> None:
    good = {name: getattr(tgi, name) for name in broken}
    for name, value in broken.items():
        setattr(tgi, name, value)
    with running("generation", serving=False, **settings(tgi, llama_folder)) as near:
        assert words in wait_until_waiting(near)
        for name, value in good.items():
            setattr(tgi, name, value)
        wait_serving(near)
        assert generate(near).token_ids == (40, 41, 42)


def test_only_the_configured_token_is_sent(
    tgi: DocumentedTGI, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    streamed = {"inputs": "a", "stream": True}
    with running("generation", **settings(tgi, llama_folder)) as near:
        generate(near)
        post(near, "/generate", streamed)
    assert len(tgi.asked) == 2 and set(tgi.authorizations) == {None}
    file = tmp_path / "token"
    file.write_text("first\n")
    tgi.authorizations.clear()
    with running("generation", **settings(tgi, llama_folder, token_file=file)) as near:
        generate(near)
        assert set(tgi.authorizations) == {"Bearer first"}
        file.write_text("second one\n")
        tgi.authorizations.clear()
        generate(near)
        post(near, "/generate", streamed)
        assert set(tgi.authorizations) == {"Bearer second one"}


def test_a_client_library_that_may_send_nothing_ends_the_start(
    tgi: DocumentedTGI, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"), running("generation", **settings(tgi, llama_folder)):
        pass
