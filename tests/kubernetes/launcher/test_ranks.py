"""A run of several pods: one Job, its log that of rank 0, its end that of the first rank that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from launching import Namespace, template, trainer, wait_for, wait_state, why_failed
from launching import start as start_run
from trimtab import Client
from trimtab.v1 import trainer_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EACH = "trap 'exit 130' TERM; echo rank $JOB_COMPLETION_INDEX; "


def of_two(script: str, **pod: Any) -> str:
    """A template of two ranks, and a claim for each run."""
    job, claim = yaml.safe_load_all(template(EACH + script, claim=True, **pod))
    job["spec"] |= {"completionMode": "Indexed", "completions": 2, "parallelism": 2}
    return yaml.safe_dump_all([job, claim])


def start(service: Client, namespace: Namespace, name: str) -> None:
    """Starts a run, and waits until both of its ranks have begun."""
    start_run(service, name)
    wait_for(lambda: [pod.status.phase for pod in namespace.pods(name)] == 2 * ["Running"], f"two pods of {name}")


def pod_of(namespace: Namespace, name: str, rank: int) -> str:
    return next(p.metadata.name for p in namespace.pods(name) if p.metadata.name.startswith(f"t-{name}-{rank}-"))


def test_a_rank_that_fails_is_named_and_the_log_is_that_of_rank_0(namespace: Namespace, tmp_path: Path) -> None:
    text = of_two("if [ $JOB_COMPLETION_INDEX = 1 ]; then sleep 3; exit 3; fi; sleep 600 & wait")
    with trainer(namespace, tmp_path, text) as (_, service):
        start(service, namespace, "lame")
        second = pod_of(namespace, "lame", 1)
        assert why_failed(service, "lame").startswith(f"Pod {namespace.name}/{second} ended with exit code 3")
    assert (tmp_path / "runs" / "lame" / "run.log").read_text().split() == ["rank", "0"]
    wait_for(lambda: "t-lame" not in namespace.jobs())


def test_a_rank_that_passes_its_memory_limit_is_named(namespace: Namespace, tmp_path: Path) -> None:
    eats = "if [ $JOB_COMPLETION_INDEX = 1 ]; then sleep 3; exec python -c 'b\"x\" * 10**9'; fi; sleep 600 & wait"
    text = of_two(eats, resources={"limits": {"memory": "64Mi"}})
    with trainer(namespace, tmp_path, text) as (_, service):
        start(service, namespace, "hungry")
        second = pod_of(namespace, "hungry", 1)
        assert f"Pod {namespace.name}/{second} was OOM-killed" in why_failed(service, "hungry")


def test_stop_reaches_every_rank(namespace: Namespace, tmp_path: Path) -> None:
    with trainer(namespace, tmp_path, of_two("sleep 600 & wait")) as (_, service):
        start(service, namespace, "halted")
        service.stop_run(pb.StopRunRequest(name="halted"))
        wait_state(service, "halted", pb.RUN_STATE_STOPPED)
        wait_for(lambda: not namespace.pods("halted"))


def test_a_rank_without_a_place_is_named(namespace: Namespace, tmp_path: Path) -> None:
    gpus = {"limits": {"nvidia.com/gpu": "64"}}
    with trainer(namespace, tmp_path, of_two("sleep 600", resources=gpus), start_timeout_s=5) as (_, service):
        start_run(service, "big")
        assert f"Pod {namespace.name}/t-big-0-" in why_failed(service, "big")


def test_the_eviction_of_any_rank_resumes_the_run(namespace: Namespace, tmp_path: Path) -> None:
    from kubernetes import client

    with trainer(namespace, tmp_path, of_two("sleep 600 & wait"), resumes=1) as (_, service):
        start(service, namespace, "moved")
        before = {pod.metadata.name for pod in namespace.pods("moved")}
        second = pod_of(namespace, "moved", 1)
        eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=second, namespace=namespace.name))
        namespace.core.create_namespaced_pod_eviction(second, namespace.name, eviction)

        def goes_on() -> bool:
            pods = namespace.pods("moved")
            return [one.status.phase for one in pods] == 2 * ["Running"] and not before & {
                p.metadata.name for p in pods
            }

        wait_for(goes_on, "two other pods")
        job = namespace.batch.read_namespaced_job("t-moved", namespace.name)
        assert job.metadata.annotations["trimtab.dev/resumes"] == "1"
        service.stop_run(pb.StopRunRequest(name="moved"))
        wait_state(service, "moved", pb.RUN_STATE_STOPPED)
