"""`POST /v1/score`, `POST /v1/rank` and `GET /v1/models`: the service's own calls as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from trimtab.convert.shared import each, under
from trimtab.errors import TrimtabError
from trimtab.types import (
    ChatMessage,
    ItemScore,
    Priority,
    RankRequest,
    ScoreItem,
    ScoreRequest,
    ServedModel,
    TruncationSide,
    VersionRequirement,
)
from trimtab.v1 import info_pb2
from trimtab_services.reward.fronts.bodies import (
    ItemErrorAnswer,
    ItemScoreAnswer,
    Message,
    ModelAnswer,
    ModelsAnswer,
    RankAnswer,
    RankBody,
    ScoreAnswer,
    ScoreBody,
    ScoreItemBody,
    ServedAnswer,
    TimingAnswer,
    Version,
    parse_counted,
)
from trimtab_services.reward.models import RewardModels
from trimtab_services.runtime.calls import rename_call
from trimtab_services.runtime.json_body import read_json

__all__ = ["ScoreFront", "json_answer"]

Describe = Callable[[info_pb2.GetInfoResponse], None]


class ScoreFront:
    """Our own JSON.

    Args:
        models: by name.
        describe: fills in the service's part of GetInfo.
    """

    def __init__(self, models: RewardModels, describe: Describe) -> None:
        self._models = models
        self._describe = describe

    async def score(self, http: web.Request) -> web.Response:
        """Scores every item and answers once, in the order of the request."""
        body = parse_counted(ScoreBody, await read_json(http), "items", self._models.max_items)
        rename_call(body.request_id)
        found = await self._models.score(
            ScoreRequest(
                items=each("items", body.items, _item),
                model=body.model,
                truncation=TruncationSide(body.truncation),
                per_item_errors=body.per_item_errors,
                priority=Priority(body.priority),
                version=_version(body.version),
                request_id=body.request_id,
            )
        )
        return json_answer(
            ScoreAnswer(
                scores=[_score(score) for score in found.scores],
                served=_served(found.served),
                timing=TimingAnswer(queue_ms=found.queue_ms, compute_ms=found.compute_ms),
            )
        )

    async def rank(self, http: web.Request) -> web.Response:
        """Scores the answers to one prompt and orders them."""
        body = parse_counted(RankBody, await read_json(http), "answers", self._models.max_items)
        rename_call(body.request_id)
        found = await self._models.rank(
            RankRequest(
                prompt=_forms(body.prompt),
                answers=tuple(body.answers),
                model=body.model,
                truncation=TruncationSide(body.truncation),
                priority=Priority(body.priority),
                version=_version(body.version),
                request_id=body.request_id,
            )
        )
        return json_answer(
            RankAnswer(
                scores=[_score(score) for score in found.scores],
                order=found.order,
                pairwise_probabilities=found.pairwise_probabilities.tolist(),
                served=_served(found.served),
                timing=TimingAnswer(queue_ms=found.queue_ms, compute_ms=found.compute_ms),
            )
        )

    async def list_models(self, http: web.Request) -> web.Response:
        """All models, the default one first."""
        info = info_pb2.GetInfoResponse()
        self._describe(info)
        told = {model.served.name: model for model in info.models}
        return json_answer(ModelsAnswer(data=[self._model(name, told[name]) for name in self._models.names]))

    def _model(self, name: str, model: info_pb2.ModelInfo) -> ModelAnswer:
        return ModelAnswer(
            id=name,
            is_default=name == self._models.default,
            architecture=model.architecture,
            version=model.served.version,
            weights_digest=model.served.weights_digest,
            tokenizer_digest=model.served.tokenizer_digest,
            max_sequence_tokens=model.max_sequence_tokens,
        )


def json_answer(answer: BaseModel) -> web.Response:
    """An answer as JSON."""
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


def _item(item: ScoreItemBody) -> ScoreItem:
    return ScoreItem(
        item_id=item.item_id,
        prompt=_forms(item.prompt),
        completion=_forms(item.completion),
        messages=_forms(item.messages),
        token_ids=_forms(item.token_ids),
    )


def _forms(value: str | list[int] | list[Message] | None) -> Any:
    """A text, token ids or messages as the records have them."""
    if not isinstance(value, list):
        return value
    return tuple(
        ChatMessage(role=part.role, content=part.content) if isinstance(part, Message) else part for part in value
    )


def _version(version: Version) -> VersionRequirement:
    with under("version"):
        return VersionRequirement(exactly=version.exactly, at_least=version.at_least)


def _score(score: ItemScore) -> ItemScoreAnswer:
    return ItemScoreAnswer(
        item_id=score.item_id,
        reward=score.reward,
        token_count=score.token_count,
        truncated_token_count=score.truncated_token_count,
        spread=score.spread,
        parts=dict(score.parts),
        error=_error(score.error) if score.error is not None else None,
    )


def _error(error: TrimtabError) -> ItemErrorAnswer:
    return ItemErrorAnswer(
        reason=error.reason.value, message=error.message, field=error.field, value=error.value, limit=error.limit
    )


def _served(served: ServedModel) -> ServedAnswer:
    return ServedAnswer(
        name=served.name,
        version=served.version,
        weights_digest=served.weights_digest,
        tokenizer_digest=served.tokenizer_digest,
        chat_template_digest=served.chat_template_digest,
    )
