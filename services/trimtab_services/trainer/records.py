"""What is known of the runs: the event store, asked beside the event loop, and who waits for news of a run."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from trimtab_services.trainer.events import EventStore

__all__ = ["RunRecords"]

P = ParamSpec("P")
T = TypeVar("T")


class RunRecords:
    """The store and the news.

    Args:
        store: runs and events.
    """

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self._lock = asyncio.Lock()
        self._changed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a call of the store off the event loop, one at a time."""
        async with self._lock:
            return await asyncio.to_thread(function, *args, **kwargs)

    def tell(self, name: str) -> None:
        """Wakes those who wait for news of a run."""
        self._changed[name].set()

    def forget(self, name: str) -> None:
        """Of a run that is deleted: those who wait for news of it find that it is gone."""
        changed = self._changed.pop(name, None)
        if changed is not None:
            changed.set()

    def news(self, name: str) -> asyncio.Event:
        """Set at the next news of a run."""
        self._changed[name].clear()
        return self._changed[name]
