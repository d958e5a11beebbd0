"""EndpointSlices that are watched, with an API server whose answers a test writes, as a real one gives them seldom."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
import yaml

from trimtab import endpoint_slices
from trimtab.endpoint_slices import EndpointSliceResolver
from trimtab.errors import ConfigError


class API:
    """Answers lists with `slices` and watches with the events that are put into `events`; None ends a watch."""

    def __init__(self) -> None:
        self.slices: list[dict[str, Any]] = []
        self.refusal = 0
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.asked: list[str] = []
        """`list`, and of each watch the version after which it began."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        given = parse_qs(urlparse(handler.path).query)
        assert given["labelSelector"] == ["kubernetes.io/service-name=rl-generation"]
        self.asked.append(given.get("resourceVersion", [""])[0] if "watch" in given else "list")
        handler.send_response(self.refusal or 200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        if "watch" not in given or self.refusal:
            chunk(handler, {"kind": "EndpointSliceList", "metadata": {"resourceVersion": "10"}, "items": self.slices})
        else:
            while (event := self.events.get()) is not None:
                chunk(handler, event)
        handler.wfile.write(b"0\r\n\r\n")


def chunk(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    line = json.dumps(content).encode() + b"\n"
    handler.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
    handler.wfile.flush()


@pytest.fixture
def api() -> Iterator[API]:
    api = API()
    yield api
    api.events.put(None)
    api.server.shutdown()


@pytest.fixture
def kubeconfig(api: API, tmp_path: Path) -> Path:
    server = {"server": f"http://127.0.0.1:{api.server.server_port}"}
    content = {
        "clusters": [{"name": "c", "cluster": server}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    return path


def endpoint(host: str, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [host], "conditions": conditions}


def one_slice(
    *endpoints: dict[str, Any], name: str = "a", family: str = "IPv4", version: int = 11, port: int = 50051
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "resourceVersion": str(version)},
        "addressType": family,
        "ports": [{"name": "grpc", "port": port}, {"name": "http", "port": 8080}],
        "endpoints": list(endpoints),
    }


Resolve = Callable[..., EndpointSliceResolver]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def resolver(api: API, kubeconfig: Path) -> Iterator[Resolve]:
    """Makes resolvers of the API's Service, which end before the API does."""
    with ExitStack() as stack:

        def make(port: str = "grpc") -> EndpointSliceResolver:
            made = EndpointSliceResolver("prod", "rl-generation", port, kubeconfig=kubeconfig)
            return stack.enter_context(closing(made))

        yield make


def test_changes_are_followed(api: API, resolver: Resolve) -> None:
    api.slices = [one_slice(endpoint("10.0.0.1", ready=True), endpoint("10.0.0.2", ready=False))]
    found = resolver()
    assert found.addresses() == ["10.0.0.1:50051"] and found.problem == ""
    api.events.put({"type": "ADDED", "object": one_slice(endpoint("10.0.0.3"), name="b", port=50053)})
    wait_for(lambda: found.addresses() == ["10.0.0.1:50051", "10.0.0.3:50053"])
    ending = endpoint("10.0.0.1", ready=True, serving=True, terminating=True)  # as with publishNotReadyAddresses
    api.events.put({"type": "MODIFIED", "object": one_slice(ending)})
    wait_for(lambda: found.addresses() == ["10.0.0.3:50053"])
    api.events.put({"type": "DELETED", "object": one_slice(name="b")})
    wait_for(lambda: found.addresses() == [])
    assert api.asked == ["list", "10"]


def test_replicas_that_are_all_unready_stay_and_those_that_are_gone_do_not(api: API, resolver: Resolve) -> None:
    api.slices = [one_slice(endpoint("10.0.0.1", ready=True), endpoint("10.0.0.2", ready=True))]
    found = resolver()
    assert len(found.addresses()) == 2
    api.events.put({"type": "MODIFIED", "object": one_slice(endpoint("10.0.0.1", ready=False))})
    wait_for(lambda: found.addresses() == ["10.0.0.1:50051"])
    both = endpoint("10.0.0.1", ready=False), endpoint("10.0.0.9", ready=False)
    api.events.put({"type": "MODIFIED", "object": one_slice(*both, version=12)})
    api.events.put({"type": "ADDED", "object": one_slice(endpoint("10.0.0.5", ready=True), name="b", version=13)})
    wait_for(lambda: found.addresses() == ["10.0.0.5:50051"])


def test_a_watch_goes_on_from_where_it_was_and_begins_again_where_that_is_too_old(api: API, resolver: Resolve) -> None:
    found = resolver()
    assert found.addresses() == []
    bookmark = {"type": "BOOKMARK", "object": {"kind": "EndpointSlice", "metadata": {"resourceVersion": "20"}}}
    api.events.put(bookmark)
    api.events.put(None)
    wait_for(lambda: api.asked == ["list", "10", "20"])
    api.slices = [one_slice(endpoint("10.0.0.1", ready=True))]
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    api.events.put({"type": "ERROR", "object": gone})
    wait_for(lambda: found.addresses() == ["10.0.0.1:50051"])
    assert api.asked[:4] == ["list", "10", "20", "list"]


def test_the_last_addresses_stay_while_the_api_fails(
    api: API, resolver: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_slices, "_AGAIN_S", 0.1)
    api.slices = [one_slice(endpoint("10.0.0.1", ready=True))]
    found = resolver()
    assert found.addresses() == ["10.0.0.1:50051"]
    api.refusal = 403
    api.events.put(None)
    wait_for(lambda: "no permission to list and watch endpointslices.discovery.k8s.io" in found.problem)
    assert "EndpointSlices of Service prod/rl-generation" in found.problem
    api.refusal = 500
    wait_for(lambda: "the Kubernetes API answers 500" in found.problem)
    assert found.addresses() == ["10.0.0.1:50051"]
    api.refusal = 0
    api.events.put({"type": "MODIFIED", "object": one_slice(endpoint("10.0.0.2", ready=True))})
    wait_for(lambda: found.addresses() == ["10.0.0.2:50051"] and found.problem == "")


def test_a_first_answer_that_is_a_refusal_holds_nobody_up(api: API, resolver: Resolve) -> None:
    api.refusal = 403
    found = resolver()
    began = time.monotonic()
    assert found.addresses() == [] and "no permission" in found.problem
    assert time.monotonic() - began < 5


def test_families_and_numbers_of_ports(api: API, resolver: Resolve) -> None:
    six = one_slice(endpoint("fd00::1", ready=True), name="six", family="IPv6")
    api.slices = [six]
    assert resolver("9000").addresses() == ["[fd00::1]:9000"]
    api.slices = [six, one_slice(endpoint("10.0.0.1", ready=True))]
    assert resolver().addresses() == ["10.0.0.1:50051"]
    assert resolver("metrics").addresses() == []


def test_closing_ends_a_silent_watch_at_once(api: API, resolver: Resolve) -> None:
    api.slices = [one_slice(endpoint("10.0.0.1", ready=True))]
    found = resolver()
    assert found.addresses() == ["10.0.0.1:50051"]
    wait_for(lambda: api.asked == ["list", "10"])
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < 5 and _threads() == []
    assert found.addresses() == ["10.0.0.1:50051"]
    found.close()


def test_closing_while_the_api_fails_or_before_it_was_asked(
    api: API, resolver: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_slices, "_AGAIN_S", 60)
    resolver().close()
    api.refusal = 500
    found = resolver()
    assert found.addresses() == []
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < 5 and _threads() == []


def _threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("endpoint slices")]


@pytest.mark.parametrize("target", ["", "rl-generation:grpc", "prod/rl-generation", "/rl:1", "prod/:1", "prod/rl:"])
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(ConfigError, match="is no namespace/service:port"):
        EndpointSliceResolver.of(target)


def test_no_cluster_around(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="endpoint_slices: this process has no ServiceAccount of a pod"):
        EndpointSliceResolver.of("prod/rl-generation:grpc")
    with pytest.raises(ConfigError, match="endpoint_slices: .*absent"):
        EndpointSliceResolver("prod", "rl-generation", "grpc", kubeconfig=tmp_path / "absent")
