"""Trimtab's services as processes of this machine: what `trimtab up`, `trimtab scale` and the quickstart run on.

`LocalServices` starts one process for each replica (`trimtab serve NAME`), writes DIR/endpoints.json once the weights
service is SERVING and all are live, restarts a replica that dies, follows DIR/replicas.json when somebody changes the
wanted number of replicas, and drains everything on `stop`. It never imports a service: processes are all it knows.

Layout of DIR:
    endpoints.json                   addresses of every replica, rewritten whenever one comes or goes
    replicas.json                    wanted number of replicas of each service; `trimtab scale` writes it
    store/                           the weights store
    services/NAME-I/config.yaml      the configuration given to that replica
    services/NAME-I/ready.json       its ports, written by itself once it is live
    services/NAME-I/log.jsonl        its log
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import ConfigError, Reason, Unavailable

__all__ = ["CHANNELS", "SCALABLE", "SERVICES", "LocalServices", "read_endpoints", "request_scale"]

SERVICES = ("weights", "generation", "reward", "reference", "trainer")
"""Services of a local deployment, in the order in which they start."""

SCALABLE = ("generation", "reward", "reference")
"""Services that may have several replicas; the others have one writer."""

CHANNELS = {"generation": "policy/latest", "reward": "reward/serving", "reference": "reference/serving"}
"""Channel of the weights service that each model service follows."""

_LIVE_TIMEOUT_S = 120.0
_RESTART_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass
class _Replica:
    service: str
    index: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    restart_at: float = 0.0
    endpoint: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.service}-{self.index}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class LocalServices:
    """The services of one folder, as child processes.

    Args:
        directory: DIR above; made when it does not exist.
        replicas: wanted number of replicas of each service; 0 leaves a service out. Default: one of each.
        settings: configuration added to each service's own, by service name, such as
            `{"generation": {"slots": 64}}`; the keys are those of `trimtab serve NAME --config FILE`.
        on_event: called with one line for people whenever something happens.

    Raises:
        ConfigError: an unknown service, a negative count, or several replicas of a service that has one writer.
    """

    def __init__(
        self,
        directory: Path,
        *,
        replicas: Mapping[str, int] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        on_event: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.directory = directory.resolve()
        self._wanted = {name: 1 for name in SERVICES} | dict(replicas or {})
        for name, count in self._wanted.items():
            check_count(name, count)
        self._settings = {name: dict(values) for name, values in (settings or {}).items()}
        for name in self._settings:
            check_count(name, 1)
        self._on_event = on_event
        self._replicas: dict[str, _Replica] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._monitor: threading.Thread | None = None

    @property
    def endpoints_file(self) -> Path:
        """DIR/endpoints.json."""
        return self.directory / "endpoints.json"

    def start(self) -> None:
        """Starts every replica and returns once all are live.

        Raises:
            Unavailable: a replica ended or was not live in time; the message has the end of its log.
            ConfigError: other services already run in this folder.
        """
        self._refuse_second_start()
        self.directory.mkdir(parents=True, exist_ok=True)
        _write_json(self.directory / "replicas.json", self._wanted)
        try:
            for service in SERVICES:
                batch = [self._spawn(service, index) for index in range(self._wanted[service])]
                if service == "weights" or service == SERVICES[-1]:
                    for replica in [*self._replicas.values()] if service == SERVICES[-1] else batch:
                        self._wait_live(replica)
        except BaseException:
            self.stop()
            raise
        self._write_endpoints()
        self._monitor = threading.Thread(target=self._watch, name="local-services", daemon=True)
        self._monitor.start()

    def stop(self, *, drain_s: float = 30.0) -> None:
        """Drains and ends every replica, weights last; kills what has not ended `drain_s` seconds later."""
        self._stopping.set()
        if self._monitor is not None and self._monitor is not threading.current_thread():
            self._monitor.join()
        with self._lock:
            for service in reversed(SERVICES):
                self._end([r for r in self._replicas.values() if r.service == service], drain_s)
            self._replicas.clear()
            self.endpoints_file.unlink(missing_ok=True)

    def __enter__(self) -> LocalServices:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _refuse_second_start(self) -> None:
        if not self.endpoints_file.exists():
            return
        pids = [replica["pid"] for replicas in read_endpoints(self.directory).values() for replica in replicas]
        running = [pid for pid in pids if _is_running(pid)]
        if running:
            raise ConfigError(
                f"{self.directory}: services already run in this folder (process {running[0]}); stop them first or "
                "take another --dir",
                field="dir",
                value=self.directory,
            )

    def _config(self, replica: _Replica) -> dict[str, Any]:
        config: dict[str, Any] = {
            "host": "127.0.0.1",
            **{f"{kind}_port": _port(replica.endpoint.get(kind)) for kind in ("grpc", "health", "http", "metrics")},
            "replica": replica.name,
            "ready_file": str(replica.directory / "ready.json"),
        }
        if replica.service == "weights":
            config["store"] = str(self.directory / "store")
        elif replica.service == "trainer":
            config["directory"] = str(self.directory / "runs")
            config["endpoints_file"] = str(self.endpoints_file)
            config["stop_runs_on_drain"] = True  # the services that its runs work with are about to end too
        else:
            weights = self._replicas["weights-0"].endpoint["grpc"]
            config["weights"] = {"address": weights, "channel": CHANNELS[replica.service]}
            config["cache_directory"] = str(replica.directory / "cache")
        return config | self._settings.get(replica.service, {})

    def _spawn(self, service: str, index: int) -> _Replica:
        directory = self.directory / "services" / f"{service}-{index}"
        directory.mkdir(parents=True, exist_ok=True)
        replica = self._replicas.setdefault(f"{service}-{index}", _Replica(service, index, directory))
        (directory / "ready.json").unlink(missing_ok=True)
        (directory / "config.yaml").write_text(yaml.safe_dump(self._config(replica), sort_keys=False))
        with (directory / "log.jsonl").open("ab") as log:
            replica.process = subprocess.Popen(
                [sys.executable, "-m", "trimtab", "serve", service, "--config", str(directory / "config.yaml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C reaches only us: we drain them in order
                preexec_fn=_die_with_parent,
            )
        return replica

    def _wait_live(self, replica: _Replica) -> None:
        deadline = time.monotonic() + _LIVE_TIMEOUT_S
        while not self._is_live(replica):
            if not replica.alive:
                code = replica.process.returncode if replica.process else None
                raise Unavailable(f"{replica.name} ended with exit code {code} at start: {self._log_end(replica)}")
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{replica.name} was not live after {_LIVE_TIMEOUT_S:.0f} s: {self._log_end(replica)}",
                    reason=Reason.DEADLINE_EXCEEDED,
                )
            time.sleep(0.02)

    def _is_live(self, replica: _Replica) -> bool:
        try:
            ready = json.loads((replica.directory / "ready.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        if replica.process is None or ready.get("pid") != replica.process.pid:
            return False
        replica.endpoint = {key: ready.get(key, "") for key in ("grpc", "health", "http", "metrics", "pid")}
        return True

    def _log_end(self, replica: _Replica) -> str:
        lines = (replica.directory / "log.jsonl").read_text(errors="replace").strip().splitlines()
        return f"{' | '.join(lines[-3:]) or 'its log is empty'} (all of it: {replica.directory / 'log.jsonl'})"

    def _write_endpoints(self) -> None:
        table: dict[str, list[dict[str, Any]]] = {name: [] for name in SERVICES if self._wanted.get(name)}
        for replica in sorted(self._replicas.values(), key=lambda r: (r.service, r.index)):
            if replica.alive and self._is_live(replica):
                table.setdefault(replica.service, []).append(replica.endpoint)
        _write_json(self.endpoints_file, table)

    def _watch(self) -> None:
        """Restarts what dies and follows replicas.json until `stop`."""
        published = ""
        while not self._stopping.wait(0.2):
            with self._lock:
                self._follow_wanted()
                for replica in list(self._replicas.values()):
                    self._restart_if_dead(replica)
                state = json.dumps(
                    [
                        (r.name, r.process and r.process.pid, self._is_live(r) and r.alive)
                        for r in self._replicas.values()
                    ]
                )
                if state != published:
                    self._write_endpoints()
                    published = state

    def _follow_wanted(self) -> None:
        try:
            wanted = json.loads((self.directory / "replicas.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return
        for service in SCALABLE:
            count = int(wanted.get(service, self._wanted[service]))
            present = [r for r in self._replicas.values() if r.service == service]
            self._wanted[service] = count
            for index in range(count):
                if f"{service}-{index}" not in self._replicas:
                    self._spawn(service, index)
                    self._on_event(f"{service}-{index} starts")
            surplus = [r for r in present if r.index >= count]
            if surplus:
                for replica in surplus:
                    del self._replicas[replica.name]
                self._write_endpoints()  # first nobody finds them any more, then they drain
                threading.Thread(target=self._end, args=(surplus, 60.0), daemon=True).start()
                self._on_event(f"{', '.join(r.name for r in surplus)} drains")

    def _restart_if_dead(self, replica: _Replica) -> None:
        if replica.alive:
            return
        now = time.monotonic()
        if replica.restart_at == 0.0:
            code = replica.process.returncode if replica.process else None
            wait = _RESTART_BACKOFF_S[min(replica.failures, len(_RESTART_BACKOFF_S) - 1)]
            replica.failures += 1
            replica.restart_at = now + wait
            self._on_event(f"{replica.name} ended with exit code {code}; starts again in {wait:g} s")
        elif now >= replica.restart_at:
            replica.restart_at = 0.0
            self._spawn(replica.service, replica.index)

    def _end(self, replicas: list[_Replica], drain_s: float) -> None:
        processes = [r.process for r in replicas if r.process is not None]
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + drain_s
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def check_count(service: str, count: int) -> None:
    """Checks the wanted number of replicas of a service.

    Raises:
        ConfigError: an unknown service, a negative count, or more than one replica of a service that is not scalable.
    """
    if service not in SERVICES:
        raise ConfigError(
            f"unknown service {service!r}; known are {', '.join(SERVICES)}", field="service", value=service
        )
    most = 1 if service not in SCALABLE else 64
    if not 0 <= count <= most:
        raise ConfigError(
            f"{service}={count}: the number of replicas must be 0..{most}", field=service, value=count, limit=most
        )


def read_endpoints(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads DIR/endpoints.json: for each service a list of replicas with `grpc`, `health`, `http`, `metrics`, `pid`.

    Raises:
        ConfigError: no services run there.
    """
    path = directory / "endpoints.json"
    try:
        table: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; start the services with `trimtab up --dir {directory}`",
            field="dir",
            value=directory,
        ) from None
    return table


def request_scale(directory: Path, service: str, count: int) -> None:
    """Asks the services that run in DIR for another number of replicas; they follow within a second.

    Raises:
        ConfigError: nothing runs there, or the service or the count is not allowed.
    """
    if service not in SCALABLE:
        raise ConfigError(f"{service!r} cannot be scaled; {', '.join(SCALABLE)} can", field="service", value=service)
    check_count(service, count)
    read_endpoints(directory)
    path = directory / "replicas.json"
    _write_json(path, json.loads(path.read_text()) | {service: count})


def _environment() -> dict[str, str]:
    """Environment of a replica: waiting OpenMP threads sleep, since spinning ones slow every neighbour down."""
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}


def _die_with_parent() -> None:
    """On Linux, lets the kernel end this child when its parent is killed: no orphan keeps a port."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _port(address: str | None) -> int:
    """The port of a replica's earlier life, which it takes again so that peers find it; 0 picks a free one."""
    return int(address.rsplit(":", 1)[1]) if address else 0


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
