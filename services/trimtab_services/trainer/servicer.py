"""TrainerService over the event store and the launcher."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from trimtab.errors import FailedPrecondition, InvalidRequest, Reason, Unavailable
from trimtab.v1 import trainer_pb2 as pb
from trimtab.v1 import trainer_pb2_grpc
from trimtab_services.runtime.state import Runtime
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.deletion import delete_run, remove_data
from trimtab_services.trainer.events import MOST_RUNS
from trimtab_services.trainer.launchers import Launcher
from trimtab_services.trainer.orders import CheckpointOrders
from trimtab_services.trainer.records import RunRecords
from trimtab_services.trainer.run_log import check_offset, read_piece
from trimtab_services.trainer.run_rows import ENDED, RunRow
from trimtab_services.trainer.works import RunWorks

__all__ = ["TrainerServicer"]

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_MOST_NAME_CHARACTERS = 63
_LOG_LOOK_S = 0.3


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Starts runs and keeps their events.

    Args:
        runtime: the server it lives in.
        records: of the runs.
        launcher: checks specs and names.
        works: starts and stops the work of runs.
    """

    def __init__(
        self, runtime: Runtime[TrainerServiceConfig], records: RunRecords, launcher: Launcher, works: RunWorks
    ) -> None:
        self._runtime = runtime
        self._directory = runtime.config.directory.resolve()
        self._records, self._store, self._in_store = records, records.store, records.ask
        self._launcher = launcher
        self._works = works

    async def StartRun(self, request: pb.StartRunRequest, context: grpc.aio.ServicerContext) -> pb.StartRunResponse:
        """Checks the spec and launches the run; idempotent by name."""
        name = _checked_name(request.name)
        self._launcher.check_name(name)
        if not request.spec_yaml.strip():
            raise InvalidRequest("spec_yaml: must not be empty", reason=Reason.FIELD_MISSING, field="spec_yaml")
        if not await self._in_store(self._store.has_run, name, request.spec_yaml):
            await self._check(name, request.spec_yaml)
        run = await self._works.to_the_end(self._create(name, request.spec_yaml))
        return pb.StartRunResponse(run=run.to_message())

    async def _check(self, name: str, spec_yaml: str) -> None:
        """Has the launcher check the spec of a new run; one that is there may have lost its files since."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=self._directory) as folder:
            spec_file = Path(folder) / "spec.yaml"
            spec_file.write_text(spec_yaml)
            await self._launcher.check(spec_file)

    async def _create(self, name: str, spec_yaml: str) -> RunRow:
        """The run of that name, launched unless it was there already."""
        directory = self._directory / name
        await self._works.until_settled(name)
        async with self._works.locks.of(name):
            self._works.refuse_while_draining()
            await self._refuse_foreign_folder(name, directory)
            run, is_new = await self._in_store(self._store.create_run, name, spec_yaml, directory)
            if is_new:
                if directory.exists():  # of a run of that name that failed before its first step
                    await self._works.or_fail(run, remove_data(run, self._launcher))
                directory.mkdir()
                (directory / "spec.given.yaml").write_text(spec_yaml)
                run = await self._works.launch(run, resume=False)
        return run

    async def _refuse_foreign_folder(self, name: str, directory: Path) -> None:
        """Refuses the name of a new run whose folder holds something that this service did not put there."""
        if directory.exists() and any(directory.iterdir()) and not await self._in_store(self._store.has_run, name):
            raise FailedPrecondition(
                f"name: {directory} is not empty, and run {name!r} is not known here; nothing in it is touched. Take "
                "another name, or move the folder away",
                field="name",
                value=name,
            )

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: grpc.aio.ServicerContext) -> pb.ResumeRunResponse:
        """Launches an ended run again from its last checkpoint."""
        run = await self._works.to_the_end(self._resume(request.name))
        return pb.ResumeRunResponse(run=run.to_message())

    async def _resume(self, name: str) -> RunRow:
        await self._works.until_settled(name)
        async with self._works.locks.of(name):
            self._works.refuse_while_draining()
            run = await self._in_store(self._store.run, name)
            if run.state not in ENDED:
                raise FailedPrecondition(
                    f"name: run {run.name!r} is {_state(run)}; only one that has ended can be resumed",
                    field="name",
                    value=run.name,
                )
            if run.state == pb.RUN_STATE_SUCCEEDED:
                raise FailedPrecondition(
                    f"name: run {run.name!r} has SUCCEEDED; there is nothing to resume", field="name", value=run.name
                )
            return await self._works.launch(run, resume=await self._works.has_begun(run))

    async def GetRun(self, request: pb.GetRunRequest, context: grpc.aio.ServicerContext) -> pb.GetRunResponse:
        """One run, and its replicas."""
        run = await self._in_store(self._store.run, request.name)
        response = pb.GetRunResponse(run=run.to_message())
        if (report := self._records.replicas.of(run)) is not None:
            response.replicas.CopyFrom(report.replicas)
            response.replicas_time.FromNanoseconds(int(report.time * 1e9))
        return response

    async def ListRuns(self, request: pb.ListRunsRequest, context: grpc.aio.ServicerContext) -> pb.ListRunsResponse:
        """A page of runs, newest first."""
        if not 0 <= request.page_size <= MOST_RUNS:
            raise InvalidRequest(
                f"page_size: {request.page_size} is not in 0..{MOST_RUNS}",
                field="page_size",
                value=request.page_size,
                limit=MOST_RUNS,
            )
        if request.page_token and not request.page_token.isdecimal():
            raise InvalidRequest("page_token: not one of ours", field="page_token", value=request.page_token)
        size = request.page_size or 50
        before = int(request.page_token) if request.page_token else None
        rows = await self._in_store(self._store.runs, before_number=before, limit=size + 1)
        page = rows[:size]
        return pb.ListRunsResponse(
            runs=[run.to_message() for run in page],
            next_page_token=str(page[-1].number) if len(rows) > size else "",
        )

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WatchRunResponse]:
        """Events after a number, then each new one, until the run has ended and all are sent."""
        after = request.after_sequence
        run = await self._in_store(self._store.run, request.name)
        while True:
            changed = self._records.news(run.name)
            run = await self._in_store(self._store.run, request.name)
            events = await self._in_store(self._store.events, request.name, after)
            for event in events:
                yield pb.WatchRunResponse(event=event)
                after = event.sequence
            if not events:
                if run.state in ENDED:
                    return
                if self._lets_go_of(run):
                    raise self._drains(run, f"after {after}")
                await self._wait(changed)

    async def WatchRunLog(
        self, request: pb.WatchRunLogRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WatchRunLogResponse]:
        """The run's log from a byte on; with `follow` until the run has ended and all of it is sent."""
        run = await self._in_store(self._store.run, request.name)
        directory, offset = Path(run.directory), request.offset_bytes
        await asyncio.to_thread(check_offset, directory, offset)
        while True:
            run = await self._in_store(self._store.run, request.name)
            is_whole = run.state in ENDED and self._works.is_settled(run.name)
            piece = await asyncio.to_thread(read_piece, directory, offset)
            if piece:
                yield pb.WatchRunLogResponse(offset_bytes=offset, data=piece)
                offset += len(piece)
            elif is_whole or not request.follow:
                return
            elif self._lets_go_of(run):
                raise self._drains(run, f"from byte {offset} of the log")
            else:
                await asyncio.sleep(_LOG_LOOK_S)

    async def StopRun(self, request: pb.StopRunRequest, context: grpc.aio.ServicerContext) -> pb.StopRunResponse:
        """Asks the run to finish its step, write a checkpoint and end."""
        run = await self._works.to_the_end(self._stop(request.name))
        return pb.StopRunResponse(run=run.to_message())

    async def _stop(self, name: str) -> RunRow:
        async with self._works.locks.of(name):  # a run that is being launched has a process only after it
            return await self._works.ask_to_stop(await self._in_store(self._store.run, name))

    async def DeleteRun(self, request: pb.DeleteRunRequest, context: grpc.aio.ServicerContext) -> pb.DeleteRunResponse:
        """Removes an ended run with all its data; nothing where there is none."""
        if not request.name:
            raise InvalidRequest("name: must not be empty", reason=Reason.FIELD_MISSING, field="name")
        return await self._works.to_the_end(delete_run(request.name, self._records, self._works, self._launcher))

    async def CheckpointRun(
        self, request: pb.CheckpointRunRequest, context: grpc.aio.ServicerContext
    ) -> pb.CheckpointRunResponse:
        """Asks the run to write a checkpoint after its step."""
        run = await self._in_store(self._store.run, request.name)
        if run.state in ENDED:
            raise FailedPrecondition(
                f"name: run {run.name!r} is {_state(run)}; it has no process", field="name", value=run.name
            )
        await self._in_store(self._store.order_checkpoint, run.name)
        return pb.CheckpointRunResponse(run=run.to_message())

    async def ReportEvents(
        self, request_iterator: AsyncIterator[pb.ReportEventsRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ReportEventsResponse]:
        """Keeps the events of a run process and acknowledges each once it is on disk."""
        name, orders = "", None
        async for request in request_iterator:
            if request.name and request.name != name:
                name = request.name
                orders = CheckpointOrders(self._store, name)
            if orders is None:
                raise InvalidRequest(
                    "name: the first message must name the run", reason=Reason.FIELD_MISSING, field="name"
                )
            event = request.event if request.HasField("event") else None
            answer, run = await self._in_store(self._answer, name, event, orders)
            if request.HasField("replicas"):
                self._records.replicas.keep(name, request.replicas)
            if event is not None or request.HasField("replicas"):
                self._records.tell(name)
            yield answer
            if self._lets_go_of(run):
                return  # the run keeps its events until a service is back

    def _answer(
        self, name: str, event: pb.RunEvent | None, orders: CheckpointOrders
    ) -> tuple[pb.ReportEventsResponse, RunRow]:
        """Keeps the event of a message, where it has one; what the run is told then, and the run. In the store."""
        if event is not None:
            last = self._keep(name, event)
            orders.settle(event)
        else:
            last = self._store.last_sequence(name)
        run = self._store.run(name)
        is_asked = run.state == pb.RUN_STATE_STOPPING
        return pb.ReportEventsResponse(acknowledged_sequence=last, stop=is_asked, checkpoint=orders.take()), run

    def _keep(self, name: str, event: pb.RunEvent) -> int:
        """Keeps an event; returns the number of the last one kept. In the store.

        A run that tells of a stop that nobody asked for here was told to stop by the cluster, perhaps to make room.
        Whether it ends there or goes on elsewhere is known once its work has ended.
        """
        since = self._works.launched_at(name)
        if self._launcher.disrupts and event.run_ended.state == pb.RUN_STATE_STOPPED:
            since = since if self._store.run(name).state == pb.RUN_STATE_STOPPING else math.inf
        return self._store.append(name, event, since=since)

    def _lets_go_of(self, run: RunRow) -> bool:
        """Whether the drain ends the streams of a run; those of one that is told to end go on to its end."""
        stops = self._runtime.config.stop_runs_on_drain or run.state == pb.RUN_STATE_STOPPING
        return self._runtime.draining.is_set() and not stops

    def _drains(self, run: RunRow, where: str) -> Unavailable:
        return Unavailable(
            f"{self._runtime.replica} drains; watch on {where} once a service is back",
            reason=Reason.DRAINING,
            field="name",
            value=run.name,
        )

    async def _wait(self, changed: asyncio.Event) -> None:
        """Waits for news of the run, or half a second: a drain is noticed too."""
        try:
            async with asyncio.timeout(0.5):
                await changed.wait()
        except TimeoutError:
            pass


def _checked_name(name: str) -> str:
    if not name or len(name) > _MOST_NAME_CHARACTERS or not _NAME_CHARACTERS.issuperset(name):
        raise InvalidRequest(
            f"name: {name!r} must have 1..{_MOST_NAME_CHARACTERS} letters, digits, '-' or '_'",
            field="name",
            value=name,
            limit=_MOST_NAME_CHARACTERS,
        )
    return name


def _state(run: RunRow) -> str:
    return pb.RunState.Name(run.state).removeprefix("RUN_STATE_")
