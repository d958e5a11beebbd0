"""`trimtab serve generation`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from trimtab.v1 import generation_pb2_grpc, info_pb2
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.runtime.info import InfoServicer
from trimtab_services.runtime.server import Service, run_service
from trimtab_services.runtime.state import Runtime

__all__ = ["serve"]


async def build(runtime: Runtime[GenerationConfig]) -> Service:
    """Makes the service out of its runtime; only here are torch and transformers imported."""
    from trimtab_services.generation.completions import Completions
    from trimtab_services.generation.http.routes import front_routes
    from trimtab_services.generation.policy import PolicyHolder
    from trimtab_services.generation.servicer import GenerationServicer
    from trimtab_services.runtime.replica import Follower

    policy = PolicyHolder(runtime)
    completions = Completions(runtime.config, policy, runtime.charge_tokens)
    follower = Follower(runtime, policy.load, model_name=policy.name)

    def describe(response: info_pb2.GetInfoResponse) -> None:
        policy.describe(response)
        response.models[0].channel = follower.channel
        response.models[0].channel_version = follower.channel_version
        response.models[0].last_swap_error = follower.last_swap_error

    info = InfoServicer(runtime, describe, has_http=True)
    return Service(
        handlers=[
            partial(generation_pb2_grpc.add_GenerationServiceServicer_to_server, GenerationServicer(completions))
        ],
        describe=describe,
        routes=front_routes(runtime.config, policy, completions, info.describe),
        background=[follower.run],
        close=policy.close,
    )


def serve(config_file: Path | None, overrides: Mapping[str, object] | None = None) -> int:
    """Runs the service in the foreground; returns the exit code."""
    return run_service("generation", "trimtab.v1.GenerationService", GenerationConfig, build, config_file, overrides)
