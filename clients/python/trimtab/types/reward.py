"""Records of the reward service: what to score or rank, and the rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, model_validator

from trimtab.errors import InvalidRequest, Reason, TrimtabError
from trimtab.types.shared import (
    MAX_ID_CHARACTERS,
    ChatMessage,
    CompletionTokens,
    FloatArray,
    Priority,
    Prompt,
    Record,
    ServedModel,
    Text,
    TokenIds,
    TruncationSide,
    VersionRequirement,
    check_prompt,
    refuse_duplicates,
)

__all__ = [
    "ItemScore",
    "RankRequest",
    "RankResult",
    "ScoreItem",
    "ScoreRequest",
    "ScoreResult",
]


class ScoreItem(Record):
    """One thing to score: a prompt with its completion, a conversation that ends in an assistant turn, or token ids.

    Attributes:
        item_id: comes back with the result; must be set in a stream.
        prompt, completion: a pair; the completion is text (the EOS is added, as in training) or token ids (as is).
        messages: a whole conversation.
        token_ids: a whole sequence, read at its last token.
    """

    item_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)
    prompt: Prompt | None = None
    completion: CompletionTokens | None = None
    messages: tuple[ChatMessage, ...] | None = None
    token_ids: TokenIds | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreItem:
        forms = [self.prompt is not None, self.messages is not None, self.token_ids is not None]
        if sum(forms) != 1 or (self.prompt is None) != (self.completion is None):
            raise InvalidRequest(
                "input: set exactly one of prompt with completion, messages, token_ids",
                reason=Reason.FIELD_MISSING,
                field="input",
            )
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.completion is not None and len(self.completion) == 0:
            raise InvalidRequest("completion: must not be empty", field="completion", value=self.completion)
        if self.messages is not None and (len(self.messages) < 2 or self.messages[-1].role != "assistant"):
            raise InvalidRequest("messages: must end in an assistant turn, and not begin in it", field="messages")
        return self


class ScoreRequest(Record):
    """Asks for rewards.

    Attributes:
        items: at least one; ids, where given, unique.
        model: reward model by name; empty is the service's default.
        truncation: which end may be cut when too long.
        per_item_errors: a bad item is answered with its error instead of refusing the request.
        priority, version, request_id: as in `GenerateRequest`.
    """

    items: tuple[ScoreItem, ...] = Field(min_length=1)
    model: Text = ""
    truncation: TruncationSide = TruncationSide.NONE
    per_item_errors: bool = False
    priority: Priority = Priority.ROLLOUT
    version: VersionRequirement = VersionRequirement()
    request_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)

    @model_validator(mode="after")
    def _unique(self) -> ScoreRequest:
        refuse_duplicates((item.item_id for item in self.items), "items", "item_id")
        return self


class RankRequest(Record):
    """Asks for an order of K >= 2 answers to one prompt; fields as in `ScoreRequest`."""

    prompt: Prompt
    answers: tuple[Annotated[Text, Field(min_length=1)], ...] = Field(min_length=2)
    model: Text = ""
    truncation: TruncationSide = TruncationSide.NONE
    priority: Priority = Priority.INTERACTIVE
    version: VersionRequirement = VersionRequirement()
    request_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)

    @model_validator(mode="after")
    def _has_prompt(self) -> RankRequest:
        check_prompt(self.prompt)
        return self


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The raw reward of one item; `error` is set only with `per_item_errors` or in a stream.

    Attributes:
        spread: population standard deviation of an ensemble's members; 0 for any other model.
        parts: rewards of the models that a combined one was made from, by name.
    """

    reward: float
    token_count: int
    truncated_token_count: int = 0
    item_id: str = ""
    error: TrimtabError | None = None
    spread: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Scores in the order of the request; times in milliseconds."""

    scores: tuple[ItemScore, ...]
    served: ServedModel
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class RankResult:
    """Scores, indices best first, and float32 [K, K] probabilities that answer i beats answer j."""

    scores: tuple[ItemScore, ...]
    order: tuple[int, ...]
    pairwise_probabilities: FloatArray
    served: ServedModel
    queue_ms: float = 0.0
    compute_ms: float = 0.0
