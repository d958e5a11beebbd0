"""KEDA's external scaler, by a client as KEDA has one: metadata, metric, activity as runs begin, sample and end."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from running import FREE_PORTS, RunningServer, client
from trimtab import Client
from trimtab.errors import ConfigError
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer import main
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.events import EventStore
from trimtab_services.trainer.externalscaler import externalscaler_pb2 as keda
from trimtab_services.trainer.externalscaler import externalscaler_pb2_grpc
from trimtab_services.trainer.rollout_demand import SAMPLING_STAGES
from trimtab_trainer.preflight import NEED_SERVICES

TRIGGER = {"scalerAddress": "trainer:50061", "targetQueuedRollouts": "32"}
DEADLINE_S = 20.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def of(metadata: dict[str, str]) -> keda.ScaledObjectRef:
    return keda.ScaledObjectRef(name="generation", namespace="default", scalerMetadata=metadata)


@contextmanager
def scaler(directory: Path) -> Iterator[tuple[Client, externalscaler_pb2_grpc.ExternalScalerStub]]:
    port = free_port()
    config = TrainerServiceConfig(directory=directory, scaler_port=port, drain_s=5.0, **FREE_PORTS)
    server = RunningServer(config, "trainer", "trimtab.v1.TrainerService", main.build)
    try:
        with client(server) as service, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield service, externalscaler_pb2_grpc.ExternalScalerStub(channel)
    finally:
        server.stop()


def report(service: Client, name: str, *events: pb.RunEvent) -> None:
    hello = pb.ReportEventsRequest(name=name)
    list(service.report_events([hello, *(pb.ReportEventsRequest(event=event) for event in events)]))


def stage(sequence: int, name: str) -> pb.RunEvent:
    return pb.RunEvent(sequence=sequence, stage=name, stage_started=pb.StageStarted(total_steps=9))


def queue(sequence: int, waiting: int, running: int) -> pb.RunEvent:
    told = pb.RolloutQueue(waiting_rollouts=waiting, running_rollouts=running, replicas=1)
    return pb.RunEvent(sequence=sequence, stage="ppo", rollout_queue=told)


def ended(sequence: int) -> pb.RunEvent:
    return pb.RunEvent(sequence=sequence, run_ended=pb.RunEnded(state=pb.RUN_STATE_SUCCEEDED))


def add_runs(directory: Path, *names: str) -> None:
    """Runs that only report."""
    store = EventStore(directory / "events.sqlite")
    for name in names:
        store.create_run(name, "x: 1", directory / name)
    store.close()


def rollouts(stub: externalscaler_pb2_grpc.ExternalScalerStub) -> int:
    request = keda.GetMetricsRequest(scaledObjectRef=of(TRIGGER), metricName="queued_rollouts")
    (value,) = stub.GetMetrics(request, timeout=DEADLINE_S).metricValues
    assert value.metricName == "queued_rollouts" and value.metricValueFloat == value.metricValue
    return int(value.metricValue)


def is_active(stub: externalscaler_pb2_grpc.ExternalScalerStub) -> bool:
    return bool(stub.IsActive(of(TRIGGER), timeout=DEADLINE_S).result)


def test_a_stage_that_waits_for_replicas_before_it_begins_is_active(tmp_path: Path) -> None:
    """With none there it cannot begin, and they come for an active stage only."""
    with scaler(tmp_path) as (service, stub):
        add_runs(tmp_path, "one")
        waits = pb.Message(severity=pb.SEVERITY_WARNING, text="waits for generation")
        report(service, "one", stage(1, "reward_model"), pb.RunEvent(sequence=2, stage="ppo", message=waits))
        assert is_active(stub)


def test_the_metric_is_what_active_runs_have_given_out(tmp_path: Path) -> None:
    with scaler(tmp_path) as (service, stub):
        (spec,) = stub.GetMetricSpec(of(TRIGGER), timeout=DEADLINE_S).metricSpecs
        assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == ("queued_rollouts", 32, 32.0)
        assert (rollouts(stub), is_active(stub)) == (0, False)

        add_runs(tmp_path, "one", "two")
        report(service, "one", stage(1, "sft"))
        assert (rollouts(stub), is_active(stub)) == (0, False)  # a stage that needs no generation
        report(service, "one", stage(2, "ppo"))
        assert (rollouts(stub), is_active(stub)) == (0, True)  # it asks the replicas for their limits first of all
        report(service, "one", queue(3, waiting=90, running=6))
        assert rollouts(stub) == 96
        report(service, "two", stage(1, "ppo"), queue(2, waiting=10, running=0))
        assert rollouts(stub) == 106
        report(service, "one", queue(4, waiting=0, running=0))
        assert (rollouts(stub), is_active(stub)) == (10, True)
        report(service, "two", ended(3))
        assert (rollouts(stub), is_active(stub)) == (0, True)  # `one` updates its policy
        report(service, "one", ended(5))
        assert (rollouts(stub), is_active(stub)) == (0, False)


def test_the_queue_of_an_earlier_stage_does_not_count(tmp_path: Path) -> None:
    with scaler(tmp_path) as (service, stub):
        add_runs(tmp_path, "one")
        report(service, "one", stage(1, "ppo"), queue(2, waiting=5, running=5), stage(3, "evaluate"))
        assert (rollouts(stub), is_active(stub)) == (0, True)


@pytest.mark.parametrize("stops_first", [True, False])
def test_a_run_that_waits_to_work_again_wants_nothing(tmp_path: Path, stops_first: bool) -> None:
    """Such as one that was preempted, or resumed and has no node yet: with or without a word of its end."""
    with scaler(tmp_path) as (service, stub):
        add_runs(tmp_path, "one")
        report(service, "one", stage(1, "ppo"), queue(2, waiting=90, running=6))
        assert (rollouts(stub), is_active(stub)) == (96, True)
        if stops_first:
            report(service, "one", ended(3))
        store = EventStore(tmp_path / "events.sqlite")
        store.set_state("one", pb.RUN_STATE_STARTING)
        assert (rollouts(stub), is_active(stub)) == (0, False)
        waits = pb.Message(severity=pb.SEVERITY_WARNING, text="waits for generation")
        report(service, "one", pb.RunEvent(sequence=4 if stops_first else 3, stage="ppo", message=waits))
        assert is_active(stub)  # it works, and needs replicas to begin its stage
        if stops_first:
            assert rollouts(stub) == 0
        store.set_state("one", pb.RUN_STATE_STOPPING)
        assert is_active(stub)  # it finishes its step
        store.close()


def test_a_run_counts_however_many_are_newer(tmp_path: Path) -> None:
    with scaler(tmp_path) as (service, stub):
        add_runs(tmp_path, "old")
        report(service, "old", stage(1, "ppo"), queue(2, waiting=5, running=0))
        with closing(sqlite3.connect(tmp_path / "events.sqlite", timeout=30)) as connection, connection:
            connection.execute(
                "with recursive many(n) as (select 1 union all select n + 1 from many where n < 1500) "
                "insert into runs (name, state, error, spec_yaml, create_time, update_time, stage, step, total_steps, "
                "directory, pid) select 'new-' || n, ?, '', 'x: 1', 0, 0, 'ppo', 0, 0, '/nowhere', 0 from many",
                (pb.RUN_STATE_SUCCEEDED,),
            )
        assert (rollouts(stub), is_active(stub)) == (5, True)


def test_activity_is_pushed_when_it_changes(tmp_path: Path) -> None:
    with scaler(tmp_path) as (service, stub):
        add_runs(tmp_path, "one")
        told = stub.StreamIsActive(of(TRIGGER), timeout=60)
        assert not next(told).result
        steps = iter([lambda: report(service, "one", stage(1, "ppo")), lambda: report(service, "one", ended(2))])
        for expected in (True, False):
            threading.Timer(1.5, next(steps)).start()
            assert next(told).result is expected


def test_a_new_life_of_the_service_knows_the_queue(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.sqlite")
    store.create_run("one", "x: 1", tmp_path / "one")
    for event in (stage(1, "ppo"), queue(2, waiting=7, running=1)):
        store.append("one", event)
    assert store.rollout_queue("one").waiting_rollouts == 7
    store.close()


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "targetQueuedRollouts: '' must be a whole number, at least 1"),
        ({"targetQueuedRollouts": "0"}, "targetQueuedRollouts: '0' must be"),
        ({"targetQueuedRollouts": "-3"}, "targetQueuedRollouts: '-3' must be"),
        ({"targetQueuedRollouts": "many"}, "targetQueuedRollouts: 'many' must be"),
        ({"targetQueuedRollouts": "²"}, "targetQueuedRollouts: '²' must be"),
        ({**TRIGGER, "targetQueueRollouts": "3"}, "unknown key 'targetQueueRollouts' (value '3')"),
    ],
)
def test_wrong_metadata_name_key_and_value(tmp_path: Path, metadata: dict[str, str], words: str) -> None:
    with scaler(tmp_path) as (_, stub):
        for call in (
            lambda: stub.IsActive(of(metadata), timeout=DEADLINE_S),
            lambda: next(stub.StreamIsActive(of(metadata), timeout=DEADLINE_S)),
            lambda: stub.GetMetricSpec(of(metadata), timeout=DEADLINE_S),
            lambda: stub.GetMetrics(
                keda.GetMetricsRequest(scaledObjectRef=of(metadata), metricName="queued_rollouts"), timeout=DEADLINE_S
            ),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and words in caught.value.details()


def test_an_unknown_metric(tmp_path: Path) -> None:
    with scaler(tmp_path) as (_, stub):
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetMetrics(keda.GetMetricsRequest(scaledObjectRef=of(TRIGGER), metricName="x"), timeout=DEADLINE_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "metricName: 'x' is unknown; there is queued_rollouts" in caught.value.details()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = TrainerServiceConfig(directory=tmp_path, scaler_port=port, **FREE_PORTS)
        with pytest.raises(ConfigError, match=f"scaler_port {port} on 127.0.0.1"):
            RunningServer(config, "trainer", "trimtab.v1.TrainerService", main.build)


def test_the_stages_that_sample_are_those_that_the_trainer_says_need_services() -> None:
    assert SAMPLING_STAGES == NEED_SERVICES
