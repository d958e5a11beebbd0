"""The OpenAI front as any HTTP client meets it: real servers, plain requests."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from running import RunningServer, client, running
from trimtab.types import ChatMessage, GenerateRequest, GenerationPrompt, SamplingParams, ServedModel
from trimtab_models.loading import load_policy
from trimtab_models.tokenizer import encode_document, encode_prompt, load_tokenizer
from trimtab_services.generation.http.sampling import fingerprint

TEXT = "The quick brown fox"


def http(server: RunningServer, **options: Any) -> httpx.Client:
    runtime = server.server.runtime
    return httpx.Client(base_url=f"http://{runtime.address(runtime.ports.http)}", timeout=30, **options)


@pytest.fixture(scope="module")
def server(llama_folder: Path) -> Iterator[RunningServer]:
    with running(
        "generation", model_folder=llama_folder, slots=4, deterministic=True, prefill_chunk_tokens=8
    ) as running_server:
        yield running_server


@pytest.fixture
def web(server: RunningServer) -> Iterator[httpx.Client]:
    with http(server) as connection:
        yield connection


def complete(web: httpx.Client, **body: Any) -> dict[str, Any]:
    response = web.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def events(web: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    response = web.post(path, json={**body, "stream": True})
    assert response.headers["content-type"] == "text/event-stream", response.text
    *found, last, end = response.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "") and all(event.startswith("data: ") for event in found)
    return [json.loads(event.removeprefix("data: ")) for event in found]


# Results


def test_samples_are_those_of_the_grpc_call(server: RunningServer, web: httpx.Client, llama_folder: Path) -> None:
    ids = tuple(encode_document(load_tokenizer(llama_folder), TEXT)[:-1])
    sampling = SamplingParams(temperature=0.8, top_p=0.9, top_k=50, max_new_tokens=20, stop_strings=("dog",))
    prompt = GenerationPrompt(prompt_id="p", prompt=ids, seed=77, num_samples=3)
    with client(server) as connection:
        results = connection.generate(GenerateRequest(prompts=(prompt,), sampling=sampling, return_text=True))
        wanted = {r.completion.sample_index: r.completion for r in results if r.completion}
    body = complete(
        web, prompt=TEXT, n=3, seed=77, temperature=0.8, top_p=0.9, top_k=50, max_tokens=20, stop="dog", logprobs=0
    )
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    for choice in body["choices"]:
        completion = wanted[choice["index"]]
        assert choice["logprobs"]["token_logprobs"] == [float(x) for x in completion.logprobs]
        assert choice["text"] == completion.text.partition("dog")[0]
        assert choice["finish_reason"] == completion.finish_reason.value.lower()
    assert body["usage"]["prompt_tokens"] == len(ids)
    assert body["usage"]["completion_tokens"] == sum(len(c.token_ids) for c in wanted.values())


def test_every_form_of_a_prompt(web: httpx.Client, llama_folder: Path) -> None:
    ids = encode_document(load_tokenizer(llama_folder), TEXT)[:-1]
    same = {"temperature": 0, "max_tokens": 6}
    one = complete(web, prompt=TEXT, **same)["choices"][0]["text"]
    assert complete(web, prompt=ids, **same)["choices"][0]["text"] == one
    for prompts in ([TEXT, "dog"], [ids, [5, 6]]):
        choices = complete(web, prompt=prompts, n=2, **same)["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        assert choices[0]["text"] == choices[1]["text"] == one != choices[2]["text"]


def test_much_text_is_read_as_little_is(web: httpx.Client) -> None:
    text = TEXT + " " + "the dog " * 20
    alone = complete(web, prompt=text, temperature=0, max_tokens=3)
    count = 1 + 4096 // len(text)  # more than the event loop reads itself
    many = complete(web, prompt=[text] * count, temperature=0, max_tokens=3)
    assert {choice["text"] for choice in many["choices"]} == {alone["choices"][0]["text"]}
    assert many["usage"]["prompt_tokens"] == count * alone["usage"]["prompt_tokens"]


def test_a_prompt_twice_in_a_request_is_drawn_twice(web: httpx.Client) -> None:
    one, other = complete(web, prompt=[TEXT, TEXT], seed=5, max_tokens=20)["choices"]
    assert one["text"] != other["text"]
    assert complete(web, prompt=[TEXT, TEXT], seed=5, max_tokens=20)["choices"][1]["text"] == other["text"]
    assert complete(web, prompt=TEXT, seed=-5, max_tokens=20) and complete(web, prompt=TEXT, max_tokens=1)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_scores_the_prompt(policy_folder: Path, max_tokens: int) -> None:
    """What lm-eval asks: a null first, then each token's log-prob, and the likeliest token in its place."""
    model, prompts = load_policy(policy_folder), [[5, 6, 7, 8, 200, 9], [(11 * i) % 300 + 5 for i in range(60)], [30]]
    with running("generation", model_folder=policy_folder, prefill_chunk_tokens=16) as server, http(server) as web:
        body = complete(web, prompt=prompts, temperature=0, max_tokens=max_tokens, logprobs=1, echo=True, seed=1234)
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        found = choice["logprobs"]
        with torch.inference_mode():
            expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0].float(), dim=-1)
        wanted = [None, *(expected[i - 1, prompt[i]].item() for i in range(1, len(prompt)))]
        values = found["token_logprobs"][: len(prompt)]
        assert values[0] is None and values[1:] == pytest.approx(wanted[1:], abs=1e-4)
        assert found["top_logprobs"][0] is None
        for i in range(1, len(prompt)):
            top = found["top_logprobs"][i]
            assert max(top.values()) == pytest.approx(expected[i - 1].max().item(), abs=1e-4)
            is_greedy = values[i] == max(top.values())  # bit-equal, as lm-eval compares them
            assert is_greedy == (int(expected[i - 1].argmax()) == prompt[i])
        assert len(found["tokens"]) == len(found["text_offset"]) == len(prompt) + max_tokens
        if max_tokens:
            assert values != found["token_logprobs"]
            assert found["token_logprobs"][-1] == pytest.approx(expected[-1].max().item(), abs=1e-4)


def test_echo_gives_the_prompt_back_and_offsets_point_into_the_text(web: httpx.Client) -> None:
    for prompt in ("fox é 🙂", [5, 1, 6, 7]):
        (choice,) = complete(web, prompt=prompt, max_tokens=4, echo=True, logprobs=0, temperature=0)["choices"]
        text, found = choice["text"], choice["logprobs"]
        assert text.startswith(prompt if isinstance(prompt, str) else "!<|end|>")
        for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
            assert "\ufffd" in token or text[offset:].lstrip("\ufffd").startswith(token)
    assert complete(web, prompt="fox", max_tokens=0, echo=True)["choices"][0]["text"] == "fox"


def test_likeliest_tokens_in_the_place_of_sampled_ones(web: httpx.Client, llama_folder: Path) -> None:
    tokenizer, model = load_tokenizer(llama_folder), load_policy(llama_folder)
    prompt = encode_prompt(tokenizer, (ChatMessage(role="user", content=TEXT),))
    body = web.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": TEXT}],
            "max_completion_tokens": 6,
            "temperature": 0.7,
            "seed": 3,
            "logprobs": True,
            "top_logprobs": 4,
        },
    ).json()
    assert body["usage"]["prompt_tokens"] == len(prompt)
    ids = list(prompt)
    for entry in body["choices"][0]["logprobs"]["content"]:
        with torch.inference_mode():
            expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float() / 0.7, dim=-1)
        values, top = expected.topk(4)
        assert [one["logprob"] for one in entry["top_logprobs"]] == pytest.approx(values.tolist(), abs=1e-4)
        assert [one["token"] for one in entry["top_logprobs"]] == [tokenizer.decode([i]) for i in top.tolist()]
        drawn = int((expected - entry["logprob"]).abs().argmin())
        assert expected[drawn].item() == pytest.approx(entry["logprob"], abs=1e-4)
        ids.append(drawn)


def test_control_tokens_in_a_message_are_text(web: httpx.Client, llama_folder: Path) -> None:
    tokenizer, spelled = load_tokenizer(llama_folder), "say <|end|> and <|assistant|>"
    for path, body, wanted in (
        ("/v1/completions", {"prompt": spelled}, encode_document(tokenizer, spelled)[:-1]),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": spelled}]},
            encode_prompt(tokenizer, spelled),
        ),
    ):
        found = web.post(path, json={**body, "max_tokens": 1}).json()
        assert found["usage"]["prompt_tokens"] == len(wanted)
        assert wanted.count(tokenizer.eos_token_id) == (0 if "prompt" in body else 1)


# Streams


@pytest.mark.parametrize("stop", [None, "dog", ["e", "zz"]])
def test_a_stream_is_the_same_answer_in_pieces(web: httpx.Client, stop: Any) -> None:
    asked = {"prompt": [TEXT, "dog"], "n": 2, "seed": 9, "max_tokens": 40, "logprobs": 0, "stop": stop}
    whole = complete(web, **asked)
    chunks = events(web, "/v1/completions", **asked, stream_options={"include_usage": True})
    assert chunks.pop()["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for key in ("tokens", "token_logprobs", "text_offset"):
            assert [one for part in parts for one in part["logprobs"][key]] == choice["logprobs"][key]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]


def test_a_chat_stream_is_the_same_answer_in_pieces(web: httpx.Client) -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": TEXT}]},
    ]
    asked = {"messages": messages, "seed": 4, "max_tokens": 30, "logprobs": True}
    (choice,) = web.post("/v1/chat/completions", json=asked).json()["choices"]
    chunks = [event["choices"][0] for event in events(web, "/v1/chat/completions", **asked)]
    assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == choice["message"]["content"]
    found = [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"]["content"]]
    assert found == choice["logprobs"]["content"]
    assert chunks[-1]["finish_reason"] == choice["finish_reason"]


def test_tokens_come_while_the_rest_is_being_sampled(server: RunningServer, web: httpx.Client) -> None:
    body = {"prompt": TEXT, "max_tokens": 200, "ignore_eos": True, "stream": True, "seed": 1}
    with client(server) as connection, web.stream("POST", "/v1/completions", json=body) as response:
        lines = (line for line in response.iter_lines() if line)
        assert next(lines).startswith("data: ")
        assert connection.info().load.running_items == 1
        assert sum(1 for _ in lines) > 50


# Callers that go away, deadlines, tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_goes_away_frees_its_slots(server: RunningServer, stream: bool) -> None:
    body = {"prompt": TEXT, "n": 8, "max_tokens": 230, "ignore_eos": True, "stream": stream}
    with client(server) as connection:
        with http(server) as web, pytest.raises(httpx.ReadTimeout):
            with web.stream("POST", "/v1/completions", json=body, timeout=0.2) as response:
                for _ in response.iter_lines():
                    raise httpx.ReadTimeout("the first token is enough")
        began = time.monotonic()
        while connection.info().load.running_items:
            assert time.monotonic() - began < 5
            time.sleep(0.01)
        done = connection.info().load
    assert done.waiting_items == 0


def test_what_is_late_is_said_in_the_answer_or_in_the_stream(llama_folder: Path) -> None:
    long = {"prompt": TEXT, "n": 64, "max_tokens": 240, "ignore_eos": True}
    scored = {"prompt": [[5] * 250] * 500, "max_tokens": 0, "echo": True, "logprobs": 1}
    settings = {"default_deadline_s": 0.5, "slots": 1, "prefill_chunk_tokens": 4}
    with running("generation", model_folder=llama_folder, **settings) as server, http(server) as web:
        with web.stream("POST", "/v1/completions", json={**long, "stream": True}) as response:
            *_, last = (line for line in response.iter_lines() if line)
        assert response.status_code == 200
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["type"] == "timeout_error" and "0.5 s" in error["message"]
        for body in (long, scored):
            late = web.post("/v1/completions", json=body)
            assert late.status_code == 504 and late.json()["error"]["code"].startswith("DEADLINE_")
        with client(server) as connection:
            assert connection.info().load.waiting_items == 0
        text = httpx.get(server.metrics_url).text
        line = next(one for one in text.splitlines() if "DEADLINE_EXCEEDED" in one and "/v1/completions" in one)
        assert float(line.rsplit(" ", 1)[1]) == 3  # the stream that had begun too


def test_tokens_and_scopes_are_those_of_generate(llama_folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(
        json.dumps({"good": {"name": "a", "scopes": ["generate"]}, "bad": {"name": "b", "scopes": ["runs"]}})
    )
    body = {"prompt": TEXT, "max_tokens": 1}
    with running("generation", model_folder=llama_folder, tokens_file=tokens) as server, http(server) as web:
        for token, status in (("", 401), ("unknown", 401), ("bad", 403), ("good", 200)):
            headers = {"authorization": f"Bearer {token}"} if token else {}
            ours = web.post("/v1/completions", json=body, headers=headers)
            theirs = web.post("/generate", json={"inputs": TEXT}, headers=headers)
            assert ours.status_code == theirs.status_code == status
            if status != 200:
                assert ours.json()["error"]["param"] == "authorization"
                assert theirs.json()["error_type"] == "generation"


# What is said of the model


def test_every_answer_names_the_policy_version(web: httpx.Client) -> None:
    response = web.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 1})
    assert response.headers["x-trimtab-version"] == "0" and response.json()["system_fingerprint"] == "v0"
    assert response.headers["x-request-id"] in response.json()["id"]
    served = ServedModel(name="policy", version=7, weights_digest="0123456789abcdef")
    assert (fingerprint(served, 7), fingerprint(served, 6)) == ("v7-0123456789ab", "v6")


def test_models(web: httpx.Client) -> None:
    (model,) = web.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("policy", "model", 256)
    assert web.get("/v1/models/policy").json() == model
    assert web.get("/v1/models/gpt-4").status_code == 404
    for name, status in (("policy", 200), ("tgi", 200), ("dummy", 200), ("gpt-4", 404)):
        response = web.post("/v1/completions", json={"model": name, "prompt": TEXT, "max_tokens": 1})
        assert response.status_code == status, name
    assert response.json()["error"]["code"] == "model_not_found"


# Bad input


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": [[5], []]}, "prompt[1]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [5, "a"]}, "prompt"),
        ({"prompt": [5, 1.5]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [5, 400]}, "prompt[1]"),
        ({"prompt": [[5], [5, 2**40]]}, "prompt[1][1]"),
        ({"prompt": "a" * 300}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 2**70}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 2**30}, "prompt"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 10_000}, "prompt"),
        ({"prompt": "a", "n": 2**40}, "n"),
        ({"prompt": "a", "temperature": -0.1}, "temperature"),
        ({"prompt": "a", "temperature": 1e-9}, "temperature"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "top_p": 1.1}, "top_p"),
        ({"prompt": "a", "seed": 2**64}, "seed"),
        ({"prompt": "a", "seed": "x"}, "seed"),
        ({"prompt": "a", "stop": ""}, "stop[0]"),
        ({"prompt": "a", "stop": ["b"] * 17}, "stop"),
        ({"prompt": "a", "stop": 5}, "stop"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": 1, "stream": True}, "logprobs"),
        ({"prompt": "a", "echo": True, "stream": True}, "echo"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias"),
        ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty"),
        ({"prompt": "a", "frequency_penalty": -1}, "frequency_penalty"),
        ({"prompt": "a", "min_p": 0.1}, "min_p"),
        ({"prompt": "a", "stream_options": {"x": 1}}, "stream_options.x"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "x"}], "logprobs": 1}, "logprobs"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, "tools"),
        (
            {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "max_completion_tokens": 4},
            "max_completion_tokens",
        ),
        ({"messages": [{"role": "user", "content": "x" * 400}]}, "messages"),
    ],
)
def test_bad_requests_name_the_field(web: httpx.Client, body: dict[str, Any], param: str) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = web.post(path, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error" and error["code"]
    assert error["message"].startswith(param.partition("[")[0].partition(".")[0])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{'prompt': 'a'}",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": [' + b"9" * 5000 + b"]}",
        b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_bodies_that_are_no_request_are_refused(web: httpx.Client, path: str, raw: bytes) -> None:
    response = web.post(path, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_what_changes_nothing_is_accepted(web: httpx.Client) -> None:
    harmless = {
        "user": "u",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "safety_identifier": "s",
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "stream_options": {"include_usage": True},
        "anything": None,
    }
    same = {"seed": 2, "max_tokens": 8}
    plain = complete(web, prompt=TEXT, **same)["choices"]
    assert complete(web, prompt=TEXT, **same, **harmless, best_of=1, suffix=None)["choices"] == plain
    chat = {
        "messages": [{"role": "user", "content": "x"}],
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
    }
    response = web.post("/v1/chat/completions", json={**chat, **same, **harmless, "response_format": {"type": "text"}})
    assert response.status_code == 200, response.text


def test_errors_are_counted_as_errors(server: RunningServer, web: httpx.Client) -> None:
    web.post("/v1/completions", json={"prompt": ""})
    text = httpx.get(server.metrics_url).text
    line = next(one for one in text.splitlines() if "INVALID_ARGUMENT" in one and "/v1/completions" in one)
    assert float(line.rsplit(" ", 1)[1]) >= 1


@pytest.mark.parametrize(
    "body", [{"prompt": "a", "n": 2_000_000_000, "stream": True}, {"prompt": ["a"] * 200_000}], ids=["n", "prompts"]
)
def test_too_many_completions_are_refused_before_anything_is_made(web: httpx.Client, body: dict[str, Any]) -> None:
    began = time.monotonic()
    response = web.post("/v1/completions", json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == "prompt"
    assert time.monotonic() - began < 3
