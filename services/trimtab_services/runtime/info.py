"""InfoService: what a server is and takes, registered by every Trimtab server."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

import grpc.aio

from trimtab.v1 import info_pb2, info_pb2_grpc
from trimtab_services.runtime.state import Runtime

__all__ = ["InfoServicer", "build_version"]


@cache
def build_version() -> str:
    """Version of the installed `trimtab` distribution; `0` when it runs from a bare source tree."""
    try:
        return metadata.version("trimtab")
    except metadata.PackageNotFoundError:
        return "0"


class InfoServicer(info_pb2_grpc.InfoServiceServicer):
    """Answers GetInfo in every state.

    Args:
        runtime: gives name, state, limits of the server and its HTTP side.
        describe: the service's own part: fills in models, limits, device, load.
        has_http: whether the service has routes of its own on the HTTP side.
    """

    def __init__(
        self, runtime: Runtime[Any], describe: Callable[[info_pb2.GetInfoResponse], None], *, has_http: bool
    ) -> None:
        self._runtime = runtime
        self._describe = describe
        self._has_http = has_http

    async def GetInfo(
        self, request: info_pb2.GetInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> info_pb2.GetInfoResponse:
        """Describes the server."""
        return self.describe()

    def describe(self) -> info_pb2.GetInfoResponse:
        """The answer of GetInfo now."""
        runtime = self._runtime
        response = info_pb2.GetInfoResponse(
            service=runtime.full_name,
            replica=runtime.replica,
            state=runtime.state,
            state_reason=runtime.state_reason,
            build_version=build_version(),
            deterministic=runtime.config.deterministic,
            threads=runtime.config.threads,
            http_url=runtime.http_url if self._has_http else "",
        )
        response.limits.max_request_bytes = runtime.config.max_request_bytes
        response.limits.default_deadline_ms = round(runtime.config.default_deadline_s * 1000)
        self._describe(response)
        return response
