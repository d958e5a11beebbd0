"""What the store keeps of runs: its tables, what a row means, and how an event moves it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from trimtab.v1 import trainer_pb2 as pb

__all__ = [
    "AT_WORK",
    "ENDED",
    "NOT_ENDED",
    "Relaunch",
    "RunRow",
    "checkpoint_orders",
    "events",
    "metadata",
    "progress",
    "relaunches",
    "runs",
]

ENDED = frozenset({pb.RUN_STATE_STOPPED, pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED})
"""States in which no process works on the run."""

AT_WORK = frozenset({pb.RUN_STATE_RUNNING, pb.RUN_STATE_STOPPING})
"""States in which a process works on the run."""

NOT_ENDED = AT_WORK | {pb.RUN_STATE_STARTING}
"""States in which a process works on the run, or is to."""

metadata = sa.MetaData()
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String, unique=True, nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("error", sa.String, nullable=False, default=""),
    sa.Column("spec_yaml", sa.String, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Column("update_time", sa.Float, nullable=False),
    sa.Column("stage", sa.String, nullable=False, default=""),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("total_steps", sa.Integer, nullable=False, default=0),
    sa.Column("directory", sa.String, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False, default=0),
    sqlite_autoincrement=True,  # the number of a run that was deleted is never another's
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.number"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)
checkpoint_orders = sa.Table(
    "checkpoint_orders",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.number"), nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, so an old one cannot be taken for a new one
)
relaunches = sa.Table(
    "relaunches",
    metadata,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.number"), primary_key=True),
    sa.Column("resumes", sa.Integer, nullable=False),
    sa.Column("error", sa.String, nullable=False),
)


@dataclass(frozen=True)
class Relaunch:
    """That a disrupted run is to be launched again: its name, for which time, and what disrupted it."""

    name: str
    resumes: int
    error: str


@dataclass(frozen=True)
class RunRow:
    """One run as it stands in the store; times are seconds since the epoch, `pid` is 0 when no process was launched."""

    number: int
    name: str
    state: pb.RunState.ValueType
    error: str
    spec_yaml: str
    create_time: float
    update_time: float
    stage: str
    step: int
    total_steps: int
    directory: str
    pid: int

    def to_message(self) -> pb.Run:
        """The run as `trimtab.v1.Run`."""
        run = pb.Run(
            name=self.name,
            state=self.state,
            error=self.error,
            spec_yaml=self.spec_yaml,
            stage=self.stage,
            step=self.step,
            total_steps=self.total_steps,
            directory=self.directory,
        )
        run.create_time.FromNanoseconds(int(self.create_time * 1e9))
        run.update_time.FromNanoseconds(int(self.update_time * 1e9))
        return run


def progress(run: RunRow, event: pb.RunEvent, since: float) -> dict[str, object]:
    """Columns of a run that an event moves."""
    values: dict[str, object] = {"update_time": time.time()}
    kind = event.WhichOneof("event")
    if kind == "run_ended":
        if event.time.ToNanoseconds() >= since * 1e9:
            values |= {"state": event.run_ended.state, "error": event.run_ended.error}
    elif run.state == pb.RUN_STATE_STARTING:
        values["state"] = pb.RUN_STATE_RUNNING
    if kind == "stage_started":
        values |= {"stage": event.stage, "step": event.step, "total_steps": event.stage_started.total_steps}
    elif kind == "step_done":
        values |= {"stage": event.stage, "step": event.step, "total_steps": event.step_done.total_steps}
    elif event.stage not in ("", run.stage):  # such as what a stage waits for before it begins: replicas scaled to none
        values |= {"stage": event.stage, "step": 0, "total_steps": 0}
    return values
