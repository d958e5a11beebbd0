"""Runs, their events and checkpoint orders, durable in one SQLite file: what was acknowledged is on disk.

Events of a run are numbered from 1 without gaps by the run itself. Appending is idempotent, so a run that lost its
connection sends on from the last acknowledged number, and a watcher that reconnects misses nothing and sees nothing
twice. Used from one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event

from trimtab.errors import FailedPrecondition, InvalidRequest, NotFound
from trimtab.v1 import trainer_pb2 as pb

__all__ = ["AT_WORK", "ENDED", "MOST_RUNS", "NOT_ENDED", "EventStore", "Relaunch", "RunRow"]

ENDED = frozenset({pb.RUN_STATE_STOPPED, pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED})
"""States in which no process works on the run."""

AT_WORK = frozenset({pb.RUN_STATE_RUNNING, pb.RUN_STATE_STOPPING})
"""States in which a process works on the run."""

NOT_ENDED = AT_WORK | {pb.RUN_STATE_STARTING}
"""States in which a process works on the run, or is to."""

MOST_RUNS = 1000
"""Most runs of one page."""

_metadata = sa.MetaData()
_runs = sa.Table(
    "runs",
    _metadata,
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
_events = sa.Table(
    "events",
    _metadata,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.number"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)
_checkpoint_orders = sa.Table(
    "checkpoint_orders",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.number"), nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, so an old one cannot be taken for a new one
)
_relaunches = sa.Table(
    "relaunches",
    _metadata,
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


class EventStore:
    """The runs and events of one TrainerService.

    Args:
        path: SQLite file; made with its folder when it does not exist.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False})

        @event.listens_for(self._engine, "connect")
        def durable(connection, record) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # an acknowledged event survives a power cut

        _metadata.create_all(self._engine)

    def close(self) -> None:
        """Closes the file."""
        self._engine.dispose()

    def create_run(self, name: str, spec_yaml: str, directory: Path) -> tuple[RunRow, bool]:
        """Adds a run in state STARTING, or returns the one that a first try added.

        A run that failed before its first step has nothing to lose: another spec takes its name.

        Returns:
            The run, and True when it is new.

        Raises:
            FailedPrecondition: a run of that name has another spec.
        """
        now = time.time()
        with self._engine.begin() as connection:
            existing = self._find(connection, name)
            if existing is not None and existing.spec_yaml != spec_yaml and self._did_nothing(connection, existing):
                self._delete(connection, existing)
                existing = None
            if existing is not None:
                if existing.spec_yaml != spec_yaml:
                    raise FailedPrecondition(
                        f"name: run {name!r} exists already with another spec; choose another name or resume it",
                        field="name",
                        value=name,
                    )
                return existing, False
            connection.execute(
                _runs.insert().values(
                    name=name,
                    state=pb.RUN_STATE_STARTING,
                    error="",
                    spec_yaml=spec_yaml,
                    create_time=now,
                    update_time=now,
                    stage="",
                    step=0,
                    total_steps=0,
                    directory=str(directory),
                    pid=0,
                )
            )
            created = self._find(connection, name)
        if created is None:
            raise NotFound(f"run {name!r} vanished while it was created", field="name", value=name)
        return created, True

    def has_run(self, name: str) -> bool:
        """Whether there is a run of that name."""
        with self._engine.connect() as connection:
            return self._find(connection, name) is not None

    def run(self, name: str) -> RunRow:
        """One run.

        Raises:
            NotFound: no run of that name.
        """
        with self._engine.connect() as connection:
            row = self._find(connection, name)
        if row is None:
            raise NotFound(f"name: no run {name!r}", field="name", value=name)
        return row

    def runs(self, *, before_number: int | None = None, limit: int = 50) -> list[RunRow]:
        """Runs, newest first, older than `before_number` when it is given."""
        query = sa.select(_runs).order_by(_runs.c.number.desc()).limit(limit)
        if before_number is not None:
            query = query.where(_runs.c.number < before_number)
        with self._engine.connect() as connection:
            return [RunRow(**row) for row in connection.execute(query).mappings()]

    def runs_in(self, states: Collection[pb.RunState.ValueType]) -> list[RunRow]:
        """All runs in one of the states, newest first."""
        query = sa.select(_runs).where(_runs.c.state.in_(states)).order_by(_runs.c.number.desc())
        with self._engine.connect() as connection:
            return [RunRow(**row) for row in connection.execute(query).mappings()]

    def delete_run(self, name: str) -> None:
        """Removes a run with its events; nothing where there is none."""
        with self._engine.begin() as connection:
            run = self._find(connection, name)
            if run is not None:
                self._delete(connection, run)

    def set_state(self, name: str, state: pb.RunState.ValueType, *, error: str = "", pid: int | None = None) -> RunRow:
        """Moves a run to a state and notes its process.

        Raises:
            NotFound: no run of that name.
        """
        values: dict[str, object] = {"state": state, "error": error, "update_time": time.time()}
        if pid is not None:
            values["pid"] = pid
        with self._engine.begin() as connection:
            connection.execute(_runs.update().where(_runs.c.name == name).values(**values))
        return self.run(name)

    def append(self, name: str, run_event: pb.RunEvent, *, since: float = 0.0) -> int:
        """Keeps an event, once, and moves the run's state, stage and step with it; returns the last number kept.

        Args:
            name: of the run.
            run_event: numbered.
            since: seconds since the epoch at which the run was launched. An end before that, told late, is that of an
                earlier life and leaves the state alone.

        Raises:
            NotFound: no run of that name.
            InvalidRequest: the number leaves a gap.
        """
        run = self.run(name)
        with self._engine.begin() as connection:
            last = self._last_sequence(connection, run.number)
            if run_event.sequence <= last:
                return last
            if run_event.sequence != last + 1:
                raise InvalidRequest(
                    f"event.sequence: {run_event.sequence} leaves a gap; {last + 1} is next",
                    field="event.sequence",
                    value=run_event.sequence,
                    limit=last + 1,
                )
            connection.execute(
                _events.insert().values(
                    run=run.number, sequence=run_event.sequence, payload=run_event.SerializeToString()
                )
            )
            connection.execute(
                _runs.update().where(_runs.c.number == run.number).values(**_progress(run, run_event, since))
            )
        return run_event.sequence

    def last_sequence(self, name: str) -> int:
        """Number of the run's last event, 0 when it has none."""
        run = self.run(name)
        with self._engine.connect() as connection:
            return self._last_sequence(connection, run.number)

    def events(self, name: str, after_sequence: int, limit: int = 500) -> Sequence[pb.RunEvent]:
        """Events after a number, in order, at most `limit`."""
        run = self.run(name)
        query = (
            sa.select(_events.c.payload)
            .where(_events.c.run == run.number, _events.c.sequence > after_sequence)
            .order_by(_events.c.sequence)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [pb.RunEvent.FromString(payload) for payload in connection.execute(query).scalars()]

    def rollout_queue(self, name: str) -> pb.RolloutQueue:
        """The rollout queue last told in the stage that the run is in; empty where none was.

        Raises:
            NotFound: no run of that name.
        """
        run = self.run(name)
        query = sa.select(_events.c.payload).where(_events.c.run == run.number).order_by(_events.c.sequence.desc())
        with self._engine.connect() as connection:
            for payload in connection.execute(query).scalars():
                run_event = pb.RunEvent.FromString(payload)
                if run_event.HasField("rollout_queue"):
                    return run_event.rollout_queue
                if run_event.WhichOneof("event") in ("stage_started", "run_ended"):
                    break
        return pb.RolloutQueue()

    def order_checkpoint(self, name: str) -> int:
        """Notes that the run is to write a checkpoint; returns the order's number, which grows.

        Raises:
            NotFound: no run of that name.
        """
        run = self.run(name)
        with self._engine.begin() as connection:
            added = connection.execute(_checkpoint_orders.insert().values(run=run.number))
        return added.lastrowid

    def checkpoint_order(self, name: str) -> int:
        """Number of the run's last checkpoint order that is not settled; 0 when there is none.

        Raises:
            NotFound: no run of that name.
        """
        run = self.run(name)
        query = sa.select(sa.func.max(_checkpoint_orders.c.number)).where(_checkpoint_orders.c.run == run.number)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar() or 0

    def settle_checkpoint_orders(self, name: str, number: int) -> None:
        """Forgets the run's checkpoint orders up to a number.

        Raises:
            NotFound: no run of that name.
        """
        run = self.run(name)
        table = _checkpoint_orders
        with self._engine.begin() as connection:
            connection.execute(table.delete().where(table.c.run == run.number, table.c.number <= number))

    def order_relaunch(self, name: str, resumes: int, error: str) -> None:
        """Notes that a disrupted run is to be launched again, and moves it to STARTING.

        Raises:
            NotFound: no run of that name.
        """
        run = self.set_state(name, pb.RUN_STATE_STARTING)
        with self._engine.begin() as connection:
            connection.execute(_relaunches.insert().values(run=run.number, resumes=resumes, error=error))

    def relaunch(self, name: str) -> Relaunch | None:
        """The relaunch of a run that is not settled; None where there is none.

        Raises:
            NotFound: no run of that name.
        """
        run = self.run(name)
        with self._engine.connect() as connection:
            query = sa.select(_relaunches).where(_relaunches.c.run == run.number)
            row = connection.execute(query).mappings().one_or_none()
        return Relaunch(name, row["resumes"], row["error"]) if row is not None else None

    def settle_relaunch(self, name: str) -> None:
        """Forgets a run's relaunch.

        Raises:
            NotFound: no run of that name.
        """
        run = self.run(name)
        with self._engine.begin() as connection:
            connection.execute(_relaunches.delete().where(_relaunches.c.run == run.number))

    @staticmethod
    def _find(connection: sa.Connection, name: str) -> RunRow | None:
        row = connection.execute(sa.select(_runs).where(_runs.c.name == name)).mappings().one_or_none()
        return RunRow(**row) if row is not None else None

    @staticmethod
    def _delete(connection: sa.Connection, run: RunRow) -> None:
        for table in (_events, _checkpoint_orders, _relaunches):
            connection.execute(table.delete().where(table.c.run == run.number))
        connection.execute(_runs.delete().where(_runs.c.number == run.number))

    @staticmethod
    def _did_nothing(connection: sa.Connection, run: RunRow) -> bool:
        """Whether a run failed before its first step; it then has only a few events."""
        query = sa.select(_events.c.payload).where(_events.c.run == run.number).limit(100)
        kinds = {pb.RunEvent.FromString(p).WhichOneof("event") for p in connection.execute(query).scalars()}
        return run.state == pb.RUN_STATE_FAILED and not kinds & {"step_done", "stage_done"}

    @staticmethod
    def _last_sequence(connection: sa.Connection, number: int) -> int:
        query = sa.select(sa.func.max(_events.c.sequence)).where(_events.c.run == number)
        return connection.execute(query).scalar() or 0


def _progress(run: RunRow, event: pb.RunEvent, since: float) -> dict[str, object]:
    """Columns of a run that an event moves."""
    values: dict[str, object] = {"update_time": time.time()}
    kind = event.WhichOneof("event")
    if kind == "run_ended":
        if event.time.ToNanoseconds() >= since * 1e9:
            values |= {"state": event.run_ended.state, "error": event.run_ended.error}
    elif run.state == pb.RUN_STATE_STARTING:
        values["state"] = pb.RUN_STATE_RUNNING
    if kind == "stage_started":
        values |= {"stage": event.stage, "step": 0, "total_steps": event.stage_started.total_steps}
    elif kind == "step_done":
        values |= {"stage": event.stage, "step": event.step, "total_steps": event.step_done.total_steps}
    elif event.stage not in ("", run.stage):  # such as what a stage waits for before it begins: replicas scaled to none
        values |= {"stage": event.stage, "step": 0, "total_steps": 0}
    return values
