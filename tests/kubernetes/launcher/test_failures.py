"""Why a run failed, for each way in which a cluster makes it fail; every one is made to happen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launching import (
    IMAGE,
    Namespace,
    ended,
    get,
    report,
    start,
    template,
    trainer,
    wait_for,
    wait_state,
    why_failed,
)
from trimtab.errors import FailedPrecondition, InvalidRequest
from trimtab.v1 import trainer_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SLEEP = "trap 'exit 130' TERM; echo begins; sleep 600 & wait"


@pytest.fixture
def claim(namespace: Namespace) -> None:
    """The claim that all runs share."""
    wanted = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    names = [one.metadata.name for one in namespace.core.list_namespaced_persistent_volume_claim(namespace.name).items]
    if "runs" not in names:
        namespace.core.create_namespaced_persistent_volume_claim(
            namespace.name, {"metadata": {"name": "runs"}, "spec": wanted}
        )


pytestmark += [pytest.mark.usefixtures("claim")]


def test_unschedulable_says_what_the_scheduler_says(namespace: Namespace, tmp_path: Path) -> None:
    gpus = {"limits": {"nvidia.com/gpu": "64"}}
    with trainer(namespace, tmp_path, template(SLEEP, resources=gpus), start_timeout_s=5) as (_, service):
        start(service, "big")
        error = why_failed(service, "big")
    assert "did not report within 5 s" in error
    assert f"Pod {namespace.name}/t-big-" in error and "cannot be scheduled (Unschedulable)" in error
    assert "Insufficient nvidia.com/gpu" in error
    wait_for(lambda: "t-big" not in namespace.jobs())


def test_an_image_that_cannot_be_pulled(namespace: Namespace, tmp_path: Path) -> None:
    text = template(SLEEP, image="localhost:1/absent:1")
    with trainer(namespace, tmp_path, text, start_timeout_s=8) as (_, service):
        start(service, "absent")
        error = why_failed(service, "absent")
    assert "image 'localhost:1/absent:1' cannot be pulled (" in error and "Pull" in error


def test_a_pod_quota(namespace: Namespace, tmp_path: Path) -> None:
    namespace.limit("no-pods", "pods")
    try:
        with trainer(namespace, tmp_path, template(SLEEP), start_timeout_s=5) as (_, service):
            start(service, "crowded")
            error = why_failed(service, "crowded")
    finally:
        namespace.core.delete_namespaced_resource_quota("no-pods", namespace.name)
    assert f"Job {namespace.name}/t-crowded: its pod could not be created" in error
    assert "exceeded quota: no-pods" in error and "limited: pods=0" in error


def test_a_job_quota(namespace: Namespace, tmp_path: Path) -> None:
    namespace.limit("no-jobs", "count/jobs.batch")
    try:
        with trainer(namespace, tmp_path, template(SLEEP)) as (_, service):
            with pytest.raises(FailedPrecondition, match="Job .*/t-many: quota exceeded: .*no-jobs"):
                start(service, "many")
            assert "quota exceeded" in get(service, "many").error
    finally:
        namespace.core.delete_namespaced_resource_quota("no-jobs", namespace.name)


def test_out_of_memory_names_the_limit(namespace: Namespace, tmp_path: Path) -> None:
    hungry = "/opt/trimtab/bin/python -c 'x = bytearray(10**9)'"
    text = template(hungry, resources={"limits": {"memory": "64Mi"}})
    with trainer(namespace, tmp_path, text) as (_, service):
        start(service, "hungry")
        error = why_failed(service, "hungry")
    assert f"Pod {namespace.name}/t-hungry-" in error
    assert error.endswith("was OOM-killed: container 'run' passed its memory limit of 64Mi")


def test_a_wrong_exit_code_shows_the_end_of_the_log(namespace: Namespace, tmp_path: Path) -> None:
    with trainer(namespace, tmp_path, template('echo "args: $*"; echo broken; exit 3')) as (_, service):
        run = start(service, "wrong")
        error = why_failed(service, "wrong")
    assert "ended with exit code 3: args: run /etc/trimtab-run/spec.yaml --dir /var/lib/trimtab/runs/wrong" in error
    log = Path(run.directory) / "run.log"
    assert log.read_text().splitlines()[-1] == "broken" and str(log) in error
    wait_for(lambda: "t-wrong" not in namespace.jobs())
    maps = [one.metadata.name for one in namespace.core.list_namespaced_config_map(namespace.name).items]
    assert not [name for name in maps if name.startswith("t-wrong")]


def test_a_pod_beyond_its_own_storage_limit_is_evicted_for_good(namespace: Namespace, tmp_path: Path) -> None:
    text = template(
        "head -c 50000000 /dev/zero > /tmp/full; sleep 600", resources={"limits": {"ephemeral-storage": "1Mi"}}
    )
    with trainer(namespace, tmp_path, text) as (_, service):
        start(service, "full")
        error = why_failed(service, "full")
    assert f"Pod {namespace.name}/t-full-" in error and "was evicted" in error and "1Mi" in error
    assert "started again" not in error


def test_an_evicted_run_goes_on_as_often_as_allowed(namespace: Namespace, tmp_path: Path) -> None:
    """The API's eviction, as `kubectl drain` uses it; the run saves a checkpoint and tells that it stopped."""
    with trainer(namespace, tmp_path, template(f'echo "args: $*"; {SLEEP}'), resumes=1) as (_, service):
        run = start(service, "moved")
        first = namespace.running_pod("moved")
        step = pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9))
        report(service, "moved", step)
        evict(namespace, first)  # the pod has its grace period for this:
        report(service, "moved", ended(2, pb.RUN_STATE_STOPPED))
        assert get(service, "moved").state == pb.RUN_STATE_RUNNING  # nobody asked for a stop
        second = namespace.running_pod("moved", but=first)
        assert get(service, "moved").state == pb.RUN_STATE_STARTING
        evict(namespace, second)
        error = why_failed(service, "moved")
    assert f"Pod {namespace.name}/{second} was evicted" in error
    assert error.endswith("it was started again 1 times, and launcher.resumes allows 1")
    lines = [line for line in (Path(run.directory) / "run.log").read_text().splitlines() if line.startswith("args")]
    assert len(lines) == 2 and "--resume" not in lines[0] and lines[1].endswith("--name moved --resume")


def evict(namespace: Namespace, pod: str) -> None:
    namespace.core.create_namespaced_pod_eviction(pod, namespace.name, {"metadata": {"name": pod}})


def test_preempted_by_a_higher_priority_and_resumed(namespace: Namespace, tmp_path: Path, scarce: str) -> None:
    """The rival keeps the place for longer than a run may be silent that has one."""
    text = template(SLEEP, resources={"limits": {scarce: "1"}}, priorityClassName=f"{namespace.name}-low")
    with trainer(namespace, tmp_path, text, resumes=1, start_timeout_s=10) as (_, service):
        start(service, "humble")
        first = namespace.running_pod("humble")
        report(service, "humble", pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9)))
        with rival(namespace, scarce):
            wait_for(lambda: first not in [pod.metadata.name for pod in namespace.pods("humble")])
            wait_state(service, "humble", pb.RUN_STATE_STARTING)
            time.sleep(15)
            assert get(service, "humble").state == pb.RUN_STATE_STARTING, get(service, "humble").error
        second = namespace.running_pod("humble")
        report(service, "humble", pb.RunEvent(sequence=2, stage="sft", step=2, step_done=pb.StepDone(total_steps=9)))
        job = namespace.batch.read_namespaced_job("t-humble", namespace.name)
        assert second != first and job.metadata.annotations["trimtab.dev/resumes"] == "1"
        assert "--resume" in job.spec.template.spec.containers[0].args
        with rival(namespace, scarce):
            error = why_failed(service, "humble")
    assert f"Pod {namespace.name}/{second} was preempted: " in error
    assert error.endswith("it was started again 1 times, and launcher.resumes allows 1")


def test_a_place_that_never_comes_back_ends_the_run(namespace: Namespace, tmp_path: Path, scarce: str) -> None:
    text = template(SLEEP, resources={"limits": {scarce: "1"}}, priorityClassName=f"{namespace.name}-low")
    with trainer(namespace, tmp_path, text, resumes=3, start_timeout_s=60, reschedule_timeout_s=6) as (_, service):
        start(service, "ousted")
        namespace.running_pod("ousted")
        report(service, "ousted", pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9)))
        with rival(namespace, scarce):
            error = why_failed(service, "ousted")
    assert error.startswith(
        "it did not begin again within 6 s (launcher.reschedule_timeout_s) after it was disrupted: "
    )
    assert "cannot be scheduled (Unschedulable)" in error and f"Insufficient {scarce}" in error


@contextmanager
def rival(namespace: Namespace, scarce: str) -> Iterator[None]:
    """A pod of higher priority that wants the only place, gone again at the end."""
    container = {"name": "rival", "image": IMAGE, "command": ["sleep", "600"], "resources": {"limits": {scarce: "1"}}}
    spec = {
        "priorityClassName": f"{namespace.name}-high",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }
    namespace.core.create_namespaced_pod(namespace.name, {"metadata": {"name": "rival"}, "spec": spec})
    try:
        yield
    finally:
        namespace.core.delete_namespaced_pod("rival", namespace.name)
        pods = namespace.core.list_namespaced_pod
        wait_for(lambda: "rival" not in [pod.metadata.name for pod in pods(namespace.name).items])


@pytest.fixture
def scarce(namespace: Namespace, admin: Any) -> Any:
    """A resource of which the node has one, and two priorities."""
    from kubernetes import client

    node = namespace.core.list_node().items[0].metadata.name
    resource, path = "trimtab.dev/place", "trimtab.dev~1place"
    patch = [{"op": "add", "path": f"/status/{part}/{path}", "value": "1"} for part in ("capacity", "allocatable")]
    namespace.core.patch_node_status(node, patch)
    scheduling = client.SchedulingV1Api(admin)
    for name, value in ((f"{namespace.name}-low", 10), (f"{namespace.name}-high", 1000)):
        scheduling.create_priority_class({"metadata": {"name": name}, "value": value})
    yield resource
    for name in ("low", "high"):
        scheduling.delete_priority_class(f"{namespace.name}-{name}")
    remove = [{"op": "remove", "path": f"/status/{part}/{path}"} for part in ("capacity", "allocatable")]
    namespace.core.patch_node_status(node, remove)


def test_names_that_no_job_can_have(namespace: Namespace, tmp_path: Path) -> None:
    names = ("Upper", "under_score", "-dash", "n" * 62)
    with trainer(namespace, tmp_path, template(SLEEP)) as (_, service):
        for name in names:
            with pytest.raises(InvalidRequest, match=r"name: .* 1\.\.61 lower-case letters") as caught:
                start(service, name)
            assert caught.value.field == "name"
    assert not {f"t-{name}" for name in names} & set(namespace.jobs())
