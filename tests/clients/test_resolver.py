"""Where the replicas are: a fixed list, a file that is read again, DNS that is asked again."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dnslib import AAAA, QTYPE, RCODE, RR, A, DNSError, DNSRecord
from dnslib.server import DNSHandler, DNSLogger, DNSServer

from running import FREE_PORTS, RunningServer
from trimtab import AsyncClient
from trimtab.errors import ConfigError
from trimtab.resolver import DNSResolver, FileResolver, StaticResolver
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_services.weights.main import SERVICE, build
from trimtab_trainer.fleet import Fleet


def test_static_resolver() -> None:
    resolver = StaticResolver(["b:2", "a:1", "b:2"])
    assert resolver.addresses() == ["a:1", "b:2"]
    resolver.addresses().clear()
    assert resolver.addresses() == ["a:1", "b:2"]


def test_file_resolver(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    with pytest.raises(ConfigError, match="no such file"):
        FileResolver(file, "generation")
    resolver = FileResolver(file, "generation", must_exist=False)
    assert resolver.addresses() == []

    def write(text: str) -> None:
        (tmp_path / "new").write_text(text)
        os.replace(tmp_path / "new", file)

    write(json.dumps({"generation": [{"grpc": "b:2"}, {"grpc": "a:1"}], "reward": [{"grpc": "c:3"}]}))
    assert resolver.addresses() == ["a:1", "b:2"]
    for broken in ("", '{"generation": [', "[]", '{"generation": [{}]}', '{"generation": 3}', "\udcff"):
        (tmp_path / "new").write_bytes(broken.encode(errors="surrogateescape"))
        os.replace(tmp_path / "new", file)
        assert resolver.addresses() == ["a:1", "b:2"], broken
    file.unlink()
    assert resolver.addresses() == ["a:1", "b:2"]
    write(json.dumps({"generation": [{"grpc": "d:4"}]}))
    assert resolver.addresses() == ["d:4"]
    write(json.dumps({"reward": []}))
    assert resolver.addresses() == []


NAME = "generation.trimtab.svc.cluster.local"


class NameServer:
    """A DNS server, over UDP and TCP, whose answers a test changes."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        """Addresses of `NAME`; there is no other name."""
        self.failure = ""
        """Instead of an answer: "silent", or a code such as SERVFAIL."""
        self.asked: list[str] = []
        """Type of each query and how it came."""
        logger = DNSLogger("-request,-reply,-truncated,-error")
        tcp = DNSServer(self, "127.0.0.1", 0, tcp=True, logger=logger)
        port = tcp.server.server_address[1]
        self._servers = [tcp, DNSServer(self, "127.0.0.1", port, logger=logger)]
        self.address = f"127.0.0.1:{port}"
        for server in self._servers:
            server.start_thread()

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        """Called by the server."""
        kind = QTYPE[request.q.qtype]
        self.asked.append(f"{kind} {handler.protocol}")
        if self.failure == "silent":
            raise DNSError("no answer")
        reply = request.reply()
        if self.failure:
            reply.header.rcode = getattr(RCODE, self.failure)
        elif request.q.qname != NAME:
            reply.header.rcode = RCODE.NXDOMAIN
        else:
            for host in self.hosts:
                if kind == ("AAAA" if ":" in host else "A"):
                    data = AAAA(host) if ":" in host else A(host)
                    reply.add_answer(RR(NAME, request.q.qtype, rdata=data, ttl=30))
            if handler.protocol == "udp" and len(reply.pack()) > 512:
                reply.rr, reply.header.tc = [], 1
        return reply

    def stop(self) -> None:
        for server in self._servers:
            server.stop()
            server.server.server_close()


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.stop()


def _wait(condition: Callable[[], object]) -> float:
    """Seconds until something holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 10
        time.sleep(0.01)
    return time.monotonic() - began


def _resolver(server: NameServer, name: str = NAME, **options: float) -> DNSResolver:
    return DNSResolver(name, 50051, name_server=server.address, **{"refresh_s": 0.02, **options})


def test_dns_resolver_follows_the_answers(name_server: NameServer) -> None:
    name_server.hosts = ["10.0.0.2", "10.0.0.1"]
    resolver = _resolver(name_server)
    assert resolver.addresses() == ["10.0.0.1:50051", "10.0.0.2:50051"] and resolver.problem == ""
    for hosts, addresses in (
        (["10.0.0.2", "10.0.0.3"], ["10.0.0.2:50051", "10.0.0.3:50051"]),  # one left, one came
        (["10.0.0.3", "fd00::3"], ["10.0.0.3:50051"]),  # one replica with an address of each family
        (["fd00::2", "fd00::1"], ["[fd00::1]:50051", "[fd00::2]:50051"]),
        (["10.0.0.4"], ["10.0.0.4:50051"]),
    ):
        name_server.hosts = hosts
        _wait(lambda addresses=addresses: resolver.addresses() == addresses)
    assert set(name_server.asked) == {"A udp", "AAAA udp"}


def test_addresses_and_localhost_need_no_dns(name_server: NameServer) -> None:
    name_server.failure = "silent"
    for host, address in (("[::1]", "[::1]:50051"), ("10.0.0.1", "10.0.0.1:50051"), ("localhost", "127.0.0.1:50051")):
        assert _resolver(name_server, host).addresses() == [address]
    assert name_server.asked == []


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        ("NXDOMAIN", "no such name"),
        ("SERVFAIL", "the name server answers SERVFAIL"),
        ("REFUSED", "the name server answers REFUSED"),
        ("silent", "the name server does not answer"),
        ("", "the name has no addresses now"),
    ],
)
def test_the_last_addresses_stay_while_there_are_no_others(name_server: NameServer, failure: str, problem: str) -> None:
    assert _resolver(name_server, timeout_s=0.3).addresses() == []
    name_server.hosts = ["10.0.0.1"]
    resolver = _resolver(name_server, timeout_s=0.3)
    assert resolver.addresses() == ["10.0.0.1:50051"]
    name_server.hosts, name_server.failure = [], failure
    _wait(lambda: resolver.addresses() == ["10.0.0.1:50051"] and resolver.problem)
    assert resolver.problem == f"{NAME}: {problem}"
    assert resolver.addresses() == ["10.0.0.1:50051"]
    name_server.hosts, name_server.failure = ["10.0.0.2"], ""
    _wait(lambda: resolver.addresses() == ["10.0.0.2:50051"])
    assert resolver.problem == ""


def test_a_name_server_that_is_silent_holds_nobody_up(name_server: NameServer) -> None:
    name_server.hosts = ["10.0.0.1"]
    resolver = _resolver(name_server, refresh_s=0.0, timeout_s=1.0)
    resolver.addresses()
    name_server.failure = "silent"
    _wait(lambda: resolver.addresses() and len(name_server.asked) >= 2)
    began = time.monotonic()
    for _ in range(1000):
        assert resolver.addresses() == ["10.0.0.1:50051"]
    assert time.monotonic() - began < 0.8
    first = _resolver(name_server, timeout_s=0.3)
    began = time.monotonic()
    assert first.addresses() == []
    assert 0.2 < time.monotonic() - began < 2
    assert first.problem == f"{NAME}: the name server does not answer"


def test_no_name_server_at_all() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        resolver = DNSResolver(NAME, 1, name_server=f"127.0.0.1:{unused.getsockname()[1]}", timeout_s=0.5)
        assert resolver.addresses() == []
    assert resolver.problem.startswith(f"{NAME}: ")


def test_more_replicas_than_fit_into_a_datagram(name_server: NameServer) -> None:
    name_server.hosts = [f"10.0.{i // 200}.{i % 200}" for i in range(400)]
    assert len(_resolver(name_server).addresses()) == 400
    assert name_server.asked == ["A udp", "A tcp"]


def test_dns_is_asked_again_only_after_a_while(name_server: NameServer) -> None:
    name_server.hosts = ["10.0.0.1"]
    resolver = _resolver(name_server, refresh_s=0.3)
    for _ in range(5):
        assert resolver.addresses() == ["10.0.0.1:50051"]
    assert len(name_server.asked) == 1
    time.sleep(0.35)
    resolver.addresses()
    _wait(lambda: len(name_server.asked) == 2)


def test_names_that_no_name_can_be() -> None:
    for name in ("a..b", "x" * 64, "\N{SNOWMAN}" * 64):
        resolver = DNSResolver(name, 1, name_server="127.0.0.1:9")
        assert resolver.addresses() == [] and resolver.problem.startswith(name)


def test_the_name_servers_of_this_host_are_asked_by_default() -> None:
    resolver = DNSResolver("name.invalid", 1, timeout_s=0.5)  # reserved: nobody has it
    assert resolver.addresses() == [] and resolver.problem.startswith("name.invalid: ")


def _serve(host: str, port: int, folder: Path) -> RunningServer:
    """A small service; a second one on another address of this host may have the same port."""
    settings = {**FREE_PORTS, "grpc_port": port, "host": host, "store": str(folder)}
    return RunningServer(WeightsServiceConfig(**settings), "weights", SERVICE, build)


def test_a_fleet_uses_a_new_replica_and_drops_one_that_left(name_server: NameServer, tmp_path: Path) -> None:
    first = _serve("127.0.0.1", 0, tmp_path / "first")
    port = int(first.target.rpartition(":")[2])
    second = _serve("127.0.0.2", port, tmp_path / "second")
    resolver = DNSResolver(NAME, port, name_server=name_server.address)

    async def until(fleet: Fleet, *targets: str) -> float:
        """Seconds until the fleet works with exactly these."""
        began = time.monotonic()
        while {replica.address for replica in await fleet.well()} != set(targets):
            assert time.monotonic() - began < 10, fleet.describe()
            await fleet.call(lambda client: client.info(timeout_s=5), cost=1, timeout_s=5)
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    async def work() -> None:
        fleet = Fleet("generation", resolver, AsyncClient)
        name_server.hosts = ["127.0.0.1"]
        await fleet.wait_well()
        name_server.hosts = ["127.0.0.1", "127.0.0.2"]
        assert await until(fleet, first.target, second.target) < 3
        name_server.hosts = ["127.0.0.2"]
        assert await until(fleet, second.target) < 3
        name_server.hosts = []
        while not resolver.problem:  # none is ready, says Kubernetes
            await until(fleet, second.target)
        name_server.hosts = ["127.0.0.1"]
        await until(fleet, first.target)
        await fleet.close()

    try:
        asyncio.run(work())
    finally:
        second.stop()
        first.stop()


@pytest.mark.parametrize("server", ["127.0.0.1", "name:53", "127.0.0.1:0", "127.0.0.1:x"])
def test_what_is_no_name_server(server: str) -> None:
    with pytest.raises(ConfigError, match="name_server"):
        DNSResolver(NAME, 1, name_server=server)


@pytest.mark.parametrize("target", ["", ":1", "service", "service:", "service:0", "service:65536", "service:x", " s:1"])
def test_what_is_no_dns_target(target: str) -> None:
    with pytest.raises(ConfigError, match="dns"):
        DNSResolver.of(target)


def test_a_file_that_is_no_endpoints_file_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    for text in ("{", "[]", '{"generation": [{"port": 1}]}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="endpoints.json: not what `trimtab up` writes"):
            FileResolver(path, "generation")
    path.write_text('{"generation": [{"grpc": "127.0.0.1:1"}]}')
    resolver = FileResolver(path, "generation")
    path.write_text("{ half a fi")
    assert resolver.addresses() == ["127.0.0.1:1"]  # later, for a moment, it changes nothing
