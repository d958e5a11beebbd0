"""From a checked request over items to their results, for services that compute items on the scheduler.

An item that is wrong refuses the whole request, naming the item, unless the request takes errors per item.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, TypeVar

from trimtab.errors import InvalidRequest, Reason, SequenceTooLong, TrimtabError
from trimtab.types import Priority
from trimtab.v1 import types_pb2
from trimtab_services.runtime.calls import Call, current_call
from trimtab_services.runtime.scheduler import Done, Scheduler, Work
from trimtab_services.runtime.slots import ServedVersion

__all__ = ["at_item", "check_count", "check_token_ids", "compute_items"]

Item = TypeVar("Item")
Payload = TypeVar("Payload")

_NO_DONE: Done[Any] = Done(None, 0.0, 0.0, 0)


def check_count(count: int, limit: int) -> None:
    """Refuses a request with too many items.

    Raises:
        InvalidRequest: TOO_MANY_ITEMS.
    """
    if count > limit:
        raise InvalidRequest(
            f"items: {count} items are in the request; allowed: {limit}",
            reason=Reason.TOO_MANY_ITEMS,
            field="items",
            value=count,
            limit=limit,
        )


def check_token_ids(token_ids: Sequence[int], served: ServedVersion) -> None:
    """Checks a sequence against the model.

    Raises:
        InvalidRequest: a token id outside the vocabulary.
        SequenceTooLong: more tokens than the model takes.
    """
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < served.vocab_size:
        index = next(i for i, token in enumerate(token_ids) if not 0 <= token < served.vocab_size)
        raise InvalidRequest(
            f"token_ids[{index}]: {token_ids[index]} is not in the vocabulary; allowed: 0..{served.vocab_size - 1}",
            reason=Reason.TOKEN_ID_OUT_OF_RANGE,
            field=f"token_ids[{index}]",
            value=token_ids[index],
            limit=served.vocab_size - 1,
        )
    if len(token_ids) > served.max_sequence_tokens:
        raise SequenceTooLong(
            f"token_ids: {len(token_ids)} tokens; allowed: {served.max_sequence_tokens}",
            field="token_ids",
            value=len(token_ids),
            limit=served.max_sequence_tokens,
        )


async def compute_items(
    scheduler: Scheduler[Any, Any],
    items: Sequence[Item],
    prepare: Callable[[Item], tuple[Payload, int]],
    *,
    group: Hashable,
    priority: Priority,
    per_item_errors: bool,
    is_charged: bool = True,
) -> list[Done[Any]]:
    """Prepares, schedules and awaits the items of one request.

    Args:
        scheduler: computes them.
        items: of the request, in order.
        prepare: payload and tokens of an item; raises what is wrong with it.
        group: only items of one group share a batch.
        priority: of the request.
        per_item_errors: True leaves an item's error in its place instead of raising it.
        is_charged: whether its tokens are taken off the caller's quota.

    Returns:
        What became of each item, in order.

    Raises:
        TrimtabError: of the first wrong item, with its path; or what the scheduler raised.
    """
    outcomes: list[Done[Any]] = [_NO_DONE] * len(items)
    works: list[Work[Any]] = []
    positions: list[int] = []
    for index, item in enumerate(items):
        try:
            payload, tokens = prepare(item)
        except TrimtabError as error:
            if not per_item_errors:
                raise at_item(index, error) from None
            outcomes[index] = Done(at_item(index, error), 0.0, 0.0, 0)
            continue
        works.append(Work(payload, tokens, group))
        positions.append(index)
    call, submitted_at = current_call(), time.monotonic()
    found: Sequence[Done[Any]] = ()
    if works:
        submitted: Awaitable[list[Done[Any]]] = scheduler.submit(
            works,
            priority=types_pb2.Priority.Value(f"PRIORITY_{priority.value}"),
            deadline=call.deadline if call else None,
            caller=call.caller if call else "",
            is_charged=is_charged,
        )
        found = await submitted
    _trace(call, submitted_at, found)
    for index, done in zip(positions, found, strict=True):
        if isinstance(done.value, TrimtabError):
            error = at_item(index, done.value)
            if not per_item_errors:
                raise error
            done = Done(error, done.queue_s, done.compute_s, done.batch)
        outcomes[index] = done
    return outcomes


def _trace(call: Call | None, submitted_at: float, found: Sequence[Done[Any]]) -> None:
    """Adds each batch to the call's trace, where it has one."""
    if call is None or call.trace is None:
        return
    items = Counter(done.batch for done in found)
    for done in {done.batch: done for done in found}.values():
        call.trace.record_work(
            submitted=submitted_at,
            queue_s=done.queue_s,
            compute_s=done.compute_s,
            batch_items=items[done.batch],
        )


def at_item(index: int, error: TrimtabError) -> TrimtabError:
    """The same error with the item's path in front of its field."""
    return error.under(f"items[{index}]")
