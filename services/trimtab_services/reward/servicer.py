"""RewardService over the models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

import grpc

from trimtab.convert import (
    item_error_to_message,
    item_score_to_message,
    priority_from_message,
    rank_request_from_message,
    rank_result_to_message,
    score_item_from_message,
    score_request_from_message,
    score_result_to_message,
    served_to_message,
    truncation_from_message,
    version_from_message,
)
from trimtab.errors import InvalidRequest, Reason, TrimtabError
from trimtab.types import ScoreRequest, ServedModel
from trimtab.v1 import reward_pb2, reward_pb2_grpc, types_pb2
from trimtab_services.reward.models import RewardModels
from trimtab_services.runtime.calls import rename_call
from trimtab_services.runtime.config import FrozenModelConfig
from trimtab_services.runtime.streams import answer_stream, charge_later_items

__all__ = ["RewardServicer"]


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Scores completions.

    Args:
        config: of the service.
        models: by name.
        charge: takes one request off a caller's quota, for each later item of a stream; raises where none is left.
    """

    def __init__(
        self,
        config: FrozenModelConfig,
        models: RewardModels,
        charge: Callable[[str], None],
    ) -> None:
        self._config = config
        self._models = models
        self._charge = charge

    async def Score(
        self, request: reward_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        """Scores every item and answers once, in the order of the request."""
        rename_call(request.request_id)
        return score_result_to_message(await self._models.score(score_request_from_message(request)))

    async def ScoreStream(
        self, request_iterator: AsyncIterator[reward_pb2.ScoreStreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[reward_pb2.ScoreStreamResponse]:
        """Scores items as they come and answers each as it is done, out of order."""
        answers = answer_stream(
            request_iterator,
            partial(self._answer, charge_later_items(self._charge)),
            most=self._config.max_items_per_request,
            item_deadline_s=self._config.default_deadline_s,
        )
        async for response in answers:
            yield response

    async def Rank(self, request: reward_pb2.RankRequest, context: grpc.aio.ServicerContext) -> reward_pb2.RankResponse:
        """Scores the answers to one prompt and orders them."""
        rename_call(request.request_id)
        return rank_result_to_message(await self._models.rank(rank_request_from_message(request)))

    async def _answer(
        self, charge: Callable[[], None], request: reward_pb2.ScoreStreamRequest
    ) -> reward_pb2.ScoreStreamResponse:
        """The answer to one item of a stream; its error is part of it."""
        item_id = request.item.item_id
        served, timing = ServedModel(), types_pb2.Timing()
        try:
            charge()
            if not item_id:
                raise InvalidRequest(
                    "item.item_id: must be set in a stream", reason=Reason.FIELD_MISSING, field="item.item_id"
                )
            asked = ScoreRequest(
                items=(score_item_from_message(request.item),),
                model=request.model,
                truncation=truncation_from_message(request.truncation),
                priority=priority_from_message(request.priority),
                version=version_from_message(request.version),
            )
            found = await self._models.score(asked)
            score = item_score_to_message(found.scores[0])
            served = found.served
            timing = types_pb2.Timing(queue_ms=found.queue_ms, compute_ms=found.compute_ms)
        except TrimtabError as error:
            score = reward_pb2.ItemScore(item_id=item_id, error=item_error_to_message(error))
        return reward_pb2.ScoreStreamResponse(score=score, served=served_to_message(served), timing=timing)
