"""What the TrainerService needs of a launcher: work that is started, found again, stopped, and whose end is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.run_log import read_end
from trimtab_services.trainer.run_rows import RunRow

__all__ = ["STOPPED_EXIT_CODE", "Ending", "Launcher", "Place", "Removed", "Work", "log_end"]

STOPPED_EXIT_CODE = 130
"""Of `trimtab run` that was stopped and has saved a checkpoint."""

_LAST_LINES = 3
_LAST_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Ending:
    """How the work of a run ended. It counts where the run itself has not told its end.

    Attributes:
        state: SUCCEEDED, STOPPED or FAILED.
        error: one sentence, for FAILED.
        terminated: ended from outside before it could heed a request to stop; where one was made, that is a stop.
        disrupted: the cluster took its place away, through no fault of the run, which can go on elsewhere.
        requeued: disrupted by the queue that had given it its place, and gives it one again; that may happen often.
    """

    state: pb.RunState.ValueType
    error: str = ""
    terminated: bool = False
    disrupted: bool = False
    requeued: bool = False


class Place(Enum):
    """How far work is on the way to its place, such as a node."""

    QUEUED = auto()
    """A queue will give it one, which may take as long as it takes."""
    SOUGHT = auto()
    """None is found yet."""
    PREPARING = auto()
    """It has one, whose volumes and image are on their way."""
    HELD = auto()
    """It works there, or cannot, for a reason that is known."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed besides the run's folder on the volume of the service.

    Attributes:
        claim_bytes: capacity of its own claim; 0 where it had none, or where it is not known.
        left: one sentence on what is left and who can remove it; empty: nothing.
    """

    claim_bytes: int = 0
    left: str = ""


class Work(Protocol):
    """What works on one run, from a launch to its end."""

    @property
    def pid(self) -> int:
        """Its process on this machine; 0 where it is not one."""
        ...

    @property
    def resumes(self) -> int:
        """How often the service has started the run again by itself, up to this launch."""
        ...

    @property
    def goes_on(self) -> bool:
        """Whether the service launched it by itself, to go on with a run that was disrupted."""
        ...

    @property
    def place(self) -> Place:
        """How far it is on the way to its place, as it was last seen."""
        ...

    async def ended(self) -> Ending:
        """Waits for its end.

        Raises:
            TrimtabError: it cannot be followed any more.
        """
        ...

    async def stop(self) -> None:
        """Asks it to finish its step, write a checkpoint and end. Asked twice, it may end without."""
        ...

    async def kill(self) -> None:
        """Ends it as fast as may be; its last checkpoint stays whole."""
        ...

    async def why_silent(self) -> str:
        """One sentence on what keeps it from reporting; empty where nothing is known."""
        ...

    async def clean_up(self) -> None:
        """Removes what an ended work leaves where it ran; its log and the run's folder stay."""
        ...


class Launcher(Protocol):
    """Starts the work of runs and finds it again."""

    @property
    def disrupts(self) -> bool:
        """Whether work may be disrupted, as `Ending` has it."""
        ...

    @property
    def most_resumes(self) -> int:
        """How often a disrupted run is started again by itself."""
        ...

    @property
    def reschedule_timeout_s(self) -> float:
        """How long a disrupted run may take until it has a place again."""
        ...

    def check_name(self, name: str) -> None:
        """Refuses a run's name that cannot be launched.

        Raises:
            InvalidRequest: names the limit.
        """
        ...

    async def check(self, spec_file: Path) -> None:
        """Has the trainer check a spec, without starting anything.

        Raises:
            InvalidRequest: the spec is wrong; the message names key, value and what is allowed.
        """
        ...

    async def start(self, run: RunRow, *, resume: bool, resumes: int = 0, goes_on: bool = False) -> Work:
        """Starts the work of a run; its output goes to the run.log in the run's folder.

        Args:
            run: whose folder has its spec, spec.given.yaml.
            resume: goes on from the last checkpoint.
            resumes: what the new work's `resumes` says.
            goes_on: what its `goes_on` says.

        Raises:
            OSError: its process could not be started.
            TrimtabError: the cluster refuses it, or does not answer; with `retry_after_s` where a later try may do.
        """
        ...

    async def find(self, run: RunRow) -> Work | None:
        """The work that an earlier life of the service started; None where there is none any more."""
        ...

    async def forget(self, run: RunRow) -> Removed:
        """Removes what an ended run has left but for its folder on the volume of the service, all data included.

        Raises:
            TrimtabError: the cluster refuses it, or does not answer.
        """
        ...

    async def close(self) -> None:
        """Closes connections; the work goes on."""
        ...


def log_end(path: Path) -> str:
    """The last lines of a run's log, and where it is. Reads from the disk."""
    try:
        lines = read_end(path, _LAST_BYTES)[0].strip().splitlines()
    except OSError:
        return "it left no log"
    return f"{' | '.join(lines[-_LAST_LINES:]) or 'its log is empty'} (all of it: {path})"
