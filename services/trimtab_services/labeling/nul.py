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

__all__ = ["refusing_nul"]

ServicerT = TypeVar("ServicerT")


def refusing_nul(servicer: type[ServicerT]) -> type[ServicerT]:
    """Makes every method of a LabelingService refuse such a text; raises InvalidRequest with the name of its field."""
    for method in pb.DESCRIPTOR.services_by_name["LabelingService"].methods:
        setattr(servicer, method.name, _checked(getattr(servicer, method.name), method))
    return servicer


def _checked(inner: Callable[..., Any], method: MethodDescriptor) -> Callable[..., Any]:
    @wraps(inner)
    async def call(self: object, request: Message, context: object) -> object:
        _refuse(request, Counter())
        return await inner(self, request, context)

    @wraps(inner)
    async def take_stream(self: object, requests: AsyncIterator[Message], context: object) -> object:
        return await inner(self, _each(requests), context)

    @wraps(inner)
    async def send_stream(self: object, request: Message, context: object) -> AsyncIterator[object]:
        _refuse(request, Counter())
        async with aclosing(inner(self, request, context)) as responses:
            async for response in responses:
                yield response

    if method.client_streaming:
        return take_stream
    return send_stream if method.server_streaming else call


async def _each(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    counts: Counter[str] = Counter()
    async for request in requests:
        _refuse(request, counts)
        yield request


def _refuse(request: Message, counts: Counter[str]) -> None:
    """Checks one message; `counts` has the items of each repeated field in those that came before it in a stream."""
    for field, value in request.ListFields():
        name = _find(value, field.name, counts[field.name])
        if name is not None:
            raise InvalidRequest(f"{name}: has the character U+0000, which databases cannot keep", field=name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            counts[field.name] += len(value)


def _find(value: object, name: str, first: int = 0) -> str | None:
    """The name of the first text in a value that has the character."""
    if isinstance(value, str):
        return name if "\0" in value else None
    if isinstance(value, Message):
        parts = [(inner, f"{name}.{field.name}") for field, inner in value.ListFields()]
    elif isinstance(value, Sequence):
        parts = [(inner, f"{name}[{index}]") for index, inner in enumerate(value, first)]
    else:
        return None
    return next((found for inner, part in parts if (found := _find(inner, part)) is not None), None)
