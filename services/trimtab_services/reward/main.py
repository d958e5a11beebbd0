"""`trimtab serve reward`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from trimtab.v1 import reward_pb2_grpc
from trimtab_models.memory import keep_freed_memory
from trimtab_services.reward.config import RewardConfig
from trimtab_services.runtime.server import Service, run_service
from trimtab_services.runtime.state import Runtime

__all__ = ["serve"]


async def build(runtime: Runtime[RewardConfig]) -> Service:
    """Makes the service out of its runtime; only here are torch and transformers imported."""
    from trimtab_services.reward.building import Rewards
    from trimtab_services.reward.fronts.routes import Fronts
    from trimtab_services.reward.servicer import RewardServicer

    rewards = Rewards(runtime)
    servicer = RewardServicer(runtime.config, rewards.models, charge=runtime.quotas.charge_request)
    fronts = Fronts(runtime, rewards.models, rewards.describe)
    return Service(
        handlers=[partial(reward_pb2_grpc.add_RewardServiceServicer_to_server, servicer), fronts.add_to_server],
        routes=fronts.routes,
        describe=rewards.describe,
        background=rewards.background,
        close=rewards.close,
    )


def serve(config_file: Path | None, overrides: Mapping[str, object] | None = None) -> int:
    """Runs the service in the foreground; returns the exit code."""
    keep_freed_memory()
    return run_service("reward", "trimtab.v1.RewardService", RewardConfig, build, config_file, overrides)
