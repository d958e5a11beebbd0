"""TrainerService over the event store and the launcher."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc

from trimtab.errors import FailedPrecondition, InvalidRequest, Reason, TrimtabError, Unavailable
from trimtab.v1 import trainer_pb2 as pb
from trimtab.v1 import trainer_pb2_grpc
from trimtab_services.runtime.state import Runtime, State
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.events import ENDED, EventStore, RunRow
from trimtab_services.trainer.launchers import Ending, Launcher, Work
from trimtab_services.trainer.orders import CheckpointOrders
from trimtab_services.trainer.rollout_demand import RolloutDemand, demand_of

__all__ = ["TrainerServicer"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_MOST_NAME_CHARACTERS = 63
_MOST_PAGE = 1000
_LOOK_S = 0.2


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Starts runs and keeps their events.

    Args:
        runtime: the server it lives in.
        store: runs and events.
        launcher: starts the work of runs.
    """

    def __init__(self, runtime: Runtime[TrainerServiceConfig], store: EventStore, launcher: Launcher) -> None:
        self._runtime = runtime
        self._directory = runtime.config.directory.resolve()
        self._store = store
        self._launcher = launcher
        self._changed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._launched_at: dict[str, float] = {}  # seconds since the epoch
        self._launching = asyncio.Lock()
        self._works: dict[str, Work] = {}  # of runs that have not ended
        self._found = asyncio.Event()  # set once those of an earlier life are among them
        self._tasks: set[asyncio.Task[Any]] = set()
        self._store_lock = asyncio.Lock()

    async def find_works(self) -> None:
        """Background work: takes up the runs of an earlier life of this service, whose work may still go on."""
        for run in await self._in_store(self._store.runs, limit=_MOST_PAGE):
            if run.state in ENDED:
                continue
            work = await self._launcher.find(run)
            if work is not None:
                self._follow(run.name, work)
            else:
                await self._fail(run.name, "its process was gone when the service started")
        self._found.set()
        await self._runtime.set_state(State.SERVICE_STATE_SERVING)

    async def stop_runs(self) -> None:
        """Asks every run to stop with a checkpoint, and waits until all have ended.

        Meanwhile SIGTERM or SIGINT ends them at once.
        """
        async with self._launching:  # what is being launched is stopped too, and the drain refuses what comes later
            for run in await self._in_store(self._store.runs, limit=_MOST_PAGE):
                if run.state not in ENDED:
                    await self._ask_to_stop(run)

        def end_at_once() -> None:
            for work in self._works.values():
                self._start_task(work.kill())

        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError, RuntimeError):  # only a server in the main thread is told by signals
                asyncio.get_running_loop().add_signal_handler(number, end_at_once)
        while self._works:
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Follows runs no more; their work goes on, and the service's next life finds it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def rollout_demand(self) -> RolloutDemand:
        """What the runs want of the generation replicas now."""
        runs = await self._in_store(self._store.runs, limit=_MOST_PAGE)
        return await self._in_store(demand_of, self._store, runs)

    async def StartRun(self, request: pb.StartRunRequest, context: grpc.aio.ServicerContext) -> pb.StartRunResponse:
        """Checks the spec and launches the run; idempotent by name."""
        name = _checked_name(request.name)
        self._launcher.check_name(name)
        if not request.spec_yaml.strip():
            raise InvalidRequest("spec_yaml: must not be empty", reason=Reason.FIELD_MISSING, field="spec_yaml")
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=self._directory) as folder:
            spec_file = Path(folder) / "spec.yaml"
            spec_file.write_text(request.spec_yaml)
            await self._launcher.check(spec_file)
        run = await self._to_the_end(self._create(name, request.spec_yaml))
        return pb.StartRunResponse(run=run.to_message())

    async def _create(self, name: str, spec_yaml: str) -> RunRow:
        """The run of that name, launched unless it was there already."""
        directory = self._directory / name
        async with self._launching:
            self._refuse_while_draining()
            await self._refuse_foreign_folder(name, directory)
            run, is_new = await self._in_store(self._store.create_run, name, spec_yaml, directory)
            if is_new:
                if directory.exists():  # of a run of that name that failed before its first step
                    await self._or_fail(run, self._launcher.forget(run))
                    await asyncio.to_thread(shutil.rmtree, directory)
                directory.mkdir()
                (directory / "spec.given.yaml").write_text(spec_yaml)
                run = await self._launch(run, resume=False)
        return run

    def _refuse_while_draining(self) -> None:
        """Refuses to launch a run that the drain would not see; the call itself was let in before it."""
        if self._runtime.draining.is_set():
            raise Unavailable(f"{self._runtime.replica} drains and starts nothing new", reason=Reason.DRAINING)

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
        run = await self._to_the_end(self._resume(request.name))
        return pb.ResumeRunResponse(run=run.to_message())

    async def _resume(self, name: str) -> RunRow:
        async with self._launching:
            self._refuse_while_draining()
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
            return await self._launch(run, resume=await self._has_begun(run))

    async def _has_begun(self, run: RunRow) -> bool:
        """Whether there is something to resume; else the run ended while it still started.

        Its folder may be out of sight, but a run reports nothing before it has made it.
        """
        on_disk = (Path(run.directory) / "state.json").exists()
        return on_disk or await self._in_store(self._store.last_sequence, run.name) > 0

    async def GetRun(self, request: pb.GetRunRequest, context: grpc.aio.ServicerContext) -> pb.GetRunResponse:
        """One run."""
        return pb.GetRunResponse(run=(await self._in_store(self._store.run, request.name)).to_message())

    async def ListRuns(self, request: pb.ListRunsRequest, context: grpc.aio.ServicerContext) -> pb.ListRunsResponse:
        """A page of runs, newest first."""
        if not 0 <= request.page_size <= _MOST_PAGE:
            raise InvalidRequest(
                f"page_size: {request.page_size} is not in 0..{_MOST_PAGE}",
                field="page_size",
                value=request.page_size,
                limit=_MOST_PAGE,
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
        while True:
            run = await self._in_store(self._store.run, request.name)
            changed = self._changed[run.name]
            changed.clear()
            events = await self._in_store(self._store.events, request.name, after)
            for event in events:
                yield pb.WatchRunResponse(event=event)
                after = event.sequence
            if not events:
                if run.state in ENDED:
                    return
                if self._lets_go_of(run):
                    raise Unavailable(
                        f"{self._runtime.replica} drains; watch on after {after} once a service is back",
                        reason=Reason.DRAINING,
                        field="name",
                        value=run.name,
                    )
                await self._wait(changed)

    async def StopRun(self, request: pb.StopRunRequest, context: grpc.aio.ServicerContext) -> pb.StopRunResponse:
        """Asks the run to finish its step, write a checkpoint and end."""
        async with self._launching:  # a run that is being launched has a process only after it
            run = await self._in_store(self._store.run, request.name)
            if run.state not in ENDED:
                run = await self._ask_to_stop(run)
        return pb.StopRunResponse(run=run.to_message())

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
            if request.HasField("event"):
                last = await self._keep(name, request.event)
                await self._in_store(orders.settle, request.event)
                self._changed[name].set()
            else:
                last = await self._in_store(self._store.last_sequence, name)
            run = await self._in_store(self._store.run, name)
            yield pb.ReportEventsResponse(
                acknowledged_sequence=last,
                stop=run.state == pb.RUN_STATE_STOPPING,
                checkpoint=await self._in_store(orders.take),
            )
            if self._lets_go_of(run):
                return  # the run keeps its events until a service is back

    async def _keep(self, name: str, event: pb.RunEvent) -> int:
        """Keeps an event; returns the number of the last one kept.

        A run that tells of a stop that nobody asked for here was told to stop by the cluster, perhaps to make room.
        Whether it ends there or goes on elsewhere is known once its work has ended.
        """
        since = self._launched_at.get(name, 0.0)
        if self._launcher.disrupts and event.run_ended.state == pb.RUN_STATE_STOPPED:
            run = await self._in_store(self._store.run, name)
            since = since if run.state == pb.RUN_STATE_STOPPING else math.inf
        return await self._in_store(self._store.append, name, event, since=since)

    def _lets_go_of(self, run: RunRow) -> bool:
        """Whether the drain ends the streams of a run; those of one that is told to end go on to its end."""
        stops = self._runtime.config.stop_runs_on_drain or run.state == pb.RUN_STATE_STOPPING
        return self._runtime.draining.is_set() and not stops

    async def _ask_to_stop(self, run: RunRow) -> RunRow:
        """Tells a run to end, once: a second signal would end it without a checkpoint. The caller holds the lock."""
        if run.state == pb.RUN_STATE_STOPPING:
            return run
        await self._found.wait()
        work = self._works.get(run.name)
        if work is None:
            await self._fail(run.name, "it was stopped before it had a process")
            return await self._in_store(self._store.run, run.name)
        stopping = await self._in_store(self._store.set_state, run.name, pb.RUN_STATE_STOPPING)
        try:
            await work.stop()
        except TrimtabError:
            await self._in_store(self._store.set_state, run.name, run.state)
            raise
        self._changed[run.name].set()
        return stopping

    async def _launch(self, run: RunRow, *, resume: bool, resumes: int = 0) -> RunRow:
        """Starts the work of a run and follows it. The caller holds the lock."""
        self._launched_at[run.name] = time.time()
        work = await self._or_fail(run, self._launcher.start(run, resume=resume, resumes=resumes))
        run = await self._in_store(self._store.set_state, run.name, pb.RUN_STATE_STARTING, pid=work.pid)
        self._follow(run.name, work)
        return run

    async def _or_fail(self, run: RunRow, work: Awaitable[T]) -> T:
        """Awaits what the launcher does for a run; what it raises is also the run's end."""
        try:
            return await work
        except OSError as error:
            await self._fail(run.name, f"its process could not be started: {error}")
            raise
        except TrimtabError as error:
            await self._fail(run.name, error.message)
            raise

    def _follow(self, name: str, work: Work) -> None:
        self._works[name] = work
        self._start_task(self._follow_work(name, work))

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits work that goes on when its caller goes away: half a launch would leave a run that nobody watches."""
        return await asyncio.shield(self._start_task(work))

    def _start_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _follow_work(self, name: str, work: Work) -> None:
        """Notices work that ended without saying so, and work that never reported."""
        ended = self._start_task(work.ended())
        if await self._is_silent(name, ended):
            ending = await self._end_silent(work)
        else:
            try:
                ending = await ended
            except TrimtabError as error:
                ending = Ending(pb.RUN_STATE_FAILED, error.message)
        async with self._launching:
            if self._works.get(name) is work:  # else a later launch has taken its place
                await self._settle(name, work, ending)
        ended.cancel()

    async def _is_silent(self, name: str, ended: asyncio.Task[Ending]) -> bool:
        """Waits for the first report of a run; True where none came in time."""
        loop = asyncio.get_running_loop()
        start_by = loop.time() + self._runtime.config.start_timeout_s
        while not ended.done() and (await self._in_store(self._store.run, name)).state == pb.RUN_STATE_STARTING:
            if loop.time() > start_by:
                return True
            await asyncio.wait({ended}, timeout=_LOOK_S)
        return False

    async def _end_silent(self, work: Work) -> Ending:
        """Ends work that has not reported in time."""
        error = f"it did not report within {self._runtime.config.start_timeout_s:.0f} s"
        try:
            why = await work.why_silent()
            await work.stop()
        except TrimtabError as problem:
            why = problem.message
        return Ending(pb.RUN_STATE_FAILED, f"{error}: {why}" if why else error)

    async def _settle(self, name: str, work: Work, ending: Ending) -> None:
        """The state of a run whose work has ended: what it told, else how the work ended. The caller holds the lock."""
        run = await self._in_store(self._store.run, name)
        asked = run.state == pb.RUN_STATE_STOPPING
        if run.state not in ENDED:
            if ending.disrupted and not asked:
                if self._runtime.draining.is_set():
                    return  # the service's next life finds the work, and goes on with the run
                if work.resumes < self._launcher.most_resumes:
                    del self._works[name]
                    await self._go_on(run, work.resumes + 1, ending)
                    return
                ending = _disrupted_too_often(ending, work.resumes, self._launcher.most_resumes)
            if asked and (ending.terminated or ending.disrupted):
                ending = Ending(pb.RUN_STATE_STOPPED)
            if ending.state == pb.RUN_STATE_FAILED:
                await self._fail(name, ending.error)
            else:
                await self._in_store(self._store.set_state, name, ending.state)
        try:
            await work.clean_up()
        except TrimtabError as error:
            _log.warning("an ended run was not cleaned up", extra={"run": name, "error": error.message})
        del self._works[name]
        self._changed[name].set()

    async def _go_on(self, run: RunRow, resumes: int, ending: Ending) -> None:
        """Launches a disrupted run again; a launch that fails is the run's end, and in its state."""
        _log.warning("run disrupted, goes on", extra={"run": run.name, "error": ending.error, "resumes": resumes})
        with suppress(TrimtabError, OSError):
            await self._launch(run, resume=await self._has_begun(run), resumes=resumes)

    async def _fail(self, name: str, error: str) -> None:
        _log.error("run failed", extra={"run": name, "error": error})
        await self._in_store(self._store.set_state, name, pb.RUN_STATE_FAILED, error=error)
        self._changed[name].set()

    async def _in_store(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        """Runs a store call off the event loop, one at a time."""
        async with self._store_lock:
            return await asyncio.to_thread(function, *args, **kwargs)

    async def _wait(self, changed: asyncio.Event) -> None:
        """Waits for news of the run, or half a second: a drain and a second watcher's `clear` are noticed too."""
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


def _disrupted_too_often(ending: Ending, resumes: int, most: int) -> Ending:
    error = f"{ending.error}; it was started again {resumes} times, and launcher.resumes allows {most}"
    return Ending(pb.RUN_STATE_FAILED, error)
