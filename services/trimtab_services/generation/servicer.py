"""GenerationService: the gRPC side of `completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from trimtab.convert import generate_request_from_message, generate_result_to_message
from trimtab.v1 import generation_pb2, generation_pb2_grpc
from trimtab_services.generation.completions import Completions
from trimtab_services.runtime.calls import rename_call

__all__ = ["GenerationServicer"]


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Samples completions from the policy.

    Args:
        completions: samples them.
    """

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Samples every prompt of the request; see the proto for the promises."""
        rename_call(request.request_id)
        async with aclosing(self._completions.sample(generate_request_from_message(request))) as results:
            async for result in results:
                yield generate_result_to_message(result)
