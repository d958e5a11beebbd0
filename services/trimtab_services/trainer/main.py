"""`trimtab serve trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from trimtab.v1 import info_pb2, trainer_pb2_grpc
from trimtab_services.runtime.server import Service, run_service
from trimtab_services.runtime.state import Runtime
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.events import EventStore
from trimtab_services.trainer.launchers import make_launcher
from trimtab_services.trainer.records import RunRecords
from trimtab_services.trainer.rollout_demand import demand_of
from trimtab_services.trainer.scaler import start_scaler
from trimtab_services.trainer.servicer import TrainerServicer
from trimtab_services.trainer.web import web_routes
from trimtab_services.trainer.works import RunWorks

__all__ = ["serve"]


async def build(runtime: Runtime[TrainerServiceConfig]) -> Service:
    """Makes the service out of its runtime."""
    config = runtime.config
    store = EventStore(config.directory.resolve() / "events.sqlite")
    launcher = await make_launcher(config, runtime.address(runtime.ports.grpc))
    records = RunRecords(store)
    works = RunWorks(runtime, records, launcher)
    servicer = TrainerServicer(runtime, records, launcher, works)
    scaler = await start_scaler(runtime, partial(demand_of, records))

    async def close() -> None:
        if scaler is not None:
            await scaler.stop(None)
        await works.close()
        await launcher.close()
        store.close()

    return Service(
        handlers=[partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, servicer)],
        describe=describe,
        routes=web_routes(runtime, records),
        background=[works.find_works],
        drain=works.stop_runs if config.stop_runs_on_drain else None,
        drain_s=config.stop_runs_s,
        close=close,
    )


def describe(response: info_pb2.GetInfoResponse) -> None:
    """GetInfo: the service has no models and no limits of its own."""


def serve(config_file: Path | None, overrides: Mapping[str, object] | None = None) -> int:
    """Runs the service in the foreground; returns the exit code."""
    return run_service("trainer", "trimtab.v1.TrainerService", TrainerServiceConfig, build, config_file, overrides)
