"""Every route of the fronts, with its scope, and the handler of the Open Inference Protocol's gRPC service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc.aio
from aiohttp import web

from trimtab.v1 import info_pb2
from trimtab_services.reward.fronts.bodies import (
    ModelsAnswer,
    OpenRLHFAnswer,
    OpenRLHFBody,
    RankAnswer,
    RankBody,
    ScoreAnswer,
    ScoreBody,
)
from trimtab_services.reward.fronts.inference.open_inference_pb2_grpc import (
    add_GRPCInferenceServiceServicer_to_server,
)
from trimtab_services.reward.fronts.inference_grpc import InferenceServicer
from trimtab_services.reward.fronts.inference_protocol import InferenceProtocol
from trimtab_services.reward.fronts.inference_rest import InferAnswer, InferBody, InferenceFront
from trimtab_services.reward.fronts.openapi import Operation, make_document, make_handler
from trimtab_services.reward.fronts.openrlhf import OpenRLHFFront
from trimtab_services.reward.fronts.scores import ScoreFront
from trimtab_services.reward.fronts.whole_texts import WholeTexts
from trimtab_services.reward.models import RewardModels
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.info import build_version
from trimtab_services.runtime.state import Runtime

__all__ = ["Fronts"]

_SCOPE = "score"

_OPERATIONS = (
    Operation("POST", "/v1/score", "Scores every item, in the order of the request.", ScoreAnswer, ScoreBody),
    Operation("POST", "/v1/rank", "Scores the answers to one prompt and orders them.", RankAnswer, RankBody),
    Operation("GET", "/v1/models", "All reward models, the default one first.", ModelsAnswer),
    Operation("POST", "/get_reward", "OpenRLHF's remote reward model.", OpenRLHFAnswer, OpenRLHFBody),
    Operation("POST", "/v2/models/{model}/infer", "The Open Inference Protocol.", InferAnswer, InferBody),
)


class Fronts:
    """All ways in beside the service's own gRPC.

    Args:
        runtime: of the server.
        models: by name.
        describe: fills in the service's part of GetInfo.
    """

    def __init__(
        self, runtime: Runtime[Any], models: RewardModels, describe: Callable[[info_pb2.GetInfoResponse], None]
    ) -> None:
        self._scores = ScoreFront(models, describe)
        whole_texts = WholeTexts(describe)
        self._openrlhf = OpenRLHFFront(models, whole_texts)
        self._protocol = InferenceProtocol(runtime, models, describe, whole_texts)

    @property
    def routes(self) -> list[Route]:
        """The HTTP routes."""
        document = make_document(_OPERATIONS, version=build_version())
        return [
            Route("POST", "/v1/score", self._scores.score, _SCOPE),
            Route("POST", "/v1/rank", self._scores.rank, _SCOPE),
            Route("GET", "/v1/models", self._scores.list_models, is_work=False),
            Route("GET", "/openapi.json", make_handler(document), is_work=False),
            Route("POST", "/get_reward", self._openrlhf.get_reward, _SCOPE),
            *self._inference_routes(),
        ]

    @property
    def add_to_server(self) -> Callable[[grpc.aio.Server], None]:
        """Adds the Open Inference Protocol to a gRPC server."""
        return partial(add_GRPCInferenceServiceServicer_to_server, InferenceServicer(self._protocol))

    def _inference_routes(self) -> list[Route]:
        front = InferenceFront(self._protocol)

        def told(path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Route:
            return Route("GET", path, handler, is_work=False)

        routes = [
            told("/v2", front.server),
            told("/v2/health/live", front.live),
            told("/v2/health/ready", front.ready),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                told(model, front.model),
                told(f"{model}/ready", front.model_ready),
                Route("POST", f"{model}/infer", front.infer, _SCOPE),
            ]
        return routes
