"""The replicas of runs as these told of them last: in memory, since they tell again every few seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from trimtab.errors import InvalidRequest, Reason
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.run_rows import AT_WORK, RunRow

__all__ = ["ReplicaReport", "ReportedReplicas"]

_MOST_RUNS = 1000
_MOST_REPLICAS = 1000
_MOST_CHARACTERS = {"service": 63, "address": 300, "note": 500}


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a run told of its replicas, and when, in seconds since the epoch by this service's clock."""

    replicas: pb.RunReplicas
    time: float


class ReportedReplicas:
    """The last report of each run; of the thousand runs that told of their replicas last."""

    def __init__(self) -> None:
        self._reports: OrderedDict[str, ReplicaReport] = OrderedDict()

    def keep(self, name: str, replicas: pb.RunReplicas) -> None:
        """Takes a report in the place of the run's one before.

        Raises:
            InvalidRequest: a text of a replica is too long; TOO_MANY_ITEMS: too many replicas.
        """
        _check(replicas)
        self._reports[name] = ReplicaReport(replicas, time.time())
        self._reports.move_to_end(name)
        while len(self._reports) > _MOST_RUNS:
            self._reports.popitem(last=False)

    def forget(self, name: str) -> None:
        """Drops the report of a run that begins another life."""
        self._reports.pop(name, None)

    def of(self, run: RunRow) -> ReplicaReport | None:
        """The last report of a run at work; None where it has told of none, or uses none now."""
        report = self._reports.get(run.name) if run.state in AT_WORK else None
        return report if report is not None and report.replicas.replicas else None


def _check(report: pb.RunReplicas) -> None:
    """That a report is as short as one kept in memory must be."""
    if len(report.replicas) > _MOST_REPLICAS:
        raise InvalidRequest(
            f"replicas: {len(report.replicas)}; allowed: 0..{_MOST_REPLICAS}",
            reason=Reason.TOO_MANY_ITEMS,
            field="replicas",
            value=len(report.replicas),
            limit=_MOST_REPLICAS,
        )
    for number, replica in enumerate(report.replicas):
        for name, most in _MOST_CHARACTERS.items():
            if (length := len(getattr(replica, name))) > most:
                field = f"replicas[{number}].{name}"
                raise InvalidRequest(
                    f"{field}: {length} characters; allowed: 0..{most}", field=field, value=length, limit=most
                )
