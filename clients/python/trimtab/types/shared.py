"""What several calls share: the base of every record, prompts, priorities, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from trimtab.errors import InvalidRequest, Reason

__all__ = [
    "ChatMessage",
    "CompletionTokens",
    "DEFAULT_MAX_NEW_TOKENS",
    "FloatArray",
    "INT32_END",
    "INT64_END",
    "MAX_ID_CHARACTERS",
    "MAX_STOP_STRINGS",
    "MAX_TEMPERATURE",
    "MAX_TOP_N",
    "MIN_TEMPERATURE",
    "MIN_TOP_P",
    "Priority",
    "Prompt",
    "PromptLike",
    "Record",
    "ServedModel",
    "Text",
    "TokenIds",
    "TruncationSide",
    "VersionRequirement",
    "check_prompt",
    "invalid_request",
    "refuse_duplicates",
]

FloatArray = npt.NDArray[np.float32]

INT32_END, INT64_END = 2**31, 2**63
"""One past what the wire's integers hold."""
MAX_TEMPERATURE = 100.0
MIN_TEMPERATURE = 1e-6
"""Least temperature but 0: below it float32 logits overflow, and the wire's float ends in 0: no sampling."""
MIN_TOP_P = 1e-30
"""Above 0 and, as the wire's float, still above 0."""
MAX_STOP_STRINGS = 16
MAX_TOP_N = 20
MAX_ID_CHARACTERS = 256
DEFAULT_MAX_NEW_TOKENS = 128


class Record(BaseModel):
    """A checked record: unknown fields are errors, and a wrong value raises `InvalidRequest`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        """Checks the values.

        Raises:
            InvalidRequest: names the first wrong field, its value and what is allowed.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise invalid_request(error, type(self).__name__) from None


def invalid_request(error: ValidationError, where: str = "") -> InvalidRequest:
    """The first problem that pydantic found, as an error of the contract.

    Args:
        error: what pydantic raised.
        where: name of the record, for problems that no single field has.
    """
    problem = error.errors()[0]
    path = ""
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    path = path or where
    message = problem["msg"].removeprefix("Value error, ")
    shown = repr(problem["input"])
    shown = shown if len(shown) <= 200 else f"{shown[:197]}..."
    reason = Reason.FIELD_MISSING if problem["type"] == "missing" else Reason.FIELD_INVALID
    if problem["type"] == "prompt_empty" or (path.endswith("token_ids") and problem["type"] == "too_short"):
        reason = Reason.EMPTY_PROMPT
    context = problem.get("ctx", {})
    limit = next((context[k] for k in ("le", "lt", "ge", "gt", "max_length", "min_length") if k in context), None)
    return InvalidRequest(
        f"{path}: {message}; found {shown}", reason=reason, field=path, value=problem["input"], limit=limit
    )


def refuse_duplicates(ids: Any, items: str, key: str) -> None:
    """Raises InvalidRequest where an id that is set stands twice among the ids of `items`, fields named `key`."""
    seen: set[str] = set()
    for index, value in enumerate(ids):
        if value and value in seen:
            raise InvalidRequest(
                f"{items}[{index}].{key}: {value!r} stands for two items of this request",
                reason=Reason.DUPLICATE_ID,
                field=f"{items}[{index}].{key}",
                value=value,
            )
        seen.add(value)


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a surrogate pair at character {error.start}, which is no Unicode text") from None
    return text


def _form(value: object) -> str:
    """Which form of a prompt a value wants to be, so that an error speaks of that form only."""
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, Sequence) and value else None
    return "messages" if isinstance(first, ChatMessage | Mapping) else "token_ids"


Text = Annotated[str, AfterValidator(_check_text)]

TokenIds = tuple[Annotated[int, Field(ge=0, lt=INT32_END)], ...]


class ChatMessage(Record):
    """One turn of a conversation. Special tokens inside the text are text, never control tokens."""

    role: Literal["system", "user", "assistant"]
    content: Text = Field(min_length=1)


PromptLike = str | TokenIds | tuple[ChatMessage, ...]
"""A prompt: text, token ids used as they are, or a conversation."""

Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[TokenIds, Tag("token_ids")]
    | Annotated[tuple[ChatMessage, ...], Tag("messages")],
    Discriminator(_form),
]
CompletionTokens = Annotated[Annotated[Text, Tag("text")] | Annotated[TokenIds, Tag("token_ids")], Discriminator(_form)]


def check_prompt(prompt: PromptLike) -> PromptLike:
    """The prompt; raises InvalidRequest when it is empty or a conversation that does not end in a user turn."""
    if len(prompt) == 0:
        raise InvalidRequest("prompt: must not be empty", reason=Reason.EMPTY_PROMPT, field="prompt", value=prompt)
    if isinstance(prompt, tuple) and isinstance(prompt[-1], ChatMessage) and prompt[-1].role == "assistant":
        raise InvalidRequest(
            "prompt: a conversation to be continued must end in a user turn", field="prompt", value=prompt[-1].role
        )
    return prompt


class Priority(StrEnum):
    """Order among waiting work; waiting work ages upwards."""

    INTERACTIVE = "INTERACTIVE"
    ROLLOUT = "ROLLOUT"
    BULK = "BULK"


class TruncationSide(StrEnum):
    """Which end of a too long sequence may be cut."""

    NONE = "NONE"
    """Nothing is cut: too long is an error."""
    LEFT = "LEFT"
    RIGHT = "RIGHT"


class VersionRequirement(Record):
    """Which model version may do the work; with neither field set any may.

    Attributes:
        exactly: this version; a sequence under it also finishes on it.
        at_least: this version or a later one.
    """

    exactly: int | None = Field(default=None, ge=0, lt=INT64_END)
    at_least: int | None = Field(default=None, ge=0, lt=INT64_END)

    @model_validator(mode="after")
    def _one(self) -> VersionRequirement:
        if self.exactly is not None and self.at_least is not None:
            raise InvalidRequest(
                "at_least: set one of exactly and at_least, not both", field="at_least", value=self.at_least
            )
        return self

    def allows(self, version: int) -> bool:
        """Whether a version may do the work."""
        if self.exactly is not None:
            return version == self.exactly
        return self.at_least is None or version >= self.at_least

    def __str__(self) -> str:
        if self.exactly is not None:
            return f"exactly {self.exactly}"
        return "any" if self.at_least is None else f"at least {self.at_least}"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Which model answered; `version` is 0 for one loaded from a folder."""

    name: str = ""
    version: int = 0
    weights_digest: str = ""
    tokenizer_digest: str = ""
    chat_template_digest: str = ""
