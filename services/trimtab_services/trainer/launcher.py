"""The local launcher: a run is a process of its own, `trimtab run`, which outlives the service that started it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import InvalidRequest
from trimtab_services.runtime.config import ClientTLS

__all__ = ["LocalLauncher", "is_run_process", "kill", "terminate"]

_CHECK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class LocalLauncher:
    """Starts, finds and stops run processes on this machine.

    Attributes:
        report_to: gRPC address of the TrainerService.
        endpoints_file: given to runs whose spec names no services; None leaves that to the spec.
        token_file: bearer token that runs report with; None when the service asks for none.
        tls: how runs reach the service; None for plain text.
    """

    report_to: str
    endpoints_file: Path | None = None
    token_file: Path | None = None
    tls: ClientTLS | None = None

    async def check(self, spec_file: Path) -> None:
        """Has the trainer check a spec, without starting anything.

        Raises:
            InvalidRequest: the spec is wrong; the message names key, value and what is allowed.
        """
        process = await asyncio.create_subprocess_exec(
            *self._command(spec_file, "--check"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                _, stderr = await process.communicate()
        except TimeoutError:
            process.kill()
            raise InvalidRequest(
                f"spec_yaml: checking it took longer than {_CHECK_TIMEOUT_S:.0f} s", field="spec_yaml"
            ) from None
        if process.returncode:
            text = stderr.decode(errors="replace").strip().removeprefix("error: ").replace(f"{spec_file}: ", "")
            raise InvalidRequest(f"spec_yaml: {text}", field="spec_yaml")

    def start(self, name: str, spec_file: Path, directory: Path, *, resume: bool) -> subprocess.Popen[bytes]:
        """Starts the run process; its output goes to DIRECTORY/run.log."""
        command = [
            *self._command(spec_file, "--dir", str(directory), "--name", name),
            *("--report-to", self.report_to),
            *(("--report-token-file", str(self.token_file)) if self.token_file else ()),
            *self._tls_options(),
            *(("--resume",) if resume else ()),
        ]
        with (directory / "run.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=Path.cwd()
            )

    def _tls_options(self) -> list[str]:
        files = self.tls.model_dump() if self.tls else {}
        given = {name: path for name, path in files.items() if path is not None}
        options = [f"--report-{name.replace('_', '-')}={path}" for name, path in given.items()]
        return options if given or self.tls is None else ["--report-tls"]

    def _command(self, spec_file: Path, *options: str) -> Sequence[str]:
        endpoints = ("--endpoints", str(self.endpoints_file)) if self.endpoints_file else ()
        return [sys.executable, "-m", "trimtab", "run", str(spec_file), *endpoints, *options]


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
