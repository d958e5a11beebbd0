"""Engine `tgi` in front of our own TGI front: what comes through is what the remote server itself would have said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from running import RunningServer, client, running, wait_serving
from trimtab.errors import (
    InvalidRequest,
    Overloaded,
    Reason,
    SequenceTooLong,
    TrimtabError,
    Unavailable,
    Unsupported,
    VersionUnavailable,
)
from trimtab.types import (
    Completion,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    GenerationPrompt,
    SamplingParams,
    VersionRequirement,
    VersionSpan,
)
from trimtab_models.tokenizer import decode, encode_document, load_tokenizer
from trimtab_services.generation.remote.host import seed_of

TEXT = "The quick brown fox"
REASONS = {"length": FinishReason.LENGTH, "eos_token": FinishReason.STOP, "stop_sequence": FinishReason.STOP}


@pytest.fixture(scope="module")
def remote(llama_folder: Path) -> Iterator[RunningServer]:
    with running("generation", model_folder=llama_folder, slots=4, deterministic=True) as server:
        yield server


@pytest.fixture(scope="module")
def near(remote: RunningServer, llama_folder: Path) -> Iterator[RunningServer]:
    with running("generation", engine="tgi", tgi=tgi(remote, llama_folder), slots=4) as server:
        yield server


def tgi(remote: RunningServer, folder: Path, **settings: Any) -> dict[str, Any]:
    return {"url": remote.server.runtime.http_url, "tokenizer_folder": folder, **settings}


def post(server: RunningServer, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(server.server.runtime.http_url + path, json=body, timeout=30)


def ids_of(folder: Path, text: str = TEXT) -> tuple[int, ...]:
    return tuple(encode_document(load_tokenizer(folder), text)[:-1])


def generate(server: RunningServer, **request: Any) -> list[GenerateResult]:
    with client(server) as connection:
        return list(connection.generate(GenerateRequest(**request)))


def refused(server: RunningServer, kind: type[TrimtabError], **request: Any) -> TrimtabError:
    with pytest.raises(kind) as found:
        generate(server, **request)
    return found.value


def asked_itself(remote: RunningServer, seed: int, **parameters: Any) -> dict[str, Any]:
    """What the remote server's front answers when it is asked without us."""
    parameters = {"do_sample": True, **parameters, "seed": seed, "details": True}
    response = post(remote, "/generate", {"inputs": TEXT, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    ("sampling", "parameters"),
    [
        ({}, {}),
        (
            {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "max_new_tokens": 30},
            {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "max_new_tokens": 30},
        ),
        ({"temperature": 0, "max_new_tokens": 12}, {"do_sample": False, "max_new_tokens": 12}),
        ({"stop_strings": ("e", "dog"), "max_new_tokens": 60}, {"stop": ["e", "dog"], "max_new_tokens": 60}),
    ],
)
def test_completions_are_those_of_the_remote_server(
    remote: RunningServer, near: RunningServer, llama_folder: Path, sampling: dict[str, Any], parameters: dict[str, Any]
) -> None:
    sampling = {"max_new_tokens": 20, **sampling}
    prompt = GenerationPrompt(prompt_id="p", prompt=ids_of(llama_folder), seed=2**63 + 5, num_samples=3)
    found = generate(near, prompts=(prompt,), sampling=SamplingParams(**sampling), return_text=True)
    completions = sorted((one.completion for one in found if one.completion), key=lambda one: one.sample_index)
    assert [one.sample_index for one in completions] == [0, 1, 2]
    for one in completions:
        seed = seed_of(2**63 + 5, one.sample_index)
        details = asked_itself(remote, seed, **{"max_new_tokens": 20, **parameters})["details"]
        same_as(one, details, llama_folder)


def same_as(one: Completion, details: dict[str, Any], folder: Path) -> None:
    assert one.token_ids == tuple(token["id"] for token in details["tokens"])
    assert one.logprobs.dtype == np.float32
    assert one.logprobs.tolist() == [np.float32(token["logprob"]) for token in details["tokens"]]
    assert one.finish_reason is REASONS[details["finish_reason"]]
    assert one.version_spans == (VersionSpan(0, len(one.token_ids), 0),)
    assert one.text == decode(load_tokenizer(folder), one.token_ids)
    assert one.prompt_token_count == len(ids_of(folder)) and one.compute_ms > 0


def test_each_sample_has_a_seed_of_its_own() -> None:
    assert seed_of(7, 0) == 7
    assert len({seed_of(seed, index) for seed in (0, 1, 2**64 - 1) for index in range(1000)}) == 3000
    assert all(0 <= seed_of(2**64 - 1, index) < 2**64 for index in range(1000))


@pytest.mark.parametrize("stop", [[], ["e"], ["dog", "s"]])
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_the_tgi_front_answers_as_the_remote_ones(
    remote: RunningServer, near: RunningServer, path: str, stop: list[str]
) -> None:
    for seed in range(3):
        parameters = {"do_sample": True, "seed": seed, "max_new_tokens": 40, "stop": stop, "details": True}
        body = {"inputs": TEXT, "parameters": parameters}
        assert post(near, path, body).text == post(remote, path, body).text
    assert post(near, "/tokenize", {"inputs": TEXT}).json() == post(remote, "/tokenize", {"inputs": TEXT}).json()


def test_the_openai_front_samples_there_too(remote: RunningServer, near: RunningServer) -> None:
    body = {"prompt": TEXT, "seed": 3, "max_tokens": 10, "logprobs": 0}
    (own,) = post(remote, "/v1/completions", body).json()["choices"]
    assert post(near, "/v1/completions", body).json()["choices"] == [own]
    two = post(near, "/v1/completions", {**body, "n": 2}).json()["choices"]
    second = asked_itself(remote, seed_of(3, 1), max_new_tokens=10)["generated_text"]
    assert [choice["text"] for choice in two] == [own["text"], second]
    streamed = post(near, "/v1/completions", {**body, "stream": True}).text
    assert streamed.endswith("data: [DONE]\n\n") and streamed.count("data: ") > 2


def test_what_needs_the_weights_is_refused(near: RunningServer) -> None:
    response = post(near, "/v1/completions", {"prompt": TEXT, "max_tokens": 2, "logprobs": 2})
    assert response.status_code == 400 and "no weights" in response.json()["error"]["message"]
    parameters = {"max_new_tokens": 2, "decoder_input_details": True}
    response = post(near, "/generate", {"inputs": TEXT, "parameters": parameters})
    assert response.status_code == 422 and "no weights" in response.json()["error"]


def test_info_tells_the_remote_model(remote: RunningServer, near: RunningServer, llama_folder: Path) -> None:
    with client(near) as connection:
        info = connection.info()
    (model,) = info.models
    assert (info.engine, info.device, info.limits.max_concurrent_sequences) == ("tgi", "", 4)
    assert (model.served.name, model.served.version, model.max_sequence_tokens) == ("policy", 0, 256)
    assert model.dtype == "float32" and tuple(model.eos_token_ids) == (1,)
    assert len(model.served.weights_digest) == 64 and model.served.tokenizer_digest
    shown = httpx.get(near.server.runtime.http_url + "/info").json()
    assert shown["model_id"] == str(llama_folder) and shown["model_sha"] == model.served.weights_digest


@pytest.mark.parametrize("version", [{"exactly": 0}, {"exactly": 3}, {"at_least": 1}])
def test_no_version_can_be_pinned(near: RunningServer, llama_folder: Path, version: dict[str, int]) -> None:
    prompt = GenerationPrompt(prompt_id="p", prompt=ids_of(llama_folder))
    began = time.monotonic()
    error = refused(
        near, VersionUnavailable, prompts=(prompt,), version=VersionRequirement(**version), max_wait_ms=20_000
    )
    assert "cannot change its weights" in error.message and error.metadata["served_version"] == "0"
    assert time.monotonic() - began < 10


def test_any_version_may_be_asked_for(near: RunningServer, llama_folder: Path) -> None:
    prompt = GenerationPrompt(prompt_id="p", prompt=ids_of(llama_folder))
    for version in (VersionRequirement(), VersionRequirement(at_least=0)):
        (found,) = generate(near, prompts=(prompt,), version=version, sampling=SamplingParams(max_new_tokens=2))
        assert found.completion is not None and found.served.version == 0


@pytest.mark.parametrize(("field", "value"), [("min_new_tokens", 2), ("stop_token_ids", (5,)), ("ignore_eos", True)])
def test_what_tgi_cannot_do_is_refused_by_name(
    near: RunningServer, llama_folder: Path, field: str, value: object
) -> None:
    prompt = GenerationPrompt(prompt_id="p", prompt=ids_of(llama_folder))
    error = refused(near, Unsupported, prompts=(prompt,), sampling=SamplingParams(**{field: value}))  # type: ignore[arg-type]
    assert error.field == f"sampling.{field}" and error.message.startswith(f"sampling.{field}: ")


def test_prompts_that_no_text_spells_are_refused_one_by_one(near: RunningServer, llama_folder: Path) -> None:
    prompts = (
        GenerationPrompt(prompt_id="good", prompt=ids_of(llama_folder)),
        GenerationPrompt(prompt_id="control", prompt=(*ids_of(llama_folder), 1)),  # our front takes its text for text
        GenerationPrompt(prompt_id="split", prompt=(*ids_of(llama_folder, "T"), *ids_of(llama_folder, "he"))),
        GenerationPrompt(prompt_id="template", prompt="needs control tokens"),
    )
    asked = {"prompts": prompts, "sampling": SamplingParams(max_new_tokens=2)}
    assert "prompts[1].prompt: " in refused(near, Unsupported, **asked).message
    found = {one.prompt_id: one for one in generate(near, per_item_errors=True, **asked)}
    assert found.pop("good").completion is not None
    assert {name: type(one.error) for name, one in found.items()} == dict.fromkeys(
        ("control", "split", "template"), Unsupported
    )


def test_what_does_not_fit_is_refused_here(near: RunningServer, llama_folder: Path) -> None:
    ids = ids_of(llama_folder)
    long = GenerationPrompt(prompt_id="p", prompt=ids, max_new_tokens=256)
    assert refused(near, SequenceTooLong, prompts=(long,)).limit == "256"
    outside = GenerationPrompt(prompt_id="p", prompt=(*ids, 999_999))
    error = refused(near, InvalidRequest, prompts=(outside,))
    assert error.reason is Reason.TOKEN_ID_OUT_OF_RANGE and error.field == f"prompts[0].prompt.token_ids[{len(ids)}]"


def test_it_waits_for_the_remote_server_and_comes_back_with_it(llama_folder: Path) -> None:
    prompt = GenerationPrompt(prompt_id="p", prompt=ids_of(llama_folder))
    asked = {"prompts": (prompt,), "sampling": SamplingParams(max_new_tokens=2)}
    with running("generation", model_folder=llama_folder, slots=2) as first:
        url, port = first.server.runtime.http_url, first.server.runtime.ports.http
        place = tgi(first, llama_folder)
    with running("generation", serving=False, engine="tgi", tgi=place, slots=2) as near:
        wait_for_state(near, 2)
        assert url in near.server.runtime.state_reason
        error = refused(near, Unavailable, **asked)
        assert url in error.message and error.reason is Reason.WAITING_FOR_VERSION
        for _ in range(2):
            with running("generation", model_folder=llama_folder, slots=2, http_port=port):
                wait_serving(near)
                assert generate(near, **asked)[0].completion is not None
            wait_for_state(near, 2)


def wait_for_state(server: RunningServer, state: int) -> None:
    deadline = time.monotonic() + 30
    while server.server.runtime.state != state:
        assert time.monotonic() < deadline, server.server.runtime.state_reason
        time.sleep(0.02)


def test_too_much_work_is_an_overload_here(remote: RunningServer, llama_folder: Path) -> None:
    ids = ids_of(llama_folder)
    long = GenerationPrompt(prompt_id="long", prompt=ids, num_samples=4, max_new_tokens=200)
    more = GenerationPrompt(prompt_id="more", prompt=ids, max_new_tokens=200)
    config = {"engine": "tgi", "tgi": tgi(remote, llama_folder), "slots": 1, "max_queue_tokens": 900}
    with running("generation", **config) as near, client(near) as connection:
        results = iter(connection.generate(GenerateRequest(prompts=(long,))))
        next(results)
        error = refused(near, Overloaded, prompts=(long, more))
        assert error.retry_after_s and error.limit == "900"
        assert len(list(results)) == 3
        assert len(generate(near, prompts=(more,))) == 1
