"""Traces, as a real OTLP/HTTP collector receives them."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider

from running import FREE_PORTS, RunningServer
from trimtab import AsyncClient, Client
from trimtab.errors import ConfigError, NotFound
from trimtab.v1 import weights_pb2
from trimtab_services.runtime.calls import current_call
from trimtab_services.runtime.config import LogConfig, ServiceConfig, load_config
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.logs import configure_logs
from trimtab_services.runtime.server import Service
from trimtab_services.runtime.state import Runtime
from trimtab_services.runtime.tracing import TracingConfig
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_services.weights.main import SERVICE, build

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Takes OTLP over HTTP on a port of its own."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner, port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        self.endpoint = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    async def _start(self) -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, runner.addresses[0][1]

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({a.key: a.value.string_value for a in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.stop()


@contextmanager
def store(folder: Path, endpoint: str, sample_ratio: float = 1.0) -> Iterator[RunningServer]:
    """A weights service; what it has recorded is sent when it stops."""
    tracing = TracingConfig(endpoint=endpoint, sample_ratio=sample_ratio)
    config = WeightsServiceConfig(**FREE_PORTS, store=str(folder / "store"), tracing=tracing, replica="weights-7")  # type: ignore[arg-type]
    server = RunningServer(config, "weights", SERVICE, build)
    try:
        yield server
    finally:
        server.stop()


def attributes(span: Span) -> dict[str, object]:
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}


def test_a_call_continues_the_caller_s_trace(tmp_path: Path, collector: Collector) -> None:
    tracer = TracerProvider().get_tracer("caller")
    request = weights_pb2.ListChannelsRequest()
    with store(tmp_path, collector.endpoint) as server:
        with Client(server.target, timeout_s=20) as client, tracer.start_as_current_span("caller") as span:
            client.list_channels(request)
            with pytest.raises(NotFound):
                client.get_manifest(weights_pb2.GetManifestRequest(version=77))
            asyncio.run(list_channels_async(server.target))
    context = span.get_span_context()
    listed = collector.named("trimtab.v1.WeightsService/ListChannels")
    assert len(listed) == 2
    for received in listed:
        assert received.kind == Span.SPAN_KIND_SERVER
        assert received.trace_id.hex() == f"{context.trace_id:032x}"
        assert received.parent_span_id.hex() == f"{context.span_id:016x}"
        assert received.end_time_unix_nano > received.start_time_unix_nano > (time.time() - 120) * 1e9
        assert attributes(received)["rpc.method"] == "ListChannels"
        assert attributes(received)["trimtab.code"] == "OK" and attributes(received)["trimtab.caller"] == "127.0.0.1"
    (missed,) = collector.named("trimtab.v1.WeightsService/GetManifest")
    assert attributes(missed)["trimtab.code"] == "NOT_FOUND"
    assert missed.status.code == Status.STATUS_CODE_UNSET  # the caller's fault, by OpenTelemetry's conventions
    assert collector.resources[0]["service.name"] == "trimtab-weights"
    assert collector.resources[0]["service.instance.id"] == "weights-7"


async def list_channels_async(target: str) -> None:
    async with AsyncClient(target, timeout_s=20) as client:
        await client.list_channels(weights_pb2.ListChannelsRequest())


def test_http_headers_carry_a_trace_and_a_malformed_one_starts_a_new(tmp_path: Path, collector: Collector) -> None:
    with store(tmp_path, collector.endpoint) as server:
        url = f"{server.server.runtime.http_url}/info"
        for header in (PARENT, "not-a-trace"):
            httpx.get(url, headers={"traceparent": header, "x-request-id": header[:11]}).raise_for_status()
    spans = {str(attributes(span)["trimtab.request_id"]): span for span in collector.named("GET /info")}
    continued, fresh = spans[PARENT[:11]], spans["not-a-trace"]
    assert (continued.trace_id.hex(), continued.parent_span_id.hex()) == tuple(PARENT.split("-")[1:3])
    assert fresh.parent_span_id == b"" and fresh.trace_id != continued.trace_id
    assert attributes(fresh)["http.route"] == "/info"


def test_only_the_share_asked_for_is_kept_but_a_caller_s_choice_counts(tmp_path: Path, collector: Collector) -> None:
    with store(tmp_path, collector.endpoint, sample_ratio=0.0) as server:
        url = f"{server.server.runtime.http_url}/info"
        for _ in range(5):
            httpx.get(url).raise_for_status()
        httpx.get(url, headers={"traceparent": PARENT}).raise_for_status()
    (kept,) = collector.spans
    assert kept.trace_id.hex() == PARENT.split("-")[1]


def test_work_shows_its_wait_and_its_batch_and_the_log_names_the_trace(
    collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(request: web.Request) -> web.StreamResponse:
        submitted = time.monotonic()
        await asyncio.sleep(0.3)
        call = current_call()
        assert call is not None and call.trace is not None
        call.trace.record_work(submitted=submitted, queue_s=0.1, compute_s=0.2, batch_items=7)
        logging.getLogger("trimtab_services.test").info("worked")
        raise RuntimeError("a fault")

    async def build_it(runtime: Runtime[ServiceConfig]) -> Service:
        return Service(handlers=[], routes=[Route("GET", "/work", work)])

    config = ServiceConfig(**FREE_PORTS, tracing=TracingConfig(endpoint=collector.endpoint))  # type: ignore[arg-type]
    server = RunningServer(config, "reward", "trimtab.v1.RewardService", build_it)
    handlers = logging.getLogger().handlers[:]
    try:
        configure_logs(LogConfig(), "reward-1")
        assert httpx.get(f"{server.server.runtime.http_url}/work").status_code == 500
    finally:
        logging.getLogger().handlers = handlers
        server.stop()
    (call,), (queue,), (batch,) = map(collector.named, ("GET /work", "queue", "batch"))
    assert {queue.parent_span_id, batch.parent_span_id} == {call.span_id}
    assert queue.end_time_unix_nano - queue.start_time_unix_nano == 100_000_000
    assert batch.end_time_unix_nano - batch.start_time_unix_nano == 200_000_000
    assert queue.end_time_unix_nano == batch.start_time_unix_nano
    assert call.start_time_unix_nano < queue.start_time_unix_nano
    assert batch.end_time_unix_nano < call.end_time_unix_nano
    assert attributes(batch)["trimtab.items"] == 7
    assert call.status.code == Status.STATUS_CODE_ERROR
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    (worked,) = [line for line in lines if line["message"] == "worked"]
    assert worked["trace_id"] == call.trace_id.hex()


def test_a_collector_that_is_away_costs_a_drain_a_few_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with store(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}") as server:
            httpx.get(f"{server.server.runtime.http_url}/info").raise_for_status()
            began = time.monotonic()
        assert time.monotonic() - began < 10


def test_without_the_library_tracing_says_what_to_install_and_nothing_else_needs_it(tmp_path: Path) -> None:
    program = """
import sys
{before}
from pathlib import Path
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_services.runtime.server import run_service
from trimtab_services.weights.main import SERVICE, build
import threading, os, signal, time
def stop():
    while not Path({ready!r}).exists(): time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop, daemon=True).start()
settings = {{f"{{name}}_port": 0 for name in ("grpc", "health", "http", "metrics")}}
settings |= {{"store": {store!r}, "ready_file": {ready!r}, **{more!r}}}
code = run_service("weights", SERVICE, WeightsServiceConfig, build, None, settings)
loaded = [name for name in sys.modules if name.startswith("opentelemetry") and sys.modules[name]]
print(code, loaded)
"""
    missing = 'sys.modules["opentelemetry"] = None'
    names = {"ready": str(tmp_path / "ready"), "store": str(tmp_path / "store")}

    def run(before: str, more: dict[str, str]) -> subprocess.CompletedProcess[str]:
        text = program.format(before=before, more=more, **names)
        return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)

    refused = run(missing, {"tracing.endpoint": "http://127.0.0.1:4318"})
    assert refused.stdout.strip() == "2 []", refused.stderr
    assert "pip install 'trimtab[tracing]'" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    assert run(missing, {}).stdout.strip() == "0 []"
    assert run("", {}).stdout.strip() == "0 []"  # installed and not configured: not even imported


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector", "http://"])
def test_a_wrong_endpoint_is_named(tmp_path: Path, endpoint: str) -> None:
    overrides = {"store": str(tmp_path), "tracing.endpoint": endpoint}
    with pytest.raises(ConfigError, match=r"'tracing\.endpoint' has value"):
        load_config(WeightsServiceConfig, "weights", None, overrides, {})
