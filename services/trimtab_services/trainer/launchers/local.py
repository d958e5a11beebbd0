"""The local launcher: a run is a process of its own, `trimtab run`, which outlives the service that started it.

That process starts the others that the run trains on.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.runtime.config import ClientTLS
from trimtab_services.trainer.launchers.base import STOPPED_EXIT_CODE, Ending, Place, Removed, log_end
from trimtab_services.trainer.launchers.check import check_spec, run_command
from trimtab_services.trainer.run_rows import RunRow

__all__ = ["LocalLauncher", "LocalWork", "is_run_process", "kill", "terminate"]

_LOOK_S = 0.2
_SPEC_FILE = "spec.given.yaml"


@dataclass(frozen=True)
class LocalLauncher:
    """Starts and finds run processes on this machine.

    Attributes:
        report_to: gRPC address of the TrainerService.
        processes: of each run.
        endpoints_file: given to runs whose spec names no services; None leaves that to the spec.
        token_file: bearer token that runs report with; None when the service asks for none.
        tls: how runs reach the service; None for plain text.
        disrupts: nothing takes the place of a process away.
        most_resumes: so none is started again by itself.
        reschedule_timeout_s: nor waits for a place.
    """

    report_to: str
    processes: int = 1
    endpoints_file: Path | None = None
    token_file: Path | None = None
    tls: ClientTLS | None = None
    disrupts: bool = False
    most_resumes: int = 0
    reschedule_timeout_s: float = 0.0

    def check_name(self, name: str) -> None:
        """Every name of a run can be launched."""

    async def check(self, spec_file: Path) -> None:
        """As `Launcher.check`."""
        await check_spec(spec_file, *self._options(), "--check", "--offline")

    async def start(self, run: RunRow, *, resume: bool, resumes: int = 0, goes_on: bool = False) -> LocalWork:
        """Starts the run process; its output goes to DIRECTORY/run.log.

        Raises:
            OSError: it could not be started.
        """
        directory = Path(run.directory)
        command = [
            *run_command(directory / _SPEC_FILE, *self._options()),
            *("--dir", str(directory), "--name", run.name),
            *("--report-to", self.report_to),
            *(("--report-token-file", str(self.token_file)) if self.token_file else ()),
            *self._tls_options(),
            *(("--resume",) if resume else ()),
        ]
        with (directory / "run.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=Path.cwd()
            )
        return LocalWork(run.name, directory, process.pid, process)

    async def find(self, run: RunRow) -> LocalWork | None:
        """The run's process where it is still alive; where it has ended, a work that tells the end that its folder has.

        None where it never told one.
        """
        work = LocalWork(run.name, Path(run.directory), run.pid)
        return work if is_run_process(run.pid, run.name) or _state_on_disk(work.directory) is not None else None

    async def forget(self, run: RunRow) -> Removed:
        """Nothing is left but the run's folder, which is the service's."""
        return Removed()

    async def close(self) -> None:
        """Nothing is open."""

    def _options(self) -> list[str]:
        endpoints = ["--endpoints", str(self.endpoints_file)] if self.endpoints_file else []
        return [*endpoints, "--processes", str(self.processes)]

    def _tls_options(self) -> list[str]:
        files = self.tls.model_dump() if self.tls else {}
        given = {name: path for name, path in files.items() if path is not None}
        options = [f"--report-{name.replace('_', '-')}={path}" for name, path in given.items()]
        return options if given or self.tls is None else ["--report-tls"]


@dataclass(frozen=True)
class LocalWork:
    """One run process.

    Attributes:
        name: of the run.
        directory: the run's folder.
        pid: its process.
        process: where this life of the service started it; None where an earlier one did, and its exit code cannot be
            known.
        resumes: none.
        goes_on: never.
        place: a process has one.
    """

    name: str
    directory: Path
    pid: int
    process: subprocess.Popen[bytes] | None = None
    resumes: int = 0
    goes_on: bool = False
    place: Place = Place.HELD

    async def ended(self) -> Ending:
        """Waits for the end of the process; it is what the exit code and the run's folder say.

        A process that stopped says so by its exit code too. With another code it never began, and its folder tells of
        the stop before.
        """
        while self.process.poll() is None if self.process else is_run_process(self.pid, self.name):
            await asyncio.sleep(_LOOK_S)
        exit_code = self.process.returncode if self.process else None
        state = _state_on_disk(self.directory)
        if state is None or (state == pb.RUN_STATE_STOPPED and exit_code not in (None, 0, STOPPED_EXIT_CODE)):
            code = "unknown exit code" if exit_code is None else f"exit code {exit_code}"
            log = await asyncio.to_thread(log_end, self.directory / "run.log")
            error = f"its process ended with {code}: {log}"
            return Ending(pb.RUN_STATE_FAILED, error, terminated=exit_code == -signal.SIGTERM)
        return Ending(state)

    async def stop(self) -> None:
        """Sends SIGTERM."""
        terminate(self.pid, self.name)

    async def kill(self) -> None:
        """Sends SIGKILL to all that it has started."""
        kill(self.pid, self.name)

    async def why_silent(self) -> str:
        """Its log is at hand."""
        return ""

    async def clean_up(self) -> None:
        """Ends the other processes of a run whose own was killed: they would hold their GPUs for minutes."""
        if not is_run_process(self.pid, self.name):
            for pid in await asyncio.to_thread(_left_by, self.pid, self.directory / _SPEC_FILE):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def is_run_process(pid: int, name: str) -> bool:
    """Whether `pid` is alive and, where the system tells, the process of run `name` and not a later one's."""
    if pid <= 0:  # no process was launched; for the system, 0 and below mean whole process groups
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self").exists()  # no /proc here, or the process has just ended
    return name.encode() in arguments


def terminate(pid: int, name: str) -> None:
    """Asks the process of run `name` to finish its step, write a checkpoint and end. Asked twice, it ends at once."""
    if is_run_process(pid, name):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def kill(pid: int, name: str) -> None:
    """Ends the process of run `name` and all that it has started, at once; its last checkpoint stays whole."""
    if is_run_process(pid, name):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # it leads a session of its own


def _left_by(leader: int, spec_file: Path) -> list[int]:
    """Processes of a run that its first one, which is gone, has started; none where the system has no /proc."""
    left = []
    for folder in Path("/proc").glob("[0-9]*") if leader > 0 else ():
        try:
            is_ours = os.getpgid(int(folder.name)) == leader
            if is_ours and str(spec_file).encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                left.append(int(folder.name))
        except OSError:
            continue
    return left


def _state_on_disk(directory: Path) -> pb.RunState.ValueType | None:
    """STOPPED or SUCCEEDED where the run's state.json says so."""
    try:
        name = json.loads((directory / "state.json").read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {"STOPPED": pb.RUN_STATE_STOPPED, "SUCCEEDED": pb.RUN_STATE_SUCCEEDED}.get(name)
