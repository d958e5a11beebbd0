"""The TGI front as any HTTP client meets it: real servers, plain requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from running import RunningServer, client, running
from trimtab.types import GenerateRequest, GenerationPrompt, SamplingParams
from trimtab_models.loading import load_policy
from trimtab_models.tokenizer import encode_document, load_tokenizer

TEXT = "The quick brown fox"


@pytest.fixture(scope="module")
def server(llama_folder: Path) -> Iterator[RunningServer]:
    with running(
        "generation", model_folder=llama_folder, slots=4, deterministic=True, prefill_chunk_tokens=4
    ) as running_server:
        yield running_server


@pytest.fixture
def web(server: RunningServer) -> Iterator[httpx.Client]:
    runtime = server.server.runtime
    with httpx.Client(base_url=f"http://{runtime.address(runtime.ports.http)}", timeout=30) as connection:
        yield connection


def generate(web: httpx.Client, inputs: str = TEXT, **parameters: Any) -> dict[str, Any]:
    response = web.post("/generate", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


def events(web: httpx.Client, inputs: str = TEXT, **parameters: Any) -> list[dict[str, Any]]:
    response = web.post("/generate_stream", json={"inputs": inputs, "parameters": parameters})
    assert response.headers["content-type"] == "text/event-stream", response.text
    *found, end = response.text.split("\n\n")
    assert end == "" and all(event.startswith("data:{") for event in found)
    return [json.loads(event.removeprefix("data:")) for event in found]


def over_grpc(server: RunningServer, folder: Path, seed: int, **sampling: Any) -> Any:
    ids = tuple(encode_document(load_tokenizer(folder), TEXT)[:-1])
    prompt = GenerationPrompt(prompt_id="p", prompt=ids, seed=seed)
    with client(server) as connection:
        request = GenerateRequest(prompts=(prompt,), sampling=SamplingParams(**sampling), return_text=True)
        return next(iter(connection.generate(request))).completion


def test_samples_are_those_of_the_grpc_call(server: RunningServer, web: httpx.Client, llama_folder: Path) -> None:
    wanted = over_grpc(server, llama_folder, 2**63 + 5, temperature=0.7, top_k=40, top_p=0.9, max_new_tokens=20)
    found = generate(
        web, do_sample=True, temperature=0.7, top_k=40, top_p=0.9, max_new_tokens=20, seed=2**63 + 5, details=True
    )
    details = found["details"]
    assert found["generated_text"] == wanted.text
    assert tuple(token["id"] for token in details["tokens"]) == wanted.token_ids
    assert [token["logprob"] for token in details["tokens"]] == [float(x) for x in wanted.logprobs]
    assert (details["generated_tokens"], details["seed"]) == (len(wanted.token_ids), 2**63 + 5)


def test_the_likeliest_token_is_taken_unless_sampling_is_asked_for(
    server: RunningServer, web: httpx.Client, llama_folder: Path
) -> None:
    greedy = over_grpc(server, llama_folder, 0, temperature=0, max_new_tokens=12)
    for parameters in (
        {},
        {"do_sample": False, "seed": 3},
        {"temperature": 1.0},
        {"temperature": 0, "do_sample": True},
    ):
        found = generate(web, max_new_tokens=12, details=True, **parameters)
        assert found["generated_text"] == greedy.text
    for parameters in ({"do_sample": True}, {"temperature": 2.0}, {"top_k": 200}, {"top_p": 0.99}):
        found = generate(web, max_new_tokens=12, details=True, **parameters)
        assert found["details"]["seed"] is not None
        assert generate(web, max_new_tokens=12, seed=found["details"]["seed"], **parameters) == {
            "generated_text": found["generated_text"]
        }


def test_prefill_has_the_prompts_logprobs(web: httpx.Client, llama_folder: Path) -> None:
    tokenizer, model = load_tokenizer(llama_folder), load_policy(llama_folder)
    for text in (TEXT, "a"):
        ids = encode_document(tokenizer, text)[:-1]
        with torch.inference_mode():
            expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)
        prefill = generate(web, text, max_new_tokens=1, decoder_input_details=True)["details"]["prefill"]
        assert [row["id"] for row in prefill] == ids and "".join(row["text"] for row in prefill) == text
        assert prefill[0]["logprob"] is None
        wanted = [expected[i - 1, ids[i]].item() for i in range(1, len(ids))]
        assert [row["logprob"] for row in prefill[1:]] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("stop", [[], ["e"], ["dog", "s"]])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_is_the_same_answer_token_by_token(web: httpx.Client, stop: list[str], seed: int) -> None:
    asked = {"do_sample": True, "seed": seed, "max_new_tokens": 60, "stop": stop}
    whole = generate(web, **asked, details=True)
    *_, last = found = events(web, **asked)
    assert [event["token"] for event in found] == whole["details"]["tokens"]
    assert [event["index"] for event in found] == list(range(1, len(found) + 1))
    assert all(event["generated_text"] is None and event["details"] is None for event in found[:-1])
    assert last["generated_text"] == whole["generated_text"]
    assert last["details"] == {key: whole["details"][key] for key in last["details"]}
    told = "".join(event["token"]["text"] for event in found if not event["token"]["special"])
    assert told == whole["generated_text"] and not any(one in told for one in stop)


def test_why_it_ended(web: httpx.Client) -> None:
    reasons: dict[str, dict[str, Any]] = {}
    for seed in range(200):
        found = generate(web, do_sample=True, seed=seed, max_new_tokens=40, stop=["e"], details=True)
        reasons.setdefault(found["details"]["finish_reason"], found)
        if len(reasons) == 3:
            break
    assert set(reasons) == {"length", "eos_token", "stop_sequence"}
    ended = reasons["eos_token"]["details"]["tokens"][-1]
    assert (ended["id"], ended["text"], ended["special"]) == (1, "<|end|>", True)
    assert "<|end|>" not in reasons["eos_token"]["generated_text"]
    assert "e" not in reasons["stop_sequence"]["generated_text"]
    assert reasons["length"]["details"]["generated_tokens"] == 40


def test_the_whole_text_where_asked(web: httpx.Client) -> None:
    part = generate(web, max_new_tokens=5)["generated_text"]
    assert generate(web, max_new_tokens=5, return_full_text=True)["generated_text"] == TEXT + part
    assert events(web, max_new_tokens=5, return_full_text=True)[-1]["generated_text"] == TEXT + part


def test_the_bare_address_answers_with_a_list_or_a_stream(web: httpx.Client) -> None:
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 5}}
    wanted = generate(web, max_new_tokens=5)
    assert web.post("/", json=body).json() == [wanted]
    for path in ("/", "/generate"):
        streamed = web.post(path, json={**body, "stream": True}).text
        last = json.loads(streamed.strip().rsplit("\n\n", 1)[-1].removeprefix("data:"))
        assert last["generated_text"] == wanted["generated_text"]


def test_tokenize_points_into_the_text(web: httpx.Client, llama_folder: Path) -> None:
    text = "dog <|end|> é 🙂"
    rows = web.post("/tokenize", json={"inputs": text}).json()
    assert [row["id"] for row in rows] == encode_document(load_tokenizer(llama_folder), text)[:-1]
    assert all(row["text"] == text[row["start"] : row["stop"]] for row in rows)
    assert rows[-1]["stop"] == len(text)


@pytest.mark.parametrize(
    "path", ["/generate", "/generate_stream", "/tokenize", "/v1/completions", "/v1/chat/completions"]
)
def test_a_text_that_is_far_too_long_is_not_even_read(web: httpx.Client, path: str) -> None:
    text = "x" * (64 * 256 + 1)
    body: dict[str, Any] = {"inputs": text}
    if path.startswith("/v1"):
        chat = path.endswith("chat/completions")
        body = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        body["model"] = "policy"
    answer = web.post(path, json=body)
    assert answer.status_code in (400, 413, 422), answer.text
    assert f"{len(text)} characters" in answer.text and str(64 * 256) in answer.text


def test_info_has_both_tgis_fields_and_ours(web: httpx.Client, llama_folder: Path) -> None:
    info = web.get("/info").json()
    assert info["model_id"] == str(llama_folder) and info["max_total_tokens"] == 256
    assert (info["max_input_tokens"], info["max_best_of"], info["max_stop_sequences"]) == (255, 1, 16)
    assert info["service"] == "trimtab.v1.GenerationService" and info["models"][0]["served"]["name"] == "policy"
    assert web.get("/health").json()["ready"] is True


def test_every_answer_names_the_policy_version(web: httpx.Client) -> None:
    for path in ("/generate", "/generate_stream", "/"):
        response = web.post(path, json={"inputs": TEXT, "parameters": {"max_new_tokens": 1}})
        assert response.headers["x-trimtab-version"] == "0" and response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": ["a"]}, "inputs"),
        ({"inputs": "a" * 300}, "inputs"),
        ({"inputs": "a", "unknown": 1}, "unknown"),
        ({"inputs": "a", "parameters": 5}, "parameters"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 2**30}}, "inputs"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 2**80}}, "parameters.max_new_tokens"),
        ({"inputs": "a", "parameters": {"temperature": -1}}, "parameters.temperature"),
        ({"inputs": "a", "parameters": {"temperature": "x"}}, "parameters.temperature"),
        ({"inputs": "a", "parameters": {"temperature": 1e-9}}, "temperature"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k"),
        ({"inputs": "a", "parameters": {"top_p": 0}}, "parameters.top_p"),
        ({"inputs": "a", "parameters": {"seed": -1}}, "parameters.seed"),
        ({"inputs": "a", "parameters": {"seed": 2**64}}, "parameters.seed"),
        ({"inputs": "a", "parameters": {"stop": [""]}}, "parameters.stop[0]"),
        ({"inputs": "a", "parameters": {"best_of": 2}}, "parameters.best_of"),
        ({"inputs": "a", "parameters": {"repetition_penalty": 1.1}}, "parameters.repetition_penalty"),
        ({"inputs": "a", "parameters": {"frequency_penalty": 0.1}}, "parameters.frequency_penalty"),
        ({"inputs": "a", "parameters": {"typical_p": 0.9}}, "parameters.typical_p"),
        ({"inputs": "a", "parameters": {"truncate": 5}}, "parameters.truncate"),
        ({"inputs": "a", "parameters": {"watermark": True}}, "parameters.watermark"),
        ({"inputs": "a", "parameters": {"top_n_tokens": 2}}, "parameters.top_n_tokens"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "a"}}}, "parameters.grammar"),
        ({"inputs": "a", "parameters": {"unknown": 1}}, "parameters.unknown"),
        (
            {"inputs": "a", "stream": True, "parameters": {"decoder_input_details": True}},
            "parameters.decoder_input_details",
        ),
    ],
)
def test_bad_requests_name_the_field(web: httpx.Client, body: dict[str, Any], field: str) -> None:
    for path in ("/generate", "/"):
        response = web.post(path, json=body)
        assert response.status_code == 422, response.text
        assert response.json()["error_type"] == "validation" and response.json()["error"].startswith(f"{field}: ")


def test_what_changes_nothing_is_accepted(web: httpx.Client) -> None:
    neutral = {
        "best_of": 1,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0,
        "typical_p": None,
        "truncate": None,
        "watermark": False,
        "top_n_tokens": 0,
        "grammar": None,
        "adapter_id": None,
        "stop": [],
    }
    assert generate(web, max_new_tokens=5, **neutral) == generate(web, max_new_tokens=5)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/tokenize"])
@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"inputs": "\xff"}', b'{"inputs": "\\ud800"}', b'{"inputs": "a", "parameters": NaN}']
)
def test_bodies_that_are_no_request_are_refused(web: httpx.Client, path: str, raw: bytes) -> None:
    response = web.post(path, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 422 and response.json()["error_type"] == "validation"


def test_a_full_queue_is_an_overload_with_the_time_to_come_back(llama_folder: Path) -> None:
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 240}}
    long = {"prompt": TEXT, "n": 20, "max_tokens": 240, "ignore_eos": True, "stream": True}
    with running("generation", model_folder=llama_folder, slots=1, max_queue_tokens=300) as server:
        runtime = server.server.runtime
        with httpx.Client(base_url=f"http://{runtime.address(runtime.ports.http)}", timeout=30) as web:
            with web.stream("POST", "/v1/completions", json=long) as response:
                lines = response.iter_lines()  # kept: httpx hangs up when it is dropped
                next(lines)
                refused = web.post("/generate", json=body)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error_type"] == "overloaded" and refused.json()["error"].startswith("inputs: ")
