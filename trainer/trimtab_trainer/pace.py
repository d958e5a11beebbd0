"""How fast a replica is beside its peers: how long each of them lately needed for a piece of work.

For replicas of one kind, whose work takes no less time when there is more of it. Pure bookkeeping, for `fleet`.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["SLOW", "Pace", "seconds_needed"]

SLOW = 3.0
"""A replica is slow that needs so many times what its peers need for as much work."""

_PIECES = 8
"""The last so many pieces of work tell a replica's pace."""
_MEMORY_S = 600.0
"""After so long a piece of work tells nothing any more: a slow replica gets another chance."""
_LEAST_PIECES = 4
"""Peers that have done less than this together are no measure."""


class _Piece(NamedTuple):
    at: float
    """`time.monotonic()`."""
    work: int
    seconds: float
    """That it took, or at least would have taken."""
    times_peers: float | None
    """What that is of what the peers needed for as much; None while they were no measure."""


class Pace:
    """Of one replica."""

    def __init__(self) -> None:
        self._pieces: deque[_Piece] = deque(maxlen=_PIECES)

    def note(self, work: int, seconds: float, peers: Iterable[Pace], *, beaten: bool = False) -> None:
        """Notes a piece of work.

        Args:
            work: its size, in any unit, as long as it is one; at least 1.
            seconds: that it took.
            peers: of the other replicas.
            beaten: another had done it by then, and nobody knows how much longer this one would have taken; it counts
                only where that is slow already.
        """
        needed = seconds_needed(peers, work)
        times_peers = seconds / needed if needed else None
        if not beaten or (times_peers is not None and times_peers >= SLOW):
            self._pieces.append(_Piece(time.monotonic(), work, seconds, times_peers))

    def slowness(self) -> float:
        """How many times as long as its peers it needed for as much work: at least `SLOW`, or 1 for one not slow."""
        times = [piece.times_peers for piece in self.recent() if piece.times_peers is not None]
        slowness = statistics.median(times) if times else 1.0
        return slowness if slowness >= SLOW else 1.0

    def recent(self) -> list[_Piece]:
        """What still tells something."""
        oldest = time.monotonic() - _MEMORY_S
        return [piece for piece in self._pieces if piece.at > oldest]


def seconds_needed(paces: Iterable[Pace], work: int) -> float | None:
    """Seconds that some replicas lately needed for so much work, smaller work scaled up; None for no measure."""
    needed = [piece.seconds * max(1.0, work / piece.work) for pace in paces for piece in pace.recent()]
    return statistics.median(needed) if len(needed) >= _LEAST_PIECES else None
