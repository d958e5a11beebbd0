"""What the state of a pod means, for states that a cluster passes through too fast or too seldom to test there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes import client

from trimtab.pods import is_ready, restarts_of, why_not_ready


def pod(
    *,
    phase: str = "Running",
    state: dict[str, Any] | None = None,
    last_state: dict[str, Any] | None = None,
    started: bool = True,
    deleted: datetime | None = None,
    **status: Any,
) -> Any:
    def states(which: dict[str, Any] | None) -> client.V1ContainerState:
        kinds = {"waiting": client.V1ContainerStateWaiting, "terminated": client.V1ContainerStateTerminated}
        kinds["running"] = client.V1ContainerStateRunning
        return client.V1ContainerState(**{kind: kinds[kind](**given) for kind, given in (which or {}).items()})

    container = client.V1ContainerStatus(
        name="reward",
        image="trimtab:1",
        image_id="",
        ready=False,
        restart_count=3,
        started=started,
        state=states({"running": {}} if state is None else state),
        last_state=states(last_state),
    )
    limits = client.V1ResourceRequirements(limits={"memory": "2Gi"})
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name="a", deletion_timestamp=deleted),
        spec=client.V1PodSpec(containers=[client.V1Container(name="reward", resources=limits)]),
        status=client.V1PodStatus(phase=phase, container_statuses=[container], **status),
    )


READY = client.V1PodCondition(type="Ready", status="True")
OOM = {"terminated": {"exit_code": 137, "reason": "OOMKilled"}}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (pod(conditions=[READY]), ""),
        (pod(phase="Succeeded"), ""),
        (pod(), "not ready"),
        (pod(started=False), "runs, and its startup probe has not passed yet"),
        (pod(phase="Pending", state={"waiting": {"reason": "ContainerCreating"}}), "volumes and containers are being"),
        (pod(last_state=OOM), "was started again: it was OOM-killed: it passed its memory limit of 2Gi"),
        (
            pod(state={"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}, last_state=OOM),
            "container 'reward' waits (CrashLoopBackOff): it was OOM-killed: it passed its memory limit of 2Gi",
        ),
        (
            pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": "no secret"}}),
            "container 'reward' waits (CreateContainerConfigError): no secret",
        ),
        (pod(phase="Failed", state={"terminated": {"exit_code": 2}}), "it ended with exit code 2"),
        (pod(phase="Failed", reason="Evicted", message="low on memory"), "was evicted: low on memory"),
        (pod(conditions=[READY], deleted=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), "being ended since 03:04:05 UTC"),
    ],
)
def test_a_pod_says_why_it_is_not_ready(found: Any, says: str) -> None:
    said = why_not_ready(found)
    assert says in said and bool(says) == bool(said)
    assert is_ready(found) == (found.status.conditions == [READY] and not found.metadata.deletion_timestamp)
    assert restarts_of(found) == 3
