"""Rewards that other code computes, behind the same queue as the models: bounded, in order of priority, with deadlines.

A batch that fails is tried again in halves, so that a bad item does not fail its neighbours; one that takes too long is
not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trimtab.errors import InternalError, InvalidRequest, TrimtabError
from trimtab.types import ItemScore, ScoreItem, ServedModel
from trimtab.v1 import info_pb2
from trimtab_services.reward.base import Asked, Found, checked_reward, failed_score, refuse_version
from trimtab_services.runtime.calls import current_call
from trimtab_services.runtime.metrics import Metrics
from trimtab_services.runtime.scheduler import Scheduler
from trimtab_services.runtime.scoring import compute_items
from trimtab_services.runtime.threads import in_own_thread

__all__ = ["Code", "ExternalModel", "TextPair"]


@dataclass(frozen=True, slots=True)
class TextPair:
    """What other code reads: texts, or a conversation and its last turn, as JSON has them.

    Attributes:
        prompt: text, or messages as `{"role", "content"}`.
        completion: text.
    """

    prompt: str | list[dict[str, str]]
    completion: str


class Code(Protocol):
    """What computes rewards.

    Attributes:
        final_errors: what it raises that is no item's fault: the batch is not tried apart.
    """

    final_errors: tuple[type[TrimtabError], ...]

    def __call__(self, pairs: Sequence[TextPair]) -> Sequence[float]:
        """Rewards of a batch; blocks.

        Raises:
            TrimtabError: some item, or none, can be scored.
        """
        ...

    def close(self) -> None:
        """Ends the call under way and frees what it holds; blocks."""
        ...


class ExternalModel:
    """A reward model that other code computes.

    Args:
        name: in requests.
        kind: what it is, for GetInfo.
        code: called in a thread of its own.
        max_batch_items: most items of one call.
        max_queue_items: most items waiting.
        metrics: where its queue counts.
        charge: takes tokens off a caller's quota: one for every 4 characters, for nobody counts these.
        on_fault: called when its thread has ended by an exception.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        code: Code,
        *,
        max_batch_items: int,
        max_queue_items: int,
        metrics: Metrics,
        charge: Callable[[str, int], None],
        on_fault: Callable[[BaseException], object],
    ) -> None:
        self.name = name
        self._kind = kind
        self._code = code
        self._charge = charge
        self._scheduler: Scheduler[TextPair, float] = Scheduler(
            self._compute,
            max_batch_tokens=max_batch_items,  # an item counts as one token: others' code is not measured in tokens
            max_queue_tokens=max_queue_items,
            metrics=metrics,
            on_fault=on_fault,
        )

    async def score(self, items: Sequence[ScoreItem], asked: Asked) -> Found:
        """Scores items; see `base.RewardModel`.

        Raises:
            VersionUnavailable: a version is required.
            InvalidRequest: an item is no text.
            TrimtabError: of the scheduler, or of the code itself.
        """
        refuse_version(self.name, asked.version)
        call = current_call()
        if asked.is_charged and call is not None:
            self._charge(call.caller, -(-sum(map(_characters, items)) // 4))
        done = await compute_items(
            self._scheduler,
            items,
            lambda item: (self._pair(item), 1),
            group=None,
            priority=asked.priority,
            per_item_errors=asked.per_item_errors,
        )
        return Found(
            scores=tuple(
                failed_score(item, one.value)
                if isinstance(one.value, TrimtabError)
                else ItemScore(one.value, 0, item_id=item.item_id)
                for item, one in zip(items, done, strict=True)
            ),
            served=ServedModel(name=self.name),
            completion_tokens=(None,) * len(items),
            queue_s=max((one.queue_s for one in done), default=0.0),
            compute_s=sum({one.batch: one.compute_s for one in done}.values()),
        )

    def token_ids(self, text: str, *, control_tokens: bool) -> tuple[int, ...]:
        """Refuses: other code reads a prompt and a completion; see `base.RewardModel`.

        Raises:
            InvalidRequest: always.
        """
        raise InvalidRequest(f"{self.name!r} reads a prompt and a completion, not a whole text")

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """Adds the model, named by what computes it."""
        model = response.models.add()
        model.served.name = self.name
        model.architecture = self._kind

    async def close(self) -> None:
        """Ends the call under way and its thread, and frees what the code holds."""
        await in_own_thread(self._code.close)
        await self._scheduler.close()

    def _compute(self, group: object, pairs: list[TextPair]) -> list[float | TrimtabError]:
        try:
            rewards = self._code(pairs)
        except self._code.final_errors as error:
            return [error] * len(pairs)
        if len(rewards) != len(pairs):
            raise InternalError(
                f"{self.name}: {len(rewards)} rewards for {len(pairs)} items",
                field="rewards",
                value=len(rewards),
                limit=len(pairs),
            )
        return [self._checked(reward) for reward in rewards]

    def _checked(self, reward: Any) -> float | TrimtabError:
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            return InternalError(
                f"{self.name}: the reward is a {type(reward).__name__}; it must be a number",
                field="rewards",
                value=type(reward).__name__,
                limit="a number",
            )
        return checked_reward(float(reward))

    def _pair(self, item: ScoreItem) -> TextPair:
        if item.messages is not None:
            *before, last = item.messages
            return TextPair([{"role": one.role, "content": one.content} for one in before], last.content)
        prompt, completion = item.prompt, item.completion
        if isinstance(prompt, str) and isinstance(completion, str):
            return TextPair(prompt, completion)
        if isinstance(completion, str) and prompt and not isinstance(prompt[0], int):
            return TextPair([{"role": one.role, "content": one.content} for one in prompt], completion)  # type: ignore[union-attr]
        raise InvalidRequest(
            f"input: {self.name!r} reads text, not token ids", field="input", value="token_ids", limit="text"
        )


def _characters(item: ScoreItem) -> int:
    turns = item.messages or ()
    prompt = item.prompt if isinstance(item.prompt, str) else ""
    completion = item.completion if isinstance(item.completion, str) else ""
    return len(prompt) + len(completion) + sum(len(turn.content) for turn in turns)
