"""The replicas that a run tells of: the last report alone is kept, told again to a service that comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from running import client
from trimtab.cli import trimtab
from trimtab.errors import InvalidRequest, NotFound, Reason
from trimtab.v1 import info_pb2
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.reported_replicas import ReportedReplicas
from trimtab_trainer.context import Orders
from trimtab_trainer.remote import RemoteSink
from trimtab_trainer.reporter import Reporter, RunState

from .web.scene import Service, replica, said, trainer


def reply_of(service: Service, name: str) -> pb.GetRunResponse:
    with client(service.server) as program:
        return program.get_run(pb.GetRunRequest(name=name))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_last_report_counts_until_the_run_ends(tmp_path: Path) -> None:
    with trainer(tmp_path) as service:
        service.run("a", said("begins"))
        sink = RemoteSink(client(service.server), "a", tmp_path / "own", Orders())
        with Reporter(tmp_path / "own", sinks=[sink], on_replicas=sink.take_replicas) as reporter:
            assert not reply_of(service, "a").HasField("replicas")
            for version in (3, 4, 5):
                reporter.replicas(pb.RunReplicas(replicas=[replica(version=version)]))
            wait_for(lambda: [one.version for one in reply_of(service, "a").replicas.replicas] == [5])
            told = reply_of(service, "a")
            assert abs(told.replicas_time.ToNanoseconds() / 1e9 - time.time()) < 10
            assert service.store.last_sequence("a") == 1  # they are no events
            assert (tmp_path / "own" / "events.jsonl").read_text() == ""
            reporter.replicas(pb.RunReplicas())
            wait_for(lambda: not reply_of(service, "a").HasField("replicas"))
            reporter.replicas(pb.RunReplicas(replicas=[replica()]))
            wait_for(lambda: reply_of(service, "a").HasField("replicas"))
            reporter.message("said once: the service knows it already")
            reporter.run_ended(RunState.STOPPED)
            wait_for(lambda: service.store.run("a").state == pb.RUN_STATE_STOPPED)
            assert not reply_of(service, "a").HasField("replicas")
        sink.close()


def test_a_service_that_comes_back_is_told_again(tmp_path: Path) -> None:
    with trainer(tmp_path / "runs") as service:
        port = service.server.server.runtime.ports.grpc
        service.run("a", said("begins"))
        sink = RemoteSink(client(service.server), "a", tmp_path / "own", Orders())
        sink.take_replicas(pb.RunReplicas(replicas=[replica()]))
        wait_for(lambda: reply_of(service, "a").HasField("replicas"))
    with trainer(tmp_path / "runs", grpc_port=port) as service:
        service.store.set_state("a", pb.RUN_STATE_RUNNING)  # it has no process that could be found again
        wait_for(lambda: reply_of(service, "a").HasField("replicas"))
        sink.close()


def test_runs_that_are_not_there_and_too_many_runs_are_not_kept(tmp_path: Path) -> None:
    with trainer(tmp_path) as service, client(service.server) as program:
        request = pb.ReportEventsRequest(name="nobody", replicas=pb.RunReplicas(replicas=[replica()]))
        with pytest.raises(NotFound, match="no run 'nobody'"):
            list(program.report_events(iter([request]), timeout_s=10))
        reports = ReportedReplicas()
        names = [f"run-{number}" for number in range(1001)]
        for name in (names[0], names[-1]):
            service.run(name, said("begins"))
        for name in names:
            reports.keep(name, pb.RunReplicas(replicas=[replica()]))
        assert reports.of(service.store.run(names[0])) is None
        assert reports.of(service.store.run(names[-1])) is not None
        reports.forget(names[-1])
        assert reports.of(service.store.run(names[-1])) is None


@pytest.mark.parametrize(
    ("replicas", "reason", "field", "limit"),
    [
        ([replica()] * 1001, Reason.TOO_MANY_ITEMS, "replicas", "1000"),
        ([replica(), replica(note="x" * 501)], Reason.FIELD_INVALID, "replicas[1].note", "500"),
        ([replica(address="x" * 301)], Reason.FIELD_INVALID, "replicas[0].address", "300"),
        ([replica(service="x" * 64)], Reason.FIELD_INVALID, "replicas[0].service", "63"),
    ],
)
def test_reports_that_are_too_long_are_refused(
    tmp_path: Path, replicas: list[pb.RunReplica], reason: Reason, field: str, limit: str
) -> None:
    with trainer(tmp_path) as service:
        service.run("a", said("begins"))
        service.report("a", *[replica(note="x" * 500, address="x" * 300, service="x" * 63)] * 1000)
        with pytest.raises(InvalidRequest, match="allowed: 0..") as caught:
            service.report("a", *replicas)
        assert (caught.value.reason, caught.value.field, caught.value.limit) == (reason, field, limit)
        assert len(reply_of(service, "a").replicas.replicas) == 1000  # the one before


def test_runs_status_shows_them(tmp_path: Path) -> None:
    lost = replica(address="10.0.0.2:50051", state=info_pb2.SERVICE_STATE_UNSPECIFIED, note="[red]cannot be reached")
    with trainer(tmp_path) as service:
        service.run("a", said("begins"))
        where = ["--target", service.server.target]
        told = CliRunner().invoke(trimtab, ["runs", "status", "a", *where], catch_exceptions=False)
        assert told.exit_code == 0 and "RUNNING" in told.output and "replicas" not in told.output
        service.report("a", replica(version=7, channel_version=9, waiting_items=3), lost)
        told = CliRunner().invoke(trimtab, ["runs", "status", "a", *where], catch_exceptions=False)
        first, second = told.output.splitlines()[-2:]
        assert first.split() == ["generation", "10.0.0.1:50051", "SERVING", "7", "2", "3", "0", "0"]
        assert second.split()[1:3] == ["10.0.0.2:50051", "UNREACHABLE"] and "[red]cannot be reached" in second
        told = CliRunner().invoke(trimtab, ["runs", "status", "a", "--json", *where], catch_exceptions=False)
        row = json.loads(told.output)
        assert (row["name"], row["state"], row["replicas"][0]["lag"]) == ("a", "RUNNING", 2)
        assert row["replicas_time"].startswith("20")
