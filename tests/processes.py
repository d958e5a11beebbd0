"""Real servers in processes of their own, as `trimtab serve` starts them: to be killed, or starved of something."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from running import FREE_PORTS
from trimtab.client import Client

__all__ = ["ServiceProcess", "run_process", "serving"]

_START_S = 60.0


class ServiceProcess:
    """A started process; live, which need not mean that it serves.

    Args:
        kind: such as `weights`.
        folder: for its configuration, log and ready file; others may use it after one another.
        within: a command that runs the service's own, such as `ip netns exec NAME`.
        settings: of its configuration.
    """

    def __init__(self, kind: str, folder: Path, *, within: Sequence[str] = (), **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ready, config = folder / "ready.json", folder / "config.yaml"
        ready.unlink(missing_ok=True)
        config.write_text(yaml.safe_dump({**FREE_PORTS, "drain_s": 2.0, "ready_file": str(ready), **settings}))
        self._log = folder / "log"
        command = [*within, sys.executable, "-m", "trimtab", "serve", kind, "--config", str(config)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        give_up = time.monotonic() + _START_S
        while not ready.exists():
            assert self.process.poll() is None and time.monotonic() < give_up, self.log()
            time.sleep(0.02)
        addresses = json.loads(ready.read_text())
        self.pid: int = addresses["pid"]
        self.target: str = addresses["grpc"]
        self._metrics_url = f"http://{addresses['metrics']}/metrics"

    def log(self) -> str:
        """All that it has written."""
        return self._log.read_text()

    def metrics(self) -> str:
        """Its metrics in Prometheus' text format."""
        return urllib.request.urlopen(self._metrics_url, timeout=10).read().decode()

    def client(self, timeout_s: float = 30.0) -> Client:
        """A new client of it."""
        return Client(self.target, timeout_s=timeout_s)

    def kill(self) -> None:
        """Ends it at once, whatever it does; one that is gone already is no error."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def serving(kind: str, folder: Path, *, within: Sequence[str] = (), **settings: object) -> Iterator[ServiceProcess]:
    """A process that is killed in the end."""
    service = ServiceProcess(kind, folder, within=within, **settings)
    try:
        yield service
    finally:
        service.kill()


def run_process(spec: Path, *options: str) -> subprocess.Popen[str]:
    """`trimtab run SPEC`, started."""
    command = [sys.executable, "-m", "trimtab", "run", str(spec), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
