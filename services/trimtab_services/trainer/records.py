"""What is known of the runs: the event store, asked beside the event loop, their replicas, and who waits for news of a
run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from trimtab_services.trainer.events import EventStore
from trimtab_services.trainer.reported_replicas import ReportedReplicas

__all__ = ["RunRecords"]

P = ParamSpec("P")
T = TypeVar("T")


class RunRecords:
    """The store, the replicas and the news.

    Args:
        store: runs and events.

    Attributes:
        replicas: of runs at work, as these told of them last. Used in the event loop.
    """

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.replicas = ReportedReplicas()
        self._lock = asyncio.Lock()
        self._changed: dict[str, asyncio.Event] = {}  # of runs that somebody waits for

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a call of the store off the event loop, one at a time."""
        async with self._lock:
            return await asyncio.to_thread(function, *args, **kwargs)

    def tell(self, name: str) -> None:
        """Wakes those who wait for news of a run, that it is gone too."""
        if (changed := self._changed.pop(name, None)) is not None:
            changed.set()

    def news(self, name: str) -> asyncio.Event:
        """Set at the next news of a run; to be taken before the run is looked at."""
        return self._changed.setdefault(name, asyncio.Event())
