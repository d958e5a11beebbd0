"""Scores of token sequences under the served reward model, and how an item becomes such a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trimtab.errors import InternalError, Reason, TrimtabError
from trimtab.types import ScoreItem, TruncationSide
from trimtab_models.heads import check_finite, hidden_states, scores_of
from trimtab_models.packing import pad_right
from trimtab_models.tokenizer import encode_completion, encode_conversation, encode_prompt
from trimtab_services.runtime.frozen import BatchShapes
from trimtab_services.runtime.scoring import check_token_ids
from trimtab_services.runtime.slots import ServedVersion

__all__ = ["Scorer", "TokenSequence", "canary", "sequence_of"]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids to score, and how many were cut off."""

    token_ids: tuple[int, ...]
    truncated: int


class Scorer:
    """Computes batches in the compute thread.

    Args:
        shapes: what batches are computed in.
    """

    def __init__(self, shapes: BatchShapes) -> None:
        self._shapes = shapes

    @torch.inference_mode()
    def compute(self, served: ServedVersion, sequences: Sequence[TokenSequence]) -> list[float | TrimtabError]:
        """Rewards of a batch, all by the version that its requests were admitted under."""
        rewards = [0.0] * len(sequences)
        for positions in self._shapes.split([len(sequence.token_ids) for sequence in sequences]):
            found = self._forward([sequences[position] for position in positions], served)
            for position, reward in zip(positions, found, strict=True):
                rewards[position] = reward
        return [_checked(reward) for reward in rewards]

    def _forward(self, sequences: Sequence[TokenSequence], served: ServedVersion) -> list[float]:
        device = served.model.device
        input_ids, lengths = pad_right([s.token_ids for s in sequences], multiple=self._shapes.multiple)
        with self._shapes.attention():
            hidden = hidden_states(served.model, input_ids.to(device))
        rows = torch.arange(len(sequences), device=device)
        return scores_of(served.model, hidden[rows, lengths.to(device) - 1]).tolist()


@torch.inference_mode()
def canary(served: ServedVersion) -> None:
    """Scores a fixed sequence.

    Raises:
        InternalError: the score is not finite.
    """
    ids = torch.arange(min(8, served.vocab_size), device=served.model.device)[None]
    check_finite(scores_of(served.model, hidden_states(served.model, ids)[:, -1]))


def sequence_of(item: ScoreItem, served: ServedVersion, truncation: TruncationSide) -> TokenSequence:
    """The token ids of an item, cut only where the request allows it.

    Raises:
        InvalidRequest: a token id outside the vocabulary, or a conversation for a tokenizer without template.
        SequenceTooLong: too long, and nothing may be cut.
    """
    token_ids = _token_ids(item, served)
    most = served.max_sequence_tokens
    excess = len(token_ids) - most
    if excess > 0 and truncation is not TruncationSide.NONE:
        token_ids = token_ids[excess:] if truncation is TruncationSide.LEFT else token_ids[:most]
    check_token_ids(token_ids, served)
    return TokenSequence(tuple(token_ids), max(0, excess) if truncation is not TruncationSide.NONE else 0)


def _token_ids(item: ScoreItem, served: ServedVersion) -> Sequence[int]:
    if item.token_ids is not None:
        return item.token_ids
    if item.messages is not None:
        return encode_conversation(served.tokenizer, item.messages)
    if item.prompt is None or item.completion is None:
        return ()
    prompt = encode_prompt(served.tokenizer, item.prompt)
    if isinstance(item.completion, str):
        return [*prompt, *encode_completion(served.tokenizer, item.completion)]
    return [*prompt, *item.completion]


def _checked(reward: float) -> float | TrimtabError:
    if reward != reward or reward in (float("inf"), float("-inf")):
        return InternalError(f"the score is {reward}; scores must be finite", reason=Reason.NOT_FINITE, value=reward)
    return reward
