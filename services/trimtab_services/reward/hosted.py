"""A sequence classifier that this process computes, as a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from trimtab.errors import TrimtabError
from trimtab.types import ItemScore, ScoreItem
from trimtab.v1 import info_pb2
from trimtab_models.classifiers import has_score_layer
from trimtab_models.tokenizer import encode_document
from trimtab_services.reward.base import Asked, Found, failed_score
from trimtab_services.reward.scorer import ScoredBy, TokenSequence, sequence_of, text_characters
from trimtab_services.runtime.reading import TextReader, check_characters
from trimtab_services.runtime.scheduler import Done, Scheduler
from trimtab_services.runtime.scoring import compute_items
from trimtab_services.runtime.slots import ModelSlot, ServedVersion

__all__ = ["HostedModel"]

_UNREAD = TokenSequence(())
"""In place of the sequence of an item that is wrong."""


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
        self._reader = TextReader()

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
        sequences = await self._sequences(items, served, asked)
        done = await compute_items(
            self._scheduler,
            sequences,
            _ready,
            group=ScoredBy(served, self._logit),
            priority=asked.priority,
            per_item_errors=asked.per_item_errors,
            is_charged=asked.is_charged,
        )
        found = [one if isinstance(one, TokenSequence) else _UNREAD for one in sequences]
        return Found(
            scores=tuple(_item_score(*known) for known in zip(items, done, found, strict=True)),
            served=served.served,
            completion_tokens=tuple(sequence.completion_tokens for sequence in found),
            queue_s=max((one.queue_s for one in done), default=0.0),
            compute_s=sum({one.batch: one.compute_s for one in done}.values()),
        )

    def token_ids(self, text: str, *, control_tokens: bool) -> tuple[int, ...]:
        """Token ids of a whole text; see `base.RewardModel`. Blocks while others read; not for the event loop.

        Raises:
            Unavailable: there is no version yet.
            SequenceTooLong: so long that it is not even read, whether it may be cut or not.
        """
        served = self._slot.current
        check_characters("", len(text), served.max_sequence_tokens, may_be_cut=True)
        with self._reader.alone():
            if control_tokens:
                return tuple(served.tokenizer(text, add_special_tokens=False)["input_ids"])
            if not has_score_layer(served.model):  # an encoder: the tokenizer puts its own tokens around a text
                return tuple(served.tokenizer(text, split_special_tokens=True)["input_ids"])
            return tuple(encode_document(served.tokenizer, text))

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """Nothing: the service that holds the slots describes them."""

    async def _sequences(
        self, items: Sequence[ScoreItem], served: ServedVersion, asked: Asked
    ) -> list[TokenSequence | TrimtabError]:
        """Every item's sequence or error; much text is read in a thread, as is what comes while one is at it."""
        characters = sum(sum(text_characters(item).values()) for item in items)
        return await self._reader.read(characters, partial(_read, items, served, asked))


def _read(items: Sequence[ScoreItem], served: ServedVersion, asked: Asked) -> list[TokenSequence | TrimtabError]:
    """What becomes of each item; ends at the first error where it refuses the whole request."""
    found: list[TokenSequence | TrimtabError] = []
    for item in items:
        try:
            found.append(sequence_of(item, served, asked.truncation))
        except TrimtabError as error:
            found.append(error)
            if not asked.per_item_errors:
                break
    return found


def _ready(sequence: TokenSequence | TrimtabError) -> tuple[TokenSequence, int]:
    if isinstance(sequence, TrimtabError):
        raise sequence
    return sequence, len(sequence.token_ids)


def _item_score(item: ScoreItem, done: Done[float], sequence: TokenSequence) -> ItemScore:
    if isinstance(done.value, TrimtabError):
        return failed_score(item, done.value)
    return ItemScore(
        reward=done.value,
        token_count=len(sequence.token_ids),
        truncated_token_count=sequence.truncated,
        item_id=item.item_id,
    )
