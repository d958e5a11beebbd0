"""`trimtab serve reward`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from trimtab.v1 import reward_pb2_grpc
from trimtab_services.runtime.config import FrozenModelConfig
from trimtab_services.runtime.server import Service, run_service
from trimtab_services.runtime.state import Runtime

__all__ = ["serve"]


async def build(runtime: Runtime[FrozenModelConfig]) -> Service:
    """Makes the service out of its runtime; only here are torch and transformers imported."""
    from trimtab_models.loading import load_reward_model
    from trimtab_services.reward.scorer import Scorer, canary
    from trimtab_services.reward.servicer import RewardServicer
    from trimtab_services.runtime.frozen import BatchShapes, FrozenModelService
    from trimtab_services.runtime.slots import ModelSlot

    config = runtime.config
    load = partial(load_reward_model, dtype=config.dtype, device=config.device)
    slot = ModelSlot(config.model_name or "reward", load, canary)
    service = FrozenModelService(runtime, slot, Scorer(BatchShapes.of(config)).compute)
    servicer = RewardServicer(config, service)
    return Service(
        handlers=[partial(reward_pb2_grpc.add_RewardServiceServicer_to_server, servicer)],
        describe=service.describe,
        background=[service.follower.run],
        close=service.scheduler.close,
    )


def serve(config_file: Path | None, overrides: Mapping[str, object] | None = None) -> int:
    """Runs the service in the foreground; returns the exit code."""
    return run_service("reward", "trimtab.v1.RewardService", FrozenModelConfig, build, config_file, overrides)
