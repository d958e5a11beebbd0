"""Fleets over real and absent servers: silent and slow replicas hold nobody up, leaving ones get nothing new."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from running import RunningServer, running
from trimtab import AsyncClient
from trimtab.errors import InvalidRequest, Overloaded, Unavailable
from trimtab.types import LogProbsItem, LogProbsRequest, LogProbsResult
from trimtab_trainer import fleet as fleets
from trimtab_trainer.fleet import Fleet, counts_as_try
from trimtab_trainer.pace import Pace, seconds_needed


class Addresses:
    """A resolver whose answer a test changes."""

    def __init__(self, *addresses: str) -> None:
        self.now = list(addresses)

        self.is_closed = False

    def addresses(self) -> list[str]:
        return list(self.now)

    def close(self) -> None:
        self.is_closed = True


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


class Link:
    """A network link to a server, which a test makes slow or dead. Nothing that crosses it is lost before."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.delay_s = 0.0
        self.dead = False
        self._host, _, self._port = target.rpartition(":")

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, int(self._port))
        await asyncio.gather(self._carry(reader, back), self._carry(there, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.dead:
                asyncio.get_running_loop().call_later(self.delay_s, writer.write, data)
        writer.close()


def fleet(addresses: Addresses, patience_s: float = 5.0, told: list[str] | None = None) -> Fleet:
    tell = told.append if told is not None else lambda text: None
    return Fleet("reference", addresses, AsyncClient, patience_s=patience_s, tell=tell)


async def logprobs(client: AsyncClient) -> LogProbsResult:
    item = LogProbsItem(token_ids=(5, 6, 7, 8), start_index=1)
    return await client.logprobs(LogProbsRequest(items=(item,)), timeout_s=60)


async def wait_for_both(replicas: Fleet) -> None:
    while len(await replicas.well()) < 2:
        await asyncio.sleep(0.02)


def test_a_silent_replica_holds_nobody_up(server: RunningServer, silent: str) -> None:
    async def work() -> float:
        addresses = Addresses(server.target, silent)
        replicas = fleet(addresses)
        began = time.monotonic()
        for _ in range(20):
            assert [replica.address for replica in await replicas.wait_well()] == [server.target]
            info = await replicas.call(lambda client: client.info(timeout_s=5), cost=1, timeout_s=5)
            assert info.service == "trimtab.v1.ReferenceService"
        took = time.monotonic() - began
        await replicas.close()
        assert addresses.is_closed
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
        answer = asyncio.Event()

        async def after_a_while(client: AsyncClient) -> str:
            await answer.wait()
            return (await client.info(timeout_s=5)).service

        call = replicas.start(leaving, after_a_while, cost=1)
        addresses.now = [server.target]
        await asyncio.sleep(0.6)  # longer than the resolver's answer is kept
        assert [replica.address for replica in await replicas.well()] == [server.target]
        answer.set()
        assert await call.task == "trimtab.v1.ReferenceService"  # its connection is still open
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


def test_a_link_that_dies_under_a_call_is_told_and_the_call_is_made_elsewhere(
    server: RunningServer, other: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "_PULSE_EVERY_S", 0.5)
    monkeypatch.setattr(fleets, "_PULSE_WITHIN_S", 1.0)

    async def work() -> None:
        link, told = Link(other.target), list[str]()
        async with link.up():
            addresses = Addresses(link.address)
            replicas = fleet(addresses, told=told)
            await replicas.wait_well()
            link.dead = True
            call = asyncio.create_task(replicas.call(logprobs, cost=4, timeout_s=60))
            await asyncio.sleep(0.1)
            addresses.now.append(server.target)
            async with asyncio.timeout(20):
                assert len((await call).results) == 1
            assert f"reference at {link.address}: silent during reference" in told[0] and len(told) == 1
            await replicas.close()

    asyncio.run(work())


def test_a_slow_replica_holds_no_call_up(server: RunningServer, other: RunningServer) -> None:
    async def work() -> None:
        link = Link(other.target)
        async with link.up():
            replicas = fleet(Addresses(server.target, link.address))
            await wait_for_both(replicas)
            slow = next(replica for replica in await replicas.well() if replica.address == link.address)

            async def seconds() -> float:
                began = time.monotonic()
                assert len((await replicas.call(logprobs, cost=4, timeout_s=60)).results) == 1
                return time.monotonic() - began

            for _ in range(4):  # two at once, so that each replica gets one
                await asyncio.gather(seconds(), seconds())
            assert replicas.slowness(slow) == 1
            link.delay_s = 4.0
            took = [one for _ in range(8) for one in await asyncio.gather(seconds(), seconds())]
            assert max(took) < 3.5
            assert replicas.slowness(slow) > 3
            await replicas.close()

    asyncio.run(work())


def test_a_replica_that_ends_what_it_has_while_it_takes_no_newcomers_is_not_silent(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "_PULSE_EVERY_S", 0.1)

    async def work() -> str:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        replicas = fleet(Addresses(server.target))
        replica = (await replicas.wait_well())[0]
        there = replica.client

        async def long_call(_: AsyncClient) -> str:
            await asyncio.sleep(1.0)
            return (await there.info(timeout_s=5)).service

        replica.client = AsyncClient(nowhere)  # GetInfo cannot connect, while the call has its connection
        found = await replicas.start(replica, long_call, cost=1).task
        await there.close()
        await replicas.close()
        return found

    assert asyncio.run(work()) == "trimtab.v1.ReferenceService"


def test_an_idle_replica_that_is_gone_is_told_and_one_that_has_left_is_not(
    server: RunningServer, other: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "_PULSE_EVERY_S", 0.2)
    monkeypatch.setattr(fleets, "_REFRESH_S", 0.1)

    async def work(stays: bool) -> list[str]:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        addresses, told = Addresses(server.target, other.target), list[str]()
        replicas = fleet(addresses, told=told)
        await wait_for_both(replicas)
        gone = next(replica for replica in await replicas.well() if replica.address == other.target)
        before, gone.client = gone.client, AsyncClient(nowhere)
        addresses.now = [server.target, other.target] if stays else [server.target]
        await asyncio.sleep(1.5)
        await before.close()
        await replicas.close()
        return told

    (sentence,) = asyncio.run(work(stays=True))
    assert sentence.startswith(f"reference at {other.target}: ") and "cannot be reached" in sentence
    assert asyncio.run(work(stays=False)) == []


def test_nobody_there_is_told_with_every_address() -> None:
    async def work() -> None:
        replicas = fleet(Addresses("127.0.0.1:9", "127.0.0.1:11"), patience_s=1.0)
        with pytest.raises(
            Unavailable, match="no reference replica has served for 1 s: 127.0.0.1:9: cannot .*127.0.0.1:11: "
        ):
            await replicas.wait_well()
        began = time.monotonic()
        with pytest.raises(Unavailable, match="no reference replica has served for 1 s"):
            await replicas.call(logprobs, cost=4, timeout_s=60)
        assert time.monotonic() - began < 20
        await replicas.close()

    asyncio.run(work())


def test_slow_is_who_needs_three_times_as_long_for_as_much() -> None:
    peer, long, slow, stalled = Pace(), Pace(), Pace(), Pace()
    for seconds in (1.0, 0.9, 1.1):
        peer.note(50, seconds, [])
    assert seconds_needed([peer], 50) is None  # three pieces are no measure
    peer.note(50, 1.0, [])
    assert seconds_needed([peer], 50) == 1.0 and seconds_needed([peer], 400) == 8.0
    assert seconds_needed([peer], 10) == 1.0  # a small piece may cost as much as it does to begin
    long.note(400, 9.0, [peer])
    assert long.slowness() == 1
    slow.note(50, 10.0, [peer])
    assert slow.slowness() == 10
    slow.note(50, 1.2, [peer], beaten=True)  # a race just lost says nothing
    assert slow.slowness() == 10
    for seconds in (1.0, 30.0, 1.0):
        stalled.note(50, seconds, [peer])
    assert stalled.slowness() == 1
    for _ in range(8):
        slow.note(50, 1.0, [peer])
    assert slow.slowness() == 1


def test_what_counts_as_a_try() -> None:
    assert not counts_as_try(Overloaded("x")) and not counts_as_try(Unavailable("x"))
    assert counts_as_try(InvalidRequest("x"))
