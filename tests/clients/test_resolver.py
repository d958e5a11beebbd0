"""Where the replicas are: a fixed list, a file that is read again, DNS that is asked again."""

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from trimtab.errors import ConfigError
from trimtab.resolver import DNSResolver, FileResolver, StaticResolver


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


def answer(*hosts: str) -> list[tuple]:
    """What getaddrinfo returns for addresses."""
    family = {True: socket.AF_INET6, False: socket.AF_INET}
    return [(family[":" in host], socket.SOCK_STREAM, 6, "", (host, 1)) for host in hosts]


def test_dns_resolver(monkeypatch) -> None:
    resolver = DNSResolver("localhost", 50051, refresh_s=0.0)
    assert resolver.addresses() in (["127.0.0.1:50051"], ["[::1]:50051"]) and resolver.problem == ""
    assert DNSResolver("[::1]", 7).addresses() == ["[::1]:7"]

    def resolve(*hosts: str) -> list[str]:
        monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **options: answer(*hosts))
        return resolver.addresses()

    assert resolve("10.0.0.2", "10.0.0.1") == ["10.0.0.1:50051", "10.0.0.2:50051"]
    assert resolve("10.0.0.3", "fd00::3") == ["10.0.0.3:50051"]  # one replica with an address of each family
    assert resolve("fd00::2", "fd00::1") == ["[fd00::1]:50051", "[fd00::2]:50051"]

    def broken(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", broken)
    assert resolver.addresses() == ["[fd00::1]:50051", "[fd00::2]:50051"]
    assert resolver.problem == "localhost: Name or service not known"
    assert DNSResolver("localhost", 1).addresses() == []
    assert resolve("10.0.0.4") == ["10.0.0.4:50051"] and resolver.problem == ""


def test_dns_is_asked_again_only_after_a_while(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **options: asked.append(1) or answer("10.0.0.1"))
    resolver = DNSResolver("service", 1, refresh_s=0.2)
    for _ in range(5):
        assert resolver.addresses() == ["10.0.0.1:1"]
    assert len(asked) == 1
    time.sleep(0.25)
    resolver.addresses()
    assert len(asked) == 2


def test_a_name_server_that_is_silent_holds_nobody_up(monkeypatch) -> None:
    answers = threading.Event()
    asked = []

    def silent(*arguments, **options):
        asked.append(1)
        answers.wait(30)
        return answer("10.0.0.1")

    monkeypatch.setattr("socket.getaddrinfo", silent)
    resolver = DNSResolver("service", 1, refresh_s=0.0, timeout_s=0.2)
    began = time.monotonic()
    for _ in range(5):
        assert resolver.addresses() == []
    assert time.monotonic() - began < 2 and len(asked) == 1
    assert resolver.problem == "service: no answer of the name server yet"
    answers.set()
    deadline = time.monotonic() + 10
    while resolver.addresses() != ["10.0.0.1:1"]:
        assert time.monotonic() < deadline
    assert resolver.problem == ""


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
