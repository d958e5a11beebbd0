"""JSON bodies of our own routes and of OpenRLHF's, and their answers. `/openapi.json` is made from these classes.

Types are taken as they are: a string that spells a number is no number. Unknown fields are refused. What a field means
for the result is checked where every call is, in `trimtab.types`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from trimtab.errors import InvalidRequest, Reason
from trimtab.types.shared import INT32_END, INT64_END, MAX_ID_CHARACTERS, Text, invalid_request

__all__ = [
    "ErrorAnswer",
    "ItemScoreAnswer",
    "Message",
    "ModelAnswer",
    "ModelsAnswer",
    "OpenRLHFAnswer",
    "OpenRLHFBody",
    "RankAnswer",
    "RankBody",
    "ScoreAnswer",
    "ScoreBody",
    "ScoreItemBody",
    "ServedAnswer",
    "TimingAnswer",
    "Version",
    "parse",
    "parse_counted",
]

BodyT = TypeVar("BodyT", bound=BaseModel)

_FORMS = re.compile(r"\.\((?:text|token ids|messages)\)")


def parse_counted(body: type[BodyT], content: Mapping[str, Any], field: str, max_items: int) -> BodyT:
    """A body with a list of at most so many items, which are counted before any of them is looked at.

    Raises:
        InvalidRequest: TOO_MANY_ITEMS, or as `parse`.
    """
    items = content.get(field)
    if isinstance(items, list) and len(items) > max_items:
        raise InvalidRequest(
            f"{field}: {len(items)} are in the request; allowed: {max_items}",
            reason=Reason.TOO_MANY_ITEMS,
            field=field,
            value=len(items),
            limit=max_items,
        )
    return parse(body, content)


def parse(body: type[BodyT], content: Mapping[str, Any]) -> BodyT:
    """A body, its types checked.

    Raises:
        InvalidRequest: names the first wrong field by its path, such as `items[3].prompt`.
    """
    try:
        return body.model_validate(content)
    except ValidationError as error:
        wrong = invalid_request(error, "body")
    raise wrong.at(_FORMS.sub("", wrong.field))


def _form(value: object) -> str:
    """Which form a value wants to be, so that an error speaks of that form only."""
    if isinstance(value, str):
        return "(text)"
    first = value[0] if isinstance(value, list) and value else None
    return "(messages)" if isinstance(first, Mapping) else "(token ids)"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


TokenId = Annotated[int, Field(ge=0, lt=INT32_END)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]  # of a million errors one is enough
Name = Annotated[Text, Field(max_length=MAX_ID_CHARACTERS)]
FilledText = Annotated[Text, Field(min_length=1)]
Side = Annotated[
    Literal["NONE", "LEFT", "RIGHT"],
    Field(description="Which end may be cut when too long. NONE refuses instead: SEQUENCE_TOO_LONG."),
]
Urgency = Annotated[Literal["INTERACTIVE", "ROLLOUT", "BULK"], Field(description="Order among waiting work.")]
ModelName = Annotated[Text, Field(description="Reward model by name. Empty is the service's default one.")]
RequestId = Annotated[Name, Field(description="Name of the request in logs and traces. Empty: the server makes one.")]


class Message(_Body):
    """One turn of a conversation. Control tokens inside the text are text."""

    role: Literal["system", "user", "assistant"]
    content: FilledText


class Version(_Body):
    """Which model version may answer; at most one field is set, and with none any version may."""

    exactly: int | None = Field(default=None, ge=0, lt=INT64_END)
    at_least: int | None = Field(default=None, ge=0, lt=INT64_END)


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]
PromptForms = Annotated[
    Annotated[FilledText, Tag("(text)")]
    | Annotated[TokenIds, Tag("(token ids)")]
    | Annotated[Messages, Tag("(messages)")],
    Discriminator(_form),
]
CompletionForms = Annotated[
    Annotated[FilledText, Tag("(text)")] | Annotated[TokenIds, Tag("(token ids)")], Discriminator(_form)
]


class ScoreItemBody(_Body):
    """One thing to score: `prompt` with `completion`, or `messages`, or `token_ids`."""

    item_id: Name = Field(default="", description="Comes back with the result. Unique where it is not empty.")
    prompt: PromptForms | None = Field(default=None, description="Text, token ids, or messages up to a user turn.")
    completion: CompletionForms | None = Field(
        default=None, description="Text, to which the end-of-sequence token is added, or token ids, used as they are."
    )
    messages: Messages | None = Field(
        default=None,
        min_length=2,
        description="A conversation that ends in an assistant turn, and does not begin in it.",
    )
    token_ids: TokenIds | None = Field(default=None, description="A whole sequence, used as it is.")


class ScoreBody(_Body):
    """Asks for rewards."""

    items: list[ScoreItemBody] = Field(min_length=1, fail_fast=True)
    model: ModelName = ""
    truncation: Side = "NONE"
    per_item_errors: bool = Field(
        default=False, description="True answers a bad item with its error; false refuses the whole request."
    )
    priority: Urgency = "ROLLOUT"
    version: Version = Version()
    request_id: RequestId = ""


class RankBody(_Body):
    """Asks for an order of the answers to one prompt."""

    prompt: PromptForms
    answers: list[FilledText] = Field(min_length=2, fail_fast=True)
    model: ModelName = ""
    truncation: Side = "NONE"
    priority: Urgency = "INTERACTIVE"
    version: Version = Version()
    request_id: RequestId = ""


class OpenRLHFBody(_Body):
    """What OpenRLHF's trainer sends to a remote reward model, and how it is to be scored."""

    query: list[FilledText] = Field(
        min_length=1,
        fail_fast=True,
        description="Whole texts, prompt and completion, in which control tokens are control tokens.",
    )
    prompts: list[Any] | None = Field(default=None, description="One for each query; not read.")
    labels: list[Any] | None = Field(default=None, description="One for each query; not read.")
    model: ModelName = ""
    truncation: Side = "NONE"
    priority: Urgency = "ROLLOUT"


class ErrorAnswer(_Answer):
    """What went wrong."""

    error: str
    reason: str
    message: str
    field: str
    value: str
    limit: str
    metadata: dict[str, str]


class ItemErrorAnswer(_Answer):
    """What is wrong with one item."""

    reason: str
    message: str
    field: str
    value: str
    limit: str


class ItemScoreAnswer(_Answer):
    """The raw reward of one item, never squashed or clipped; `spread` and `parts` are those of a combined model."""

    item_id: str
    reward: float
    token_count: int
    truncated_token_count: int
    spread: float
    parts: dict[str, float]
    error: ItemErrorAnswer | None


class ServedAnswer(_Answer):
    """Which model answered; version 0 is a model from a folder, and one that is made from others."""

    name: str
    version: int
    weights_digest: str
    tokenizer_digest: str
    chat_template_digest: str


class TimingAnswer(_Answer):
    """Where the time went, in milliseconds."""

    queue_ms: float
    compute_ms: float


class ScoreAnswer(_Answer):
    """Scores in the order of the request."""

    scores: Sequence[ItemScoreAnswer]
    served: ServedAnswer
    timing: TimingAnswer


class RankAnswer(_Answer):
    """Scores in the order of the request; indices, best first; [i][j] is the probability that answer i beats j."""

    scores: Sequence[ItemScoreAnswer]
    order: Sequence[int]
    pairwise_probabilities: Sequence[Sequence[float]]
    served: ServedAnswer
    timing: TimingAnswer


class OpenRLHFAnswer(_Answer):
    """Rewards in the order of the queries. `scores` are the same numbers, as OpenRLHF's own server has them."""

    rewards: Sequence[float]
    scores: Sequence[float]
    extra_logs: dict[str, Sequence[float]]


class ModelAnswer(_Answer):
    """One model, under the names that clients of OpenAI's API know, and what GetInfo tells of it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Always 0: a version has no date.")
    owned_by: str = "trimtab"
    is_default: bool
    architecture: str
    version: int
    weights_digest: str
    tokenizer_digest: str
    max_sequence_tokens: int = Field(description="0 where the service cannot tell.")


class ModelsAnswer(_Answer):
    """All models, the default one first."""

    object: Literal["list"] = "list"
    data: Sequence[ModelAnswer]
