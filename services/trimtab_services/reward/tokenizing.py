"""Reading text beside the event loop: a tokenizer takes a second and more for a megabyte, and everybody waits for it.

The tokenizers release the interpreter while they read, so a thread is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from trimtab_services.runtime.threads import in_own_thread

__all__ = ["MAX_LOOP_CHARACTERS", "ReadingThreads"]

MAX_LOOP_CHARACTERS = 4096
"""Texts of one request that together are no longer are read in the event loop: a thread would take longer to start."""

_MOST_THREADS = 4

T = TypeVar("T")


class ReadingThreads:
    """Threads that read text, a few at once; who comes later waits for a place."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_MOST_THREADS)

    async def run(self, read: Callable[[], T]) -> T:
        """Runs `read` in a thread and returns what it returns. A caller that goes away does not free its place early.

        Raises:
            Exception: what `read` raises.
        """
        await self._room.acquire()
        reading = asyncio.ensure_future(in_own_thread(read))
        reading.add_done_callback(self._free)
        return await asyncio.shield(reading)

    def _free(self, reading: asyncio.Future[Any]) -> None:
        self._room.release()
        if not reading.cancelled():
            reading.exception()  # asked for, so that nobody logs it where the caller has gone
