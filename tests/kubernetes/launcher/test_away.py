"""What happens to runs while the TrainerService, or its watch, is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from launching import Namespace, get, report, start, template, trainer, wait_for, wait_state, why_failed
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.launchers.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SLEEP = "trap 'exit 130' TERM; sleep 600 & wait"
STEP = pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9))


def test_the_log_goes_on_without_a_gap_or_a_double(namespace: Namespace, tmp_path: Path) -> None:
    counting = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; sleep 0.05; done; exit 3"
    with trainer(namespace, tmp_path, template(counting, claim=True)) as (_, service):
        log = Path(start(service, "counts").directory) / "run.log"
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 50)
    length = len(log.read_text().splitlines())
    assert length < 400
    with trainer(namespace, tmp_path, template(counting, claim=True)) as (_, service):
        assert "exit code 3" in why_failed(service, "counts")
    assert log.read_text().splitlines() == [f"line {i}" for i in range(1, 401)]


def test_a_run_disrupted_meanwhile_is_resumed(namespace: Namespace, tmp_path: Path) -> None:
    """Its pod is gone by then; the Job still says why."""
    with trainer(namespace, tmp_path, template(SLEEP, claim=True)) as (_, service):
        start(service, "moved")
        pod = namespace.running_pod("moved")
        report(service, "moved", STEP)
    namespace.core.create_namespaced_pod_eviction(pod, namespace.name, {"metadata": {"name": pod}})
    wait_for(lambda: not namespace.pods("moved"))
    uid = namespace.batch.read_namespaced_job("t-moved", namespace.name).metadata.uid
    with trainer(namespace, tmp_path, template(SLEEP, claim=True)) as (_, service):
        namespace.running_pod("moved", but=pod)
        job = namespace.batch.read_namespaced_job("t-moved", namespace.name)
        assert job.metadata.uid != uid and job.metadata.annotations["trimtab.dev/resumes"] == "1"
        assert get(service, "moved").state == pb.RUN_STATE_STARTING
        service.stop_run(pb.StopRunRequest(name="moved"))
        wait_state(service, "moved", pb.RUN_STATE_STOPPED)


def test_a_job_deleted_meanwhile_is_named(namespace: Namespace, tmp_path: Path) -> None:
    with trainer(namespace, tmp_path, template(SLEEP, claim=True)) as (_, service):
        start(service, "gone")
        namespace.running_pod("gone")
    namespace.batch.delete_namespaced_job("t-gone", namespace.name, propagation_policy="Foreground")
    wait_for(lambda: "t-gone" not in namespace.jobs())
    with trainer(namespace, tmp_path, template(SLEEP, claim=True)) as (_, service):
        assert why_failed(service, "gone") == f"Job {namespace.name}/t-gone was deleted"


class Aged(Cluster):
    """The first list that it gets is of long ago."""

    lists = 0

    async def _call(self, verb: str, resource: str, what: str, call: Awaitable[Any]) -> Any:
        listed = await super()._call(verb, resource, what, call)
        self.lists += 1
        if self.lists == 1:
            listed.metadata.resource_version = "1"
        return listed


def test_a_watch_that_is_too_old_begins_again(namespace: Namespace) -> None:
    """The API server itself answers 410 Gone to a version of the past."""
    pod = {
        "metadata": {"name": "watched", "labels": {"app": "watched"}},
        "spec": {"containers": [{"name": "x", "image": "localhost:1/absent:1"}]},
    }

    async def changes() -> tuple[int, list[set[str]]]:
        cluster = await Aged.connect(namespace.name, namespace.kubeconfig)
        seen: list[set[str]] = []
        try:
            async with aclosing(cluster.watch_pods("app=watched", every_s=1.0)) as watched:
                async for pods in watched:
                    seen.append(set(pods))
                    if len(seen) == 1:
                        await asyncio.to_thread(namespace.core.create_namespaced_pod, namespace.name, pod)
                    if pods:
                        return cluster.lists, seen
        finally:
            await cluster.close()
        raise AssertionError("the watch ended")

    lists, seen = asyncio.run(asyncio.wait_for(changes(), 60))
    assert lists == 2 and seen[0] == set() and seen[-1] == {"watched"}
