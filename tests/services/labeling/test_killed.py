"""The server is killed while 50 people label: nothing that it acknowledged is lost, and nothing is there twice."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from processes import ServiceProcess
from trimtab import Client
from trimtab.v1 import labeling_pb2 as pb

from .crowd import Crowd
from .people import PASSWORD, ranking_task

PEOPLE, TASKS, OVERLAP, KILLS = 50, 40, 6, 2


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.timeout(240)
def test_fifty_labelers_lose_nothing_when_the_server_is_killed(database: str, tmp_path: Path) -> None:
    settings = {"database": database, "http_port": free_port()}
    server = ServiceProcess("labeling", tmp_path / "server", **settings)
    names = [f"labeler-{number}" for number in range(PEOPLE)]
    with Client(server.target, timeout_s=60) as program:
        prepare(program, names)
        url = program.info().http_url
    crowd = Crowd(url, "p", names, pause_s=0.3)

    async def kill_and_start_again() -> ServiceProcess:
        now = server
        for kill in range(KILLS):
            wanted = (kill + 1) * TASKS * OVERLAP // (KILLS + 1)
            while len(crowd.acknowledged) < wanted:
                await asyncio.sleep(0.02)
            now.process.kill()
            await asyncio.to_thread(now.process.wait)
            now = await asyncio.to_thread(ServiceProcess, "labeling", tmp_path / "server", **settings)
        return now

    async def everything() -> ServiceProcess:
        _, last = await asyncio.gather(crowd.work(), kill_and_start_again())
        return last

    last = asyncio.run(everything())
    try:
        with Client(last.target, timeout_s=60) as program:
            check(program, crowd)
    finally:
        last.process.terminate()
        assert last.process.wait(30) == 0
    told = {what: f"p95 {1000 * np.percentile(seconds, 95):.0f} ms" for what, seconds in crowd.seconds.items()}
    print(f"{len(crowd.acknowledged)} labels, {crowd.repeated} requests sent again, {told}")


def prepare(program: Client, names: list[str]) -> None:
    project = pb.Project(name="p", kind=pb.TASK_KIND_RANK, overlap=OVERLAP, lease_ms=60_000)
    program.create_project(pb.CreateProjectRequest(project=project))
    tasks = [ranking_task(number) for number in range(TASKS)]
    program.import_tasks([pb.ImportTasksRequest(project="p", import_id="i", tasks=tasks)])
    for name in names:
        program.create_account(pb.CreateAccountRequest(name=name, password=PASSWORD, role=pb.ACCOUNT_ROLE_LABELER))


def check(program: Client, crowd: Crowd) -> None:
    rows = [json.loads(row.row_json) for row in program.export_labels(pb.ExportLabelsRequest(project="p"))]
    kept = {
        (label["labeler"], row["prompt"]): [[row["answers"][index] for index in group] for group in label["ranking"]]
        for row in rows
        for label in row["labels"]
    }
    assert kept == crowd.acknowledged
    assert crowd.repeated > 0
    assert Counter(prompt for _, prompt in kept) == {f"Question {number}?": OVERLAP for number in range(TASKS)}
    assert sum(len(row["labels"]) for row in rows) == len(kept) == TASKS * OVERLAP
    submitted: list[str] = []
    after = 0
    while events := program.list_audit_events(pb.ListAuditEventsRequest(after_sequence=after, page_size=1000)).events:
        submitted += [f"{e.actor} {e.subject}" for e in events if e.action == "label.submit"]
        after = events[-1].sequence
    assert len(submitted) == len(set(submitted)) == TASKS * OVERLAP
