"""`LocalServices`: the services of one folder as child processes, from start to drain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from trimtab.errors import Cancelled, ConfigError, Reason, Unavailable
from trimtab.local.folder import (
    OPTIONAL,
    SCALABLE,
    SERVICES,
    check_count,
    endpoints_path,
    read_endpoints,
    read_wanted,
    wanted_path,
    write_json,
)
from trimtab.local.replica import Replica, is_running

__all__ = ["CHANNELS", "LocalServices"]

CHANNELS = {"generation": "policy/latest", "reward": "reward/serving", "reference": "reference/serving"}
"""Channel of the weights service that each model service follows."""

_DRAIN_ORDER = (("trainer",), ("generation", "reward", "reference", "labeling"), ("weights",))
"""Runs first, since they work with everything; weights last, since everything follows it."""

_LIVE_TIMEOUT_S = 120.0
_TICK_S = 0.2
_POLL_S = 0.02
_STOP_RUNS_S = 600.0
"""Seconds that runs get to finish their step and save a checkpoint, unless the trainer's settings say otherwise."""
_PATIENCE_S = 2.0
"""After so many seconds of waiting for a process to end, people are told what for."""


class LocalServices:
    """The services of one folder, as child processes.

    `start` returns once all are live. From then on a replica that dies is started again, and DIR/replicas.json is
    followed when somebody changes the wanted number of replicas, until `stop` drains everything. One thread of its own
    starts and ends every process: the kernel ends a child together with the thread that started it.

    Args:
        directory: DIR of the package's docstring; made when it does not exist.
        replicas: wanted number of replicas of each service; 0 leaves a service out. Default: one of each, but none of
            `OPTIONAL`.
        settings: configuration added to each service's own, by service name, such as
            `{"generation": {"slots": 64}}`; the keys are those of `trimtab serve NAME --config FILE`.
        on_event: called with one line for people whenever something happens, from another thread.

    Raises:
        ConfigError: an unknown service, a wrong count, or several replicas of a service that has one writer.
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
        self._wanted = {name: int(name not in OPTIONAL) for name in SERVICES} | dict(replicas or {})
        for name, count in self._wanted.items():
            check_count(name, count)
        self._settings = {name: dict(values) for name, values in (settings or {}).items()}
        for name in self._settings:
            check_count(name, 1)
        self._on_event = on_event
        self._replicas: dict[str, Replica] = {}
        self._leaving: list[Replica] = []
        self._problems: dict[str, str] = {}
        self._published: object = None
        self._stopping = threading.Event()
        self._hurrying = threading.Event()
        self._live: Future[None] = Future()
        self._thread: threading.Thread | None = None

    @property
    def endpoints_file(self) -> Path:
        """DIR/endpoints.json."""
        return endpoints_path(self.directory)

    def start(self) -> None:
        """Starts every replica and returns once all are live.

        Raises:
            Unavailable: a replica ended or was not live in time; the message has the end of its log.
            ConfigError: other services already run in this folder.
            Cancelled: `end_now` was called meanwhile.
        """
        self._refuse_second_start()
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(wanted_path(self.directory), self._wanted)
        self._thread = threading.Thread(target=self._own_processes, name="local-services", daemon=True)
        self._thread.start()
        try:
            self._live.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Drains and ends every replica: the trainer first, once its runs have saved a checkpoint, weights last.

        A replica that has not ended some seconds after its own drain time is killed. Ctrl-C meanwhile is `end_now`.
        """
        self._stopping.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._thread.join()
            except KeyboardInterrupt:
                self.end_now()

    def end_now(self) -> None:
        """Makes a `start` or `stop` under way end every process at once, runs too. A signal handler may call it."""
        self._hurrying.set()

    def __enter__(self) -> LocalServices:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _refuse_second_start(self) -> None:
        if not self.endpoints_file.exists():
            return
        pids = [replica["pid"] for replicas in read_endpoints(self.directory).values() for replica in replicas]
        running = [pid for pid in pids if is_running(pid)]
        if running:
            raise ConfigError(
                f"{self.directory}: services already run in this folder (process {running[0]}); stop them first or "
                "take another --dir",
                field="dir",
                value=self.directory,
            )

    def _own_processes(self) -> None:
        """All of the thread: start, watch, drain."""
        try:
            self._start_all()
        except BaseException as error:
            self._drain_all()
            self._live.set_exception(error)
            return
        self._live.set_result(None)
        while not self._stopping.wait(_TICK_S):
            self._attempt("replicas.json", self._follow_wanted)
            for replica in list(self._replicas.values()):
                self._attempt(replica.name, partial(self._restart_if_dead, replica))
            self._leaving = [replica for replica in self._leaving if not replica.has_ended()]
            self._attempt("endpoints.json", self._write_endpoints)
        self._drain_all()

    def _attempt(self, subject: str, work: Callable[[], None]) -> None:
        """Does a piece of work that must not end the watch; a problem with it is told once, until it is over."""
        try:
            work()
        except Exception as error:
            problem = str(error) or type(error).__name__
            if self._problems.get(subject) != problem:
                self._problems[subject] = problem
                self._tell(f"{subject}: {problem}")
        else:
            self._problems.pop(subject, None)

    def _tell(self, line: str) -> None:
        with suppress(Exception):  # a terminal that is gone must not end the services
            self._on_event(line)

    def _start_all(self) -> None:
        """Weights first, then the rest together, since each of them needs its address."""
        for services in (SERVICES[:1], SERVICES[1:]):
            batch = [self._spawn(service, index) for service in services for index in range(self._wanted[service])]
            for replica in batch:
                self._wait_live(replica)
        self._write_endpoints()

    def _wait_live(self, replica: Replica) -> None:
        give_up = time.monotonic() + _LIVE_TIMEOUT_S
        while not replica.is_live():
            if self._stopping.is_set() or self._hurrying.is_set():
                raise Cancelled("told to end while the services started")
            if not replica.alive:
                raise Unavailable(
                    f"{replica.name} ended with exit code {replica.exit_code} at start: {replica.log_end()}"
                )
            if time.monotonic() > give_up:
                raise Unavailable(
                    f"{replica.name} was not live after {_LIVE_TIMEOUT_S:.0f} s: {replica.log_end()}",
                    reason=Reason.DEADLINE_EXCEEDED,
                )
            time.sleep(_POLL_S)

    def _spawn(self, service: str, index: int) -> Replica:
        name = f"{service}-{index}"
        if name not in self._replicas:
            self._replicas[name] = Replica(service, index, self.directory / "services" / name)
        replica = self._replicas[name]
        replica.start(self._config(replica))
        return replica

    def _config(self, replica: Replica) -> dict[str, Any]:
        config: dict[str, Any] = {
            "host": "127.0.0.1",
            **{f"{kind}_port": _port(replica.endpoint.get(kind)) for kind in ("grpc", "health", "http", "metrics")},
            "replica": replica.name,
            "ready_file": str(replica.directory / "ready.json"),
        }
        if replica.service == "weights":
            config["store"] = str(self.directory / "store")
        elif replica.service == "labeling":
            config["database"] = f"sqlite:///{self.directory}/labeling.sqlite"
        elif replica.service == "trainer":
            config["directory"] = str(self.directory / "runs")
            config["endpoints_file"] = str(self.endpoints_file)
            config["stop_runs_on_drain"] = True  # the services that its runs work with are about to end too
            config["stop_runs_s"] = _STOP_RUNS_S
        else:
            weights = self._replicas["weights-0"].endpoint["grpc"]
            config["weights"] = {"address": weights, "channel": CHANNELS[replica.service]}
            config["cache_directory"] = str(replica.directory / "cache")
        return config | self._settings.get(replica.service, {})

    def _write_endpoints(self) -> None:
        """Rewrites endpoints.json where the live replicas are not those that it names."""
        table: dict[str, list[dict[str, Any]]] = {name: [] for name in SERVICES if self._wanted.get(name)}
        for replica in sorted(self._replicas.values(), key=lambda r: (r.service, r.index)):
            if replica.alive and replica.is_live():
                table.setdefault(replica.service, []).append(replica.endpoint)
        if table != self._published:
            write_json(self.endpoints_file, table)
            self._published = table

    def _follow_wanted(self) -> None:
        wanted = read_wanted(self.directory)
        for service in SCALABLE:
            self._wanted[service] = count = wanted.get(service, self._wanted[service])
            for index in range(count):
                if f"{service}-{index}" not in self._replicas:
                    self._spawn(service, index)
                    self._tell(f"{service}-{index} starts")
            surplus = [r for r in self._replicas.values() if r.service == service and r.index >= count]
            if surplus:
                self._let_go(surplus)

    def _let_go(self, replicas: Iterable[Replica]) -> None:
        for replica in replicas:
            del self._replicas[replica.name]
        self._write_endpoints()  # first nobody finds them any more, then they drain
        for replica in replicas:
            replica.ask_to_end()
            self._leaving.append(replica)
            self._tell(f"{replica.name} drains")

    def _restart_if_dead(self, replica: Replica) -> None:
        if replica.alive:
            return
        if not replica.restart_at:
            what = "could not be started" if replica.exit_code is None else f"ended with exit code {replica.exit_code}"
            self._tell(f"{replica.name} {what}; starts again in {replica.plan_restart():g} s")
        elif time.monotonic() >= replica.restart_at:
            try:
                self._spawn(replica.service, replica.index)
            except OSError:
                replica.plan_restart()
                raise

    def _drain_all(self) -> None:
        for services in _DRAIN_ORDER:
            ending = [r for r in self._replicas.values() if r.service in services]
            for replica in ending:
                replica.ask_to_end()
            self._wait_ended(ending + [r for r in self._leaving if r.service in services])
        self._replicas.clear()
        with suppress(OSError):  # the folder may be gone by now
            self.endpoints_file.unlink(missing_ok=True)

    def _wait_ended(self, replicas: list[Replica]) -> None:
        tell_at: float | None = time.monotonic() + _PATIENCE_S
        while replicas := [replica for replica in replicas if not replica.has_ended()]:
            if self._hurrying.wait(_POLL_S):
                for replica in replicas:
                    replica.hurry()
                time.sleep(_TICK_S)
            elif tell_at is not None and time.monotonic() > tell_at:
                tell_at = None
                self._tell_waiting(replicas)

    def _tell_waiting(self, replicas: list[Replica]) -> None:
        names = ", ".join(replica.name for replica in replicas)
        what = "its runs to finish their step and save a checkpoint" if names == "trainer-0" else "calls under way"
        longest = max(replica.seconds_left for replica in replicas)
        self._tell(f"{names}: waits for {what}, at most {longest:.0f} s; Ctrl-C again ends everything at once")


def _port(address: str | None) -> int:
    """The port of a replica's earlier life, which it takes again so that peers find it; 0 picks a free one."""
    return int(address.rsplit(":", 1)[1]) if address else 0
