"""What every reward model of the service is to those who ask it, whatever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.errors import InternalError, Reason, TrimtabError, VersionUnavailable
from trimtab.types import ItemScore, Priority, ScoreItem, ServedModel, TruncationSide, VersionRequirement
from trimtab.v1 import info_pb2

__all__ = ["Asked", "Found", "RewardModel", "checked_reward", "failed_score", "refuse_version"]

_LARGEST = 3.4028234663852886e38
"""Of float32, which rewards travel as."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How items are to be scored; fields as in `trimtab.types.ScoreRequest`.

    Attributes:
        is_charged: taken off the caller's quota; once for a request, whatever the number of models that read it.
    """

    truncation: TruncationSide = TruncationSide.NONE
    priority: Priority = Priority.ROLLOUT
    version: VersionRequirement = VersionRequirement()
    per_item_errors: bool = False
    is_charged: bool = True


@dataclass(frozen=True, slots=True)
class Found:
    """Scores of items.

    Attributes:
        scores: in the order of the items.
        served: the model that computed them.
        completion_tokens: tokens of each completion, as the model counts them; None where it cannot tell.
        queue_s, compute_s: where the time went, in seconds.
    """

    scores: tuple[ItemScore, ...]
    served: ServedModel
    completion_tokens: tuple[int | None, ...]
    queue_s: float = 0.0
    compute_s: float = 0.0


class RewardModel(Protocol):
    """One reward model by name."""

    @property
    def name(self) -> str:
        """Its name in requests."""
        ...

    async def score(self, items: Sequence[ScoreItem], asked: Asked) -> Found:
        """Scores items, in order.

        Raises:
            TrimtabError: the first wrong item's, unless `asked.per_item_errors`; or what refuses all of them.
        """
        ...

    def token_ids(self, text: str, *, control_tokens: bool) -> tuple[int, ...]:
        """Token ids of a whole text, prompt and completion in one, as the version that is served now cuts it.

        Args:
            text: any.
            control_tokens: True takes the text as rendered: a control token that it spells is one, and none is added.
                False takes it as a document: BOS where the tokenizer has one, the text, EOS.

        Raises:
            InvalidRequest: the model reads no whole texts.
            Unavailable: there is no version yet.
        """
        ...

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """Adds the model to GetInfo."""
        ...


def failed_score(item: ScoreItem, error: TrimtabError) -> ItemScore:
    """What an item that has no reward is answered with."""
    return ItemScore(0.0, 0, item_id=item.item_id, error=error)


def checked_reward(reward: float) -> float | TrimtabError:
    """The reward itself, or the error of one that is no finite float32."""
    if abs(reward) <= _LARGEST:  # not so for NaN
        return reward
    return InternalError(f"the score is {reward}; scores must be finite", reason=Reason.NOT_FINITE, value=reward)


def refuse_version(name: str, requirement: VersionRequirement) -> None:
    """Lets requests through that any version may answer.

    Raises:
        VersionUnavailable: one is required of a model that has none.
    """
    if not requirement.allows(0):
        raise VersionUnavailable(
            f"version: {requirement} is asked for; {name!r} has no versions of its own, ask for any",
            field="version",
            value=str(requirement),
            limit="any",
            metadata={"served_version": "0"},
        )
