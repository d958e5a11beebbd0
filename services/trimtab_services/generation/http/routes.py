"""Every route of the fronts."""

from __future__ import annotations

import math
from collections.abc import Callable

from trimtab.v1 import info_pb2
from trimtab_services.generation.completions import Completions
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.http.answering import Handler
from trimtab_services.generation.http.openai import OpenAIFront
from trimtab_services.generation.http.scoring import SequenceScorer
from trimtab_services.generation.http.tgi import TGIFront
from trimtab_services.generation.serving import Policy
from trimtab_services.runtime.auth import policy_of
from trimtab_services.runtime.http import Route

__all__ = ["front_routes"]

_SCOPE = policy_of("/trimtab.v1.GenerationService/Generate").scope


def front_routes(
    config: GenerationConfig,
    policy: Policy,
    completions: Completions,
    describe: Callable[[], info_pb2.GetInfoResponse],
    charge: Callable[[str, int], None],
) -> list[Route]:
    """The routes of both fronts.

    Args:
        config: of the service.
        policy: what is served.
        completions: samples.
        describe: GetInfo's answer now.
        charge: takes tokens off a caller's quota.
    """
    scorer = SequenceScorer(config, charge)
    openai = OpenAIFront(policy, completions, scorer, config.default_deadline_s)
    tgi = TGIFront(policy, completions, scorer, describe, config.default_deadline_s)

    def work(path: str, front: OpenAIFront | TGIFront, handler: Handler) -> Route:
        # the front keeps the deadline itself: it words the error, and ends a stream with it
        answering = front.answering
        return Route(
            "POST",
            path,
            answering.around(handler),
            scope=_SCOPE,
            deadline_s=math.inf,
            word_error=answering.error_answer,
        )

    return [
        Route("GET", "/info", tgi.info, is_work=False),  # in front of the server's own, which it holds
        work("/v1/completions", openai, openai.complete),
        work("/v1/chat/completions", openai, openai.chat),
        Route(
            "GET",
            "/v1/models",
            openai.answering.around(openai.models),
            is_work=False,
            word_error=openai.answering.error_answer,
        ),
        Route(
            "GET",
            "/v1/models/{model}",
            openai.answering.around(openai.model),
            is_work=False,
            word_error=openai.answering.error_answer,
        ),
        work("/generate", tgi, tgi.generate),
        work("/generate_stream", tgi, tgi.generate_stream),
        work("/", tgi, tgi.compatible),
        work("/tokenize", tgi, tgi.tokenize),
    ]
