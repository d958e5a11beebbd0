"""A service as a process of its own, as `trimtab serve` starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from trimtab import Client
from trimtab.types import ServiceState

__all__ = ["ServedProcess", "served"]


@dataclass(frozen=True)
class ServedProcess:
    """Where a service is: addresses as host:port, and its process."""

    grpc: str
    http: str
    metrics: str
    pid: int


@contextmanager
def served(name: str, directory: Path, **settings: object) -> Iterator[ServedProcess]:
    """Runs a service until the context ends.

    Args:
        name: such as `reward`.
        directory: for its configuration and ready file.
        settings: of its configuration.

    Yields:
        The service, once it serves.
    """
    ready, path = directory / f"{name}.json", directory / f"{name}.yaml"
    ready.unlink(missing_ok=True)
    ports = {f"{port}_port": 0 for port in ("grpc", "health", "http", "metrics")}
    path.write_text(yaml.safe_dump({**ports, "ready_file": str(ready), **settings}))
    command = [sys.executable, "-m", "trimtab", "serve", name, "--config", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with exit code {process.returncode}")
            time.sleep(0.05)
        found = json.loads(ready.read_text())
        with Client(found["grpc"], timeout_s=60) as client:
            while client.info().state is not ServiceState.SERVING:
                time.sleep(0.05)
        yield ServedProcess(found["grpc"], found["http"], found["metrics"], found["pid"])
    finally:
        process.terminate()
        process.wait()
