"""What a run tells: every event to DIR/events.jsonl, to people who watch, and to a trainer service when there is one.

Events are those of `trainer.proto`, numbered from 1 without gaps over all resumes of a run. The file is the truth: an
event is written there before anybody else sees it, and a remote sink that was away reads it there. On a terminal a
stage is a progress bar with the time left; elsewhere it is a line now and then.

A line of events.jsonl is `{"sequence", "time", "stage", "step", "event", ...}`, with the name of the event and its own
fields. A step that a killed run did after its last checkpoint is done again, so a (stage, step) may come twice, with
the same metrics; `stage_metrics` gives the last of each.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from trimtab.cli.display import stage_progress
from trimtab.errors import DataError
from trimtab.v1 import trainer_pb2 as pb

__all__ = [
    "Event",
    "EventKind",
    "EventSink",
    "Reporter",
    "RolloutSample",
    "RunState",
    "Severity",
    "read_events",
    "stage_metrics",
    "step_metrics",
]

_SECONDS_BETWEEN_LINES = 10.0
_SHOWN_METRICS = 5


class EventKind(StrEnum):
    """The events of `trainer.proto`."""

    STAGE_STARTED = "stage_started"
    STEP_DONE = "step_done"
    STAGE_DONE = "stage_done"
    MESSAGE = "message"
    RUN_ENDED = "run_ended"
    ROLLOUT_QUEUE = "rollout_queue"


class Severity(StrEnum):
    """How bad a message is."""

    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class RunState(StrEnum):
    """Where a run is in its life; the names of `trainer.proto`."""

    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run.

    Attributes:
        sequence: number within the run, from 1.
        time: seconds since the epoch.
        stage: empty for events of the run itself.
        step: step of the stage; 0 before the first.
        event: which.
        fields: the event's own fields, by their names in `trainer.proto`.
    """

    sequence: int
    time: float
    stage: str
    step: int
    event: EventKind
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The line of events.jsonl, without its end."""
        record = asdict(self)
        return json.dumps({**{k: v for k, v in record.items() if k != "fields"}, **self.fields}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Event:
        """Reads a line; raises ValueError or KeyError when it is not one."""
        record = json.loads(line)
        own = {key: record.pop(key) for key in ("sequence", "time", "stage", "step", "event")}
        own["event"] = EventKind(own["event"])
        return cls(**own, fields=record)

    def to_message(self) -> pb.RunEvent:
        """The event as it crosses the wire."""
        stamp = Timestamp()
        stamp.FromNanoseconds(int(self.time * 1e9))
        message = pb.RunEvent(sequence=self.sequence, time=stamp, stage=self.stage, step=self.step)
        fields = dict(self.fields)
        match self.event:
            case EventKind.STAGE_STARTED:
                message.stage_started.CopyFrom(pb.StageStarted(**fields))
            case EventKind.STEP_DONE:
                message.step_done.CopyFrom(pb.StepDone(**fields))
            case EventKind.STAGE_DONE:
                message.stage_done.CopyFrom(pb.StageDone(**fields))
            case EventKind.MESSAGE:
                severity = pb.Severity.Value(f"SEVERITY_{fields['severity']}")
                message.message.CopyFrom(pb.Message(severity=severity, text=fields["text"]))
            case EventKind.RUN_ENDED:
                state = pb.RunState.Value(f"RUN_STATE_{fields['state']}")
                message.run_ended.CopyFrom(pb.RunEnded(state=state, error=fields["error"]))
            case EventKind.ROLLOUT_QUEUE:
                message.rollout_queue.CopyFrom(pb.RolloutQueue(**fields))
        return message


@dataclass(frozen=True)
class RolloutSample:
    """A rollout as people read it; the fields of `trainer.proto`."""

    prompt: str
    completion: str
    reward: float
    ended: bool


class EventSink(Protocol):
    """Where events go beside the disk, such as a trainer service. It must not block and must not raise."""

    def send(self, event: Event) -> None:
        """Takes one event, already written down. Called under the reporter's lock, in order."""
        ...


class Reporter:
    """Numbers events, writes them down and shows them. Safe to call from several threads.

    Args:
        directory: the run's folder; events.jsonl there is continued.
        sinks: each also gets every event.
        console: where people read; None makes one on stderr. Its `is_terminal` decides between bars and lines.
        on_replicas: gets each state of the run's replicas. It must not block and must not raise. None: nobody does.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sinks: Sequence[EventSink] = (),
        console: Console | None = None,
        on_replicas: Callable[[pb.RunReplicas], None] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "events.jsonl"
        self._sinks = tuple(sinks)
        self._console = console or Console(stderr=True)
        self._on_replicas = on_replicas
        self._lock = threading.RLock()
        self._sequence = _mend(self._path)
        self._file = self._path.open("ab", buffering=0)
        self._progress: Progress | None = None
        self._task: Any = None
        self._line_at = 0.0
        self._not_finite: set[tuple[str, str]] = set()

    def stage_started(self, stage: str, total_steps: int, *, step: int = 0) -> None:
        """A stage began, or goes on after `step` steps; `total_steps` 0 means not known."""
        with self._lock:
            self._add(EventKind.STAGE_STARTED, stage, step, total_steps=total_steps)
            self._close_bar()
            if self._console.is_terminal:
                self._progress = stage_progress(self._console)
                self._progress.start()
                self._task = self._progress.add_task(stage, total=total_steps or None, completed=step, figures="")
            else:
                self._line(f"{stage}: begins" if step == 0 else f"{stage}: goes on after step {step}")

    def step_done(
        self,
        stage: str,
        step: int,
        total_steps: int,
        metrics: Mapping[str, float],
        samples: Sequence[RolloutSample] = (),
    ) -> None:
        """A step was done; `samples` are a few of its rollouts.

        A metric that is not finite is left out; the first of each name is told as a warning.
        """
        with self._lock:
            finite = self._finite(stage, metrics)
            told = [asdict(sample) for sample in samples if math.isfinite(sample.reward)]
            more = {"samples": told} if told else {}
            self._add(EventKind.STEP_DONE, stage, step, total_steps=total_steps, metrics=finite, **more)
            figures = _figures(finite)
            if self._progress is not None:
                self._progress.update(self._task, completed=step, total=total_steps or None, figures=escape(figures))
            elif time.monotonic() - self._line_at >= _SECONDS_BETWEEN_LINES:
                self._line(f"{stage}: step {step}{f' of {total_steps}' if total_steps else ''}: {figures}")

    def stage_done(self, stage: str, step: int, metrics: Mapping[str, float], *, version: int = 0) -> None:
        """A stage ended; `version` is the one published at its end, 0 when none was."""
        with self._lock:
            finite = self._finite(stage, metrics)
            self._add(EventKind.STAGE_DONE, stage, step, metrics=finite, version=version)
            self._close_bar()
            self._line(f"{stage}: done: {_figures(finite, most=12)}")

    def message(self, text: str, *, severity: Severity = Severity.INFO, stage: str = "", step: int = 0) -> None:
        """A sentence for people."""
        with self._lock:
            self._add(EventKind.MESSAGE, stage, step, severity=severity.value, text=text)
            prefix = "" if severity is Severity.INFO else f"{severity.value.lower()}: "
            self._line(f"{stage}: {prefix}{text}" if stage else f"{prefix}{text}")

    def warn(self, text: str, *, stage: str = "", step: int = 0) -> None:
        """A message that is a warning."""
        self.message(text, severity=Severity.WARNING, stage=stage, step=step)

    def rollout_queue(self, stage: str, step: int, *, waiting: int, running: int, replicas: int) -> None:
        """The rollouts given out or held back have changed."""
        with self._lock:
            self._add(
                EventKind.ROLLOUT_QUEUE,
                stage,
                step,
                waiting_rollouts=waiting,
                running_rollouts=running,
                replicas=replicas,
            )

    def replicas(self, replicas: pb.RunReplicas) -> None:
        """Tells how the run's replicas are now, which is no event: it counts until the next time, and is not kept."""
        if self._on_replicas is not None:
            self._on_replicas(replicas)

    def run_ended(self, state: RunState, error: str = "") -> None:
        """The run is over; its last event until it is resumed."""
        with self._lock:
            self._add(EventKind.RUN_ENDED, "", 0, state=state.value, error=error)
            self._close_bar()
            self._line(f"run {state.value}")  # the command prints the error itself

    def close(self) -> None:
        """Ends the display and closes the file."""
        with self._lock:
            self._close_bar()
            self._file.close()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _add(self, kind: EventKind, stage: str, step: int, **fields: Any) -> None:
        event = Event(self._sequence + 1, time.time(), stage, step, kind, fields)
        self._write(f"{event.to_json()}\n".encode())
        self._sequence = event.sequence
        for sink in self._sinks:
            sink.send(event)

    def _write(self, line: bytes) -> None:
        """Adds a line, whole or not at all: the next one may come when a full disk has space again."""
        before = os.fstat(self._file.fileno()).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(before)
            advice = "make space or mend the disk, then go on with --resume"
            raise OSError(error.errno, f"not written: {error.strerror}; {advice}", str(self._path)) from error

    def _finite(self, stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        for name in metrics.keys() - finite.keys():
            if (stage, name) not in self._not_finite:
                self._not_finite.add((stage, name))
                self.warn(f"metric {name} is {metrics[name]}; it is left out where it is not finite", stage=stage)
        return finite

    def _line(self, text: str) -> None:
        self._line_at = time.monotonic()
        console = self._progress.console if self._progress is not None else self._console
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _close_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def read_events(path: Path) -> Iterator[Event]:
    """Events of an events.jsonl, in order; a last line cut short by a kill is left out.

    Raises:
        DataError: a line before the last is not an event.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            yield Event.from_json(line)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                return
            raise DataError(f"{path}:{number}: not an event: {error}", field="event", value=line) from error


def stage_metrics(path: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Metrics of every stage by step, in the order of the steps; of a step done twice the last."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for event in read_events(path):
        if event.event == "step_done":
            found.setdefault(event.stage, {})[event.step] = dict(event.fields["metrics"])
    return {stage: dict(sorted(steps.items())) for stage, steps in found.items()}


def step_metrics(path: Path, stage: str) -> dict[int, dict[str, float]]:
    """Metrics of one stage, as `stage_metrics`; empty where it did no step."""
    return stage_metrics(path).get(stage, {})


def _mend(path: Path) -> int:
    """Cuts a torn last line off, so that lines can be added; returns the last sequence number, 0 for none."""
    last = 0
    if not path.exists():
        return last
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    for event in read_events(path):
        last = event.sequence
    return last


def _figures(metrics: Mapping[str, float], most: int = _SHOWN_METRICS) -> str:
    shown = list(metrics.items())[:most]
    return "  ".join(f"{name} {value:.0f}" if value.is_integer() else f"{name} {value:.4g}" for name, value in shown)
