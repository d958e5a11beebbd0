"""A lock for each run, so that what takes long for one run makes no other wait."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

__all__ = ["RunLocks"]


class RunLocks:
    """Held by whoever launches, stops, settles or deletes a run, so that no two do. In one event loop only."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        """The lock of a run; it lives as long as somebody has it or waits for it."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def until_free(self) -> None:
        """Waits until all that are held now have been let go."""
        for lock in list(self._locks.values()):
            async with lock:
                pass
