"""A batch that fails, tried again in parts, so that a bad item does not fail its neighbours."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from trimtab.errors import DeadlineExceeded, InternalError, TrimtabError, Unavailable
from trimtab_services.runtime.queue import Item

__all__ = ["compute_apart"]

_log = logging.getLogger(__name__)


def compute_apart(compute: Callable[[Hashable, list[Any]], Sequence[Any]], batch: list[Item]) -> list[Any]:
    """Results of a batch; of one that fails, those of its halves, and so on until each item has one or its own error.

    Those who wait no more are left out. Where a part comes too late or finds nobody, the rest is not tried: it would
    take as long again, each.

    Args:
        compute: results of the payloads of items of one group.
        batch: at least one item, all of one group.
    """
    results: dict[int, Any] = {}
    parts = [batch]
    while parts:
        part = parts.pop()
        try:
            found = list(compute(part[0].group, [item.payload for item in part]))
            if len(found) != len(part):
                raise InternalError(f"compute returned {len(found)} results for {len(part)} items")
        except Exception as error:
            if len(part) > 1:
                if part is batch:
                    _log.warning("a batch failed, its items are tried apart", exc_info=error)
                middle = len(part) // 2
                halves = [_awaited(part[middle:], results), _awaited(part[:middle], results)]
                parts += [half for half in halves if half]
                continue
            found = [_own_error(error)]
        results.update(zip(map(id, part), found, strict=True))
        if part is not batch and all(isinstance(one, DeadlineExceeded | Unavailable) for one in found):
            results.update((id(item), found[0]) for rest in parts for item in rest)
            parts.clear()
    return [results[id(item)] for item in batch]


def _awaited(items: list[Item], results: dict[int, Any]) -> list[Item]:
    """Those that somebody still waits for; the others get an error that nobody reads."""
    now, awaited = time.monotonic(), list[Item]()
    for item in items:
        if item.owner.future.done() or (item.deadline is not None and item.deadline <= now):
            results[id(item)] = DeadlineExceeded("the deadline passed before the item was tried apart from others")
        else:
            awaited.append(item)
    return awaited


def _own_error(error: Exception) -> TrimtabError:
    if isinstance(error, TrimtabError):
        return error
    _log.error("computing an item failed", exc_info=error)
    return InternalError(f"computing failed ({type(error).__name__}); the service's log has the trace")
