"""Memory that is full: what an allocator says of it, in words that say what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["out_of_memory", "telling_full_memory"]

_ALLOCATORS = re.compile("can.t allocate memory|out of memory|bad_alloc", re.IGNORECASE)
"""What torch's allocators of CPU and GPU memory say, the first of them in an error without a class of its own."""
_ADVICE = "a smaller micro_batch_tokens, gradient_checkpointing or more processes need less; --resume goes on"


def out_of_memory(error: BaseException) -> str:
    """What an error says where it is one of memory that is full; else empty."""
    says = str(error)
    is_full = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _ALLOCATORS.search(says)
    )
    if not is_full:
        return ""
    wanted = re.search(r"allocate ([\d.]+) ?(\w+)", says)
    asked = f", {_size(float(wanted[1]), wanted[2])} more were asked for" if wanted else ""
    return f"out of memory{asked}: {_ADVICE}"


def _size(number: float, unit: str) -> str:
    """torch tells bytes of the CPU, and larger units of a GPU."""
    return f"{number / 2**20:.2f} MiB" if unit == "bytes" else f"{number:g} {unit}"


@contextmanager
def telling_full_memory(stage: str) -> Iterator[None]:
    """Makes an allocator's error of the body an OSError that names the stage.

    Raises:
        OSError: memory was full (ENOMEM).
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if told := out_of_memory(error):
            raise OSError(errno.ENOMEM, told, stage) from error
        raise
