"""`trimtab serve labeling`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from trimtab.errors import Unavailable
from trimtab.v1 import labeling_pb2_grpc
from trimtab_services.labeling.config import LabelingServiceConfig
from trimtab_services.labeling.database import RETRY_AFTER_S, Database
from trimtab_services.labeling.hashing import Hashing
from trimtab_services.labeling.http import routes
from trimtab_services.labeling.servicer import LabelingServicer
from trimtab_services.runtime.server import Service, run_service
from trimtab_services.runtime.state import Runtime, State

__all__ = ["SERVICE", "build", "serve"]

SERVICE = "trimtab.v1.LabelingService"


async def build(runtime: Runtime[LabelingServiceConfig]) -> Service:
    """Makes the service out of its runtime."""
    config = runtime.config
    url = config.database.get_secret_value()
    database = Database(url, wait_s=config.database_wait_s, threads=config.database_threads)

    async def open_database() -> None:
        """Serves once the tables are there; a database that is away at the start is waited for."""
        while True:
            try:
                await asyncio.to_thread(database.migrate)
                break
            except Unavailable:
                await runtime.set_state(State.SERVICE_STATE_LOADING, "the database does not answer")
                await asyncio.sleep(RETRY_AFTER_S)
        await runtime.set_state(State.SERVICE_STATE_SERVING)

    async def close() -> None:
        await asyncio.to_thread(database.close)

    hashing = Hashing(database)
    servicer = LabelingServicer(runtime, database, hashing)
    return Service(
        handlers=[partial(labeling_pb2_grpc.add_LabelingServiceServicer_to_server, servicer)],
        routes=routes(
            config, database, hashing, lambda resource: runtime.metrics.quota_refusals.labels(resource).inc()
        ),
        background=[open_database],
        close=close,
    )


def serve(config_file: Path | None, overrides: Mapping[str, object] | None = None) -> int:
    """Runs the service in the foreground; returns the exit code."""
    return run_service("labeling", SERVICE, LabelingServiceConfig, build, config_file, overrides)
