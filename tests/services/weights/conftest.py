"""A real weights service in this process: gRPC and HTTP on free ports, in an event loop of its own thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest
import yaml

from trimtab.client import Client
from trimtab.weights import TensorData, threads
from trimtab_services.runtime.server import Server
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_services.weights.main import SERVICE, build

if TYPE_CHECKING:
    from .s3 import S3

T = TypeVar("T")

Start = Callable[..., "RunningStore"]


class RunningStore:
    """A started service.

    Args:
        settings: of its configuration.
    """

    def __init__(self, **settings: Any) -> None:
        ports = {f"{name}_port": 0 for name in ("grpc", "health", "http", "metrics")}
        self._config = WeightsServiceConfig(**{**ports, "drain_s": 2.0, **settings})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self.run(self._start())
        runtime = self.server.runtime
        self.target = runtime.address(runtime.ports.grpc)
        self.http_url = runtime.http_url

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def stop(self) -> None:
        self.run(self.server.drain())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> Server[WeightsServiceConfig]:
        server = Server(self._config, "weights", SERVICE, build)
        await server.start()
        while not server.runtime.state_reason == "":
            await asyncio.sleep(0.005)
        return server


@pytest.fixture(autouse=True)
def several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are encoded, checked and decoded beside one another here, however few cores there are."""
    monkeypatch.setattr(threads, "_threads", lambda share: 4)


@contextmanager
def running(**settings: Any) -> Iterator[RunningStore]:
    store = RunningStore(**settings)
    try:
        yield store
    finally:
        store.stop()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningStore]:
    with running(store=str(tmp_path / "store"), sign_of_life_s=0.3) as store:
        yield store


@pytest.fixture
def client(service: RunningStore) -> Iterator[Client]:
    with Client(service.target, timeout_s=20) as connected:
        yield connected


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.yaml"
    tokens = {
        "writer-token": {"name": "writer", "scopes": ["weights.read", "weights.publish"]},
        "reader-token": {"name": "reader", "scopes": ["weights.read"]},
        "other-token": {"name": "other", "scopes": ["score"]},
    }
    path.write_text(yaml.safe_dump(tokens))
    return path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    from .s3 import serving  # s3fs takes half a second to import

    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    s3_server.heal()
    s3_server.set_clock_ahead(0)


def make_tensors(seed: int = 0) -> list[TensorData]:
    """Four tensors: F32, BF16 with an odd number of elements, a scalar and an empty one."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2**16, size=(3, 5), dtype=np.uint16)
    return [
        TensorData.from_array("weight", generator.normal(size=(7, 4)).astype(np.float32)),
        TensorData("embed.bf16", "BF16", (3, 5), memoryview(bits.tobytes())),
        TensorData.from_array("step", np.array(seed, dtype=np.int64)),
        TensorData.from_array("empty", np.zeros((0, 4), dtype=np.float32)),
    ]
