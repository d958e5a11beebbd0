"""Bidirectional item streams: every item answered as it is done, a bounded number in work, none lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import TypeVar

from trimtab_services.runtime.calls import current_call, limit_call

__all__ = ["answer_stream", "charge_later_items"]

Request = TypeVar("Request")
Response = TypeVar("Response")


def charge_later_items(charge: Callable[[str], None]) -> Callable[[], None]:
    """What to call for each item of one stream: it takes all but the first off the caller's quota as a request each.

    The first is paid for by the call itself.

    Args:
        charge: takes one request off the quota of a caller; raises where there is none left.
    """
    items = count()

    def charge_item() -> None:
        call = current_call()
        if next(items) and call is not None:
            charge(call.caller)

    return charge_item


async def answer_stream(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Response]],
    *,
    most: int,
    item_deadline_s: float,
) -> AsyncIterator[Response]:
    """Answers requests out of order.

    Args:
        requests: read only while fewer than `most` are in work: a fast sender waits instead of filling the memory.
        answer: makes the answer to one; item errors are part of it.
        most: requests in work at once.
        item_deadline_s: what each request gets from the moment it is read, on a stream whose call has no deadline: the
            stream ends when its sender says so, but no single answer is waited for without end.

    Yields:
        Each answer as it is done; ends once the sender has ended and all are answered.
    """
    answers: asyncio.Queue[Response | None] = asyncio.Queue()
    room = asyncio.Semaphore(most)

    async def work(request: Request) -> None:
        limit_call(item_deadline_s)  # of this task only: each has a context of its own
        try:
            await answers.put(await answer(request))
        finally:
            room.release()

    async def read() -> None:
        async with asyncio.TaskGroup() as group:
            async for request in requests:
                await room.acquire()
                group.create_task(work(request))

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: answers.put_nowait(None))
    try:
        while (response := await answers.get()) is not None:
            yield response
        reading.result()
    finally:
        reading.cancel()
