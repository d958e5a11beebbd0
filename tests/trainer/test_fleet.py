"""Fleets over real and absent servers: silent replicas hold nobody up, leaving ones get nothing new, busy ones wait."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import RunningServer, running
from trimtab import AsyncClient
from trimtab.errors import InvalidRequest, Overloaded, Unavailable
from trimtab_trainer.fleet import Fleet, counts_as_try


class Addresses:
    """A resolver whose answer a test changes."""

    def __init__(self, *addresses: str) -> None:
        self.now = list(addresses)

    def addresses(self) -> list[str]:
        return list(self.now)


@pytest.fixture(scope="module")
def server(llama_folder: Path) -> Iterator[RunningServer]:
    with running("reference", model_folder=llama_folder) as started:
        yield started


@pytest.fixture(scope="module")
def other(llama_folder: Path) -> Iterator[RunningServer]:
    with running("reference", model_folder=llama_folder) as started:
        yield started


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never says a word, like a pod that is stuck."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def fleet(addresses: Addresses, patience_s: float = 5.0) -> Fleet:
    return Fleet("reference", addresses, AsyncClient, patience_s=patience_s)


def test_a_silent_replica_holds_nobody_up(server: RunningServer, silent: str) -> None:
    async def work() -> float:
        replicas = fleet(Addresses(server.target, silent))
        began = time.monotonic()
        for _ in range(20):
            assert [replica.address for replica in await replicas.wait_well()] == [server.target]
            info = await replicas.call(lambda client: client.info(timeout_s=5), cost=1, timeout_s=5)
            assert info.service == "trimtab.v1.ReferenceService"
        took = time.monotonic() - began
        await replicas.close()
        return took

    assert asyncio.run(work()) < 2.5  # one greeting alone takes 5 s to give up


def test_a_replica_that_leaves_ends_what_it_has_and_gets_nothing_new(
    server: RunningServer, other: RunningServer
) -> None:
    async def work() -> None:
        addresses = Addresses(server.target, other.target)
        replicas = fleet(addresses)
        while len(await replicas.well()) < 2:
            await asyncio.sleep(0.02)
        leaving = next(r for r in await replicas.well() if r.address == other.target)
        async with replicas.working(leaving, 1):
            addresses.now = [server.target]
            await asyncio.sleep(0.6)  # longer than the resolver's answer is kept
            assert [replica.address for replica in await replicas.well()] == [server.target]
            assert (
                await leaving.client.info(timeout_s=5)
            ).service == "trimtab.v1.ReferenceService"  # its connection is still open
        await asyncio.sleep(0.6)
        await replicas.well()
        assert other.target not in replicas.describe()
        addresses.now = [server.target, other.target]
        await asyncio.sleep(0.6)
        while len(await replicas.well()) < 2:
            await asyncio.sleep(0.02)
        await replicas.close()

    asyncio.run(work())


def test_busy_answers_do_not_use_up_the_tries(server: RunningServer) -> None:
    async def work() -> tuple[int, str]:
        replicas = fleet(Addresses(server.target))
        answers = 0

        async def busy_at_first(client: AsyncClient) -> str:
            nonlocal answers
            answers += 1
            if answers <= 3:
                raise Overloaded("queue full", retry_after_s=0.01)
            return (await client.info(timeout_s=5)).service

        found = await replicas.call(busy_at_first, cost=1, timeout_s=20, tries=1)
        await replicas.close()
        return answers, found

    assert asyncio.run(work()) == (4, "trimtab.v1.ReferenceService")


def test_a_call_ends_at_its_time_limit_and_at_once_when_the_work_is_at_fault(server: RunningServer) -> None:
    async def work() -> None:
        replicas = fleet(Addresses(server.target))

        async def always_busy(client: AsyncClient) -> None:
            raise Overloaded("queue full", retry_after_s=0.01)

        async def wrong(client: AsyncClient) -> None:
            raise InvalidRequest("token_ids: -1", field="token_ids")

        began = time.monotonic()
        with pytest.raises(Overloaded):
            await replicas.call(always_busy, cost=1, timeout_s=0.5)
        assert time.monotonic() - began < 5
        with pytest.raises(InvalidRequest):
            await replicas.call(wrong, cost=1, timeout_s=5)
        assert (await replicas.well())[0].failures == 0  # nothing is wrong with the replica
        await replicas.close()

    asyncio.run(work())


def test_nobody_there_is_told_with_every_address() -> None:
    async def work() -> None:
        replicas = fleet(Addresses("127.0.0.1:9", "127.0.0.1:11"), patience_s=1.0)
        with pytest.raises(
            Unavailable, match="no reference replica has served for 1 s: 127.0.0.1:9: cannot .*127.0.0.1:11: "
        ):
            await replicas.wait_well()
        await replicas.close()

    asyncio.run(work())


def test_what_counts_as_a_try() -> None:
    assert not counts_as_try(Overloaded("x")) and not counts_as_try(Unavailable("x"))
    assert counts_as_try(InvalidRequest("x"))
