"""`trimtab serve generation`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.v1 import generation_pb2_grpc, info_pb2
from trimtab_models.memory import keep_freed_memory
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.runtime.info import InfoServicer
from trimtab_services.runtime.server import Service, run_service
from trimtab_services.runtime.state import Runtime

if TYPE_CHECKING:
    from trimtab_services.generation.serving import Policy

__all__ = ["serve"]


async def build(runtime: Runtime[GenerationConfig]) -> Service:
    """Makes the service out of its runtime; only here are torch and transformers imported."""
    return _remote(runtime) if runtime.config.engine == "tgi" else _embedded(runtime)


def _embedded(runtime: Runtime[GenerationConfig]) -> Service:
    """The policy runs in this process; its weights come from a folder, or follow a channel."""
    if runtime.config.engine == "vllm":
        from trimtab_services.generation.engines.vllm.installed import prepare_vllm

        prepare_vllm()  # a missing one is told now, not with the first version
    from trimtab_services.generation.policy import PolicyHolder
    from trimtab_services.runtime.replica import Follower

    policy = PolicyHolder(runtime)
    follower = Follower(runtime, policy.load, model_name=policy.name)

    def describe(response: info_pb2.GetInfoResponse) -> None:
        policy.describe(response)
        response.models[0].channel = follower.channel
        response.models[0].channel_version = follower.channel_version
        response.models[0].last_swap_error = follower.last_swap_error

    return _service(runtime, policy, describe, background=follower.run, close=policy.close)


def _remote(runtime: Runtime[GenerationConfig]) -> Service:
    """The policy runs elsewhere, and its weights never change."""
    from trimtab_services.generation.remote.policy import RemotePolicy

    policy = RemotePolicy(runtime)
    return _service(runtime, policy, policy.describe, background=policy.run, close=policy.close)


def _service(
    runtime: Runtime[GenerationConfig],
    policy: Policy,
    describe: Callable[[info_pb2.GetInfoResponse], None],
    *,
    background: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
) -> Service:
    """The gRPC side and the fronts around a policy."""
    from trimtab_services.generation.completions import Completions
    from trimtab_services.generation.http.routes import front_routes
    from trimtab_services.generation.servicer import GenerationServicer

    completions = Completions(runtime.config, policy, runtime.charge_tokens)
    info = InfoServicer(runtime, describe, has_http=True)
    return Service(
        handlers=[
            partial(generation_pb2_grpc.add_GenerationServiceServicer_to_server, GenerationServicer(completions))
        ],
        describe=describe,
        routes=front_routes(runtime.config, policy, completions, info.describe, runtime.charge_tokens),
        background=[background],
        close=close,
    )


def serve(config_file: Path | None, overrides: Mapping[str, object] | None = None) -> int:
    """Runs the service in the foreground; returns the exit code."""
    keep_freed_memory()
    return run_service("generation", "trimtab.v1.GenerationService", GenerationConfig, build, config_file, overrides)
