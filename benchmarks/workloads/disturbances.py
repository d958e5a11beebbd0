"""What goes wrong in a run: processes killed or stopped for a while, replicas added and taken away, all from a seed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.local import LocalServices, read_endpoints, request_scale

__all__ = ["KINDS", "Disturbance", "Disturber"]

KINDS = {
    "kill generation": 2,
    "kill reward": 2,
    "kill reference": 2,
    "kill weights": 2,
    "kill trainer": 2,
    "pause generation": 1,
    "pause reward": 1,
    "pause reference": 1,
    "pause weights": 1,
    "scale generation": 2,
}
"""How often each is done beside the others. `kill` is SIGKILL; `pause` is SIGSTOP and, after 1 to 20 s, SIGCONT: a run
gives a silent replica's work to another one after 15 s at most."""

_EVERY_S = (2.0, 8.0)
_PAUSE_S = (1.0, 20.0)
_MOST_REPLICAS = 3


@dataclass(frozen=True)
class Disturbance:
    """One thing that was done.

    Attributes:
        kind: of `KINDS`.
        time: seconds since the epoch.
        detail: to whom, for people.
    """

    kind: str
    time: float
    detail: str


class Disturber:
    """Disturbs a run at random moments; what it stops it also lets go on.

    Args:
        services: that the run works with.
        seed: of the moments and of the kinds; which process is there to be hit depends on the machine's pace.
    """

    def __init__(self, services: LocalServices, seed: int) -> None:
        self.done: list[Disturbance] = []
        self._services = services
        self._draw = random.Random(seed)
        self._paused: dict[int, float] = {}
        """`time.monotonic()` at which each goes on, by pid."""
        self._next_at = self._moment()

    def __enter__(self) -> Disturber:
        return self

    def __exit__(self, *exc: object) -> None:
        self.let_go_on()

    def disturb_when_due(self, trainer: subprocess.Popen[bytes]) -> Disturbance | None:
        """Does the next thing if its time has come; returns what it did."""
        if time.monotonic() < self._next_at:
            return None
        self._next_at = self._moment()
        (kind,) = self._draw.choices(list(KINDS), list(KINDS.values()))
        deed, target = kind.split()
        deeds: dict[str, Callable[[], str]] = {
            "kill": lambda: self._kill(target, trainer),
            "pause": lambda: self._pause(target),
            "scale": lambda: self._scale(target),
        }
        detail = deeds[deed]()
        if not detail:
            return None  # nobody is there: it is being restarted
        self.done.append(Disturbance(kind, time.time(), detail))
        return self.done[-1]

    def let_go_on(self, now: float = float("inf")) -> None:
        """Lets processes go on whose pause is over by `now`."""
        for pid in [pid for pid, until in self._paused.items() if until <= now]:
            del self._paused[pid]
            _send(pid, signal.SIGCONT)

    def _moment(self) -> float:
        return time.monotonic() + self._draw.uniform(*_EVERY_S)

    def _kill(self, target: str, trainer: subprocess.Popen[bytes]) -> str:
        if target == "trainer":
            if trainer.poll() is not None:
                return ""
            trainer.kill()
            return f"process {trainer.pid}"
        pid = self._pick(target)
        return f"process {pid}" if pid and _send(pid, signal.SIGKILL) else ""

    def _pause(self, target: str) -> str:
        pid, seconds = self._pick(target), self._draw.uniform(*_PAUSE_S)
        if not pid or not _send(pid, signal.SIGSTOP):
            return ""
        self._paused[pid] = time.monotonic() + seconds
        return f"process {pid} for {seconds:.1f} s"

    def _scale(self, target: str) -> str:
        count = self._draw.randint(1, _MOST_REPLICAS)
        request_scale(self._services.directory, target, count)
        return f"to {count}"

    def _pick(self, service: str) -> int:
        """A process of a service, 0 for none."""
        pids = sorted(replica["pid"] for replica in read_endpoints(self._services.directory)[service])
        return self._draw.choice(pids) if pids else 0


def _send(pid: int, number: signal.Signals) -> bool:
    """Whether the process was still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
