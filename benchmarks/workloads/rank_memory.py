"""Resident memory of every rank of a run, which the other ranks measure for rank 0.

Blocks of 64 KiB and more go back to the system as soon as they are freed, unlike in a run, which keeps up to 1 GiB of
freed memory: what is resident is what is in use.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

from trimtab_trainer.distributed import joined, on_every_rank

__all__ = ["peaks", "resident"]

_MMAP_THRESHOLD = -3
"""From glibc's malloc.h."""


@on_every_rank
def resident() -> list[int]:
    """Of each rank: bytes resident now, freed memory given back; `peaks` begins anew."""
    gc.collect()
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**16)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
    return joined([_status("VmRSS")])


@on_every_rank
def peaks() -> list[int]:
    """Of each rank: most bytes that were resident since `resident`."""
    return joined([_status("VmHWM")])


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
