"""What the page shows of a run's events, kept up with them: one pass over the events, however many people look."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from trimtab.run_plots import RunPlot, plots_of
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.records import RunRecords
from trimtab_services.trainer.run_rows import ENDED, RunRow
from trimtab_services.trainer.web.curves import StageCurves

__all__ = ["Digests", "PublishedVersion", "ReportedRollout", "RunDigest", "figures_of", "is_log_entry", "is_warning"]

_MOST_DIGESTS = 64
_AT_A_TIME = 500
_MOST_ROLLOUTS = 40
_PACE_STEPS = 32
"""The time left is told from the pace of the last so many steps."""


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A version that a run has published: in which stage, after which step, and when (seconds since the epoch)."""

    version: int
    stage: str
    step: int
    time: float


@dataclass(frozen=True, slots=True)
class ReportedRollout:
    """A rollout that a run has told of, and with which event: its number, stage and step."""

    sequence: int
    stage: str
    step: int
    sample: pb.RolloutSample


@dataclass(slots=True)
class RunDigest:
    """A run's events up to `sequence`.

    Attributes:
        sequence: of the last event that counts in here.
        curves: by stage, of those that have done steps.
        log: numbers of the events that people read, in order.
        warnings: those of them that tell of something wrong.
        versions: in the order in which they were first told of.
        rollouts: those told of last, in order.
        queue: the rollout queue last told in the stage; None where none was.
    """

    sequence: int = 0
    curves: dict[str, StageCurves] = field(default_factory=dict)
    log: array[int] = field(default_factory=lambda: array("q"))
    warnings: array[int] = field(default_factory=lambda: array("q"))
    versions: list[PublishedVersion] = field(default_factory=list)
    rollouts: deque[ReportedRollout] = field(default_factory=lambda: deque(maxlen=_MOST_ROLLOUTS))
    queue: pb.RolloutQueue | None = None
    _pace: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_PACE_STEPS))

    def add(self, event: pb.RunEvent) -> None:
        """Counts the next event in."""
        self.sequence = event.sequence
        if is_log_entry(event):
            self.log.append(event.sequence)
        if is_warning(event):
            self.warnings.append(event.sequence)
        match event.WhichOneof("event"):
            case "step_done":
                self._add_step(event, event.step_done.metrics)
            case "stage_started":
                self._pace.clear()
                self._pace.append((event.step, _seconds(event)))
                self.queue = None
            case "stage_done":
                self._note_version(event, event.stage_done.version)
                self._pace.clear()
                self.queue = None
            case "rollout_queue":
                self.queue = event.rollout_queue
            case "run_ended":
                self._pace.clear()
                self.queue = None

    def plots(self) -> list[RunPlot]:
        """The plots of the stages that have done steps."""
        return plots_of(self.curves)

    def seconds_a_step(self) -> float | None:
        """The pace of late; None while it is not known."""
        if len(self._pace) < 2:
            return None
        (first, began), (last, ended) = self._pace[0], self._pace[-1]
        return (ended - began) / (last - first) if last > first and ended > began else None

    def seconds_left(self, run: RunRow) -> float | None:
        """Until the end of the stage that the run is in, at the pace of late; None while it is not known."""
        pace = self.seconds_a_step()
        if run.state in ENDED or pace is None or not run.total_steps or run.step > run.total_steps:
            return None
        since_last = max(0.0, time.time() - self._pace[-1][1])
        return max(0.0, pace * (run.total_steps - run.step) - since_last)

    def _add_step(self, event: pb.RunEvent, metrics: Mapping[str, float]) -> None:
        if event.stage not in self.curves:
            self.curves[event.stage] = StageCurves(figures_of(event.stage))
        self.curves[event.stage].add(event.step, metrics)
        for sample in event.step_done.samples:
            self.rollouts.append(ReportedRollout(event.sequence, event.stage, event.step, sample))
        self._pace.append((event.step, _seconds(event)))
        self._note_version(event, int(metrics["version"]) if "version" in metrics else 0)

    def _note_version(self, event: pb.RunEvent, version: int) -> None:
        if version > 0 and (not self.versions or self.versions[-1].version != version):
            self.versions.append(PublishedVersion(version, event.stage, event.step, _seconds(event)))


class Digests:
    """The digests of the runs looked at last; others are made again when somebody looks. In one event loop only.

    Args:
        records: of the runs.
    """

    def __init__(self, records: RunRecords) -> None:
        self._records = records
        self._digests: OrderedDict[int, tuple[RunDigest, asyncio.Lock]] = OrderedDict()

    async def of(self, run: RunRow) -> RunDigest:
        """The digest of all events of a run that are on disk."""
        digest, lock = self._digests.setdefault(run.number, (RunDigest(), asyncio.Lock()))
        self._digests.move_to_end(run.number)
        while len(self._digests) > _MOST_DIGESTS:
            self._digests.popitem(last=False)
        async with lock:
            while events := await self._records.ask(self._records.store.events, run.name, digest.sequence, _AT_A_TIME):
                for event in events:
                    digest.add(event)
        return digest


def is_log_entry(event: pb.RunEvent) -> bool:
    """Whether an event is for people to read."""
    return event.WhichOneof("event") in ("message", "stage_started", "stage_done", "run_ended")


def is_warning(event: pb.RunEvent) -> bool:
    """Whether an event tells of something wrong."""
    return event.message.severity >= pb.SEVERITY_WARNING or event.run_ended.state == pb.RUN_STATE_FAILED


def figures_of(stage: str) -> list[str]:
    """Metrics of a stage that a plot shows."""
    plots = plots_of({stage})
    named = [name for plot in plots for name in (*plot.figures, plot.root_of) if name]
    return list(dict.fromkeys(named))


def _seconds(event: pb.RunEvent) -> float:
    return event.time.ToNanoseconds() / 1e9
