"""What a TGI server tells of itself and of what it has sampled, checked; the reference is TGI's public API."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from huggingface_hub import (
    TextGenerationOutputDetails,
    TextGenerationOutputToken,
    TextGenerationStreamOutputStreamDetails,
    TextGenerationStreamOutputToken,
)
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from trimtab.errors import InternalError, Reason
from trimtab.types import FinishReason

__all__ = ["RemoteCompletion", "RemoteInfo", "RemoteToken", "completion_of", "token_of"]

_FINISH_REASONS = {
    "length": FinishReason.LENGTH,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
}


class RemoteInfo(BaseModel):
    """What `GET /info` tells.

    Attributes:
        model_id: name of the model, or the folder that it was loaded from.
        model_sha: revision of the model; empty where the server does not know it.
        model_dtype: dtype of the weights; empty where it is not told.
        max_input_tokens: most tokens of a prompt.
        max_total_tokens: most tokens of prompt plus completion.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_id: str
    model_sha: str | None = None
    model_dtype: str | None = None
    max_input_tokens: int = Field(ge=1, validation_alias=AliasChoices("max_input_tokens", "max_input_length"))
    max_total_tokens: int = Field(ge=1)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of model and revision: stands for the weights, whose bytes are never seen here."""
        return hashlib.sha256(json.dumps([self.model_id, self.model_sha]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RemoteToken:
    """A sampled token; the log-prob in nats. With the last one the stream tells why the completion ended."""

    token_id: int
    logprob: float
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class RemoteCompletion:
    """A whole completion: ids with the one that ended it, log-probs float32 [tokens] in nats."""

    token_ids: tuple[int, ...]
    logprobs: NDArray[np.float32]
    finish_reason: FinishReason

    @classmethod
    def of(cls, tokens: Sequence[RemoteToken], finish_reason: FinishReason) -> RemoteCompletion:
        """Joins the tokens."""
        logprobs = np.array([token.logprob for token in tokens], np.float32)
        return cls(tuple(token.token_id for token in tokens), logprobs, finish_reason)


def completion_of(details: TextGenerationOutputDetails) -> RemoteCompletion:
    """A completion from the details of an answer.

    Raises:
        InternalError: a token is missing or has no finite log-prob, or the finish reason is not one of TGI's.
    """
    tokens = [token_of(token) for token in details.tokens]
    return RemoteCompletion.of(tokens, _finish_reason(details, len(tokens)))


def token_of(
    token: TextGenerationOutputToken | TextGenerationStreamOutputToken,
    details: TextGenerationStreamOutputStreamDetails | None = None,
    position: int = 0,
) -> RemoteToken:
    """A token of a completion, or of a stream.

    Args:
        token: as the server tells it.
        details: those of a stream's last event; None before.
        position: of the token in the stream, from 0.

    Raises:
        InternalError: as `completion_of`.
    """
    logprob = token.logprob
    if not isinstance(logprob, int | float) or not math.isfinite(logprob):
        raise InternalError(
            f"the remote server told log-prob {logprob} of token {token.id}", reason=Reason.NOT_FINITE, value=logprob
        )
    return RemoteToken(token.id, logprob, None if details is None else _finish_reason(details, position + 1))


def _finish_reason(
    details: TextGenerationOutputDetails | TextGenerationStreamOutputStreamDetails, tokens: int
) -> FinishReason:
    """Why a completion ended, once it is sure that all of it has come."""
    if tokens == 0 or details.generated_tokens != tokens:
        raise InternalError(
            f"the remote server sampled {details.generated_tokens} tokens and told {tokens} of them", value=tokens
        )
    reason = _FINISH_REASONS.get(details.finish_reason)
    if reason is None:
        raise InternalError(
            f"the remote server ended a completion for {details.finish_reason!r}; known: {', '.join(_FINISH_REASONS)}",
            value=details.finish_reason,
        )
    return reason
