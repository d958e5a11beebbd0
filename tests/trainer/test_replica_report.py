"""What a run tells of its replicas: real and absent servers, one that is lost, and none at the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from running import running
from trimtab import AsyncClient
from trimtab.resolver import StaticResolver
from trimtab.v1 import info_pb2
from trimtab.v1 import trainer_pb2 as pb
from trimtab_trainer import fleet as fleets
from trimtab_trainer import replica_report
from trimtab_trainer.fleet import Fleet
from trimtab_trainer.replica_report import tell_replicas


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
