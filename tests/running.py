"""Real servers in this process: gRPC, health, HTTP and metrics on free ports, in an event loop of their own thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from trimtab.client import Client
from trimtab_services.runtime.server import Server

T = TypeVar("T")

FREE_PORTS = {f"{name}_port": 0 for name in ("grpc", "health", "http", "metrics")}


class RunningServer:
    """A started server; `target` is its gRPC address."""

    def __init__(self, config: Any, name: str, full_name: str, build: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.server: Server[Any] = self.run(self._start(config, name, full_name, build))
        runtime = self.server.runtime
        self.target = runtime.address(runtime.ports.grpc)
        self.metrics_url = f"http://{runtime.address(runtime.ports.metrics)}/metrics"

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def stop(self) -> None:
        self.run(self.server.drain())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)

    async def _start(self, config: Any, name: str, full_name: str, build: Any) -> Server[Any]:
        server = Server(config, name, full_name, build)
        await server.start()
        return server


@contextmanager
def running(kind: str, *, serving: bool = True, **settings: Any) -> Iterator[RunningServer]:
    """A generation, reward or reference service; waits until it serves unless told not to."""
    import importlib

    main = importlib.import_module(f"trimtab_services.{kind}.main")
    if kind == "generation":
        from trimtab_services.generation.config import GenerationConfig as Config
    elif kind == "reward":
        from trimtab_services.reward.config import RewardConfig as Config
    else:
        from trimtab_services.runtime.config import FrozenModelConfig as Config
    full_name = {
        "generation": "trimtab.v1.GenerationService",
        "reward": "trimtab.v1.RewardService",
        "reference": "trimtab.v1.ReferenceService",
    }[kind]
    config = Config(**{**FREE_PORTS, "drain_s": 5.0, **settings})
    server = RunningServer(config, kind, full_name, main.build)
    try:
        if serving:
            wait_serving(server)
        yield server
    finally:
        server.stop()


def wait_serving(server: RunningServer) -> None:
    deadline = time.monotonic() + 30
    while server.server.runtime.state_reason or server.server.runtime.state != 3:
        assert time.monotonic() < deadline, server.server.runtime.state_reason
        time.sleep(0.01)


def client(server: RunningServer, **options: Any) -> Client:
    return Client(server.target, timeout_s=30, **options)


__all__ = ["FREE_PORTS", "RunningServer", "client", "running", "wait_serving"]
