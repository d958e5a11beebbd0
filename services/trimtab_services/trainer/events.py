"""Runs, their events and checkpoint orders, durable in one SQLite file: what was acknowledged is on disk.

Events of a run are numbered from 1 without gaps by the run itself. Appending is idempotent, so a run that lost its
connection sends on from the last acknowledged number, and a watcher that reconnects misses nothing and sees nothing
twice. Used from one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from trimtab.errors import FailedPrecondition, InvalidRequest, NotFound
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer import run_rows as rows
from trimtab_services.trainer.run_rows import Relaunch, RunRow

__all__ = ["MOST_RUNS", "EventStore"]

MOST_RUNS = 1000
"""Most runs of one page."""


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

        rows.metadata.create_all(self._engine)

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
                        f"name: run {name!r} exists already with another spec; choose another name, or resume or "
                        "delete that run",
                        field="name",
                        value=name,
                    )
                return existing, False
            connection.execute(
                rows.runs.insert().values(
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
            return self._run(connection, name), True

    def has_run(self, name: str, spec_yaml: str | None = None) -> bool:
        """Whether there is a run of that name, and of that spec where one is given."""
        with self._engine.connect() as connection:
            run = self._find(connection, name)
            return run is not None and spec_yaml in (None, run.spec_yaml)

    def run(self, name: str) -> RunRow:
        """One run.

        Raises:
            NotFound: no run of that name.
        """
        with self._engine.connect() as connection:
            return self._run(connection, name)

    def runs(self, *, before_number: int | None = None, limit: int = 50) -> list[RunRow]:
        """Runs, newest first, older than `before_number` when it is given."""
        query = sa.select(rows.runs).order_by(rows.runs.c.number.desc()).limit(limit)
        if before_number is not None:
            query = query.where(rows.runs.c.number < before_number)
        with self._engine.connect() as connection:
            return [RunRow(**row) for row in connection.execute(query).mappings()]

    def runs_in(self, states: Collection[pb.RunState.ValueType]) -> list[RunRow]:
        """All runs in one of the states, newest first."""
        query = sa.select(rows.runs).where(rows.runs.c.state.in_(states)).order_by(rows.runs.c.number.desc())
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
            connection.execute(rows.runs.update().where(rows.runs.c.name == name).values(**values))
            return self._run(connection, name)

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
        with self._engine.begin() as connection:
            run = self._run(connection, name)
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
                rows.events.insert().values(
                    run=run.number, sequence=run_event.sequence, payload=run_event.SerializeToString()
                )
            )
            connection.execute(
                rows.runs.update()
                .where(rows.runs.c.number == run.number)
                .values(**rows.progress(run, run_event, since))
            )
        return run_event.sequence

    def last_sequence(self, name: str) -> int:
        """Number of the run's last event, 0 when it has none."""
        with self._engine.connect() as connection:
            return self._last_sequence(connection, self._run(connection, name).number)

    def events(self, name: str, after_sequence: int, limit: int = 500) -> Sequence[pb.RunEvent]:
        """Events after a number, in order, at most `limit`."""
        query = sa.select(rows.events.c.payload).where(rows.events.c.sequence > after_sequence).limit(limit)
        return self._events(name, query)

    def events_at(self, name: str, sequences: Collection[int]) -> Sequence[pb.RunEvent]:
        """Events by their numbers, in the order of these."""
        return self._events(name, sa.select(rows.events.c.payload).where(rows.events.c.sequence.in_(sequences)))

    def rollout_queue(self, name: str) -> pb.RolloutQueue:
        """The rollout queue last told in the stage that the run is in; empty where none was.

        Raises:
            NotFound: no run of that name.
        """
        with self._engine.connect() as connection:
            run = self._run(connection, name)
            query = sa.select(rows.events.c.payload).where(rows.events.c.run == run.number)
            query = query.order_by(rows.events.c.sequence.desc())
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
        with self._engine.begin() as connection:
            run = self._run(connection, name)
            added = connection.execute(rows.checkpoint_orders.insert().values(run=run.number))
        return added.lastrowid

    def checkpoint_order(self, name: str) -> int:
        """Number of the run's last checkpoint order that is not settled; 0 when there is none.

        Raises:
            NotFound: no run of that name.
        """
        table = rows.checkpoint_orders
        with self._engine.connect() as connection:
            run = self._run(connection, name)
            query = sa.select(sa.func.max(table.c.number)).where(table.c.run == run.number)
            return connection.execute(query).scalar() or 0

    def settle_checkpoint_orders(self, name: str, number: int) -> None:
        """Forgets the run's checkpoint orders up to a number.

        Raises:
            NotFound: no run of that name.
        """
        table = rows.checkpoint_orders
        with self._engine.begin() as connection:
            run = self._run(connection, name)
            connection.execute(table.delete().where(table.c.run == run.number, table.c.number <= number))

    def order_relaunch(self, name: str, resumes: int, error: str) -> None:
        """Notes that a disrupted run is to be launched again, and moves it to STARTING.

        Raises:
            NotFound: no run of that name.
        """
        values = {"state": pb.RUN_STATE_STARTING, "error": "", "update_time": time.time()}
        with self._engine.begin() as connection:
            run = self._run(connection, name)
            connection.execute(rows.runs.update().where(rows.runs.c.number == run.number).values(**values))
            connection.execute(rows.relaunches.insert().values(run=run.number, resumes=resumes, error=error))

    def relaunch(self, name: str) -> Relaunch | None:
        """The relaunch of a run that is not settled; None where there is none.

        Raises:
            NotFound: no run of that name.
        """
        with self._engine.connect() as connection:
            run = self._run(connection, name)
            query = sa.select(rows.relaunches).where(rows.relaunches.c.run == run.number)
            row = connection.execute(query).mappings().one_or_none()
        return Relaunch(name, row["resumes"], row["error"]) if row is not None else None

    def settle_relaunch(self, name: str) -> None:
        """Forgets a run's relaunch.

        Raises:
            NotFound: no run of that name.
        """
        with self._engine.begin() as connection:
            run = self._run(connection, name)
            connection.execute(rows.relaunches.delete().where(rows.relaunches.c.run == run.number))

    def _events(self, name: str, query: sa.Select[Any]) -> list[pb.RunEvent]:
        """Of the events that a query chooses, those of a run, in order."""
        with self._engine.connect() as connection:
            run = self._run(connection, name)
            query = query.where(rows.events.c.run == run.number).order_by(rows.events.c.sequence)
            return [pb.RunEvent.FromString(payload) for payload in connection.execute(query).scalars()]

    @classmethod
    def _run(cls, connection: sa.Connection, name: str) -> RunRow:
        run = cls._find(connection, name)
        if run is None:
            raise NotFound(f"name: no run {name!r}", field="name", value=name)
        return run

    @staticmethod
    def _find(connection: sa.Connection, name: str) -> RunRow | None:
        row = connection.execute(sa.select(rows.runs).where(rows.runs.c.name == name)).mappings().one_or_none()
        return RunRow(**row) if row is not None else None

    @staticmethod
    def _delete(connection: sa.Connection, run: RunRow) -> None:
        for table in (rows.events, rows.checkpoint_orders, rows.relaunches):
            connection.execute(table.delete().where(table.c.run == run.number))
        connection.execute(rows.runs.delete().where(rows.runs.c.number == run.number))

    @staticmethod
    def _did_nothing(connection: sa.Connection, run: RunRow) -> bool:
        """Whether a run failed before its first step; it then has only a few events."""
        query = sa.select(rows.events.c.payload).where(rows.events.c.run == run.number).limit(100)
        kinds = {pb.RunEvent.FromString(p).WhichOneof("event") for p in connection.execute(query).scalars()}
        return run.state == pb.RUN_STATE_FAILED and not kinds & {"step_done", "stage_done"}

    @staticmethod
    def _last_sequence(connection: sa.Connection, number: int) -> int:
        query = sa.select(sa.func.max(rows.events.c.sequence)).where(rows.events.c.run == number)
        return connection.execute(query).scalar() or 0
