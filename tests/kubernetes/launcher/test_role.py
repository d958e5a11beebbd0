"""The ServiceAccount of the launcher: each verb of its Role is needed, and a missing one is named."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import yaml

from launching import Namespace, get, report, spec, start, template, trainer, wait_for, wait_state, why_failed
from trimtab.errors import FailedPrecondition
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.launchers.cluster import ROLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SLEEP = "trap 'exit 130' TERM; echo begins; sleep 600 & wait"


def denied(verb: str, resource: str) -> str:
    return (
        rf"no permission to {verb} {resource}, which the Role of the trainer's ServiceAccount must allow: .*forbidden"
    )


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        ("create", "batch", "jobs"),
        ("delete", "batch", "jobs"),
        ("create", "", "configmaps"),
        ("create", "", "persistentvolumeclaims"),
    ],
)
def test_a_start_that_the_role_does_not_allow(
    namespace: Namespace, tmp_path: Path, verb: str, group: str, resource: str
) -> None:
    namespace.allow(ROLE - {(verb, group, resource)})
    full = f"{resource}.{group}" if group else resource
    name = f"denied-{verb}-{resource[:4]}"
    with trainer(namespace, tmp_path, template(SLEEP, claim=True)) as (_, service):
        with pytest.raises(FailedPrecondition, match=denied(verb, full)) as caught:
            start(service, name)
        failed = get(service, name)
    assert (failed.state, failed.error) == (pb.RUN_STATE_FAILED, caught.value.message)
    assert f"{namespace.name}/t-{name}" in failed.error
    wait_for(lambda: f"t-{name}" not in namespace.jobs())


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [("get", "batch", "jobs"), ("list", "", "pods"), ("watch", "", "pods"), ("list", "", "events")],
)
def test_a_run_that_cannot_be_followed_fails_and_leaves_no_job(
    namespace: Namespace, tmp_path: Path, verb: str, group: str, resource: str
) -> None:
    namespace.allow(ROLE - {(verb, group, resource)})
    full = f"{resource}.{group}" if group else resource
    name = f"unseen-{verb}-{resource}"
    namespace.limit("no-pods", "pods")  # so that events are asked for too
    try:
        with trainer(namespace, tmp_path, template(SLEEP, claim=True), start_timeout_s=5) as (_, service):
            start(service, name)
            error = why_failed(service, name)
    finally:
        namespace.core.delete_namespaced_resource_quota("no-pods", namespace.name)
    assert re.search(denied(verb, full), error), error
    wait_for(lambda: f"t-{name}" not in namespace.jobs())


def test_a_log_that_may_not_be_read_does_not_end_the_run(
    namespace: Namespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    namespace.allow(ROLE - {("get", "", "pods/log")})
    with caplog.at_level(logging.WARNING), trainer(namespace, tmp_path, template("exit 3", claim=True)) as (_, service):
        start(service, "silent")
        error = why_failed(service, "silent")
    assert error.endswith("ended with exit code 3: it left no log")
    told = [record for record in caplog.records if record.getMessage() == "the log of a run cannot be read"]
    assert len(told) == 1 and "no permission to get pods/log" in told[0].__dict__["error"]


@pytest.mark.parametrize("verb", ["get", "delete"])
def test_data_of_a_failed_run_are_deleted_only_where_the_role_allows_it(
    namespace: Namespace, tmp_path: Path, verb: str
) -> None:
    namespace.allow(ROLE)
    name = f"mended-{verb}"
    mended = yaml.safe_dump({**yaml.safe_load(spec()), "seed": 7})
    with trainer(namespace, tmp_path, template("exit 3", claim=True)) as (_, service):
        start(service, name)
        why_failed(service, name)
        claims = namespace.core.list_namespaced_persistent_volume_claim
        before = {one.metadata.name: one.metadata.uid for one in claims(namespace.name).items}
        namespace.allow(ROLE - {(verb, "", "persistentvolumeclaims")})
        with pytest.raises(FailedPrecondition, match=denied(verb, "persistentvolumeclaims")):
            start(service, name, mended)
        wait_state(service, name, pb.RUN_STATE_FAILED)
        namespace.allow(ROLE)
        start(service, name, yaml.safe_dump({**yaml.safe_load(spec()), "seed": 8}))
        why_failed(service, name)
        after = {one.metadata.name: one.metadata.uid for one in claims(namespace.name).items}
    assert f"t-{name}" in before and after[f"t-{name}"] != before[f"t-{name}"]


def test_a_claim_of_its_own_outlives_the_job(namespace: Namespace, tmp_path: Path) -> None:
    namespace.allow(ROLE)
    with trainer(namespace, tmp_path, template(SLEEP, claim=True)) as (_, service):
        start(service, "kept")
        namespace.running_pod("kept")
        report(service, "kept", pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9)))
        service.stop_run(pb.StopRunRequest(name="kept"))
        wait_state(service, "kept", pb.RUN_STATE_STOPPED)
        wait_for(lambda: not namespace.pods("kept"))
        claim = namespace.core.read_namespaced_persistent_volume_claim("t-kept", namespace.name)
        service.resume_run(pb.ResumeRunRequest(name="kept"))
        namespace.running_pod("kept")
        again = namespace.core.read_namespaced_persistent_volume_claim("t-kept", namespace.name)
        assert again.metadata.uid == claim.metadata.uid
        service.stop_run(pb.StopRunRequest(name="kept"))
        wait_state(service, "kept", pb.RUN_STATE_STOPPED)
