"""TrainerService over the event store and the launcher."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc

from trimtab.errors import FailedPrecondition, InvalidRequest, Reason, Unavailable
from trimtab.v1 import trainer_pb2 as pb
from trimtab.v1 import trainer_pb2_grpc
from trimtab_services.runtime.state import Runtime, State
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.events import ENDED, EventStore, RunRow
from trimtab_services.trainer.launcher import LocalLauncher, is_run_process, kill, terminate
from trimtab_services.trainer.orders import CheckpointOrders

__all__ = ["TrainerServicer"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_MOST_NAME_CHARACTERS = 63
_MOST_PAGE = 1000
_STOPPED = 130
"""Exit code of a run process that was stopped."""


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Starts runs and keeps their events.

    Args:
        runtime: the server it lives in.
        store: runs and events.
        launcher: starts run processes.
    """

    def __init__(self, runtime: Runtime[TrainerServiceConfig], store: EventStore, launcher: LocalLauncher) -> None:
        self._runtime = runtime
        self._directory = runtime.config.directory.resolve()
        self._store = store
        self._launcher = launcher
        self._changed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._launched_at: dict[str, float] = {}  # seconds since the epoch
        self._launching = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._store_lock = asyncio.Lock()

    async def watch_processes(self) -> None:
        """Background work: takes up the runs of an earlier life of this service, whose processes may still be alive."""
        for run in await self._in_store(self._store.runs, limit=_MOST_PAGE):
            if run.state in ENDED:
                continue
            if run.pid and is_run_process(run.pid, run.name):
                self._watch(run.name, run.pid, None)
            else:
                await self._settle(run, "its process was gone when the service started")
        await self._runtime.set_state(State.SERVICE_STATE_SERVING)

    async def stop_runs(self) -> None:
        """Asks every run process to stop with a checkpoint, and waits until all have ended.

        Meanwhile SIGTERM or SIGINT ends them at once.
        """
        async with self._launching:  # what is being launched is stopped too, and the drain refuses what comes later
            runs = [run for run in await self._in_store(self._store.runs, limit=_MOST_PAGE) if run.state not in ENDED]
            for run in runs:
                await self._ask_to_stop(run)
        left = {run.name: run.pid for run in runs}

        def end_at_once() -> None:
            for name, pid in left.items():
                kill(pid, name)

        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError, RuntimeError):  # only a server in the main thread is told by signals
                asyncio.get_running_loop().add_signal_handler(number, end_at_once)
        while left := {name: pid for name, pid in left.items() if is_run_process(pid, name)}:
            await asyncio.sleep(0.1)

    async def StartRun(self, request: pb.StartRunRequest, context: grpc.aio.ServicerContext) -> pb.StartRunResponse:
        """Checks the spec and launches a run process; idempotent by name."""
        name = _checked_name(request.name)
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
            has_begun = (Path(run.directory) / "state.json").exists()  # else it was stopped while it still started
            return await self._launch(run, resume=has_begun)

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
                since = self._launched_at.get(name, 0.0)
                last = await self._in_store(self._store.append, name, request.event, since=since)
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

    def _lets_go_of(self, run: RunRow) -> bool:
        """Whether the drain ends the streams of a run; those of one that is told to end go on to its end."""
        stops = self._runtime.config.stop_runs_on_drain or run.state == pb.RUN_STATE_STOPPING
        return self._runtime.draining.is_set() and not stops

    async def _ask_to_stop(self, run: RunRow) -> RunRow:
        """Tells a run to end, once: a second signal would end it without a checkpoint. The caller holds the lock."""
        if run.state == pb.RUN_STATE_STOPPING:
            return run
        if not run.pid:
            await self._settle(run, "it was stopped before it had a process")
            return await self._in_store(self._store.run, run.name)
        run = await self._in_store(self._store.set_state, run.name, pb.RUN_STATE_STOPPING)
        terminate(run.pid, run.name)
        self._changed[run.name].set()
        return run

    async def _launch(self, run: RunRow, *, resume: bool) -> RunRow:
        directory = Path(run.directory)
        self._launched_at[run.name] = time.time()
        try:
            process = self._launcher.start(run.name, directory / "spec.given.yaml", directory, resume=resume)
        except OSError as error:
            await self._fail(run.name, f"its process could not be started: {error}")
            raise
        run = await self._in_store(self._store.set_state, run.name, pb.RUN_STATE_STARTING, pid=process.pid)
        self._watch(run.name, process.pid, process)
        return run

    def _watch(self, name: str, pid: int, process: subprocess.Popen[bytes] | None) -> None:
        self._start_task(self._watch_process(name, pid, process))

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits work that goes on when its caller goes away: half a launch would leave a run that nobody watches."""
        return await asyncio.shield(self._start_task(work))

    def _start_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch_process(self, name: str, pid: int, process: subprocess.Popen[bytes] | None) -> None:
        """Notices a process that ended without saying so, and one that never reported."""
        loop = asyncio.get_running_loop()
        start_by = loop.time() + self._runtime.config.start_timeout_s
        while process.poll() is None if process else is_run_process(pid, name):
            run = await self._in_store(self._store.run, name)
            if run.state == pb.RUN_STATE_STARTING and loop.time() > start_by:
                terminate(pid, name)
                await self._fail(name, f"it did not report within {self._runtime.config.start_timeout_s:.0f} s")
                return
            await asyncio.sleep(0.2)
        run = await self._in_store(self._store.run, name)
        if run.state == pb.RUN_STATE_STOPPING and process and process.returncode == -signal.SIGTERM:
            await self._in_store(self._store.set_state, name, pb.RUN_STATE_STOPPED)  # before it could heed the signal
        elif run.state not in ENDED and run.pid == pid:
            code = f"exit code {process.returncode}" if process else "unknown exit code"
            error = f"its process ended with {code}: {_log_end(Path(run.directory) / 'run.log')}"
            await self._settle(run, error, exit_code=process.returncode if process else None)
        self._changed[name].set()

    async def _settle(self, run: RunRow, error: str, *, exit_code: int | None = None) -> None:
        """The state of a run whose process ended without telling: what its folder says, else FAILED with `error`.

        A process that stopped says so by its exit code too. With another code it never began, and its folder tells of
        the stop before.
        """
        state = _state_on_disk(Path(run.directory))
        not_begun = state == pb.RUN_STATE_STOPPED and exit_code not in (None, 0, _STOPPED)
        if state is None or not_begun:
            await self._fail(run.name, error)
            return
        await self._in_store(self._store.set_state, run.name, state)
        self._changed[run.name].set()

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


def _state_on_disk(directory: Path) -> pb.RunState.ValueType | None:
    """STOPPED or SUCCEEDED where the run's state.json says so."""
    try:
        name = json.loads((directory / "state.json").read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {"STOPPED": pb.RUN_STATE_STOPPED, "SUCCEEDED": pb.RUN_STATE_SUCCEEDED}.get(name)


def _log_end(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it left no log"
    return f"{' | '.join(lines[-3:]) or 'its log is empty'} (all of it: {path})"
