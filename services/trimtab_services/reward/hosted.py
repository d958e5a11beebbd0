"""A sequence classifier that this process computes, as a reward model."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.errors import TrimtabError
from trimtab.types import ItemScore, ScoreItem
from trimtab.v1 import info_pb2
from trimtab_models.classifiers import has_score_layer
from trimtab_models.tokenizer import encode_document
from trimtab_services.reward.base import Asked, Found
from trimtab_services.reward.scorer import ScoredBy, TokenSequence, sequence_of
from trimtab_services.runtime.scheduler import Done, Scheduler
from trimtab_services.runtime.scoring import compute_items
from trimtab_services.runtime.slots import ModelSlot

__all__ = ["HostedModel"]


class HostedModel:
    """Scores on the shared scheduler, each request by the version that was served when it came.

    Args:
        slot: holds the model.
        scheduler: of all hosted models of the server.
        logit: which of the model's outputs is the score.
    """

    def __init__(self, slot: ModelSlot, scheduler: Scheduler[TokenSequence, float], logit: int) -> None:
        self._slot = slot
        self._scheduler = scheduler
        self._logit = logit

    @property
    def name(self) -> str:
        """Its name in requests."""
        return self._slot.name

    async def score(self, items: Sequence[ScoreItem], asked: Asked) -> Found:
        """Scores items; see `base.RewardModel`.

        Raises:
            Unavailable: there is no version yet.
            VersionUnavailable: the version served now is not one that may answer.
            TrimtabError: of the scheduler, or of the first wrong item.
        """
        served = self._slot.admit(self.name, asked.version)
        sequences: dict[int, TokenSequence] = {}

        def prepare(item: ScoreItem) -> tuple[TokenSequence, int]:
            sequence = sequence_of(item, served, asked.truncation)
            sequences[id(item)] = sequence
            return sequence, len(sequence.token_ids)

        done = await compute_items(
            self._scheduler,
            items,
            prepare,
            group=ScoredBy(served, self._logit),
            priority=asked.priority,
            per_item_errors=asked.per_item_errors,
        )
        found = [sequences.get(id(item)) for item in items]
        return Found(
            scores=tuple(_item_score(*known) for known in zip(items, done, found, strict=True)),
            served=served.served,
            completion_tokens=tuple(0 if sequence is None else sequence.completion_tokens for sequence in found),
            queue_s=max((one.queue_s for one in done), default=0.0),
            compute_s=sum({one.batch: one.compute_s for one in done}.values()),
        )

    def token_ids(self, text: str, *, control_tokens: bool) -> tuple[int, ...]:
        """Token ids of a whole text; see `base.RewardModel`.

        Raises:
            Unavailable: there is no version yet.
        """
        served = self._slot.current
        if control_tokens:
            return tuple(served.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not has_score_layer(served.model):  # an encoder: the tokenizer puts its own tokens around a text
            return tuple(served.tokenizer(text, split_special_tokens=True)["input_ids"])
        return tuple(encode_document(served.tokenizer, text))

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """Nothing: the service that holds the slots describes them."""


def _item_score(item: ScoreItem, done: Done[float], sequence: TokenSequence | None) -> ItemScore:
    if isinstance(done.value, TrimtabError):
        return ItemScore(0.0, 0, item_id=item.item_id, error=done.value)
    return ItemScore(
        reward=done.value,
        token_count=len(sequence.token_ids) if sequence else 0,
        truncated_token_count=sequence.truncated if sequence else 0,
        item_id=item.item_id,
    )
