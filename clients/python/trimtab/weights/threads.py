"""Work on the tensors of a version, several at a time: as many as cores and memory of this process are for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

__all__ = ["over_tensors"]

T = TypeVar("T")
R = TypeVar("R")

_MEMORY_SHARE = 16
"""What is worked on at a time is at most that part of the memory; it is held two or three times meanwhile."""
_LEAST_BYTES = 128 * 1024 * 1024

_GROUP = Path("/sys/fs/cgroup")


def over_tensors(
    work: Callable[[T], R], items: Sequence[T], size: Callable[[T], int], *, share: float, name: str
) -> list[R]:
    """The results of `work` on each item, in order.

    Args:
        work: called in several threads.
        items: one tensor each.
        size: bytes of an item; what is large waits until there is room for it.
        share: of the cores.
        name: of the threads.

    Raises:
        whatever `work` raised for the first item that it failed on; items that had not begun are left.
    """
    room = _Room(max(_LEAST_BYTES, _memory() // _MEMORY_SHARE))

    def one(item: T) -> R:
        with room.of(size(item)):
            return work(item)

    with ThreadPoolExecutor(_threads(share), thread_name_prefix=name) as threads:
        return list(threads.map(one, items))


class _Room:
    """Bytes that may be worked on at a time; one item always may."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._most)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


def _threads(share: float) -> int:
    """Threads for a share of the cores that this process may use."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _limit("cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, int(quota) / int(period))
    return max(1, int(cores * share))


def _memory() -> int:
    """Bytes of memory that this process may use."""
    limit = _limit("memory.max")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(whole, int(limit)) if limit.isdigit() else whole


def _limit(name: str) -> str:
    """What the container is limited to; empty where it is not."""
    try:
        return (_GROUP / name).read_text().strip()
    except OSError:
        return ""
