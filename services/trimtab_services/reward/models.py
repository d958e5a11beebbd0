"""All reward models of the service by name: what every way in asks, whatever it speaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab.errors import NotFound
from trimtab.types import RankRequest, RankResult, ScoreItem, ScoreRequest, ScoreResult
from trimtab.v1 import info_pb2
from trimtab_services.reward.base import Asked, Found, RewardModel
from trimtab_services.runtime.metrics import Metrics
from trimtab_services.runtime.scoring import check_count

__all__ = ["RewardModels"]


class RewardModels:
    """The models, the default one first.

    Args:
        models: at least one.
        max_items: most items of a request.
        metrics: where scores are counted.
    """

    def __init__(self, models: Sequence[RewardModel], *, max_items: int, metrics: Metrics) -> None:
        self._models = {model.name: model for model in models}
        self.default = models[0].name
        self.max_items = max_items
        self._metrics = metrics

    @property
    def names(self) -> tuple[str, ...]:
        """Of all models, the default one first."""
        return tuple(self._models)

    def named(self, name: str) -> RewardModel:
        """A model; an empty name is the default one.

        Raises:
            NotFound: there is none of that name.
        """
        model = self._models.get(name or self.default)
        if model is None:
            known = ", ".join(map(repr, self.names))
            raise NotFound(f"model: {name!r} is not served; served are {known}", field="model", value=name, limit=known)
        return model

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Scores every item, in order.

        Raises:
            NotFound: no such model.
            InvalidRequest: too many items.
            TrimtabError: of the model, or of the first wrong item where errors are not asked for item by item.
        """
        asked = Asked(request.truncation, request.priority, request.version, request.per_item_errors)
        return _result(await self._score(request.items, request.model, asked))

    async def rank(self, request: RankRequest) -> RankResult:
        """Scores the answers to one prompt and orders them, best first; equal ones keep their order.

        The probability that answer i beats answer j is sigmoid(r_i - r_j), the Bradley-Terry model that rewards are
        trained by (InstructGPT 3.5, equation 1).

        Raises:
            TrimtabError: as `score`.
        """
        items = [ScoreItem(prompt=request.prompt, completion=answer) for answer in request.answers]
        asked = Asked(request.truncation, request.priority, request.version)
        found = _result(await self._score(items, request.model, asked))
        rewards = np.array([score.reward for score in found.scores], dtype=np.float64)
        with np.errstate(over="ignore"):  # exp overflows to infinity, and the probability to 0, as it should
            probabilities = 1 / (1 + np.exp(rewards[None, :] - rewards[:, None]))
        return RankResult(
            scores=found.scores,
            order=tuple(sorted(range(len(items)), key=lambda index: (-rewards[index], index))),
            pairwise_probabilities=probabilities.astype(np.float32),
            served=found.served,
            queue_ms=found.queue_ms,
            compute_ms=found.compute_ms,
        )

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """Adds the models to GetInfo."""
        for model in self._models.values():
            model.describe(response)

    async def _score(self, items: Sequence[ScoreItem], name: str, asked: Asked) -> Found:
        check_count(len(items), self.max_items)
        found = await self.named(name).score(items, asked)
        scores = self._metrics.scores.labels(found.served.name)
        for score in found.scores:
            if score.error is None:
                scores.observe(score.reward)
        return found


def _result(found: Found) -> ScoreResult:
    return ScoreResult(found.scores, found.served, queue_ms=1000 * found.queue_s, compute_ms=1000 * found.compute_s)
