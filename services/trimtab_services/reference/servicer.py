"""ReferenceService over the scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import grpc
import numpy as np

from trimtab.convert import (
    item_error_to_message,
    item_logprobs_to_message,
    logprobs_item_from_message,
    logprobs_options_from_message,
    logprobs_request_from_message,
    logprobs_result_to_message,
    priority_from_message,
    served_to_message,
    version_from_message,
)
from trimtab.errors import InvalidRequest, Reason, TrimtabError
from trimtab.types import (
    ItemLogProbs,
    LogProbsItem,
    LogProbsOptions,
    LogProbsResult,
    Priority,
    ServedModel,
    VersionRequirement,
)
from trimtab.v1 import reference_pb2, reference_pb2_grpc, types_pb2
from trimtab_services.reference.scorer import Options, Scored, TargetSequence
from trimtab_services.runtime.calls import rename_call
from trimtab_services.runtime.config import FrozenModelConfig
from trimtab_services.runtime.scheduler import Done, Scheduler
from trimtab_services.runtime.scoring import check_count, check_token_ids, compute_items
from trimtab_services.runtime.slots import ModelSlot
from trimtab_services.runtime.streams import answer_stream, charge_later_items

__all__ = ["ReferenceServicer"]


class ReferenceServicer(reference_pb2_grpc.ReferenceServiceServicer):
    """Computes per-token log-probs.

    Args:
        config: of the service.
        slot: holds the policy.
        scheduler: computes.
        charge: takes one request off a caller's quota, for each later item of a stream; raises where none is left.
    """

    def __init__(
        self,
        config: FrozenModelConfig,
        slot: ModelSlot,
        scheduler: Scheduler[TargetSequence, Scored],
        charge: Callable[[str], None],
    ) -> None:
        self._charge = charge
        self._config = config
        self._slot = slot
        self._scheduler = scheduler

    async def LogProbs(
        self, request: reference_pb2.LogProbsRequest, context: grpc.aio.ServicerContext
    ) -> reference_pb2.LogProbsResponse:
        """Computes every item and answers once, in the order of the request."""
        rename_call(request.request_id)
        asked = logprobs_request_from_message(request)
        result = await self._compute(
            asked.items, asked.model, asked.options, asked.priority, asked.version, asked.per_item_errors
        )
        return logprobs_result_to_message(result)

    async def LogProbsStream(
        self, request_iterator: AsyncIterator[reference_pb2.LogProbsStreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[reference_pb2.LogProbsStreamResponse]:
        """Computes sequences as they come and answers each as it is done, out of order."""
        answers = answer_stream(
            request_iterator,
            partial(self._answer, charge_later_items(self._charge)),
            most=self._config.max_items_per_request,
            item_deadline_s=self._config.default_deadline_s,
        )
        async for response in answers:
            yield response

    async def _compute(
        self,
        items: Sequence[LogProbsItem],
        model: str,
        options: LogProbsOptions,
        priority: Priority,
        version: VersionRequirement,
        per_item_errors: bool,
    ) -> LogProbsResult:
        check_count(len(items), self._config.max_items_per_request)
        served = self._slot.admit(model, version)

        def prepare(item: LogProbsItem) -> tuple[TargetSequence, int]:
            check_token_ids(item.token_ids, served)
            return TargetSequence(item.token_ids, item.start_index), len(item.token_ids)

        done = await compute_items(
            self._scheduler,
            items,
            prepare,
            group=Options(served, options.temperature, options.entropy, options.top_n),
            priority=priority,
            per_item_errors=per_item_errors,
        )
        return LogProbsResult(
            results=tuple(_item_logprobs(item, one) for item, one in zip(items, done, strict=True)),
            served=served.served,
            queue_ms=1000 * max((one.queue_s for one in done), default=0.0),
            compute_ms=1000 * sum({one.batch: one.compute_s for one in done}.values()),
        )

    async def _answer(
        self, charge: Callable[[], None], request: reference_pb2.LogProbsStreamRequest
    ) -> reference_pb2.LogProbsStreamResponse:
        """The answer to one sequence of a stream; its error is part of it."""
        item_id = request.item.item_id
        served, timing = ServedModel(), types_pb2.Timing()
        try:
            charge()
            if not item_id:
                raise InvalidRequest(
                    "item.item_id: must be set in a stream", reason=Reason.FIELD_MISSING, field="item.item_id"
                )
            found = await self._compute(
                [logprobs_item_from_message(request.item)],
                request.model,
                logprobs_options_from_message(request.options),
                priority_from_message(request.priority),
                version_from_message(request.version),
                False,
            )
            result = item_logprobs_to_message(found.results[0])
            served = found.served
            timing = types_pb2.Timing(queue_ms=found.queue_ms, compute_ms=found.compute_ms)
        except TrimtabError as error:
            result = reference_pb2.ItemLogProbs(item_id=item_id, error=item_error_to_message(error))
        return reference_pb2.LogProbsStreamResponse(result=result, served=served_to_message(served), timing=timing)


def _item_logprobs(item: LogProbsItem, done: Done[Scored]) -> ItemLogProbs:
    found = done.value
    if isinstance(found, TrimtabError):
        return ItemLogProbs(np.empty(0, np.float32), item_id=item.item_id, error=found)
    top = ()
    if found.top_ids is not None and found.top_logprobs is not None:
        top = tuple(
            (tuple(ids.tolist()), values) for ids, values in zip(found.top_ids, found.top_logprobs, strict=True)
        )
    return ItemLogProbs(found.logprobs, found.entropies, top, item.item_id)
