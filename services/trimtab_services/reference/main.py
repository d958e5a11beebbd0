"""`trimtab serve reference`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from trimtab.v1 import reference_pb2_grpc
from trimtab_models.memory import keep_freed_memory
from trimtab_services.runtime.config import FrozenModelConfig
from trimtab_services.runtime.server import Service, run_service
from trimtab_services.runtime.state import Runtime

__all__ = ["serve"]


async def build(runtime: Runtime[FrozenModelConfig]) -> Service:
    """Makes the service out of its runtime; only here are torch and transformers imported."""
    from trimtab_models.loading import load_policy
    from trimtab_services.reference.scorer import LogProbScorer, canary
    from trimtab_services.reference.servicer import ReferenceServicer
    from trimtab_services.runtime.frozen import BatchShapes, FrozenModelService
    from trimtab_services.runtime.slots import ModelSlot

    config = runtime.config
    load = partial(load_policy, dtype=config.dtype, device=config.device)
    slot = ModelSlot(config.model_name or "reference", load, canary)
    service = FrozenModelService(runtime, [(slot, config.source)], LogProbScorer(BatchShapes.of(config)).compute)
    servicer = ReferenceServicer(config, slot, service.scheduler, charge=runtime.quotas.charge_request)
    return Service(
        handlers=[partial(reference_pb2_grpc.add_ReferenceServiceServicer_to_server, servicer)],
        describe=service.describe,
        background=service.background,
        close=service.scheduler.close,
    )


def serve(config_file: Path | None, overrides: Mapping[str, object] | None = None) -> int:
    """Runs the service in the foreground; returns the exit code."""
    keep_freed_memory()
    return run_service("reference", "trimtab.v1.ReferenceService", FrozenModelConfig, build, config_file, overrides)
