"""What a run tells of its replicas: real and absent servers, one that is lost, none at the end, and after an error."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from running import running
from trimtab import AsyncClient
from trimtab.resolver import StaticResolver
from trimtab.v1 import info_pb2
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.reported_replicas import ReportedReplicas
from trimtab_trainer import fleet as fleets
from trimtab_trainer import replica_report
from trimtab_trainer.fleet import Fleet
from trimtab_trainer.replica_report import run_replicas, tell_replicas
from trimtab_trainer.rollouts import RolloutDispatcher


@pytest.fixture
def nowhere() -> str:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"127.0.0.1:{closed.getsockname()[1]}"


async def until(told: list[pb.RunReplicas], seen: Callable[[dict[str, pb.RunReplica]], object]) -> list[pb.RunReplica]:
    """The rows of the first report that is as it should be."""
    async with asyncio.timeout(60):
        while not told or not seen({row.address: row for row in told[-1].replicas}):
            await asyncio.sleep(0.02)
    return list(told[-1].replicas)


def test_each_replica_with_state_version_load_and_last_answer(
    llama_folder: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_report, "_EVERY_S", 0.05)
    monkeypatch.setattr(fleets, "_PULSE_EVERY_S", 0.1)

    async def work() -> None:
        told: list[pb.RunReplicas] = []
        with running("reference", model_folder=llama_folder) as server:
            resolver = StaticResolver([server.target, nowhere])
            reference = Fleet("reference", resolver, AsyncClient)
            telling = asyncio.create_task(tell_replicas([reference], told.append))
            rows = await until(told, lambda rows: bool(rows) and rows[server.target].state and rows[nowhere].note)
            there, absent = sorted(rows, key=lambda row: row.address == nowhere)
            assert (there.service, there.state, there.note) == ("reference", info_pb2.SERVICE_STATE_SERVING, "")
            assert there.version == there.channel_version == 0  # its model is a folder
            assert 0 <= there.seconds_since_answer < 10
            assert absent.state == info_pb2.SERVICE_STATE_UNSPECIFIED and "cannot be reached" in absent.note
            assert not absent.note.startswith(nowhere) and not absent.HasField("seconds_since_answer")

            async def hold(client: AsyncClient) -> None:
                await asyncio.sleep(60)

            (replica,) = await reference.well()
            call = reference.start(replica, hold, cost=1)
            await until(told, lambda rows: rows[server.target].calls == 1)
            call.task.cancel()
            await until(told, lambda rows: rows[server.target].calls == 0)
        rows = await until(told, lambda rows: rows[server.target].state == info_pb2.SERVICE_STATE_UNSPECIFIED)
        lost = next(row for row in rows if row.address == server.target)
        assert lost.note and lost.HasField("seconds_since_answer") and lost.version == 0
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        assert told[-1] == pb.RunReplicas()  # the stage is over
        await reference.close()

    asyncio.run(work())


def test_after_a_report_that_failed_come_others(
    nowhere: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replica_report, "_EVERY_S", 0.01)
    told: list[pb.RunReplicas] = []
    tries = 0

    def tell(replicas: pb.RunReplicas) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise ValueError("no room for a report")
        told.append(replicas)

    async def work() -> None:
        reference = Fleet("reference", StaticResolver([nowhere]), AsyncClient)
        telling = asyncio.create_task(tell_replicas([reference], tell))
        await until(told, lambda rows: nowhere in rows)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await reference.close()

    asyncio.run(work())
    failures = [record for record in caplog.records if record.name == replica_report.__name__]
    assert [record.levelno for record in failures] == [logging.ERROR]  # the same three times
    assert failures[0].exc_info and "no room for a report" in str(failures[0].exc_info[1])


def test_an_error_beside_the_rollouts_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fleet(name: str) -> Fleet:
        return Fleet(name, StaticResolver([]), AsyncClient)

    async def fail() -> None:
        raise ValueError("out of order")

    dispatcher = RolloutDispatcher(lambda: (fleet("generation"), fleet("reward"), fleet("reference")), timeout_s=10)
    dispatcher.run_beside(asyncio.sleep(600))  # which the end of the dispatcher cancels
    dispatcher.run_beside(fail())
    deadline = time.monotonic() + 30
    while "out of order" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    dispatcher.close()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_the_longest_report_is_one_that_the_service_keeps(nowhere: str) -> None:
    async def work() -> pb.RunReplicas:
        several = [f"{number}.{'x' * 300}:50051" for number in range(1001)]
        crowd = Fleet("generation", StaticResolver(several), AsyncClient)
        lost = Fleet("reference", StaticResolver([nowhere]), AsyncClient)
        for fleet in (lost, crowd):
            await fleet.replicas()
        lost.known()[0].last_error = f"{nowhere}: {'no answer; ' * 100}"
        report = run_replicas([lost, crowd])
        for fleet in (lost, crowd):
            await fleet.close()
        return report

    report = asyncio.run(work())
    assert len(report.replicas) == 1000
    assert (len(report.replicas[0].note), len(report.replicas[1].address)) == (500, 300)
    ReportedReplicas().keep("a", report)
