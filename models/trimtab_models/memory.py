"""Freed memory is kept for the next batch instead of going back to the system after each operation.

A batch allocates and frees the same tens of megabytes again and again. glibc gives blocks of that size back to the
system at once, most of all in a thread that is not the main one, and the system fills every page with zeros when it is
touched again: a forward in the compute thread of a service spent a fifth of its time there (measured on two cores).
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# from glibc's malloc.h
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8

_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Makes the process keep up to 1 GiB of freed memory. Call it before there are threads.

    Returns:
        Whether it does; False with a C library other than glibc, or an allocator that was loaded before it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # one arena: those of other threads are made of pieces of 64 MiB, and what is larger goes back at once
    options = {_ARENA_MAX: 1, _MMAP_THRESHOLD: _KEPT_BYTES, _TRIM_THRESHOLD: _KEPT_BYTES}
    return all([mallopt(option, value) == 1 for option, value in options.items()])
