"""KEDA's external scaler: the number of generation replicas follows what runs want of them.

A ScaledObject's trigger is

    - type: external-push
      metadata:
        scalerAddress: trainer:50061
        targetQueuedRollouts: "32"     # rollouts, waiting or being generated, that one replica is good for

Generation is active while a run is in a stage that samples, so the replicas of `minReplicaCount: 0` come with the
stage's start and go after its end, not between two iterations. It is a server of its own, since KEDA sends no tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import grpc
import grpc.aio

from trimtab.errors import ConfigError
from trimtab_services.runtime.config import host_port
from trimtab_services.runtime.state import Runtime
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.externalscaler import externalscaler_pb2 as pb
from trimtab_services.trainer.externalscaler import externalscaler_pb2_grpc
from trimtab_services.trainer.rollout_demand import RolloutDemand

__all__ = ["ExternalScaler", "start_scaler"]

_METRIC = "queued_rollouts"
_TARGET = "targetQueuedRollouts"
_OF_KEDA = ("scalerAddress", "enableTLS", "unsafeSsl")
"""Keys that KEDA reads itself and passes on."""

_LOOK_S = 1.0


class ExternalScaler(externalscaler_pb2_grpc.ExternalScalerServicer):
    """`externalscaler.ExternalScaler` over the demand of the runs.

    Args:
        demand: says what runs want now.
        draining: ends the streams once it is set.
    """

    def __init__(self, demand: Callable[[], Awaitable[RolloutDemand]], draining: asyncio.Event) -> None:
        self._demand = demand
        self._draining = draining

    async def IsActive(self, request: pb.ScaledObjectRef, context: grpc.aio.ServicerContext) -> pb.IsActiveResponse:
        """Whether a run is in a stage that samples."""
        await _target(request.scalerMetadata, context)
        return pb.IsActiveResponse(result=(await self._demand()).is_active)

    async def StreamIsActive(
        self, request: pb.ScaledObjectRef, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.IsActiveResponse]:
        """The same, at once and whenever it changes."""
        await _target(request.scalerMetadata, context)
        told: bool | None = None
        while not self._draining.is_set():
            is_active = (await self._demand()).is_active
            if is_active != told:
                yield pb.IsActiveResponse(result=is_active)
                told = is_active
            await asyncio.sleep(_LOOK_S)

    async def GetMetricSpec(
        self, request: pb.ScaledObjectRef, context: grpc.aio.ServicerContext
    ) -> pb.GetMetricSpecResponse:
        """One metric, and the target that the trigger gives."""
        target = await _target(request.scalerMetadata, context)
        spec = pb.MetricSpec(metricName=_METRIC, targetSize=target, targetSizeFloat=target)
        return pb.GetMetricSpecResponse(metricSpecs=[spec])

    async def GetMetrics(
        self, request: pb.GetMetricsRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetMetricsResponse:
        """Rollouts that wait or are being generated."""
        await _target(request.scaledObjectRef.scalerMetadata, context)
        if request.metricName != _METRIC:
            await _refuse(context, f"metricName: {request.metricName!r} is unknown; there is {_METRIC}")
        rollouts = (await self._demand()).rollouts
        value = pb.MetricValue(metricName=_METRIC, metricValue=rollouts, metricValueFloat=rollouts)
        return pb.GetMetricsResponse(metricValues=[value])


async def start_scaler(
    runtime: Runtime[TrainerServiceConfig], demand: Callable[[], Awaitable[RolloutDemand]]
) -> grpc.aio.Server | None:
    """Starts the external scaler's server; None where the configuration has no `scaler_port`.

    Raises:
        ConfigError: the port is in use.
    """
    config = runtime.config
    if config.scaler_port is None:
        return None
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server(ExternalScaler(demand, runtime.draining), server)
    try:
        server.add_insecure_port(host_port(config.host, config.scaler_port))
    except RuntimeError as error:
        raise ConfigError(
            f"scaler_port {config.scaler_port} on {config.host}: {error}; stop what uses it, or choose another port",
            field="scaler_port",
            value=config.scaler_port,
        ) from None
    await server.start()
    return server


async def _target(metadata: Mapping[str, str], context: grpc.aio.ServicerContext) -> int:
    """The trigger's target; ends the call with INVALID_ARGUMENT where the metadata are wrong."""
    for key, value in metadata.items():
        if key != _TARGET and key not in _OF_KEDA:
            await _refuse(context, f"metadata: unknown key {key!r} (value {value!r}); allowed: {_TARGET}")
    value = metadata.get(_TARGET, "")
    if not value.isdecimal() or int(value) < 1:
        await _refuse(context, f"metadata: {_TARGET}: {value!r} must be a whole number, at least 1")
    return int(value)


async def _refuse(context: grpc.aio.ServicerContext, message: str) -> None:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
