"""RewardService over the scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
import numpy as np

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
from trimtab.types import (
    ItemScore,
    Priority,
    RankResult,
    ScoreItem,
    ScoreResult,
    ServedModel,
    TruncationSide,
    VersionRequirement,
)
from trimtab.v1 import reward_pb2, reward_pb2_grpc, types_pb2
from trimtab_services.reward.scorer import TokenSequence, sequence_of
from trimtab_services.runtime.calls import rename_call
from trimtab_services.runtime.config import FrozenModelConfig
from trimtab_services.runtime.frozen import FrozenModelService
from trimtab_services.runtime.scheduler import Done
from trimtab_services.runtime.scoring import check_count, compute_items
from trimtab_services.runtime.streams import answer_stream

__all__ = ["RewardServicer"]


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Scores completions.

    Args:
        config: of the service.
        service: slot and scheduler.
    """

    def __init__(self, config: FrozenModelConfig, service: FrozenModelService) -> None:
        self._config = config
        self._service = service

    async def Score(
        self, request: reward_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        """Scores every item and answers once, in the order of the request."""
        rename_call(request.request_id)
        asked = score_request_from_message(request)
        result = await self._score(
            asked.items, asked.model, asked.truncation, asked.priority, asked.version, asked.per_item_errors
        )
        return score_result_to_message(result)

    async def ScoreStream(
        self, request_iterator: AsyncIterator[reward_pb2.ScoreStreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[reward_pb2.ScoreStreamResponse]:
        """Scores items as they come and answers each as it is done, out of order."""
        answers = answer_stream(
            request_iterator,
            self._answer,
            most=self._config.max_items_per_request,
            item_deadline_s=self._config.default_deadline_s,
        )
        async for response in answers:
            yield response

    async def Rank(self, request: reward_pb2.RankRequest, context: grpc.aio.ServicerContext) -> reward_pb2.RankResponse:
        """Scores the answers to one prompt and orders them."""
        rename_call(request.request_id)
        asked = rank_request_from_message(request)
        items = [ScoreItem(prompt=asked.prompt, completion=answer) for answer in asked.answers]
        found = await self._score(items, asked.model, asked.truncation, asked.priority, asked.version, False)
        rewards = np.array([score.reward for score in found.scores], dtype=np.float64)
        order = sorted(range(len(items)), key=lambda index: (-rewards[index], index))
        with np.errstate(over="ignore"):  # exp overflows to infinity, and the probability to 0, as it should
            probabilities = 1 / (1 + np.exp(rewards[None, :] - rewards[:, None]))
        return rank_result_to_message(
            RankResult(
                scores=found.scores,
                order=tuple(order),
                pairwise_probabilities=probabilities.astype(np.float32),
                served=found.served,
                queue_ms=found.queue_ms,
                compute_ms=found.compute_ms,
            )
        )

    async def _score(
        self,
        items: Sequence[ScoreItem],
        model: str,
        truncation: TruncationSide,
        priority: Priority,
        version: VersionRequirement,
        per_item_errors: bool,
    ) -> ScoreResult:
        check_count(len(items), self._config.max_items_per_request)
        served = self._service.slot.admit(model, version)
        sequences: dict[int, TokenSequence] = {}

        def prepare(item: ScoreItem) -> tuple[TokenSequence, int]:
            sequence = sequence_of(item, served, truncation)
            sequences[id(item)] = sequence
            return sequence, len(sequence.token_ids)

        done = await compute_items(
            self._service.scheduler, items, prepare, group=served, priority=priority, per_item_errors=per_item_errors
        )
        scores = tuple(_item_score(item, one, sequences.get(id(item))) for item, one in zip(items, done, strict=True))
        return ScoreResult(
            scores=scores,
            served=served.served,
            queue_ms=1000 * max((one.queue_s for one in done), default=0.0),
            compute_ms=1000 * sum({one.batch: one.compute_s for one in done}.values()),
        )

    async def _answer(self, request: reward_pb2.ScoreStreamRequest) -> reward_pb2.ScoreStreamResponse:
        """The answer to one item of a stream; its error is part of it."""
        item_id = request.item.item_id
        served, timing = ServedModel(), types_pb2.Timing()
        try:
            if not item_id:
                raise InvalidRequest(
                    "item.item_id: must be set in a stream", reason=Reason.FIELD_MISSING, field="item.item_id"
                )
            found = await self._score(
                [score_item_from_message(request.item)],
                request.model,
                truncation_from_message(request.truncation),
                priority_from_message(request.priority),
                version_from_message(request.version),
                False,
            )
            score = item_score_to_message(found.scores[0])
            served = found.served
            timing = types_pb2.Timing(queue_ms=found.queue_ms, compute_ms=found.compute_ms)
        except TrimtabError as error:
            score = reward_pb2.ItemScore(item_id=item_id, error=item_error_to_message(error))
        return reward_pb2.ScoreStreamResponse(score=score, served=served_to_message(served), timing=timing)


def _item_score(item: ScoreItem, done: Done[float], sequence: TokenSequence | None) -> ItemScore:
    if isinstance(done.value, TrimtabError):
        return ItemScore(0.0, 0, item_id=item.item_id, error=done.value)
    return ItemScore(
        reward=done.value,
        token_count=len(sequence.token_ids) if sequence else 0,
        truncated_token_count=sequence.truncated if sequence else 0,
        item_id=item.item_id,
    )
