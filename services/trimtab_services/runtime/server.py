"""The life of a server: ports, health, handlers, background work, drain, exit code.

`run_service` is what `trimtab serve NAME` calls. It checks the configuration, takes the four ports, starts health, and
only then lets the service build itself, which is when torch is imported. A service is a function

    async def build(runtime: Runtime[MyConfig]) -> Service

that returns its gRPC handlers, its HTTP routes, its part of GetInfo and its background work. The background work moves
the state from LOADING on (`runtime.set_state`); a service that needs none of that is SERVING as soon as it is live.

Exit codes: 0 after a drain; 2 when the configuration, a port or a model folder is wrong (one line on standard error);
1 for a fault.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import grpc
import grpc.aio
from aiohttp import web
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from trimtab.errors import ConfigError, ModelFolderError
from trimtab.v1 import info_pb2, info_pb2_grpc
from trimtab_services.runtime.certificates import Certificates
from trimtab_services.runtime.config import ServiceConfig, host_port, load_config
from trimtab_services.runtime.errors import CallInterceptor
from trimtab_services.runtime.http import Route, make_app, make_metrics_app, make_runner
from trimtab_services.runtime.info import InfoServicer
from trimtab_services.runtime.logs import configure_logs
from trimtab_services.runtime.state import Ports, Runtime, State

__all__ = ["Build", "Server", "Service", "run_service"]

_log = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=ServiceConfig)

_FLUSH_S = 1.0
"""Seconds that the last answers get to leave the process once nothing is in flight any more."""

_LEAST_OPEN_FILES = 64

_MOST_METADATA_BYTES = 16 * 1024
"""Most bytes of a call's metadata; more is refused with RESOURCE_EXHAUSTED before a handler sees it."""

_HANDSHAKE_MS = 10_000
"""What a new gRPC connection has to get through TLS and HTTP/2's greeting."""


@dataclass(frozen=True, slots=True)
class Service:
    """What `build` returns.

    Attributes:
        handlers: each adds one servicer to the gRPC server, such as `partial(add_X_to_server, servicer)`.
        describe: fills in the service's part of GetInfo.
        routes: its HTTP routes.
        background: coroutines that run beside the calls until the drain has ended, such as loading a model or
            following a channel. One that raises ConfigError or ModelFolderError ends the process with exit code 2; any
            other exception takes the service to state FAILED. With none, the service is SERVING once live.
        drain: first part of the drain, while calls under way still go on.
        drain_s: seconds that `drain` gets; calls under way then get the configuration's `drain_s`. None: `drain` and
            the calls share the configuration's.
        close: frees what the service holds, after the drain.
    """

    handlers: Sequence[Callable[[grpc.aio.Server], None]]
    describe: Callable[[info_pb2.GetInfoResponse], None] = field(default=lambda response: None)
    routes: Sequence[Route] = ()
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    drain: Callable[[], Awaitable[None]] | None = None
    drain_s: float | None = None
    close: Callable[[], Awaitable[None]] | None = None


Build = Callable[[Runtime[ConfigT]], Awaitable[Service]]
"""Makes a service out of its runtime; called once, with the ports taken and health up."""


class Server(Generic[ConfigT]):
    """One server in the running event loop: `start`, then `drain`; `wait_fatal` between.

    Args:
        config: its configuration.
        name: short name, such as `reward`.
        full_name: full name of its gRPC service, such as `trimtab.v1.RewardService`.
        build: makes the service.
    """

    def __init__(self, config: ConfigT, name: str, full_name: str, build: Build[ConfigT]) -> None:
        self.runtime = Runtime(config, name, full_name)
        self._build = build
        self._service: Service | None = None
        self._grpc: grpc.aio.Server | None = None
        self._health: grpc.aio.Server | None = None
        self._runners: list[web.AppRunner] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._fatal: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Takes the ports, builds the service and goes live.

        Raises:
            ConfigError: a port is in use, a certificate or the tokens file is wrong.
        """
        config = self.runtime.config
        certificates = Certificates(config.tls) if config.tls is not None else None
        options = [
            ("grpc.so_reuseport", 0),
            # clients ping a silent peer every 20 s; the default takes that for an attack on a stream without data
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.max_send_message_length", config.max_request_bytes),
            ("grpc.max_metadata_size", _MOST_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", _MOST_METADATA_BYTES),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ]
        if config.connection_age_s:
            options.append(("grpc.max_connection_age_ms", max(1, round(config.connection_age_s * 1000))))
        self._grpc = grpc.aio.server(interceptors=[CallInterceptor(self.runtime)], options=options)
        self._health = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        sockets = self._bind(self._grpc, self._health, certificates)
        health_pb2_grpc.add_HealthServicer_to_server(self.runtime.health.servicer, self._health)
        await self.runtime.set_state(State.SERVICE_STATE_LOADING, "starting")
        await self._health.start()
        try:
            service = self._service = await self._build(self.runtime)
        except BaseException:  # a server that nobody stopped complains of it after the message that counts
            await asyncio.gather(self._health.stop(0), self._grpc.stop(0))
            raise
        info = self._add_handlers(self._grpc, service)
        await self._grpc.start()
        app = make_app(self.runtime, service.routes, info.describe)
        await self._serve_http(app, sockets["http"], certificates)
        await self._serve_http(make_metrics_app(self.runtime.metrics), sockets["metrics"], None)
        if not service.background:
            await self.runtime.set_state(State.SERVICE_STATE_SERVING)
        for work in service.background:
            self._tasks.append(asyncio.create_task(self._run_background(work)))
        self._write_ready_file()
        _log.info("live", extra=self._addresses())

    async def wait_fatal(self) -> Exception:
        """Returns once something has happened after which the process must end with an error."""
        return await asyncio.shield(self._fatal)

    async def drain(self) -> None:
        """Takes nothing new, finishes what is in flight up to `drain_s`, then stops and frees everything."""
        runtime = self.runtime
        await runtime.set_state(State.SERVICE_STATE_DRAINING, "the server was told to stop")
        if not await runtime.activity.idle(await self._drain_service()):
            _log.warning("drain time over, calls are cut", extra={"calls": runtime.activity.count})
        if self._grpc is not None:
            await self._grpc.stop(_FLUSH_S if runtime.activity.count == 0 else 0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners:
            await runner.cleanup()
        if self._service is not None and self._service.close is not None:
            await self._service.close()
        if runtime.tracing is not None:
            await runtime.tracing.close()
        if self._health is not None:
            await self._health.stop(0)
        if runtime.config.ready_file is not None:
            runtime.config.ready_file.unlink(missing_ok=True)

    async def _drain_service(self) -> float:
        """Runs the service's own part of the drain; returns the seconds that calls in flight have from now on."""
        config_s, service = self.runtime.config.drain_s, self._service
        if service is None or service.drain is None:
            return config_s
        began = time.monotonic()
        try:
            await asyncio.wait_for(service.drain(), config_s if service.drain_s is None else service.drain_s)
        except TimeoutError:
            _log.warning("drain time over, the service's own work is cut")
        return config_s if service.drain_s is not None else max(0.0, config_s - (time.monotonic() - began))

    def _add_handlers(self, server: grpc.aio.Server, service: Service) -> InfoServicer:
        """Registers the service, InfoService, health and reflection on the main gRPC server."""
        info = InfoServicer(self.runtime, service.describe, has_http=bool(service.routes))
        for add in service.handlers:
            add(server)
        info_pb2_grpc.add_InfoServiceServicer_to_server(info, server)
        health_pb2_grpc.add_HealthServicer_to_server(self.runtime.health.servicer, server)
        names = (self.runtime.full_name, "trimtab.v1.InfoService", health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return info

    def _bind(
        self, server: grpc.aio.Server, health_server: grpc.aio.Server, certificates: Certificates | None
    ) -> dict[str, socket.socket]:
        """Takes all four ports, before anything slow; returns the sockets of the two HTTP servers."""
        config = self.runtime.config
        _probe(config.host, "grpc_port", config.grpc_port)
        _probe(config.host, "health_port", config.health_port)
        credentials = certificates.grpc_credentials() if certificates is not None else None
        grpc_port = _add_port(server, config.host, "grpc_port", config.grpc_port, credentials)
        health_port = _add_port(health_server, config.host, "health_port", config.health_port, None)
        http = _listen(config.host, "http_port", config.http_port)
        metrics = _listen(config.host, "metrics_port", config.metrics_port)
        self.runtime.ports = Ports(grpc_port, health_port, http.getsockname()[1], metrics.getsockname()[1])
        return {"http": http, "metrics": metrics}

    async def _serve_http(
        self, app: web.Application, listener: socket.socket, certificates: Certificates | None
    ) -> None:
        runner = make_runner(app, idle_s=self.runtime.config.http_idle_s, shutdown_s=_FLUSH_S)
        await runner.setup()
        context = certificates.ssl_context() if certificates is not None else None
        await web.SockSite(runner, listener, ssl_context=context).start()
        self._runners.append(runner)

    async def _run_background(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (ConfigError, ModelFolderError) as error:
            await self.runtime.set_state(State.SERVICE_STATE_FAILED, error.message)
            if not self._fatal.done():
                self._fatal.set_result(error)
        except Exception as error:
            _log.exception("background work failed")
            await self.runtime.set_state(State.SERVICE_STATE_FAILED, f"{type(error).__name__}: {error}")

    def _addresses(self) -> dict[str, object]:
        runtime = self.runtime
        ports = {name: runtime.address(getattr(runtime.ports, name)) for name in ("grpc", "health", "http", "metrics")}
        return {"service": runtime.name, **ports, "pid": os.getpid()}

    def _write_ready_file(self) -> None:
        path = self.runtime.config.ready_file
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**self._addresses(), "replica": self.runtime.replica}) + "\n")
        temporary.replace(path)


def run_service(
    name: str,
    full_name: str,
    config_class: type[ConfigT],
    build: Build[ConfigT],
    config_file: Path | None,
    overrides: Mapping[str, object] | None = None,
) -> int:
    """Runs one service in this process until SIGTERM or SIGINT; the body of every `serve(config_file, overrides)`.

    Returns:
        The exit code: 0 after a drain, 2 for a wrong configuration, port or model folder, 1 for a fault.
    """
    try:
        config = load_config(config_class, name, config_file, overrides)
        _limit_threads(config.threads)
        _raise_open_files()
        asyncio.run(_run(config, name, full_name, build))
    except (ConfigError, ModelFolderError) as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)
        return 2
    except Exception:
        logging.getLogger(__name__).exception("fault of the server")
        return 1
    return 0


async def _run(config: ConfigT, name: str, full_name: str, build: Build[ConfigT]) -> None:
    server = Server(config, name, full_name, build)
    configure_logs(config.log, server.runtime.replica)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    fatal = asyncio.create_task(server.wait_fatal())
    waiting = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(server.start())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await asyncio.wait({fatal, waiting}, return_when=asyncio.FIRST_COMPLETED)
        else:
            starting.cancel()  # told to stop while starting: nothing was promised to anybody yet
            with suppress(asyncio.CancelledError):
                await starting
        await server.drain()
    finally:
        waiting.cancel()
        fatal.cancel()
    if fatal.done() and not fatal.cancelled():
        raise fatal.result()


def _raise_open_files() -> None:
    """Lets this process open as many files as it may; every connection is one.

    Raises:
        ConfigError: too few for a server, whose libraries would end the process without a word.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems name a hard limit that they do not allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if 0 <= soft < _LEAST_OPEN_FILES:
        raise ConfigError(
            f"ulimit -n: {soft} open files; allowed: at least {_LEAST_OPEN_FILES}",
            field="ulimit -n",
            value=soft,
            limit=_LEAST_OPEN_FILES,
        )


def _limit_threads(threads: int) -> None:
    """Sets the number of compute threads, before torch is imported.

    How idle OpenMP threads wait is left to the environment: a server that owns its cores is fastest when they spin;
    `trimtab up`, whose servers share cores, lets them sleep (`OMP_WAIT_POLICY=PASSIVE`).
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _listen(host: str, key: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=1024)
    except OSError as error:
        raise _port_error(host, key, port, error.strerror or str(error)) from None


def _probe(host: str, key: str, port: int) -> None:
    """Finds a port in use before grpc does, whose core writes several lines about it itself."""
    if port:
        _listen(host, key, port).close()


def _add_port(
    server: grpc.aio.Server, host: str, key: str, port: int, credentials: grpc.ServerCredentials | None
) -> int:
    address = host_port(host, port)
    try:
        taken = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise _port_error(host, key, port, str(error)) from None
    if not taken:
        raise _port_error(host, key, port, "cannot be bound")
    return taken


def _port_error(host: str, key: str, port: int, why: str) -> ConfigError:
    return ConfigError(
        f"{key} {port} on {host}: {why}; stop what uses it, choose another port, or 0 for a free one",
        field=key,
        value=port,
    )
