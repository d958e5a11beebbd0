"""Records of the reference service: sequences, and the log-probs of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator

from trimtab.errors import InvalidRequest, TrimtabError
from trimtab.types.shared import (
    INT32_END,
    MAX_ID_CHARACTERS,
    MAX_TEMPERATURE,
    MAX_TOP_N,
    MIN_TEMPERATURE,
    FloatArray,
    Priority,
    Record,
    ServedModel,
    Text,
    TokenIds,
    VersionRequirement,
    refuse_duplicates,
)

__all__ = [
    "ItemLogProbs",
    "LogProbsItem",
    "LogProbsOptions",
    "LogProbsRequest",
    "LogProbsResult",
]


class LogProbsItem(Record):
    """One sequence whose log-probs are wanted.

    Attributes:
        item_id: comes back with the result; must be set in a stream.
        token_ids: the whole sequence, at least 2 ids.
        start_index: first token whose log-prob is wanted; token 0 has none.
    """

    item_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)
    token_ids: TokenIds = Field(min_length=2)
    start_index: int = Field(default=1, ge=1, lt=INT32_END)

    @model_validator(mode="after")
    def _starts_inside(self) -> LogProbsItem:
        if self.start_index >= len(self.token_ids):
            raise InvalidRequest(
                f"start_index: {self.start_index} is not below the sequence's {len(self.token_ids)} tokens",
                field="start_index",
                value=self.start_index,
                limit=len(self.token_ids) - 1,
            )
        return self


class LogProbsOptions(Record):
    """What is computed for each sequence.

    Attributes:
        temperature: divides the logits.
        entropy: adds the entropy of each token's distribution, in nats.
        top_n: adds this many likeliest tokens at each position.
    """

    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    entropy: bool = False
    top_n: int = Field(default=0, ge=0, le=MAX_TOP_N)


class LogProbsRequest(Record):
    """Asks for log-probs; fields as in `ScoreRequest`."""

    items: tuple[LogProbsItem, ...] = Field(min_length=1)
    options: LogProbsOptions = LogProbsOptions()
    model: Text = ""
    per_item_errors: bool = False
    priority: Priority = Priority.ROLLOUT
    version: VersionRequirement = VersionRequirement()
    request_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)

    @model_validator(mode="after")
    def _unique(self) -> LogProbsRequest:
        refuse_duplicates((item.item_id for item in self.items), "items", "item_id")
        return self


@dataclass(frozen=True, slots=True)
class ItemLogProbs:
    """Float32 log-probs of the tokens from `start_index` on; `entropies` and `top_tokens` (ids, log-probs) if asked."""

    logprobs: FloatArray
    entropies: FloatArray | None = None
    top_tokens: tuple[tuple[tuple[int, ...], FloatArray], ...] = ()
    item_id: str = ""
    error: TrimtabError | None = None


@dataclass(frozen=True, slots=True)
class LogProbsResult:
    """Results in the order of the request; times in milliseconds."""

    results: tuple[ItemLogProbs, ...]
    served: ServedModel
    queue_ms: float = 0.0
    compute_ms: float = 0.0
