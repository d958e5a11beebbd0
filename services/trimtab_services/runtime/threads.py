"""Blocking work beside the event loop, each piece in a thread of its own that ends with it.

Why not a pool of threads (`asyncio.to_thread`)? Every thread that ever enters an OpenMP region keeps a team of its own
as long as it lives, and where there are more team members than cores, GNU OpenMP lets all of them sleep instead of
spin. One model loaded in a thread that stays cost the engine 29 % of its tokens on two cores (measured).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

__all__ = ["in_own_thread"]

T = TypeVar("T")


async def in_own_thread(work: Callable[[], T]) -> T:
    """Runs blocking work in a new thread; a process that ends does not wait for it, as for a long download it would."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not done.done():  # else the caller was cancelled meanwhile
            set_outcome()

    def body() -> None:
        try:
            set_outcome = partial(done.set_result, work())
        except BaseException as error:
            set_outcome = partial(done.set_exception, error)
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(settle, set_outcome)

    threading.Thread(target=body, name="own-work", daemon=True).start()
    return await done
