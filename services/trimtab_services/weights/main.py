"""`trimtab serve weights`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from trimtab.v1 import weights_pb2_grpc
from trimtab_services.runtime.server import Service, run_service
from trimtab_services.runtime.state import Runtime, State
from trimtab_services.weights.blobs import BlobRoutes
from trimtab_services.weights.catalog import Catalog
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_services.weights.lock import RENEW_S
from trimtab_services.weights.read_replica import ReadReplica
from trimtab_services.weights.servicer import WeightsServicer
from trimtab_services.weights.store import Store

__all__ = ["build", "serve"]

SERVICE = "trimtab.v1.WeightsService"


async def build(runtime: Runtime[WeightsServiceConfig]) -> Service:
    """Makes the service out of its runtime; opening the store refuses when another process writes to it."""
    config = runtime.config
    if config.read_only:
        replica = await asyncio.to_thread(ReadReplica, config.store)
        return _service(runtime, replica, config.refresh_s, replica.refresh, lambda: None)
    store = await asyncio.to_thread(
        partial(Store, config.store, blob_grace_s=config.blob_grace_s, keep_versions=config.keep_versions)
    )
    return _service(runtime, store, RENEW_S, store.renew_lock, store.close)


def _service(
    runtime: Runtime[WeightsServiceConfig],
    catalog: Catalog,
    every_s: float,
    keep: Callable[[], object],
    close: Callable[[], object],
) -> Service:
    """Args: `keep` is called every `every_s` seconds, `close` at the end; both may block."""
    config = runtime.config
    servicer = WeightsServicer(runtime, catalog)

    async def keep_up() -> None:
        await runtime.set_state(State.SERVICE_STATE_SERVING)
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(keep)

    async def end() -> None:
        await asyncio.to_thread(close)

    return Service(
        handlers=[partial(weights_pb2_grpc.add_WeightsServiceServicer_to_server, servicer)],
        routes=BlobRoutes(catalog, max_blob_bytes=config.max_blob_bytes, idle_s=config.blob_idle_s).routes(),
        background=[keep_up],
        close=end,
    )


def serve(config_file: Path | None, overrides: Mapping[str, object] | None = None) -> int:
    """Runs the service in the foreground; returns the exit code."""
    return run_service("weights", SERVICE, WeightsServiceConfig, build, config_file, overrides)
