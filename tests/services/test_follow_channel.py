"""Model services that follow a channel of a real weights service over several publications."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from running import RunningServer, client, running
from trimtab.client import Client
from trimtab.errors import InternalError, VersionUnavailable
from trimtab.types import (
    GenerateRequest,
    GenerateResult,
    GenerationPrompt,
    SamplingParams,
    ServiceState,
    VersionRequirement,
)
from trimtab_models.loading import load_policy, load_reward_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_models.versions import publish_model

from .weights.conftest import RunningStore
from .weights.conftest import running as running_store

CHANNEL = "model/latest"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(store=str(tmp_path / "store")) as service:
        yield service


def publish(store: RunningStore, folder: Path, version: int, *, kind: str = "policy") -> None:
    """Float32 weights that differ from version to version."""
    model = load_policy(folder) if kind == "policy" else load_reward_model(folder)
    torch.manual_seed(version)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    with Client(store.target) as connection:
        assert publish_model(connection, model, load_tokenizer(folder), channels=[CHANNEL]).version == version


def source(store: RunningStore) -> dict[str, str]:
    return {"address": store.target, "channel": CHANNEL}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(version: int, *, tokens: int = 5, count: int = 1) -> GenerateRequest:
    prompts = tuple(GenerationPrompt(prompt_id=str(i), prompt=(5, 6), seed=i) for i in range(count))
    return GenerateRequest(
        prompts=prompts,
        sampling=SamplingParams(max_new_tokens=tokens, ignore_eos=True),
        version=VersionRequirement(exactly=version),
        max_wait_ms=20_000,
    )


def test_a_bfloat16_policy_swaps_without_writing_the_model_again(
    store: RunningStore, llama_folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    publish(store, llama_folder, 1)
    settings = {"weights": source(store), "cache_directory": cache, "dtype": "bfloat16", "slots": 2}
    with running("generation", **settings) as server, client(server) as connection:
        first = connection.info().models[0]
        for version in (2, 3, 4):
            publish(store, llama_folder, version)
            (result,) = connection.generate(ask(version))
            assert result.completion is not None
            assert [span.version for span in result.completion.version_spans] == [version]
        model = connection.info().models[0]
        assert (model.dtype, model.last_swap_error) == ("bfloat16", "")
        assert model.served.tokenizer_digest == first.served.tokenizer_digest
    assert list((cache / "versions").iterdir()) == []  # the first one's folder went when later ones came


def test_waiting_sequences_of_a_version_outlive_its_swap(store: RunningStore, llama_folder: Path) -> None:
    publish(store, llama_folder, 1)
    with running("generation", weights=source(store), slots=1) as server, client(server) as connection:
        results: list[GenerateResult] = []
        asking = threading.Thread(target=lambda: results.extend(connection.generate(ask(1, tokens=200, count=8))))
        asking.start()
        until(lambda: connection.info().load.waiting_items > 0)
        publish(store, llama_folder, 2)
        asking.join(30)
        assert [[span.version for span in one.completion.version_spans] for one in results if one.completion] == [
            [1]
        ] * 8
        until(lambda: connection.info().models[0].served.version == 2)
        with pytest.raises(VersionUnavailable):
            list(connection.generate(ask(1)))


def test_another_architecture_takes_over_while_the_old_one_ends_its_work(
    store: RunningStore, llama_folder: Path, gpt2_folder: Path
) -> None:
    publish(store, llama_folder, 1)
    with running("generation", weights=source(store), slots=1) as server, client(server) as connection:
        results: list[GenerateResult] = []
        asking = threading.Thread(target=lambda: results.extend(connection.generate(ask(1, tokens=200, count=8))))
        asking.start()
        until(lambda: connection.info().load.waiting_items > 0)
        publish(store, gpt2_folder, 2)
        (result,) = connection.generate(ask(2))
        assert result.completion is not None and [s.version for s in result.completion.version_spans] == [2]
        model = connection.info().models[0]
        assert (model.architecture, model.last_swap_error, model.served.version) == ("GPT2LMHeadModel", "", 2)
        asking.join(60)
        spans = [[span.version for span in one.completion.version_spans] for one in results if one.completion]
        assert spans == [[1]] * 8
        until(lambda: sum(thread.name == "engine" for thread in threading.enumerate()) == 1)
        publish(store, llama_folder, 3)  # and back
        (result,) = connection.generate(ask(3))
        assert result.completion is not None and connection.info().models[0].architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(("kind", "folder"), [("reward", "reward_folder"), ("generation", "llama_folder")])
def test_a_swap_counts_once_under_the_models_name(
    kind: str, folder: str, store: RunningStore, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(folder)
    published = "reward" if kind == "reward" else "policy"
    publish(store, path, 1, kind=published)
    with running(kind, weights=source(store), dtype="bfloat16") as server, client(server) as connection:
        publish(store, path, 2, kind=published)
        until(lambda: connection.info().models[0].served.version == 2)
        until(lambda: f'trimtab_swap_total{{model="{published}",outcome="ok"}} 2.0' in metrics(server))
        text = metrics(server)
    assert f'trimtab_model_version{{model="{published}"}} 2.0' in text
    assert [line for line in text.splitlines() if line.startswith("trimtab_swap_total") and published not in line] == []


def metrics(server: RunningServer) -> str:
    return urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()


def test_a_generation_service_whose_engine_failed_says_so(llama_folder: Path) -> None:
    with running("generation", model_folder=llama_folder, slots=2) as server, client(server) as connection:
        policy = server.server._service.close.__self__  # type: ignore[union-attr]
        server.run(policy.host.call(lambda engine: engine.model.register_forward_pre_hook(_lose_device)))
        request = GenerateRequest(prompts=(GenerationPrompt(prompt_id="a", prompt=(5, 6)),))
        with pytest.raises(InternalError, match="device lost"):
            list(connection.generate(request))
        until(lambda: connection.info().state is ServiceState.FAILED)
        assert "device lost" in connection.info().state_reason
        assert not connection.health("readiness") and not connection.health("liveness")
        with pytest.raises(InternalError, match=r"has failed and serves no more: .*device lost"):
            list(connection.generate(request))


def _lose_device(*args: object) -> None:
    raise RuntimeError("device lost")
