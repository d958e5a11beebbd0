"""What the calls share: prompts, sampling, versions, enums, errors of items, and the path of a wrong field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import numpy as np

from trimtab.errors import REASONS, InternalError, InvalidRequest, Reason, TrimtabError
from trimtab.types import (
    ChatMessage,
    FloatArray,
    Priority,
    PromptLike,
    SamplingParams,
    ServedModel,
    TruncationSide,
    VersionRequirement,
)
from trimtab.types.shared import DEFAULT_MAX_NEW_TOKENS
from trimtab.v1 import errors_pb2, reward_pb2, types_pb2

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=StrEnum)


class EnumNames(Protocol):
    """What every enum of a proto can do; the number's type is the enum's own."""

    def Name(self, number: Any) -> str:
        """The name of a number; ValueError when there is none."""
        ...

    def keys(self) -> list[str]:
        """All names."""
        ...


@contextmanager
def under(path: str) -> Iterator[None]:
    """Puts a path in front of the field that an InvalidRequest names."""
    try:
        yield
    except InvalidRequest as error:
        raise error.under(path) from None


def each(path: str, items: Iterable[T], convert: Callable[[T], R]) -> tuple[R, ...]:
    """Converts the items; an InvalidRequest names the one, such as `path[3].seed`."""
    made = []
    for index, item in enumerate(items):
        with under(f"{path}[{index}]"):
            made.append(convert(item))
    return tuple(made)


def floats(values: Iterable[float]) -> FloatArray:
    """Float32 [values]."""
    return np.fromiter(values, dtype=np.float32)


def enum_from_message(record: type[E], names: EnumNames, prefix: str, field: str, value: int) -> E:
    """The record's member for a number of a request.

    Raises:
        InvalidRequest: no known value.
    """
    try:
        return record(names.Name(value).removeprefix(prefix))
    except ValueError:
        allowed = ", ".join(name for name in list(names.keys()) if not name.endswith("_UNSPECIFIED"))
        raise InvalidRequest(
            f"{field}: {value} is no known value; allowed: {allowed}", field=field, value=value, limit=allowed
        ) from None


def enum_from_reply(record: type[E], names: EnumNames, prefix: str, field: str, value: int) -> E:
    """The record's member for a number of a reply.

    Raises:
        InternalError: no known value: the server broke the contract, or is newer than this package.
    """
    try:
        return enum_from_message(record, names, prefix, field, value)
    except InvalidRequest as error:
        raise InternalError(
            f"the server's reply: {error.message}", field=field, value=error.value, limit=error.limit
        ) from None


def prompt_to_message(prompt: PromptLike) -> types_pb2.Prompt:
    """A prompt in the form it has."""
    if isinstance(prompt, str):
        return types_pb2.Prompt(text=prompt)
    turns = [item for item in prompt if isinstance(item, ChatMessage)]
    if turns:
        return types_pb2.Prompt(messages=messages_to_message(turns))
    return types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[item for item in prompt if isinstance(item, int)]))


def prompt_from_message(message: types_pb2.Prompt) -> PromptLike:
    """The form that is set.

    Raises:
        InvalidRequest: no form is set, or a message of a conversation is wrong.
    """
    form = message.WhichOneof("form")
    if form is None:
        raise InvalidRequest(
            "prompt: one of token_ids, text, messages must be set", reason=Reason.FIELD_MISSING, field="prompt"
        )
    if form == "text":
        return message.text
    if form == "messages":
        return messages_from_message(message.messages)
    return tuple(message.token_ids.ids)


def messages_from_message(message: types_pb2.ChatMessages) -> tuple[ChatMessage, ...]:
    """A conversation."""
    return each(
        "messages",
        message.messages,
        lambda m: ChatMessage(role=m.role, content=m.content),
    )


def messages_to_message(messages: Iterable[ChatMessage]) -> types_pb2.ChatMessages:
    """A conversation."""
    return types_pb2.ChatMessages(messages=[types_pb2.ChatMessage(role=m.role, content=m.content) for m in messages])


def version_to_message(version: VersionRequirement) -> types_pb2.VersionRequirement:
    """A version requirement."""
    if version.exactly is not None:
        return types_pb2.VersionRequirement(exactly=version.exactly)
    if version.at_least is not None:
        return types_pb2.VersionRequirement(at_least=version.at_least)
    return types_pb2.VersionRequirement()


def version_from_message(message: types_pb2.VersionRequirement) -> VersionRequirement:
    """A version requirement; none set means any."""
    which = message.WhichOneof("requirement")
    with under("version"):
        return VersionRequirement(**({which: getattr(message, which)} if which else {}))


def sampling_to_message(sampling: SamplingParams) -> types_pb2.SamplingParams:
    """Sampling parameters, every one stated."""
    return types_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_new_tokens=sampling.min_new_tokens,
        max_new_tokens=sampling.max_new_tokens,
        stop_token_ids=sampling.stop_token_ids,
        stop_strings=sampling.stop_strings,
        ignore_eos=sampling.ignore_eos,
    )


def sampling_from_message(message: types_pb2.SamplingParams) -> SamplingParams:
    """Sampling parameters; what is not set has its default."""
    with under("sampling"):
        return SamplingParams(
            temperature=message.temperature if message.HasField("temperature") else 1.0,
            top_p=message.top_p if message.HasField("top_p") else 1.0,
            top_k=message.top_k,
            min_new_tokens=message.min_new_tokens,
            max_new_tokens=message.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            stop_token_ids=tuple(message.stop_token_ids),
            stop_strings=tuple(message.stop_strings),
            ignore_eos=message.ignore_eos,
        )


def priority_to_message(priority: Priority) -> types_pb2.Priority.ValueType:
    """A priority."""
    return types_pb2.Priority.Value(f"PRIORITY_{priority.value}")


def priority_from_message(value: int) -> Priority:
    """A priority; unspecified is ROLLOUT.

    Raises:
        InvalidRequest: no known value.
    """
    if value == 0:
        return Priority.ROLLOUT
    return enum_from_message(Priority, types_pb2.Priority, "PRIORITY_", "priority", value)


def truncation_to_message(side: TruncationSide) -> reward_pb2.TruncationSide.ValueType:
    """A truncation side."""
    name = "UNSPECIFIED" if side is TruncationSide.NONE else side.value
    return reward_pb2.TruncationSide.Value(f"TRUNCATION_SIDE_{name}")


def truncation_from_message(value: int) -> TruncationSide:
    """A truncation side; unspecified cuts nothing.

    Raises:
        InvalidRequest: no known value.
    """
    if value == 0:
        return TruncationSide.NONE
    return enum_from_message(TruncationSide, reward_pb2.TruncationSide, "TRUNCATION_SIDE_", "truncation", value)


def served_to_message(served: ServedModel) -> types_pb2.ServedModel:
    """Which model answered."""
    return types_pb2.ServedModel(
        name=served.name,
        version=served.version,
        weights_digest=served.weights_digest,
        tokenizer_digest=served.tokenizer_digest,
        chat_template_digest=served.chat_template_digest,
    )


def served_from_message(message: types_pb2.ServedModel) -> ServedModel:
    """Which model answered."""
    return ServedModel(
        name=message.name,
        version=message.version,
        weights_digest=message.weights_digest,
        tokenizer_digest=message.tokenizer_digest,
        chat_template_digest=message.chat_template_digest,
    )


def item_error_to_message(error: TrimtabError) -> errors_pb2.ItemError:
    """The error of one item."""
    return errors_pb2.ItemError(
        reason=errors_pb2.Reason.Value(f"REASON_{error.reason.value}"),
        message=error.message,
        field=error.field,
        value=error.value,
        limit=error.limit,
    )


def item_error_from_message(message: errors_pb2.ItemError) -> TrimtabError:
    """The error of one item, as the exception that the same reason raises."""
    try:
        reason = Reason(errors_pb2.Reason.Name(message.reason).removeprefix("REASON_"))
    except ValueError:
        reason = Reason.INTERNAL  # a newer server's reason
    return REASONS[reason][1](
        message.message, reason=reason, field=message.field, value=message.value or None, limit=message.limit or None
    )
