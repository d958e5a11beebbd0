"""Reference: sequences whose log-probs are wanted, and their log-probs."""

from __future__ import annotations

from trimtab.convert.shared import (
    each,
    floats,
    item_error_from_message,
    item_error_to_message,
    priority_from_message,
    priority_to_message,
    served_from_message,
    served_to_message,
    under,
    version_from_message,
    version_to_message,
)
from trimtab.types import ItemLogProbs, LogProbsItem, LogProbsOptions, LogProbsRequest, LogProbsResult
from trimtab.v1 import reference_pb2, types_pb2


def logprobs_options_to_message(options: LogProbsOptions) -> reference_pb2.LogProbsOptions:
    """What is computed for each sequence."""
    return reference_pb2.LogProbsOptions(temperature=options.temperature, entropy=options.entropy, top_n=options.top_n)


def logprobs_options_from_message(message: reference_pb2.LogProbsOptions) -> LogProbsOptions:
    """What is computed for each sequence, checked; temperature 0 stands for 1."""
    with under("options"):
        return LogProbsOptions(temperature=message.temperature or 1.0, entropy=message.entropy, top_n=message.top_n)


def logprobs_item_to_message(item: LogProbsItem) -> reference_pb2.LogProbsItem:
    """One sequence."""
    return reference_pb2.LogProbsItem(item_id=item.item_id, token_ids=item.token_ids, start_index=item.start_index)


def logprobs_item_from_message(message: reference_pb2.LogProbsItem) -> LogProbsItem:
    """One sequence, checked; start index 0 stands for 1."""
    return LogProbsItem(
        item_id=message.item_id, token_ids=tuple(message.token_ids), start_index=message.start_index or 1
    )


def logprobs_request_to_message(request: LogProbsRequest) -> reference_pb2.LogProbsRequest:
    """A log-probs request."""
    return reference_pb2.LogProbsRequest(
        request_id=request.request_id,
        model=request.model,
        items=[logprobs_item_to_message(item) for item in request.items],
        options=logprobs_options_to_message(request.options),
        per_item_errors=request.per_item_errors,
        priority=priority_to_message(request.priority),
        version=version_to_message(request.version),
    )


def logprobs_request_from_message(message: reference_pb2.LogProbsRequest) -> LogProbsRequest:
    """A log-probs request, checked.

    Raises:
        InvalidRequest: names the first wrong field.
    """
    return LogProbsRequest(
        request_id=message.request_id,
        model=message.model,
        items=each("items", message.items, logprobs_item_from_message),
        options=logprobs_options_from_message(message.options),
        per_item_errors=message.per_item_errors,
        priority=priority_from_message(message.priority),
        version=version_from_message(message.version),
    )


def item_logprobs_to_message(item: ItemLogProbs) -> reference_pb2.ItemLogProbs:
    """The log-probs of one sequence."""
    return reference_pb2.ItemLogProbs(
        item_id=item.item_id,
        logprobs=item.logprobs,
        entropies=item.entropies if item.entropies is not None else (),
        top_tokens=[reference_pb2.TopTokens(token_ids=ids, logprobs=values) for ids, values in item.top_tokens],
        error=item_error_to_message(item.error) if item.error is not None else None,
    )


def item_logprobs_from_message(message: reference_pb2.ItemLogProbs) -> ItemLogProbs:
    """The log-probs of one sequence."""
    return ItemLogProbs(
        logprobs=floats(message.logprobs),
        entropies=floats(message.entropies) if message.entropies else None,
        top_tokens=tuple((tuple(top.token_ids), floats(top.logprobs)) for top in message.top_tokens),
        item_id=message.item_id,
        error=item_error_from_message(message.error) if message.HasField("error") else None,
    )


def logprobs_result_to_message(result: LogProbsResult) -> reference_pb2.LogProbsResponse:
    """Log-probs in the order of the request."""
    return reference_pb2.LogProbsResponse(
        results=[item_logprobs_to_message(item) for item in result.results],
        served=served_to_message(result.served),
        timing=types_pb2.Timing(queue_ms=result.queue_ms, compute_ms=result.compute_ms),
    )


def logprobs_result_from_message(message: reference_pb2.LogProbsResponse) -> LogProbsResult:
    """Log-probs in the order of the request."""
    return LogProbsResult(
        results=tuple(item_logprobs_from_message(item) for item in message.results),
        served=served_from_message(message.served),
        queue_ms=message.timing.queue_ms,
        compute_ms=message.timing.compute_ms,
    )
