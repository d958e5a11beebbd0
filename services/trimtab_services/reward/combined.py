"""Models made of other models: ensembles with their spread, and declared formulas."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from simpleeval import InvalidExpression, SimpleEval

from trimtab.errors import InternalError, InvalidRequest, Reason, TrimtabError
from trimtab.types import ItemScore, ScoreItem, ServedModel, VersionRequirement
from trimtab.v1 import info_pb2
from trimtab_services.reward.base import Asked, Found, RewardModel, checked_reward, failed_score, refuse_version
from trimtab_services.reward.config import FORMULA_FUNCTIONS, EnsembleConfig, FormulaConfig, formula_variables
from trimtab_services.runtime.scoring import at_item

__all__ = ["Ensemble", "Formula"]


class _Combined(ABC):
    """Asks its parts at once and makes one reward of theirs, item by item."""

    def __init__(self, name: str, kind: str, parts: Sequence[RewardModel]) -> None:
        self.name = name
        self._kind = kind
        self._parts = parts

    async def score(self, items: Sequence[ScoreItem], asked: Asked) -> Found:
        """Scores items; see `base.RewardModel`.

        Raises:
            VersionUnavailable: a version is required; parts have versions, what is made of them has none.
            TrimtabError: of the first part that fails.
        """
        refuse_version(self.name, asked.version)
        of_parts = await _together(self._parts, items, replace(asked, version=VersionRequirement()))
        scores = [self._combine(item, index, of_parts) for index, item in enumerate(items)]
        failed = next((score.error for score in scores if score.error is not None), None)
        if failed is not None and not asked.per_item_errors:
            raise failed
        digests = "".join(f"{found.served.name} {found.served.weights_digest}\n" for found in of_parts)
        return Found(
            scores=tuple(scores),
            served=ServedModel(name=self.name, weights_digest=hashlib.sha256(digests.encode()).hexdigest()),
            completion_tokens=tuple(map(_most, zip(*(found.completion_tokens for found in of_parts), strict=True))),
            queue_s=max(found.queue_s for found in of_parts),
            compute_s=max(found.compute_s for found in of_parts),
        )

    def token_ids(self, text: str, *, control_tokens: bool) -> tuple[int, ...]:
        """Token ids of a whole text, the same for all parts; see `base.RewardModel`.

        Raises:
            InvalidRequest: a part reads no whole texts, or two parts cut it into different tokens.
        """
        found = {part.token_ids(text, control_tokens=control_tokens) for part in self._parts}
        if len(found) > 1:
            raise InvalidRequest(
                f"the parts of {self.name!r} cut text into different tokens; send a prompt and a completion"
            )
        return found.pop()

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """Adds the model, named by how it is made."""
        model = response.models.add()
        model.served.name = self.name
        model.architecture = self._kind

    def _combine(self, item: ScoreItem, index: int, of_parts: Sequence[Found]) -> ItemScore:
        scores = [found.scores[index] for found in of_parts]
        failed = next((score.error for score in scores if score.error is not None), None)
        if failed is not None:
            return failed_score(item, failed)
        rewards = {found.served.name: score.reward for found, score in zip(of_parts, scores, strict=True)}
        tokens = max(score.token_count for score in scores)
        known = {
            "tokens": tokens or None,
            "completion_tokens": _most(found.completion_tokens[index] for found in of_parts),
            "completion_characters": _completion_characters(item),
        }
        try:
            reward, spread = self._reward(rewards, known)
            checked = checked_reward(reward)
        except TrimtabError as error:
            spread, checked = 0.0, error
        if isinstance(checked, TrimtabError):
            return failed_score(item, at_item(index, checked))
        return ItemScore(
            reward=checked,
            token_count=tokens,
            truncated_token_count=max(score.truncated_token_count for score in scores),
            item_id=item.item_id,
            spread=spread,
            parts=rewards,
        )

    @abstractmethod
    def _reward(self, rewards: Mapping[str, float], known: Mapping[str, float | None]) -> tuple[float, float]:
        """Reward and spread of an item, from the rewards of the parts and what else is known of it.

        Raises:
            TrimtabError: there is none.
        """


class Ensemble(_Combined):
    """The mean or the least of its members, or their mean less k standard deviations; with their spread.

    Args:
        name: in requests.
        config: how they are combined.
        members: at least two.
    """

    def __init__(self, name: str, config: EnsembleConfig, members: Sequence[RewardModel]) -> None:
        super().__init__(name, f"ensemble: {config.combine} of {', '.join(m.name for m in members)}", members)
        self._config = config

    def _reward(self, rewards: Mapping[str, float], known: Mapping[str, float | None]) -> tuple[float, float]:
        values = list(rewards.values())
        mean, spread = statistics.fmean(values), statistics.pstdev(values)
        match self._config.combine:
            case "mean":
                return mean, spread
            case "min":
                return min(values), spread
            case _:
                return mean - self._config.k * spread, spread


class Formula(_Combined):
    """An arithmetic expression over rewards of other models and the size of the completion.

    Args:
        name: in requests.
        config: the expression, checked.
        models: those that the expression names, in its order.
    """

    def __init__(self, name: str, config: FormulaConfig, models: Sequence[RewardModel]) -> None:
        super().__init__(name, f"formula: {config.formula}", models)
        self._formula = config.formula
        self._evaluator = SimpleEval(functions=FORMULA_FUNCTIONS)
        self._parsed = self._evaluator.parse(config.formula)
        self._variables = formula_variables(config.formula)

    def _reward(self, rewards: Mapping[str, float], known: Mapping[str, float | None]) -> tuple[float, float]:
        unknown = next((name for name in self._variables if known[name] is None), None)
        if unknown is not None:
            raise InvalidRequest(
                f"input: the formula {self._formula!r} reads {unknown}, which is known of a prompt and a completion as "
                "text only",
                field="input",
                value=unknown,
            )
        self._evaluator.names = {**known, **rewards}
        try:
            return float(self._evaluator.eval(self._formula, previously_parsed=self._parsed)), 0.0
        except (ArithmeticError, ValueError, TypeError, InvalidExpression) as error:
            raise InternalError(
                f"the formula {self._formula!r} has no value here: {error}",
                reason=Reason.NOT_FINITE,
                field="formula",
                value=", ".join(f"{name}={value:g}" for name, value in rewards.items()),
            ) from None


def _completion_characters(item: ScoreItem) -> int | None:
    if item.messages is not None:
        return len(item.messages[-1].content)
    return len(item.completion) if isinstance(item.completion, str) else None


def _most(counts: Iterable[int | None]) -> int | None:
    return max((count for count in counts if count is not None), default=None)


async def _together(models: Sequence[RewardModel], items: Sequence[ScoreItem], asked: Asked) -> list[Found]:
    """Asks all models at once; when one fails, what the others still have to do is taken out of their queues."""
    once = replace(asked, is_charged=False)
    tasks = [asyncio.create_task(model.score(items, once if at else asked)) for at, model in enumerate(models)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
