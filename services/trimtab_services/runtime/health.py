"""Health over `grpc.health.v1`, under the names that kubelet and load balancers ask for.

startup     SERVING once the process has left LOADING; waiting for a first version counts as started
liveness    the process itself, never its peers: NOT_SERVING only in state FAILED, so that it is restarted
readiness   SERVING only in state SERVING: a verified model is loaded and the server does not drain
"" and the service's full name: as readiness
"""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health, health_pb2

from trimtab.v1 import info_pb2

__all__ = ["HealthBoard"]

_UP = health_pb2.HealthCheckResponse.SERVING
_DOWN = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthBoard:
    """The health of one server.

    Args:
        full_name: full name of its gRPC service.

    Attributes:
        servicer: answers Check and Watch.
    """

    def __init__(self, full_name: str) -> None:
        asyncio_health: Any = vars(health)["aio"]  # put there at run time: type checkers do not see it
        self.servicer = asyncio_health.HealthServicer()
        self._ready_names = ("", full_name, "readiness")
        self._started = False

    async def follow(self, state: info_pb2.ServiceState.ValueType) -> None:
        """Sets every name as the state demands."""
        self._started = self._started or state != info_pb2.SERVICE_STATE_LOADING
        ready = state == info_pb2.SERVICE_STATE_SERVING
        answers = dict.fromkeys(self._ready_names, ready)
        answers["startup"] = self._started
        answers["liveness"] = state != info_pb2.SERVICE_STATE_FAILED
        for name, up in answers.items():
            await self.servicer.set(name, _UP if up else _DOWN)
