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

from trimtab.errors import FailedPrecondition, Reason, TrimtabError, Unavailable
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.runtime.state import Runtime, State
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.launchers import Ending, Launcher, Place, Work
from trimtab_services.trainer.records import RunRecords
from trimtab_services.trainer.run_locks import RunLocks
from trimtab_services.trainer.run_rows import ENDED, NOT_ENDED, Relaunch, RunRow
from trimtab_services.trainer.silence import Silence

__all__ = ["RunWorks"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_S = 0.2
_AGAIN_S = 5.0
_SETTLED_S = 15.0
_CLEARED_S = 30.0


class RunWorks:
    """Launches and follows the work of runs.

    Args:
        runtime: the server it lives in.
        records: of the runs.
        launcher: starts the work of runs.

    Attributes:
        locks: that of a run is held by whoever launches, stops, settles or deletes it.
    """

    def __init__(self, runtime: Runtime[TrainerServiceConfig], records: RunRecords, launcher: Launcher) -> None:
        self.locks = RunLocks()
        self._runtime = runtime
        self._records, self._store, self._in_store = records, records.store, records.ask
        self._launcher = launcher
        self._launched_at: dict[str, float] = {}
        self._works: dict[str, Work] = {}  # of runs whose end is not settled
        self._found = asyncio.Event()  # set once those of an earlier life are among them
        self._tasks: set[asyncio.Task[Any]] = set()

    def launched_at(self, name: str) -> float:
        """When this life of the service launched a run, in seconds since the epoch; 0 where it did not."""
        return self._launched_at.get(name, 0.0)

    async def find_works(self) -> None:
        """Background work: takes up the runs of an earlier life of this service, whose work may still go on."""
        for run in await self._in_store(self._store.runs_in, NOT_ENDED):
            if await self._in_store(self._store.relaunch, run.name) is not None:
                self._start_task(self._go_on(run.name))
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
        await self.locks.until_free()  # what is being launched is stopped too, and the drain refuses what comes later
        for run in await self._in_store(self._store.runs_in, NOT_ENDED):
            async with self.locks.of(run.name):
                await self.ask_to_stop(await self._in_store(self._store.run, run.name))

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
            async with asyncio.timeout(_SETTLED_S):
                await self.locks.until_free()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def refuse_while_draining(self) -> None:
        """Refuses to launch a run that the drain would not see; the call itself was let in before it."""
        if self._runtime.draining.is_set():
            raise Unavailable(f"{self._runtime.replica} drains and starts nothing new", reason=Reason.DRAINING)

    def is_settled(self, name: str) -> bool:
        """Whether nothing works on a run, and what its work has left is cleared away; its log is whole then."""
        return name not in self._works

    async def until_settled(self, name: str) -> None:
        """Waits for what is still there of a run that has told its end.

        Raises:
            FailedPrecondition: it takes too long.
        """
        give_up = time.monotonic() + _CLEARED_S
        while not self.is_settled(name) and (await self._in_store(self._store.run, name)).state in ENDED:
            if time.monotonic() > give_up:
                raise FailedPrecondition(
                    f"name: run {name!r} has told its end, but what worked on it is still there {_CLEARED_S:.0f} s "
                    "later; try again later",
                    field="name",
                    value=name,
                    retry_after_s=_AGAIN_S,
                )
            await asyncio.sleep(_LOOK_S)

    async def has_begun(self, run: RunRow) -> bool:
        """Whether there is something to resume; else the run ended while it still started.

        Its folder may be out of sight, but a run reports nothing before it has made it.
        """
        on_disk = (Path(run.directory) / "state.json").exists()
        return on_disk or await self._in_store(self._store.last_sequence, run.name) > 0

    async def ask_to_stop(self, run: RunRow) -> RunRow:
        """Tells a run to end, once: a second signal would end it without a checkpoint. The caller holds its lock."""
        if run.state in ENDED or run.state == pb.RUN_STATE_STOPPING:
            return run
        await self._found.wait()
        if await self._in_store(self._store.relaunch, run.name) is not None:
            return await self._stop_disrupted(run)
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

    async def launch(self, run: RunRow, *, resume: bool) -> RunRow:
        """Starts the work of a run and follows it; what the launcher raises is also the run's end. The caller holds its
        lock."""
        return await self.or_fail(run, self._launch(run, resume=resume))

    async def _launch(self, run: RunRow, *, resume: bool, resumes: int = 0, goes_on: bool = False) -> RunRow:
        self._launched_at[run.name] = time.time()
        self._records.replicas.forget(run.name)
        work = await self._launcher.start(run, resume=resume, resumes=resumes, goes_on=goes_on)
        run = await self._in_store(self._store.set_state, run.name, pb.RUN_STATE_STARTING, pid=work.pid)
        self._follow(run.name, work)
        return run

    async def or_fail(self, run: RunRow, work: Awaitable[T]) -> T:
        """Awaits what the launcher does for a run; what it raises is also the run's end."""
        try:
            return await work
        except (OSError, TrimtabError) as error:
            await self._fail(run.name, _not_started(error))
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
        silent = await self._until_reported(name, work, ended)
        if silent:
            ending = await self._end_silent(work, silent)
            await asyncio.wait({ended}, timeout=_SETTLED_S)  # for the end of its log
        else:
            try:
                ending = await ended
            except TrimtabError as error:
                ending = Ending(pb.RUN_STATE_FAILED, error.message)
            except Exception as error:  # whatever it is, a run that nobody follows would never end
                _log.exception("a run cannot be followed any more", extra={"run": name})
                why = f"it could not be followed any more: {type(error).__name__}: {error}"
                ending = Ending(pb.RUN_STATE_FAILED, why)
        async with self.locks.of(name):
            await self._settle(name, work, ending)
        ended.cancel()

    async def _until_reported(self, name: str, work: Work, ended: asyncio.Task[Ending]) -> str:
        """Waits for the first report of a run, or for its end; what it has not done in time, else nothing."""
        silence = Silence(work, self._runtime.config.start_timeout_s, self._launcher.reschedule_timeout_s)
        was_queued = False
        while not ended.done() and (await self._in_store(self._store.run, name)).state == pb.RUN_STATE_STARTING:
            is_queued = work.place is Place.QUEUED
            if is_queued and not was_queued:
                _log.info("run waits in a queue", extra={"run": name, "why": await work.why_silent()})
            was_queued = is_queued
            if silent := silence.is_too_long():
                return silent
            await asyncio.wait({ended}, timeout=_LOOK_S)
        return ""

    async def _end_silent(self, work: Work, silent: str) -> Ending:
        """Ends work that has not reported in time."""
        try:
            why = await work.why_silent()
            await work.stop()
        except TrimtabError as problem:
            why = problem.message
        return Ending(pb.RUN_STATE_FAILED, f"{silent}: {why}" if why else silent)

    async def _settle(self, name: str, work: Work, ending: Ending) -> None:
        """The state of a run whose work has ended: what it told, else how the work ended. The caller holds its lock."""
        run = await self._in_store(self._store.run, name)
        asked = run.state == pb.RUN_STATE_STOPPING
        if run.state not in ENDED:
            if ending.disrupted and not asked:
                if self._runtime.draining.is_set():
                    return  # the service's next life finds the work, and goes on with the run
                if ending.requeued or work.resumes < self._launcher.most_resumes:
                    del self._works[name]
                    await self._begin_again(run, work.resumes + (not ending.requeued), ending.error)
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

    async def _begin_again(self, run: RunRow, resumes: int, why: str) -> None:
        """Has a disrupted run launched again, by this life of the service or its next."""
        _log.warning("run disrupted, goes on", extra={"run": run.name, "error": why, "resumes": resumes})
        await self._in_store(self._store.order_relaunch, run.name, resumes, why)
        self._records.tell(run.name)
        self._start_task(self._go_on(run.name))

    async def _go_on(self, name: str) -> None:
        """Launches a disrupted run again, and tries until it is launched, stopped or out of time, which is its end."""
        give_up = time.monotonic() + self._launcher.reschedule_timeout_s
        while not self._runtime.draining.is_set():
            async with self.locks.of(name):
                relaunch = await self._in_store(self._store.relaunch, name)
                if relaunch is None:
                    return  # stopped meanwhile
                problem = await self._try_to_go_on(relaunch, is_last=time.monotonic() > give_up)
            if not problem:
                return
            _log.warning("a disrupted run cannot be started again yet", extra={"run": name, "error": problem})
            await asyncio.sleep(_AGAIN_S)

    async def _try_to_go_on(self, relaunch: Relaunch, *, is_last: bool) -> str:
        """Launches a disrupted run; what stands in the way for now, else nothing. The caller holds its lock."""
        run = await self._in_store(self._store.run, relaunch.name)
        try:
            resume = await self.has_begun(run)
            await self._launch(run, resume=resume, resumes=relaunch.resumes, goes_on=True)
        except (OSError, TrimtabError) as error:
            problem, passes = _not_started(error), _may_pass(error)
            if passes and not is_last:
                return problem
            limit = f"{self._launcher.reschedule_timeout_s:g} s (launcher.reschedule_timeout_s)"
            tried = f"; it was tried for {limit}" if passes else ""
            with suppress(TrimtabError):
                await self._remove_work(run)
            await self._fail(run.name, f"{relaunch.error}; it could not be started again: {problem}{tried}")
        await self._in_store(self._store.settle_relaunch, run.name)
        return ""

    async def _stop_disrupted(self, run: RunRow) -> RunRow:
        """Ends a run that waits to be launched again: nothing works on it."""
        await self._remove_work(run)
        await self._in_store(self._store.settle_relaunch, run.name)
        run = await self._in_store(self._store.set_state, run.name, pb.RUN_STATE_STOPPED)
        self._records.tell(run.name)
        return run

    async def _remove_work(self, run: RunRow) -> None:
        """Ends what a launch that broke off may have left."""
        work = await self._launcher.find(run)
        if work is not None:
            await work.stop()

    async def _fail(self, name: str, error: str) -> None:
        _log.error("run failed", extra={"run": name, "error": error})
        await self._in_store(self._store.set_state, name, pb.RUN_STATE_FAILED, error=error)
        self._records.tell(name)


def _not_started(error: OSError | TrimtabError) -> str:
    return error.message if isinstance(error, TrimtabError) else f"its process could not be started: {error}"


def _may_pass(error: OSError | TrimtabError) -> bool:
    """Whether a later try may do, as far as the error tells."""
    return isinstance(error, Unavailable) or (isinstance(error, TrimtabError) and error.retry_after_s is not None)


def _disrupted_too_often(ending: Ending, resumes: int, most: int) -> Ending:
    error = f"{ending.error}; it was started again {resumes} times, and launcher.resumes allows {most}"
    return Ending(pb.RUN_STATE_FAILED, error)
