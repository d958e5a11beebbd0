"""Copies the log of a run's pod into the run.log in the run's folder, where that of a local run is too.

Nothing is copied twice and nothing left out, whoever goes away in between: beside the log lies how far it has come, by
pod, time and number of the last line, and a reader that begins again takes the lines after that one. What could not be
copied at all is said at the end of the log.
"""

from __future__ import annotations

import asyncio
import calendar
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import aiohttp

from trimtab.errors import NotFound, Reason, TrimtabError, Unavailable
from trimtab_services.trainer.launchers.cluster import Cluster

__all__ = ["PodLog"]

_log = logging.getLogger(__name__)

_FOLLOW_S = 600.0
_AGAIN_S = 2.0
_LOOK_S = 0.2
_POSITION_FILE = ".run.log.position"


@dataclass(frozen=True, slots=True)
class _Position:
    """How far a copy has come.

    Attributes:
        pod: whose log it is; names of pods do not come again.
        at: time of the last line, in nanoseconds since the epoch by the clock of the pod's node; 0 before the first.
        lines: copied lines of that time.
        size: of run.log with all of them, in bytes. What is behind that was not noted any more, and is copied again.
    """

    pod: str = ""
    at: int = 0
    lines: int = 0
    size: int = 0


class PodLog:
    """The run.log of one run.

    Args:
        cluster: where its pods are.
        path: the file; made when the first line comes.
        run: name of the run, for our own log.
    """

    def __init__(self, cluster: Cluster, path: Path, run: str) -> None:
        self.path = path
        self._cluster = cluster
        self._run = run
        self._position = _Position()
        self._writing = threading.Lock()
        self._problem = ""

    @property
    def copied_bytes(self) -> int:
        """Size of the file so far; it grows while the copy gets on."""
        return self._position.size

    async def follow(self, pod: str, container: str, is_over: Callable[[], bool]) -> None:
        """Copies until the container's log has ended; a lost connection is made again.

        A log that cannot be had at all, such as that of a deleted pod, ends it; the run goes on without.

        Args:
            pod: its name.
            container: of the pod.
            is_over: whether the container works no more. The end of a stream alone says little: that of an API server
                or a kubelet that is started again ends too.
        """
        await asyncio.to_thread(self._begin, pod)
        has_ended = False
        while True:
            was_over = is_over()
            try:
                async with self._cluster.pod_log(pod, container, timeout_s=_FOLLOW_S) as content:
                    await self._copy(content, is_last=was_over)
                has_ended = True
                if was_over:
                    return
            except TimeoutError:
                continue
            except NotFound as error:
                if not has_ended:  # else the pod was deleted after its end
                    await self.cut_short(error.message)
                return
            except TrimtabError as error:
                if not self._may_heal(error):
                    return await self.cut_short(error.message)
            except (aiohttp.ClientError, OSError) as error:
                self._tell(f"{type(error).__name__}: {error}")
            await _wait_for(is_over, _AGAIN_S)

    async def cut_short(self, why: str = "") -> None:
        """Says in our own log, and at the end of a copy that has begun, that the rest is missing.

        Args:
            why: one sentence; empty: what the last try met with.
        """
        why = why or self._problem or "nothing came any more"
        _log.warning("the log of a run cannot be read", extra={"run": self._run, "error": why})
        with suppress(OSError):
            await asyncio.to_thread(self._say_cut_short, why)

    def _may_heal(self, error: TrimtabError) -> bool:
        if error.retry_after_s is None and error.reason is not Reason.UNREACHABLE:
            return False
        self._tell(error.message)
        return True

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            _log.warning("the log of a run cannot be read for now", extra={"run": self._run, "error": problem})

    async def _copy(self, content: aiohttp.StreamReader, *, is_last: bool) -> None:
        """Copies a stream of the log from its beginning; what ends without a line's end may be half a line."""
        is_new = _After(self._position)
        rest = b""
        while chunk := await content.readany():
            *lines, rest = (rest + chunk).split(b"\n")
            await self._append(lines, is_new)
        if rest and is_last:
            await self._append([rest], is_new)

    async def _append(self, lines: list[bytes], is_new: _After) -> None:
        stamped = [_at_and_text(line) for line in lines]
        new = [(at, text) for at, text in stamped if is_new(at)]
        if new:
            await asyncio.to_thread(self._write, new)

    def _begin(self, pod: str) -> None:
        """Takes up what an earlier copy has noted."""
        with self._writing:
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                noted = _Position(**json.loads(self._position_file.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                noted = _Position(size=size)
            if size > noted.size:
                os.truncate(self.path, noted.size)
            at_end = replace(noted, size=min(size, noted.size))
            self._position = at_end if noted.pod == pod else _Position(pod=pod, size=at_end.size)

    def _write(self, new: list[tuple[int, bytes]]) -> None:
        with self._writing:
            at, lines = self._position.at, self._position.lines
            for line_at, _ in new:
                lines = lines + 1 if line_at == at else 1
                at = line_at
            self._add(b"".join(text + b"\n" for _, text in new), replace(self._position, at=at, lines=lines))

    def _say_cut_short(self, why: str) -> None:
        with self._writing:
            if self._position.at:
                self._add(f"trimtab: the rest of this log could not be copied: {why}\n".encode(), self._position)

    def _add(self, text: bytes, position: _Position) -> None:
        """Adds to the file, and notes it; after a failure the file is as long as it was noted."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(self._position.size)
            file.write(text)
        noted = replace(position, size=self._position.size + len(text))
        partial = self._position_file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(noted)), encoding="utf-8")
        partial.replace(self._position_file)
        self._position = noted

    @property
    def _position_file(self) -> Path:
        return self.path.with_name(_POSITION_FILE)


class _After:
    """Which lines of a stream that begins anew come after a position.

    Only the lines up to it are told by their times: a clock that is set back later loses nothing.
    """

    def __init__(self, position: _Position) -> None:
        self._at, self._lines = position.at, position.lines
        self._has_passed = False

    def __call__(self, at: int) -> bool:
        if not self._has_passed:
            if at < self._at:
                return False
            if at == self._at and self._lines:
                self._lines -= 1
                return False
            self._has_passed = True
        return True


async def _wait_for(condition: Callable[[], bool], most_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(most_s):
            while not condition():
                await asyncio.sleep(_LOOK_S)


def _at_and_text(line: bytes) -> tuple[int, bytes]:
    """Nanoseconds since the epoch, and the line, of `2026-01-02T03:04:05.678901234Z line`.

    Raises:
        Unavailable: the line has no time: it is not of the container, but of a kubelet that cannot read its log.
    """
    stamp, _, text = line.partition(b" ")
    seconds, _, fraction = stamp.decode(errors="replace").removesuffix("Z").partition(".")
    try:
        whole = calendar.timegm(time.strptime(seconds, "%Y-%m-%dT%H:%M:%S"))
        return whole * 10**9 + int(fraction.ljust(9, "0")), text
    except ValueError:
        said = line[:200].decode(errors="replace")
        raise Unavailable(f"the kubelet says instead of the log: {said}", reason=Reason.UNREACHABLE) from None
