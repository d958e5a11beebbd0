"""The requests of `trimtab score`: several in flight, answers in the order of the rows, memory bounded by both.

A thread of its own reads rows, since a slow pipe must hold up neither answers nor Ctrl-C, and no further ahead than
there are requests allowed. A request that finds the service full, away or too slow is repeated, but not for ever.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from trimtab.aio import AsyncClient
from trimtab.cli.score_rows import InputRow, field_error
from trimtab.errors import DeadlineExceeded, InvalidRequest, Overloaded, Reason, TrimtabError, Unavailable
from trimtab.types import ItemScore, Priority, ScoreItem, ScoreRequest, ScoreResult, TruncationSide

__all__ = ["RequestOptions", "ScoredRow", "score_in_order"]

T = TypeVar("T")

_LONGEST_DELAY_S = 5.0


@dataclass(frozen=True)
class RequestOptions:
    """How rows are sent.

    Attributes:
        model, priority, truncation: as in `ScoreRequest`.
        batch: texts of a request; a row's are never spread over two.
        in_flight: requests at a time.
        patience_s: longest wait in seconds for a service that answers nothing at all, before the last error is raised.
    """

    model: str
    priority: Priority
    truncation: TruncationSide
    batch: int
    in_flight: int
    patience_s: float


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """What became of a row: `error` where it was refused, else `written`, the row with its rewards.

    `cut` is the number of its texts that were truncated.
    """

    row: InputRow
    written: dict[str, Any]
    error: TrimtabError | None = None
    cut: int = 0


async def score_in_order(
    client: AsyncClient, rows: Iterable[InputRow], options: RequestOptions
) -> AsyncGenerator[list[ScoredRow], None]:
    """Scored rows in the order of `rows`, request by request, each as soon as those before it are there.

    Raises:
        TrimtabError: what reading a row raised, or what the service answered to a whole request.
    """
    loop = asyncio.get_running_loop()
    patience = _Patience(options.patience_s)
    room = threading.Semaphore(options.in_flight)
    is_over = threading.Event()
    sent: asyncio.Queue[asyncio.Future[list[ScoredRow]] | None] = asyncio.Queue()

    def send(batch: list[InputRow]) -> None:
        sent.put_nowait(loop.create_task(_score(client, batch, options, patience)))

    def fail(error: Exception) -> None:
        failed: asyncio.Future[list[ScoredRow]] = loop.create_future()
        failed.set_exception(error)
        sent.put_nowait(failed)

    def read() -> None:
        batches = _batches(rows, options.batch)
        with suppress(RuntimeError):  # the loop has ended: nobody waits for more
            try:
                while room.acquire() and not is_over.is_set():
                    batch = next(batches, None)
                    if batch is None:
                        loop.call_soon_threadsafe(sent.put_nowait, None)
                        return
                    loop.call_soon_threadsafe(send, batch)
            except Exception as error:  # raised again where answers are awaited
                loop.call_soon_threadsafe(fail, error)

    threading.Thread(target=read, name="read rows", daemon=True).start()
    try:
        while (request := await sent.get()) is not None:
            yield await request
            room.release()
    finally:
        is_over.set()
        room.release()
        left = [request for request in _drained(sent) if request is not None]
        for request in left:
            request.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _drained(queue: asyncio.Queue[T]) -> list[T]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


def _batches(rows: Iterable[InputRow], most: int) -> Iterator[list[InputRow]]:
    batch: list[InputRow] = []
    count = 0
    for row in rows:
        if batch and count + len(row.names) > most:
            yield batch
            batch, count = [], 0
        batch.append(row)
        count += len(row.names)
    if batch:
        yield batch


async def _score(
    client: AsyncClient, rows: Sequence[InputRow], options: RequestOptions, patience: _Patience
) -> list[ScoredRow]:
    made = [_items(row) for row in rows]
    items = tuple(item for found in made if isinstance(found, list) for item in found)
    if not items:
        return [_scored_row(row, found, [], 0) for row, found in zip(rows, made, strict=True)]
    request = ScoreRequest(
        items=items,
        model=options.model,
        truncation=options.truncation,
        per_item_errors=True,
        priority=options.priority,
    )
    result = await _answer(client, request, patience)
    scores = iter(result.scores)
    return [
        _scored_row(row, found, [next(scores) for _ in found] if isinstance(found, list) else [], result.served.version)
        for row, found in zip(rows, made, strict=True)
    ]


def _items(row: InputRow) -> list[ScoreItem] | InvalidRequest:
    """What to send of a row; its error where the contract refuses it already."""
    try:
        return row.items()
    except InvalidRequest as error:
        return error


def _scored_row(
    row: InputRow, sent: list[ScoreItem] | InvalidRequest, scores: Sequence[ItemScore], version: int
) -> ScoredRow:
    named = zip(row.names, scores, strict=False)  # what was not sent has no scores
    errors = [field_error(name, score.error) for name, score in named if score.error is not None]
    error = sent if isinstance(sent, InvalidRequest) else next(iter(errors), None)
    if error is not None:
        return ScoredRow(row, row.with_error(error), error)
    written = row.with_rewards([score.reward for score in scores], version)
    return ScoredRow(row, written, cut=sum(score.truncated_token_count > 0 for score in scores))


async def _answer(client: AsyncClient, request: ScoreRequest, patience: _Patience) -> ScoreResult:
    failed_at: float | None = None
    tries = 0
    while True:
        try:
            result = await client.score(request)
        except (Overloaded, Unavailable, DeadlineExceeded) as error:
            tries += 1
            failed_at = failed_at or time.monotonic()
            patience.check(error, failed_at)
            delay_s = error.retry_after_s or min(_LONGEST_DELAY_S, 0.1 * 2**tries)
            await asyncio.sleep(delay_s * random.uniform(1.0, 1.25))  # apart from the other requests in flight
        else:
            patience.answered_at = time.monotonic()
            return result


class _Patience:
    """How long nothing at all may be answered while requests fail; shared by those in flight.

    Args:
        most_s: seconds.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self.answered_at = float("-inf")

    def check(self, error: TrimtabError, failed_at: float) -> None:
        """Raises an error that has lasted too long, for a request whose first failure was at `failed_at`.

        Before the first answer nothing is waited for but a service that is there: a wrong address is told at once.
        """
        is_there = isinstance(error, Overloaded) or error.reason in (Reason.DRAINING, Reason.WAITING_FOR_VERSION)
        if math.isinf(self.answered_at) and not is_there:
            raise error
        if time.monotonic() - max(failed_at, self.answered_at) > self._most_s:
            raise type(error)(
                f"{error.message}; nothing was answered for {self._most_s:g} s",
                reason=error.reason,
                field=error.field,
                value=error.value or None,
                limit=error.limit or None,
                metadata=error.metadata,
            ) from None
