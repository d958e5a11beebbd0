"""A model service's follower against a real weights service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from trimtab.client import Client
from trimtab.errors import ModelFolderError
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import publish_version
from trimtab_models.loading import load_policy
from trimtab_models.versions import publish_folder
from trimtab_services.runtime.config import ModelServiceConfig, WeightsSource
from trimtab_services.runtime.replica import Follower, ModelVersion
from trimtab_services.runtime.state import Runtime, State

from .conftest import RunningStore, make_tensors, running

CHANNEL = "policy/latest"


class Loader:
    """Keeps what it was given; refuses versions of a set."""

    def __init__(self) -> None:
        self.bad: set[int] = set()
        self.loaded: list[tuple[int, bool]] = []
        self.tried: list[int] = []
        self.models: list[ModelVersion] = []

    async def load(self, model: ModelVersion) -> None:
        self.tried.append(model.version)
        if model.version in self.bad:
            raise ModelFolderError(f"version {model.version}: logits are not finite")
        self.loaded.append((model.version, model.same_weights))
        self.models.append(model)


def _config(target: str, directory: Path, token_file: Path | None = None) -> ModelServiceConfig:
    source = WeightsSource(address=target, channel=CHANNEL, token_file=token_file)
    return ModelServiceConfig(weights=source, cache_directory=directory)


@asynccontextmanager
async def following(config: ModelServiceConfig, loader: Loader) -> AsyncIterator[Follower]:
    follower = Follower(Runtime(config, "reward", "trimtab.v1.RewardService"), loader.load)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def _publish(client: Client, seed: int) -> int:
    return publish_version(client, make_tensors(seed), {}, channels=[CHANNEL]).version


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab_services.runtime.replica._FIRST_RETRY_S", 0.05)


def test_waits_swaps_and_survives_a_bad_version(client: Client, service: RunningStore, tmp_path: Path) -> None:
    loader = Loader()
    loader.bad = {2}

    async def scenario() -> None:
        async with following(_config(service.target, tmp_path / "cache"), loader) as follower:
            runtime = follower._runtime
            await until(lambda: runtime.state == State.SERVICE_STATE_WAITING_FOR_VERSION)
            await asyncio.to_thread(_publish, client, 0)
            await until(lambda: runtime.state == State.SERVICE_STATE_SERVING)
            assert (follower.version, follower.channel_version, follower.last_swap_error) == (1, 1, "")
            await asyncio.to_thread(_publish, client, 1)
            await until(lambda: loader.tried.count(2) >= 2)  # it is tried again
            assert (follower.version, follower.channel_version) == (1, 2)
            assert "logits are not finite" in follower.last_swap_error
            assert runtime.state == State.SERVICE_STATE_SERVING
            await asyncio.to_thread(_publish, client, 2)
            await until(lambda: follower.version == 3)
            assert follower.last_swap_error == ""
            await asyncio.to_thread(_publish, client, 2)  # the same weights: only the number moves
            await until(lambda: follower.version == 4)

    asyncio.run(scenario())
    assert loader.loaded == [(1, False), (3, False), (4, True)]
    weight = make_tensors(2)[0]
    assert torch.equal(loader.models[1].tensors()["weight"], torch.from_numpy(weight.array().copy()))


def test_first_version_that_is_bad_is_told(client: Client, service: RunningStore, tmp_path: Path) -> None:
    loader = Loader()
    loader.bad = {1}

    async def scenario() -> None:
        async with following(_config(service.target, tmp_path / "cache"), loader) as follower:
            await asyncio.to_thread(_publish, client, 0)
            await until(lambda: "not finite" in follower._runtime.state_reason)
            assert follower.version is None
            loader.bad = set()
            await until(lambda: follower.version == 1)

    asyncio.run(scenario())


def test_cache_is_bounded(client: Client, service: RunningStore, tmp_path: Path) -> None:
    loader = Loader()

    async def scenario() -> None:
        async with following(_config(service.target, tmp_path / "cache"), loader) as follower:
            for seed in range(5):
                version = await asyncio.to_thread(_publish, client, seed)
                await until(lambda version=version: follower.version == version)
                await asyncio.to_thread(loader.models[-1].folder)

    asyncio.run(scenario())
    assert len(list((tmp_path / "cache" / "blobs").glob("??/*"))) == 2  # one blob a version
    assert len(list((tmp_path / "cache" / "versions").iterdir())) == 2


def test_folder_of_a_version_loads(client: Client, service: RunningStore, tmp_path: Path, llama_folder: Path) -> None:
    loader = Loader()

    async def scenario() -> None:
        async with following(_config(service.target, tmp_path / "cache"), loader) as follower:
            await asyncio.to_thread(publish_folder, client, llama_folder, channels=[CHANNEL])
            await until(lambda: follower.version == 1)

    asyncio.run(scenario())
    model = load_policy(loader.models[0].folder())
    expected = load_policy(llama_folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_weights_service_that_restarts_is_found_again(tmp_path: Path, tokens_file: Path) -> None:
    loader = Loader()
    token_file = tmp_path / "token"
    token_file.write_text("reader-token\n")
    settings = {"store": str(tmp_path / "store"), "tokens_file": tokens_file}

    async def scenario() -> None:
        first = await asyncio.to_thread(RunningStore, **settings)
        port = first.server.runtime.ports.grpc
        async with following(_config(first.target, tmp_path / "cache", token_file), loader) as follower:
            await asyncio.to_thread(_publish_with_token, first.target, 0)
            await until(lambda: follower.version == 1)
            await asyncio.to_thread(first.stop)
            with running(**settings, grpc_port=port) as second:
                await asyncio.to_thread(_publish_with_token, second.target, 1)
                await until(lambda: follower.version == 2)

    asyncio.run(scenario())


def _publish_with_token(target: str, seed: int) -> None:
    with Client(target, token="writer-token") as client:
        publish_version(client, make_tensors(seed), {}, channels=[CHANNEL])


def test_roll_back_is_followed(client: Client, service: RunningStore, tmp_path: Path) -> None:
    loader = Loader()

    async def scenario() -> None:
        async with following(_config(service.target, tmp_path / "cache"), loader) as follower:
            for seed in range(2):
                await asyncio.to_thread(_publish, client, seed)
            await until(lambda: follower.version == 2)
            request = pb.SetChannelRequest(channel=CHANNEL, version=1, expected_previous_version=2)
            await asyncio.to_thread(client.set_channel, request)
            await until(lambda: follower.version == 1)

    asyncio.run(scenario())


def test_model_folder_is_version_0(llama_folder: Path) -> None:
    loader = Loader()

    async def scenario() -> None:
        config = ModelServiceConfig(model_folder=llama_folder)
        follower = Follower(Runtime(config, "reward", "trimtab.v1.RewardService"), loader.load)
        await follower.run()
        assert (follower.version, follower.channel) == (0, "")
        assert follower._runtime.state == State.SERVICE_STATE_SERVING

    asyncio.run(scenario())
    assert loader.loaded == [(0, False)]
    assert loader.models[0].folder() == llama_folder
    assert set(loader.models[0].tensors()) == set(load_policy(llama_folder).state_dict())


def test_wrong_model_folder_ends_the_work(tmp_path: Path) -> None:
    async def load(model: ModelVersion) -> None:
        load_policy(model.folder())

    async def scenario() -> None:
        config = ModelServiceConfig(model_folder=tmp_path / "none")
        await Follower(Runtime(config, "reward", "trimtab.v1.RewardService"), load).run()

    with pytest.raises(ModelFolderError):
        asyncio.run(scenario())
