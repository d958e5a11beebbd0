"""No text with the character U+0000 gets to the database: PostgreSQL keeps none, and asks for none."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import wraps
from typing import Any, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from trimtab.errors import InvalidRequest
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["nul_problem", "refuse_nul", "refusing_nul"]

ServicerT = TypeVar("ServicerT")


def nul_problem(text: str) -> str | None:
    """What is wrong with a text that has the character; None for others."""
    at = text.find("\0")
    return f"has the character U+0000 at {at}, which databases cannot keep" if at >= 0 else None


def refuse_nul(text: str, field: str) -> None:
    """Raises InvalidRequest with the name of the field for a text that has the character; the text is not quoted."""
    if problem := nul_problem(text):
        raise InvalidRequest(f"{field}: {problem}", field=field, value=text.index("\0"), limit="no U+0000")


def refusing_nul(servicer: type[ServicerT]) -> type[ServicerT]:
    """Makes every method of a LabelingService call `refuse_nul` on every text of its requests."""
    for method in pb.DESCRIPTOR.services_by_name["LabelingService"].methods:
        setattr(servicer, method.name, _checked(getattr(servicer, method.name), method))
    return servicer


def _checked(inner: Callable[..., Any], method: MethodDescriptor) -> Callable[..., Any]:
    @wraps(inner)
    async def call(self: object, request: Message, context: object) -> object:
        _refuse_in(request, Counter())
        return await inner(self, request, context)

    @wraps(inner)
    async def take_stream(self: object, requests: AsyncIterator[Message], context: object) -> object:
        return await inner(self, _each(requests), context)

    @wraps(inner)
    async def send_stream(self: object, request: Message, context: object) -> AsyncIterator[object]:
        _refuse_in(request, Counter())
        async with aclosing(inner(self, request, context)) as responses:
            async for response in responses:
                yield response

    if method.client_streaming:
        return take_stream
    return send_stream if method.server_streaming else call


async def _each(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    counts: Counter[str] = Counter()
    async for request in requests:
        _refuse_in(request, counts)
        yield request


def _refuse_in(request: Message, counts: Counter[str]) -> None:
    """Checks one message; `counts` has the items of each repeated field in those that came before it in a stream."""
    for field, value in request.ListFields():
        _check(value, field.name, counts[field.name])
        if isinstance(value, Sequence) and not isinstance(value, str):
            counts[field.name] += len(value)


def _check(value: object, name: str, first: int = 0) -> None:
    """Checks each text in a value; `first` is the place of its first item in a stream."""
    if isinstance(value, str):
        refuse_nul(value, name)
    elif isinstance(value, Message):
        for field, inner in value.ListFields():
            _check(inner, f"{name}.{field.name}")
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value, first):
            _check(inner, f"{name}[{index}]")
