"""Scores of token sequences under a served classifier, and how an item becomes such a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from trimtab.errors import InvalidRequest, TrimtabError
from trimtab.types import ScoreItem, TruncationSide
from trimtab_models.classifiers import classifier_scores, end_needed, has_score_layer
from trimtab_models.heads import check_finite
from trimtab_models.packing import pad_right
from trimtab_models.tokenizer import encode_completion, encode_conversation, encode_prompt
from trimtab_services.reward.base import checked_reward
from trimtab_services.runtime.frozen import BatchShapes
from trimtab_services.runtime.reading import characters_of, check_characters
from trimtab_services.runtime.scoring import check_token_ids
from trimtab_services.runtime.slots import ServedVersion

__all__ = ["ScoredBy", "Scorer", "TokenSequence", "canary", "sequence_of", "text_characters"]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids to score.

    Attributes:
        token_ids: what the model reads.
        truncated: tokens cut off.
        completion_tokens: how many of the ids are the completion's; None where that is not known.
        type_ids: segment of each id, for an encoder that reads them.
    """

    token_ids: tuple[int, ...]
    truncated: int = 0
    completion_tokens: int | None = None
    type_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredBy:
    """What computes a batch: a version of a model, and which of its outputs is the score."""

    served: ServedVersion
    logit: int


class Scorer:
    """Computes batches in the compute thread.

    Args:
        shapes: what batches are computed in.
    """

    def __init__(self, shapes: BatchShapes) -> None:
        self._shapes = shapes

    @torch.inference_mode()
    def compute(self, by: ScoredBy, sequences: Sequence[TokenSequence]) -> list[float | TrimtabError]:
        """Rewards of a batch, all by the version that its requests were admitted under."""
        rewards = [0.0] * len(sequences)
        for positions in self._shapes.split([len(sequence.token_ids) for sequence in sequences]):
            found = self._forward([sequences[position] for position in positions], by)
            for position, reward in zip(positions, found, strict=True):
                rewards[position] = reward
        return [checked_reward(reward) for reward in rewards]

    def _forward(self, sequences: Sequence[TokenSequence], by: ScoredBy) -> list[float]:
        device = by.served.model.device
        multiple = self._shapes.multiple
        input_ids, lengths = pad_right([s.token_ids for s in sequences], multiple=multiple)
        type_ids = None
        if any(sequence.type_ids for sequence in sequences):
            given = [sequence.type_ids or (0,) * len(sequence.token_ids) for sequence in sequences]
            type_ids = pad_right(given, multiple=multiple)[0].to(device)
        with self._shapes.attention():
            scores = classifier_scores(
                by.served.model, input_ids.to(device), lengths.to(device), logit=by.logit, type_ids=type_ids
            )
        return scores.tolist()


@torch.inference_mode()
def canary(served: ServedVersion, logit: int = 0) -> None:
    """Scores a fixed sequence.

    Raises:
        InternalError: the score is not finite.
    """
    ids = torch.arange(min(8, served.vocab_size), device=served.model.device)[None]
    lengths = torch.tensor([ids.shape[1]], device=ids.device)
    check_finite(classifier_scores(served.model, ids, lengths, logit=logit))


def text_characters(item: ScoreItem) -> dict[str, int]:
    """Characters of each field of an item that is text or messages."""
    found = {field: characters_of(getattr(item, field)) for field in ("prompt", "completion", "messages")}
    return {field: characters for field, characters in found.items() if characters}


def sequence_of(item: ScoreItem, served: ServedVersion, truncation: TruncationSide) -> TokenSequence:
    """The token ids of an item, cut only where the request allows it.

    Raises:
        InvalidRequest: a token id outside the vocabulary, a conversation for a tokenizer without template, or a form
            that an encoder of pairs does not read.
        SequenceTooLong: too long, and nothing may be cut; or so long that it is not even read.
    """
    for field, characters in text_characters(item).items():
        check_characters(
            field, characters, served.max_sequence_tokens, may_be_cut=truncation is not TruncationSide.NONE
        )
    whole = _sequence(item, served)
    most = served.max_sequence_tokens
    excess = len(whole.token_ids) - most
    if excess <= 0 or truncation is TruncationSide.NONE:
        return _checked(whole, served)
    completion = whole.completion_tokens
    if truncation is TruncationSide.LEFT:
        kept, left = slice(excess, None), None if completion is None else min(completion, most)
    else:  # the completion is what stands at the end
        kept, left = slice(None, most), None if completion is None else max(0, completion - excess)
    return _checked(TokenSequence(whole.token_ids[kept], excess, left, whole.type_ids[kept]), served)


def _checked(sequence: TokenSequence, served: ServedVersion) -> TokenSequence:
    check_token_ids(sequence.token_ids, served)
    needed = end_needed(served.model)
    if needed is not None and needed not in sequence.token_ids:
        cut = f", {sequence.truncated} tokens cut off" if sequence.truncated else ""
        raise InvalidRequest(
            f"token_ids: {len(sequence.token_ids)} tokens without EOS (id {needed}){cut}; "
            f"{type(served.model).__name__} reads its score there",
            field="token_ids",
            limit=f"at least one {needed}",
        )
    return sequence


def _sequence(item: ScoreItem, served: ServedVersion) -> TokenSequence:
    if item.token_ids is not None:
        return TokenSequence(item.token_ids)
    if not has_score_layer(served.model):
        return _encoder_pair(item, served)
    if item.messages is not None:
        whole = encode_conversation(served.tokenizer, item.messages)
        return TokenSequence(
            tuple(whole), completion_tokens=len(encode_completion(served.tokenizer, item.messages[-1].content))
        )
    if item.prompt is None or item.completion is None:
        return TokenSequence(())
    prompt = encode_prompt(served.tokenizer, item.prompt)
    completion = item.completion
    ids = encode_completion(served.tokenizer, completion) if isinstance(completion, str) else completion
    return TokenSequence((*prompt, *ids), completion_tokens=len(ids))


def _encoder_pair(item: ScoreItem, served: ServedVersion) -> TokenSequence:
    """Prompt and completion as the two texts of a pair: how encoders of pairs were trained."""
    if not isinstance(item.prompt, str) or not isinstance(item.completion, str):
        raise InvalidRequest(
            f"prompt: {type(served.model).__name__} reads a prompt and a completion that are both text, or token ids",
            field="prompt",
            limit="text",
        )
    tokenizer = cast(Any, served.tokenizer)
    found = tokenizer(item.prompt, item.completion, split_special_tokens=True, return_token_type_ids=True)
    reads_types = "token_type_ids" in tokenizer.model_input_names
    completion = tokenizer(item.completion, add_special_tokens=False, split_special_tokens=True)
    return TokenSequence(
        tuple(found["input_ids"]),
        completion_tokens=len(completion["input_ids"]),
        type_ids=tuple(found["token_type_ids"]) if reads_types else (),
    )
