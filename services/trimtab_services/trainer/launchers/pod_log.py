"""Copies the log of a run's pod into the run.log in the run's folder, where that of a local run is too.

Nothing is copied twice and nothing left out, whoever goes away in between: the file's own time of modification is set
to the time of its last line, and a reader that begins again takes the lines after it.
"""

from __future__ import annotations

import asyncio
import calendar
import logging
import os
import time
from pathlib import Path

import aiohttp

from trimtab.errors import TrimtabError
from trimtab_services.trainer.launchers.cluster import Cluster

__all__ = ["PodLog"]

_log = logging.getLogger(__name__)

_FOLLOW_S = 600.0
_AGAIN_S = 2.0


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
        self._problem = ""

    async def follow(self, pod: str, container: str) -> None:
        """Copies until the container's log has ended; a lost connection is made again.

        A log that cannot be had at all, such as that of a deleted pod, ends it; the run goes on without.
        """
        while True:
            try:
                async with self._cluster.pod_log(pod, container, timeout_s=_FOLLOW_S) as content:
                    await self._copy(content)
                    return
            except TimeoutError:
                continue
            except (aiohttp.ClientError, TrimtabError) as error:
                if isinstance(error, TrimtabError) and not self._may_heal(error):
                    return
            await asyncio.sleep(_AGAIN_S)

    def _may_heal(self, error: TrimtabError) -> bool:
        if error.message != self._problem:
            self._problem = error.message
            _log.warning("the log of a run cannot be read", extra={"run": self._run, "error": error.message})
        return error.retry_after_s is not None or error.reason == "UNREACHABLE"

    async def _copy(self, content: aiohttp.StreamReader) -> None:
        rest = b""
        while chunk := await content.readany():
            *lines, rest = (rest + chunk).split(b"\n")
            await asyncio.to_thread(self._append, lines)
        if rest:
            await asyncio.to_thread(self._append, [rest])

    def _append(self, lines: list[bytes]) -> None:
        last = self.path.stat().st_mtime_ns if self.path.exists() else 0
        new = [(at, text) for at, text in map(_at_and_text, lines) if at > last]
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.writelines(text + b"\n" for _, text in new)
            os.utime(self.path, ns=(new[-1][0], new[-1][0]))


def _at_and_text(line: bytes) -> tuple[int, bytes]:
    """Nanoseconds since the epoch, and the line, of `2026-01-02T03:04:05.678901234Z line`."""
    stamp, _, text = line.partition(b" ")
    seconds, _, fraction = stamp.decode("ascii").removesuffix("Z").partition(".")
    whole = calendar.timegm(time.strptime(seconds, "%Y-%m-%dT%H:%M:%S"))
    return whole * 10**9 + int(fraction.ljust(9, "0")), text
