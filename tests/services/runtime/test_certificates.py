"""Certificates that change while a server runs: new handshakes get the new ones, wrong files change nothing."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from certificate_files import Pair, make_pair
from running import FREE_PORTS, RunningServer
from trimtab import Client, TLSConfig
from trimtab.errors import ConfigError, Unavailable
from trimtab_services.runtime.certificates import Certificates
from trimtab_services.runtime.config import ServerTLS, ServiceConfig
from trimtab_services.runtime.server import Service
from trimtab_services.runtime.state import Runtime

SIDES = ("grpc", "http")


@contextmanager
def serving(**tls: Path) -> Iterator[RunningServer]:
    async def build(runtime: Runtime[ServiceConfig]) -> Service:
        return Service(handlers=[])

    config = ServiceConfig(**FREE_PORTS, tls=ServerTLS(**tls), drain_s=1.0)  # type: ignore[arg-type]
    server = RunningServer(config, "weights", "trimtab.v1.WeightsService", build)
    try:
        yield server
    finally:
        server.stop()


def shown(server: RunningServer, side: str) -> bytes:
    """The certificate that a new connection is shown, as PEM bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2" if side == "grpc" else "http/1.1"])
    address = ("127.0.0.1", getattr(server.server.runtime.ports, side))
    with socket.create_connection(address, timeout=10) as raw, context.wrap_socket(raw) as connection:
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


def eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.1)


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Pair, Pair]:
    return make_pair(tmp_path, "old"), make_pair(tmp_path, "new")


def test_a_rotated_secret_is_shown_to_new_connections_and_cuts_no_old_one(
    tmp_path: Path, pairs: tuple[Pair, Pair]
) -> None:
    """As Kubernetes does it: a folder of links through `..data`, which is replaced at once."""
    for number, pair in enumerate(pairs):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        shutil.copy(pair.certificate, folder / "tls.crt")
        shutil.copy(pair.key, folder / "tls.key")
    (tmp_path / "..data").symlink_to("..0")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    old, new = (pair.certificate.read_bytes() for pair in pairs)

    with serving(certificate_file=tmp_path / "tls.crt", key_file=tmp_path / "tls.key") as server:
        assert [shown(server, side) for side in SIDES] == [old, old]
        trusting = ssl.create_default_context(cafile=str(pairs[0].certificate))
        with (
            Client(server.target, tls=TLSConfig(ca_file=pairs[0].certificate), timeout_s=20) as standing,
            httpx.Client(base_url=server.server.runtime.http_url, verify=trusting) as kept,
        ):
            standing.info()
            kept.get("/health").raise_for_status()
            (tmp_path / "..next").symlink_to("..1")
            (tmp_path / "..next").rename(tmp_path / "..data")
            for side in SIDES:
                eventually(lambda side=side: shown(server, side) == new)
            standing.info()  # on the connection that was made with the old certificate
            kept.get("/health").raise_for_status()
        with Client(server.target, tls=TLSConfig(ca_file=pairs[1].certificate), timeout_s=20) as fresh:
            fresh.info()
        with httpx.Client(verify=ssl.create_default_context(cafile=str(pairs[1].certificate))) as fresh_http:
            fresh_http.get(f"{server.server.runtime.http_url}/health").raise_for_status()


@pytest.mark.parametrize("fault", ["half written", "another's key", "gone"])
def test_wrong_files_leave_the_old_ones_in_force_and_the_log_says_why(
    tmp_path: Path, pairs: tuple[Pair, Pair], caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    live = Pair(tmp_path / "live.pem", tmp_path / "live.key")
    shutil.copy(pairs[0].certificate, live.certificate)
    shutil.copy(pairs[0].key, live.key)
    old, new = (pair.certificate.read_bytes() for pair in pairs)
    caplog.set_level(logging.INFO, "trimtab_services.runtime.certificates")

    def told(words: str) -> list[str]:
        return [record.getMessage() for record in caplog.records if words in record.getMessage()]

    with serving(certificate_file=live.certificate, key_file=live.key) as server:
        match fault:
            case "half written":
                live.certificate.write_bytes(new[: len(new) // 2])
            case "another's key":
                live.certificate.write_bytes(new)
            case "gone":
                live.key.unlink()
        eventually(lambda: [shown(server, side) for side in SIDES] == [old, old] and bool(told("stay in force")))
        time.sleep(1.2)
        assert [shown(server, side) for side in SIDES] == [old, old]
        (why,) = told("stay in force")  # once, however many handshakes there are
        assert str(live.key if fault == "gone" else live.certificate) in why
        assert {"half written": "cannot be used", "another's key": "key values mismatch", "gone": "No such file"}[
            fault
        ] in why
        live.certificate.write_bytes(new)
        shutil.copy(pairs[1].key, live.key)
        for side in SIDES:
            eventually(lambda side=side: shown(server, side) == new)


def resumes(server: RunningServer, own: Pair, client: Pair, newest: ssl.TLSVersion | None) -> bool:
    """Whether a second HTTP connection goes on with the TLS session of the first, which checks no certificate."""
    context = ssl.create_default_context(cafile=str(own.certificate))
    context.load_cert_chain(client.certificate, client.key)
    context.maximum_version = newest or ssl.TLSVersion.MAXIMUM_SUPPORTED
    session: ssl.SSLSession | None = None
    reused: bool | None = False
    for _ in range(2):
        address = ("127.0.0.1", server.server.runtime.ports.http)
        with (
            socket.create_connection(address, timeout=10) as raw,
            context.wrap_socket(raw, server_hostname="localhost", session=session) as connection,
        ):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
            assert b"200" in connection.recv(4096)
            session, reused = connection.session, connection.session_reused
    return bool(reused)


def test_new_roots_of_clients_take_the_place_of_the_old_ones(tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    own = make_pair(tmp_path, "server")
    roots = tmp_path / "roots.pem"
    shutil.copy(pairs[0].certificate, roots)

    def admitted(server: RunningServer, client: Pair) -> tuple[bool, bool]:
        tls = TLSConfig(own.certificate, client.certificate, client.key)
        with Client(server.target, tls=tls, timeout_s=3) as connection:
            try:
                connection.info()
                over_grpc = True
            except Unavailable:
                over_grpc = False
        context = ssl.create_default_context(cafile=str(own.certificate))
        context.load_cert_chain(client.certificate, client.key)
        with httpx.Client(verify=context, timeout=10) as http:
            try:
                over_http = http.get(f"{server.server.runtime.http_url}/info").status_code == 200
            except httpx.TransportError:
                over_http = False
        return over_grpc, over_http

    with serving(certificate_file=own.certificate, key_file=own.key, client_ca_file=roots) as server:
        assert not any(resumes(server, own, pairs[0], version) for version in (ssl.TLSVersion.TLSv1_2, None))
        assert [admitted(server, pair) for pair in pairs] == [(True, True), (False, False)]
        shutil.copy(pairs[1].certificate, roots)
        eventually(lambda: [admitted(server, pair) for pair in pairs] == [(False, False), (True, True)], 40)
        page = httpx.get(server.metrics_url).text
        assert 'trimtab_request_total{caller="new",code="OK",method="GET /info"}' in page
        assert 'trimtab_request_total{caller="new",code="OK",method="GetInfo"}' in page


def test_a_wrong_pair_is_refused_at_the_start(tmp_path: Path, pairs: tuple[Pair, Pair]) -> None:
    locked = make_pair(tmp_path, "locked", password=b"sesame")
    mixed = {"certificate_file": pairs[0].certificate, "key_file": pairs[1].key}
    for tls, words in (
        (mixed, "key values mismatch"),
        ({"certificate_file": locked.certificate, "key_file": locked.key}, "the key is encrypted"),
        (
            {"certificate_file": pairs[0].certificate, "key_file": pairs[0].key, "client_ca_file": pairs[0].key},
            "client_ca_file",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            Certificates(ServerTLS(**tls))  # type: ignore[arg-type]
    file = tmp_path / "config.yaml"
    config = {**FREE_PORTS, "store": str(tmp_path / "store"), "tls": {key: str(path) for key, path in mixed.items()}}
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "trimtab", "serve", "weights", "--config", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "key values mismatch" in ended.stderr
