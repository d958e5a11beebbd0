"""Streams that are followed over lost connections and restarts of their service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from trimtab.errors import DeadlineExceeded, Unavailable

__all__ = ["WATCH_S", "follow"]

T = TypeVar("T")

WATCH_S = 3600.0
"""Deadline of one call of a stream that may go on for days."""

_PATIENCE_S = 60.0
_CONNECTED_S = 30.0
"""A call that fails after longer than this had reached the service: gRPC gives up connecting after 20 s."""


def follow(watch: Callable[[], Iterable[T]]) -> Iterator[T]:
    """What a stream sends until the service ends it; a lost connection is made again.

    Args:
        watch: asks for the stream, from behind the last thing that the caller took.

    Raises:
        Unavailable: the service was away for a minute.
        TrimtabError: of another kind, at once.
    """
    there_at = time.monotonic()
    while True:
        began = time.monotonic()
        try:
            for item in watch():
                there_at = time.monotonic()
                yield item
            return
        except (Unavailable, DeadlineExceeded):
            now = time.monotonic()
            if now - began > _CONNECTED_S:  # a quiet stream was watched until now
                there_at = now
            if now - there_at > _PATIENCE_S:
                raise
        time.sleep(0.5)
