"""The requests of `trimtab score`: several in flight, answers in the order of the rows, memory bounded by both.

A thread of its own reads rows, since a slow pipe must hold up neither answers nor Ctrl-C, and no further ahead than
there are requests allowed. A request that finds the service full, away or too slow is repeated, but not for ever; so is
a row that the service answers so, since what it asks for it, another server or a function, is full, away or too slow.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from trimtab.aio import AsyncClient
from trimtab.cli.score_rows import InputRow, field_error
from trimtab.errors import ConfigError, DeadlineExceeded, InvalidRequest, Overloaded, Reason, TrimtabError, Unavailable
from trimtab.types import ItemScore, Priority, ScoreItem, ScoreRequest, ScoreResult, ServedModel, TruncationSide

__all__ = ["RequestOptions", "ScoredRow", "score_in_order"]

T = TypeVar("T")

_LONGEST_DELAY_S = 5.0
_PASSING = (Overloaded, Unavailable, DeadlineExceeded)
"""Errors that the same request need not meet again."""


@dataclass(frozen=True)
class RequestOptions:
    """How rows are sent.

    Attributes:
        model, priority, truncation: as in `ScoreRequest`.
        batch: texts of a request; a row's are never spread over two.
        in_flight: requests at a time.
        written_by: model that scored the rows which are written already; empty: there are none.
        patience_s: longest wait in seconds for a service that answers nothing at all; then the last error is raised,
            or is a row's where the service answered that it is.
    """

    model: str
    priority: Priority
    truncation: TruncationSide
    batch: int
    in_flight: int
    patience_s: float
    written_by: str = ""


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
    """Scores rows; one whose error may pass is asked for again, whole, since one version scores all of a row."""
    scored: dict[int, ScoredRow] = {}
    left = dict(enumerate(rows))
    failed_at: float | None = None
    tries = 0
    while left:
        scored.update(zip(left, await _score_once(client, list(left.values()), options, patience), strict=True))
        left = {index: row for index, row in left.items() if isinstance(scored[index].error, _PASSING)}
        if left:
            tries += 1
            failed_at = failed_at or time.monotonic()
            if patience.is_over(failed_at):
                break
            await _pause(tries)
    return [scored[index] for index in range(len(rows))]


async def _score_once(
    client: AsyncClient, rows: Sequence[InputRow], options: RequestOptions, patience: _Patience
) -> list[ScoredRow]:
    """Scores rows, in one request where the service takes as many items."""
    made = [_items(row) for row in rows]
    items = tuple(item for found in made if isinstance(found, list) for item in found)
    if not items:
        return [_scored_row(row, found, [], ServedModel()) for row, found in zip(rows, made, strict=True)]
    request = ScoreRequest(
        items=items,
        model=options.model,
        truncation=options.truncation,
        per_item_errors=True,
        priority=options.priority,
    )
    try:
        result = await _answer(client, request, patience)
    except InvalidRequest as error:
        if error.reason is not Reason.TOO_MANY_ITEMS:
            raise
        if len(rows) == 1:
            return [_refused(rows[0], field_error(rows[0].form, error))]
        parts = (rows[: len(rows) // 2], rows[len(rows) // 2 :])
        return [one for part in parts for one in await _score_once(client, part, options, patience)]
    if options.written_by not in ("", result.served.name):
        raise ConfigError(
            f"output: its rows were scored by {options.written_by!r}; this is {result.served.name!r}, and one file has "
            "one model: give --model",
            field="output",
            value=options.written_by,
            limit=result.served.name,
        )
    scores = iter(result.scores)
    return [
        _scored_row(row, found, [next(scores) for _ in found] if isinstance(found, list) else [], result.served)
        for row, found in zip(rows, made, strict=True)
    ]


def _items(row: InputRow) -> list[ScoreItem] | InvalidRequest:
    """What to send of a row; its error where the contract refuses it already."""
    try:
        return row.items()
    except InvalidRequest as error:
        return error


def _scored_row(
    row: InputRow, sent: list[ScoreItem] | InvalidRequest, scores: Sequence[ItemScore], served: ServedModel
) -> ScoredRow:
    named = zip(row.names, scores, strict=False)  # what was not sent has no scores
    errors = [field_error(name, score.error) for name, score in named if score.error is not None]
    errors.sort(key=lambda error: isinstance(error, _PASSING))  # one that stays decides
    error = sent if isinstance(sent, InvalidRequest) else next(iter(errors), None)
    if error is not None:
        return _refused(row, error)
    written = row.with_rewards([score.reward for score in scores], served.name, served.version)
    return ScoredRow(row, written, cut=sum(score.truncated_token_count > 0 for score in scores))


def _refused(row: InputRow, error: TrimtabError) -> ScoredRow:
    return ScoredRow(row, row.with_error(error), error)


async def _answer(client: AsyncClient, request: ScoreRequest, patience: _Patience) -> ScoreResult:
    failed_at: float | None = None
    tries = 0
    while True:
        try:
            result = await client.score(request)
        except _PASSING as error:
            tries += 1
            failed_at = failed_at or time.monotonic()
            patience.check(error, failed_at)
            await _pause(tries, error.retry_after_s)
        else:
            patience.answered(result)
            return result


async def _pause(tries: int, retry_after_s: float | None = None) -> None:
    """Waits before something is tried again, apart from the other requests in flight."""
    delay_s = retry_after_s or min(_LONGEST_DELAY_S, 0.1 * 2 ** min(tries, 10))
    await asyncio.sleep(delay_s * random.uniform(1.0, 1.25))


class _Patience:
    """How long nothing at all may be scored or refused for good while requests fail; shared by those in flight.

    Args:
        most_s: seconds.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._is_there = False
        self._settled_at = float("-inf")

    def answered(self, result: ScoreResult) -> None:
        """Notes an answer of the service, and whether it settled anything."""
        self._is_there = True
        if not all(isinstance(score.error, _PASSING) for score in result.scores):
            self._settled_at = time.monotonic()

    def is_over(self, failed_at: float) -> bool:
        """Whether what first failed at `failed_at` has been waited for long enough."""
        return time.monotonic() - max(failed_at, self._settled_at) > self._most_s

    def check(self, error: TrimtabError, failed_at: float) -> None:
        """Raises an error that has lasted too long, for a request whose first failure was at `failed_at`.

        Before the first answer nothing is waited for but a service that is there: a wrong address is told at once.
        """
        is_there = isinstance(error, Overloaded) or error.reason in (Reason.DRAINING, Reason.WAITING_FOR_VERSION)
        if not (self._is_there or is_there):
            raise error
        if self.is_over(failed_at):
            raise error.told(f"{error.message}; nothing was answered for {self._most_s:g} s") from None
