"""The life of a server: how long a drain takes, and who a caller is."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
import yaml

from running import FREE_PORTS, running
from trimtab.rpcs import SCORE
from trimtab.types import ScoreItem, ScoreRequest
from trimtab_services.runtime.config import ServiceConfig
from trimtab_services.runtime.errors import _host_of
from trimtab_services.runtime.server import Server, Service
from trimtab_services.runtime.state import Runtime


async def drained(
    config_s: float, drain: Callable[[], Awaitable[None]] | None, own_s: float | None, call_s: float
) -> float:
    """Seconds that a drain takes beside one call under way."""

    async def build(runtime: Runtime[ServiceConfig]) -> Service:
        return Service(handlers=[], drain=drain, drain_s=own_s)

    server = Server(ServiceConfig(**FREE_PORTS, drain_s=config_s), "weights", "trimtab.v1.WeightsService", build)  # type: ignore[arg-type]
    await server.start()

    async def call() -> None:
        with server.runtime.activity:
            await asyncio.sleep(call_s)

    calling = asyncio.create_task(call())
    await asyncio.sleep(0)
    began = time.monotonic()
    await server.drain()
    calling.cancel()
    return time.monotonic() - began


async def long_work() -> None:
    await asyncio.sleep(30)


async def short_work() -> None:
    await asyncio.sleep(1.0)


@pytest.mark.parametrize(
    ("config_s", "drain", "own_s", "call_s", "least", "most"),
    [
        (1.0, long_work, None, 30, 1.0, 1.8),  # one deadline for both
        (1.5, short_work, None, 30, 1.5, 2.3),  # the call gets what is left of it
        (0.3, long_work, 1.0, 30, 1.3, 2.1),  # room of its own for the service, then the calls'
        (5.0, long_work, 0.2, 0.5, 0.5, 1.5),  # nobody waits longer than the call takes
        (5.0, None, None, 0.3, 0.3, 1.2),
    ],
)
def test_a_drain_takes_no_longer_than_it_says(
    config_s: float,
    drain: Callable[[], Awaitable[None]] | None,
    own_s: float | None,
    call_s: float,
    least: float,
    most: float,
) -> None:
    assert least <= asyncio.run(drained(config_s, drain, own_s, call_s)) < most


def test_a_client_is_asked_to_connect_again_and_no_call_of_it_fails(reward_folder: Path) -> None:
    item = ScoreItem(prompt="the dog", completion="sleeps")
    with running("reward", model_folder=reward_folder, connection_age_s=0.3) as server:
        channel = grpc.insecure_channel(server.target)
        seen: list[grpc.ChannelConnectivity] = []
        channel.subscribe(seen.append)
        score = channel.unary_unary(SCORE.path, **SCORE.serializers)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert SCORE.from_message(score(SCORE.to_message(ScoreRequest(items=(item,))), timeout=10)).scores
        channel.close()
    assert seen.count(grpc.ChannelConnectivity.READY) > 2


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:10.0.0.7:41022", "10.0.0.7"),
        ("ipv4:10.0.0.7:41023", "10.0.0.7"),
        ("ipv6:%5Bfd00::1%5D:41022", "fd00::1"),
        ("ipv6:[::1]:9", "::1"),
        ("unix:/run/socket", "unix:/run/socket"),
        ("", "unknown"),
    ],
)
def test_all_connections_of_an_address_are_one_caller(peer: str, caller: str) -> None:
    assert _host_of(peer) == caller


def test_too_few_open_files_are_refused_at_once(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**FREE_PORTS, "store": str(tmp_path / "store")}))
    command = [sys.executable, "-m", "trimtab", "serve", "weights", "--config", str(config)]
    limited = ["sh", "-c", f"ulimit -n 40; exec {shlex.join(command)}"]
    ended = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (2, "error: ulimit -n: 40 open files; allowed: at least 64\n")
