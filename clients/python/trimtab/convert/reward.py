"""Reward: what is scored or ranked, and what comes back."""

from __future__ import annotations

from trimtab.convert.shared import (
    each,
    floats,
    item_error_from_message,
    item_error_to_message,
    messages_from_message,
    messages_to_message,
    priority_from_message,
    priority_to_message,
    prompt_from_message,
    prompt_to_message,
    served_from_message,
    served_to_message,
    truncation_from_message,
    truncation_to_message,
    version_from_message,
    version_to_message,
)
from trimtab.errors import InternalError, InvalidRequest, Reason
from trimtab.types import ItemScore, RankRequest, RankResult, ScoreItem, ScoreRequest, ScoreResult
from trimtab.v1 import reward_pb2, types_pb2


def score_item_to_message(item: ScoreItem) -> reward_pb2.ScoreItem:
    """One thing to score."""
    message = reward_pb2.ScoreItem(item_id=item.item_id)
    if item.token_ids is not None:
        message.token_ids.ids.extend(item.token_ids)
    elif item.messages is not None:
        message.messages.CopyFrom(messages_to_message(item.messages))
    elif item.prompt is not None and item.completion is not None:
        message.pair.prompt.CopyFrom(prompt_to_message(item.prompt))
        if isinstance(item.completion, str):
            message.pair.text = item.completion
        else:
            message.pair.token_ids.ids.extend(item.completion)
    return message


def score_item_from_message(message: reward_pb2.ScoreItem) -> ScoreItem:
    """One thing to score, checked.

    Raises:
        InvalidRequest: names the wrong field.
    """
    match message.WhichOneof("input"):
        case "pair":
            pair = message.pair
            form = pair.WhichOneof("completion")
            if form is None:
                raise InvalidRequest(
                    "pair.completion: one of text, token_ids must be set",
                    reason=Reason.FIELD_MISSING,
                    field="pair.completion",
                )
            completion = pair.text if form == "text" else tuple(pair.token_ids.ids)
            return ScoreItem(item_id=message.item_id, prompt=prompt_from_message(pair.prompt), completion=completion)
        case "messages":
            return ScoreItem(item_id=message.item_id, messages=messages_from_message(message.messages))
        case "token_ids":
            return ScoreItem(item_id=message.item_id, token_ids=tuple(message.token_ids.ids))
        case _:
            return ScoreItem(item_id=message.item_id)  # refuses: no form is set


def score_request_to_message(request: ScoreRequest) -> reward_pb2.ScoreRequest:
    """A score request."""
    return reward_pb2.ScoreRequest(
        request_id=request.request_id,
        model=request.model,
        items=[score_item_to_message(item) for item in request.items],
        truncation=truncation_to_message(request.truncation),
        per_item_errors=request.per_item_errors,
        priority=priority_to_message(request.priority),
        version=version_to_message(request.version),
    )


def score_request_from_message(message: reward_pb2.ScoreRequest) -> ScoreRequest:
    """A score request, checked.

    Raises:
        InvalidRequest: names the first wrong field.
    """
    return ScoreRequest(
        request_id=message.request_id,
        model=message.model,
        items=each("items", message.items, score_item_from_message),
        truncation=truncation_from_message(message.truncation),
        per_item_errors=message.per_item_errors,
        priority=priority_from_message(message.priority),
        version=version_from_message(message.version),
    )


def item_score_to_message(score: ItemScore) -> reward_pb2.ItemScore:
    """The score of one item."""
    return reward_pb2.ItemScore(
        item_id=score.item_id,
        reward=score.reward,
        token_count=score.token_count,
        truncated_token_count=score.truncated_token_count,
        error=item_error_to_message(score.error) if score.error is not None else None,
        spread=score.spread,
        parts=score.parts,
    )


def item_score_from_message(message: reward_pb2.ItemScore) -> ItemScore:
    """The score of one item."""
    return ItemScore(
        reward=message.reward,
        token_count=message.token_count,
        truncated_token_count=message.truncated_token_count,
        item_id=message.item_id,
        error=item_error_from_message(message.error) if message.HasField("error") else None,
        spread=message.spread,
        parts=dict(message.parts),
    )


def score_result_to_message(result: ScoreResult) -> reward_pb2.ScoreResponse:
    """Scores in the order of the request."""
    return reward_pb2.ScoreResponse(
        scores=[item_score_to_message(score) for score in result.scores],
        served=served_to_message(result.served),
        timing=types_pb2.Timing(queue_ms=result.queue_ms, compute_ms=result.compute_ms),
    )


def score_result_from_message(message: reward_pb2.ScoreResponse) -> ScoreResult:
    """Scores in the order of the request."""
    return ScoreResult(
        scores=tuple(item_score_from_message(score) for score in message.scores),
        served=served_from_message(message.served),
        queue_ms=message.timing.queue_ms,
        compute_ms=message.timing.compute_ms,
    )


def rank_request_to_message(request: RankRequest) -> reward_pb2.RankRequest:
    """A rank request."""
    return reward_pb2.RankRequest(
        request_id=request.request_id,
        model=request.model,
        prompt=prompt_to_message(request.prompt),
        answers=request.answers,
        truncation=truncation_to_message(request.truncation),
        priority=priority_to_message(request.priority),
        version=version_to_message(request.version),
    )


def rank_request_from_message(message: reward_pb2.RankRequest) -> RankRequest:
    """A rank request, checked.

    Raises:
        InvalidRequest: names the wrong field.
    """
    return RankRequest(
        request_id=message.request_id,
        model=message.model,
        prompt=prompt_from_message(message.prompt),
        answers=tuple(message.answers),
        truncation=truncation_from_message(message.truncation),
        priority=priority_from_message(message.priority),
        version=version_from_message(message.version),
    )


def rank_result_to_message(result: RankResult) -> reward_pb2.RankResponse:
    """An order of answers."""
    return reward_pb2.RankResponse(
        scores=[item_score_to_message(score) for score in result.scores],
        order=result.order,
        pairwise_probabilities=result.pairwise_probabilities.ravel(),
        served=served_to_message(result.served),
        timing=types_pb2.Timing(queue_ms=result.queue_ms, compute_ms=result.compute_ms),
    )


def rank_result_from_message(message: reward_pb2.RankResponse) -> RankResult:
    """An order of answers.

    Raises:
        InternalError: the server broke the contract: other than K x K probabilities for K scores.
    """
    count = len(message.scores)
    if len(message.pairwise_probabilities) != count * count:
        raise InternalError(
            f"the server's reply: pairwise_probabilities: {len(message.pairwise_probabilities)} for {count} scores",
            field="pairwise_probabilities",
            value=len(message.pairwise_probabilities),
            limit=count * count,
        )
    return RankResult(
        scores=tuple(item_score_from_message(score) for score in message.scores),
        order=tuple(message.order),
        pairwise_probabilities=floats(message.pairwise_probabilities).reshape(count, count),
        served=served_from_message(message.served),
        queue_ms=message.timing.queue_ms,
        compute_ms=message.timing.compute_ms,
    )
