"""How long a run may be silent after its launch.

Its work first seeks a place, then has it prepared, then begins and reports. What can be mended by nobody but a person
ends a run soon and says why; what a cluster mends by itself gets the time that takes, and no time in a queue counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trimtab_services.trainer.launchers import Place, Work

__all__ = ["Silence"]


@dataclass(slots=True)
class Silence:
    """Watches the silence of one work; to be asked again and again.

    Attributes:
        work: that has not reported.
        start_timeout_s: from its launch until it has a place, and from there on until it reports.
        reschedule_timeout_s: where it goes on after a disruption, from its launch until it begins in a new place.
        clock: in seconds.
    """

    work: Work
    start_timeout_s: float
    reschedule_timeout_s: float
    clock: Callable[[], float] = time.monotonic
    _sought_since: float | None = None
    _placed_since: float | None = None

    def is_too_long(self) -> str:
        """What it has not done in time, with the limit and its key; empty while it has time left."""
        now, place = self.clock(), self.work.place
        if place is Place.QUEUED:
            self._sought_since = self._placed_since = None
            return ""
        if self._sought_since is None:
            self._sought_since = now
        if place is Place.SOUGHT or (place is Place.PREPARING and self.work.goes_on):
            return self._over_seeking(now - self._sought_since)
        if self._placed_since is None:
            self._placed_since = now
        return self._over_starting(now - self._placed_since)

    def _over_seeking(self, seconds: float) -> str:
        if not self.work.goes_on:
            return self._over_starting(seconds)
        if seconds <= self.reschedule_timeout_s:
            return ""
        limit = f"{self.reschedule_timeout_s:g} s (launcher.reschedule_timeout_s)"
        return f"it did not begin again within {limit} after it was disrupted"

    def _over_starting(self, seconds: float) -> str:
        if seconds <= self.start_timeout_s:
            return ""
        return f"it did not report within {self.start_timeout_s:g} s (start_timeout_s)"
