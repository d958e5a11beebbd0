"""The work of the runs from its launch to its end: followed, asked to stop, started again where the cluster disrupts
it.

A run's work is a process or a Job, as the launcher has it. What the run tells of itself comes by `ReportEvents`; here
is what it cannot tell: that it never began, that it ended without a word, and why.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from trimtab.errors import Reason, TrimtabError, Unavailable
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.runtime.state import Runtime, State
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.events import ENDED, MOST_RUNS, RunRow
from trimtab_services.trainer.launchers import Ending, Launcher, Work
from trimtab_services.trainer.records import RunRecords

__all__ = ["RunWorks"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_S = 0.2
_SETTLED_S = 15.0


class RunWorks:
    """Launches and follows the work of runs.

    Args:
        runtime: the server it lives in.
        records: of the runs.
        launcher: starts the work of runs.

    Attributes:
        launching: held by whoever launches or stops a run, so that no two do.
    """

    def __init__(self, runtime: Runtime[TrainerServiceConfig], records: RunRecords, launcher: Launcher) -> None:
        self.launching = asyncio.Lock()
        self._runtime = runtime
        self._records, self._store, self._in_store = records, records.store, records.ask
        self._launcher = launcher
        self._launched_at: dict[str, float] = {}
        self._works: dict[str, Work] = {}  # of runs that have not ended
        self._found = asyncio.Event()  # set once those of an earlier life are among them
        self._tasks: set[asyncio.Task[Any]] = set()

    def launched_at(self, name: str) -> float:
        """When this life of the service launched a run, in seconds since the epoch; 0 where it did not."""
        return self._launched_at.get(name, 0.0)

    async def find_works(self) -> None:
        """Background work: takes up the runs of an earlier life of this service, whose work may still go on."""
        for run in await self._in_store(self._store.runs, limit=MOST_RUNS):
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
        async with self.launching:  # what is being launched is stopped too, and the drain refuses what comes later
            for run in await self._in_store(self._store.runs, limit=MOST_RUNS):
                if run.state not in ENDED:
                    await self.ask_to_stop(run)

        def end_at_once() -> None:
            for work in self._works.values():
                self._start_task(work.kill())

        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError, RuntimeError):  # only a server in the main thread is told by signals
                asyncio.get_running_loop().add_signal_handler(number, end_at_once)
        while self._works:
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Follows runs no more; their work goes on, and the service's next life finds it.

        A run that is just being settled is settled first: what its work left is removed by nobody else.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLED_S), self.launching:
                pass
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def refuse_while_draining(self) -> None:
        """Refuses to launch a run that the drain would not see; the call itself was let in before it."""
        if self._runtime.draining.is_set():
            raise Unavailable(f"{self._runtime.replica} drains and starts nothing new", reason=Reason.DRAINING)

    async def has_begun(self, run: RunRow) -> bool:
        """Whether there is something to resume; else the run ended while it still started.

        Its folder may be out of sight, but a run reports nothing before it has made it.
        """
        on_disk = (Path(run.directory) / "state.json").exists()
        return on_disk or await self._in_store(self._store.last_sequence, run.name) > 0

    async def ask_to_stop(self, run: RunRow) -> RunRow:
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
        self._records.tell(run.name)
        return stopping

    async def launch(self, run: RunRow, *, resume: bool, resumes: int = 0) -> RunRow:
        """Starts the work of a run and follows it. The caller holds the lock."""
        self._launched_at[run.name] = time.time()
        work = await self.or_fail(run, self._launcher.start(run, resume=resume, resumes=resumes))
        run = await self._in_store(self._store.set_state, run.name, pb.RUN_STATE_STARTING, pid=work.pid)
        self._follow(run.name, work)
        return run

    async def or_fail(self, run: RunRow, work: Awaitable[T]) -> T:
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

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
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
        if await self._is_silent(name, work, ended):
            ending = await self._end_silent(work)
        else:
            try:
                ending = await ended
            except TrimtabError as error:
                ending = Ending(pb.RUN_STATE_FAILED, error.message)
        async with self.launching:
            if self._works.get(name) is work:  # else a later launch has taken its place
                await self._settle(name, work, ending)
        ended.cancel()

    async def _is_silent(self, name: str, work: Work, ended: asyncio.Task[Ending]) -> bool:
        """Waits for the first report of a run; True where none came in time. Time in a queue does not count."""
        loop = asyncio.get_running_loop()
        start_by = loop.time() + self._runtime.config.start_timeout_s
        was_queued = False
        while not ended.done() and (await self._in_store(self._store.run, name)).state == pb.RUN_STATE_STARTING:
            if work.is_queued:
                start_by = loop.time() + self._runtime.config.start_timeout_s
                if not was_queued:
                    _log.info("run waits in a queue", extra={"run": name, "why": await work.why_silent()})
            was_queued = work.is_queued
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
                if ending.requeued or work.resumes < self._launcher.most_resumes:
                    del self._works[name]
                    await self._go_on(run, work.resumes + (not ending.requeued), ending)
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
        self._records.tell(name)

    async def _go_on(self, run: RunRow, resumes: int, ending: Ending) -> None:
        """Launches a disrupted run again; a launch that fails is the run's end, and in its state."""
        _log.warning("run disrupted, goes on", extra={"run": run.name, "error": ending.error, "resumes": resumes})
        with suppress(TrimtabError, OSError):
            await self.launch(run, resume=await self.has_begun(run), resumes=resumes)

    async def _fail(self, name: str, error: str) -> None:
        _log.error("run failed", extra={"run": name, "error": error})
        await self._in_store(self._store.set_state, name, pb.RUN_STATE_FAILED, error=error)
        self._records.tell(name)


def _disrupted_too_often(ending: Ending, resumes: int, most: int) -> Ending:
    error = f"{ending.error}; it was started again {resumes} times, and launcher.resumes allows {most}"
    return Ending(pb.RUN_STATE_FAILED, error)
