"""One replica of a local deployment: a `trimtab serve NAME` process, its files and how it is ended."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Replica", "end_with_parent", "is_running"]

_DRAIN_S = 30.0
"""`drain_s` of a service that is given none."""

_EXIT_S = 10.0
"""Seconds that a process gets beyond its drain to free what it holds and end."""

_RESTART_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LONG_LIFE_S = 30.0
"""A replica that ran for so long did not fail at its start: what ended it is its first failure."""

_PARENT = "TRIMTAB_PARENT_PID"

_HURRY_S = {"trainer": 5.0}
"""Seconds that a service gets which is told to end at once: the trainer ends its runs in them. Others get none."""


class Replica:
    """One replica, over all lives of its process.

    The kernel ends a replica when the thread that started it ends, so one long-lived thread calls `start`.

    Args:
        service: such as "generation".
        index: number among its peers, from 0.
        directory: DIR/services/NAME-I; made here.
    """

    def __init__(self, service: str, index: int, directory: Path) -> None:
        self.service = service
        self.index = index
        self.name = f"{service}-{index}"
        self.directory = directory
        self.endpoint: dict[str, Any] = {}
        """Addresses and pid of its last life; empty before the first."""
        self.restart_at = 0.0
        """`time.monotonic()` at which it starts again; 0 while it need not."""
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._started_at = 0.0
        self._kill_at = 0.0
        self._grace_s = 0.0
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of its last process; None while it runs, or when there was none."""
        return self._process.returncode if self._process is not None else None

    def start(self, config: Mapping[str, Any]) -> None:
        """Starts its process with a configuration.

        Raises:
            OSError: a file cannot be written, or no process can be started.
        """
        self.restart_at = 0.0
        self._started_at = time.monotonic()
        self._grace_s = _seconds(config, "drain_s", _DRAIN_S) + _seconds(config, "stop_runs_s", 0.0) + _EXIT_S
        (self.directory / "ready.json").unlink(missing_ok=True)
        config_file = self.directory / "config.yaml"
        config_file.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        with (self.directory / "log.jsonl").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trimtab", "serve", self.service, "--config", str(config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C reaches only us: we drain them in order
            )

    def is_live(self) -> bool:
        """Whether its present process has written its ready file; `endpoint` then has its addresses."""
        try:
            ready = json.loads((self.directory / "ready.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        if self._process is None or ready.get("pid") != self._process.pid:
            return False
        self.endpoint = {key: ready.get(key, "") for key in ("grpc", "health", "http", "metrics", "pid")}
        return True

    def plan_restart(self) -> float:
        """Notes another failure in a row; returns the seconds until it is to start again."""
        if time.monotonic() - self._started_at >= _LONG_LIFE_S:
            self._failures = 0
        wait_s = _RESTART_BACKOFF_S[min(self._failures, len(_RESTART_BACKOFF_S) - 1)]
        self._failures += 1
        self.restart_at = time.monotonic() + wait_s
        return wait_s

    def ask_to_end(self) -> None:
        """Tells its process to drain."""
        self._kill_at = time.monotonic() + self._grace_s
        self._signal(signal.SIGTERM)

    def hurry(self) -> None:
        """Tells its process, which was asked to end, to do so at once. May be called again and again."""
        self._kill_at = min(self._kill_at, time.monotonic() + _HURRY_S.get(self.service, 0.0))
        self._signal(signal.SIGTERM)  # a second one: the trainer ends its runs instead of waiting for them

    def has_ended(self) -> bool:
        """Whether its process, which was asked to end, is gone; kills it where its time is up."""
        if self._process is not None and self.alive and time.monotonic() >= self._kill_at:
            self._process.kill()
            self._process.wait()
        return not self.alive

    @property
    def seconds_left(self) -> float:
        """Until its process, which was asked to end, is killed."""
        return max(0.0, self._kill_at - time.monotonic())

    def log_end(self) -> str:
        """The last lines of its log, for messages."""
        path = self.directory / "log.jsonl"
        lines = path.read_text(errors="replace").strip().splitlines()
        return f"{' | '.join(lines[-3:]) or 'its log is empty'} (all of it: {path})"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.alive:
            self._process.send_signal(number)


def is_running(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _seconds(config: Mapping[str, Any], key: str, default: float) -> float:
    """A duration of a configuration; one that is no number is for the service itself to refuse."""
    value = config.get(key, default)
    return float(value) if isinstance(value, int | float) else default


def _environment() -> dict[str, str]:
    """Environment of a replica: waiting OpenMP threads sleep, since spinning ones slow every neighbour down."""
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, _PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """In a process that a `Replica` started: on Linux, has the kernel end it when the thread that started it ends.

    So no orphan keeps a port. The process asks for it itself, since code between fork and exec of a parent with threads
    may crash.
    """
    parent = os.environ.pop(_PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise SystemExit("the process that started this one has ended")
