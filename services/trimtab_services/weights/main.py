"""`trimtab serve weights`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from trimtab.v1 import weights_pb2_grpc
from trimtab_services.runtime.server import Service, run_service
from trimtab_services.runtime.state import Runtime, State
from trimtab_services.weights.blobs import BlobRoutes
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_services.weights.lock import RENEW_S
from trimtab_services.weights.servicer import WeightsServicer
from trimtab_services.weights.store import Store

__all__ = ["build", "serve"]

SERVICE = "trimtab.v1.WeightsService"


async def build(runtime: Runtime[WeightsServiceConfig]) -> Service:
    """Makes the service out of its runtime; opening the store refuses when another process writes to it."""
    config = runtime.config
    store = await asyncio.to_thread(
        partial(Store, config.store, blob_grace_s=config.blob_grace_s, keep_versions=config.keep_versions)
    )
    servicer = WeightsServicer(runtime, store)

    async def keep_lock() -> None:
        await runtime.set_state(State.SERVICE_STATE_SERVING)
        while True:
            await asyncio.sleep(RENEW_S)
            await asyncio.to_thread(store.renew_lock)

    async def close() -> None:
        await asyncio.to_thread(store.close)

    return Service(
        handlers=[partial(weights_pb2_grpc.add_WeightsServiceServicer_to_server, servicer)],
        routes=BlobRoutes(store, max_blob_bytes=config.max_blob_bytes, idle_s=config.blob_idle_s).routes(),
        background=[keep_lock],
        close=close,
    )


def serve(config_file: Path | None, overrides: Mapping[str, object] | None = None) -> int:
    """Runs the service in the foreground; returns the exit code."""
    return run_service("weights", SERVICE, WeightsServiceConfig, build, config_file, overrides)
