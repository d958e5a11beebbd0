"""KEDA scales a Deployment on what the TrainerService's external scaler says: from zero, up, and back to zero."""

from __future__ import annotations

from typing import Any

import pytest

from launching import (
    IMAGE,
    Namespace,
    connected,
    deploy_trainer,
    ended,
    ready_trainer,
    report,
    start,
    template,
    wait_for,
)
from trimtab.v1 import trainer_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def scaled_object(target: int) -> dict[str, Any]:
    trigger = {
        "type": "external-push",
        "metadata": {"scalerAddress": "trainer.{}:50061", "targetQueuedRollouts": str(target)},
    }
    quick = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 10, "periodSeconds": 5}]}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "generation"},
        "spec": {
            "scaleTargetRef": {"name": "generation"},
            "minReplicaCount": 0,
            "maxReplicaCount": 5,
            "pollingInterval": 5,
            "cooldownPeriod": 5,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": quick, "scaleUp": quick}}},
            "triggers": [trigger],
        },
    }


def test_from_zero_up_and_back_to_zero(namespace: Namespace, admin_kubeconfig: str) -> None:
    from kubernetes import client

    apps, custom = client.AppsV1Api(namespace.admin), client.CustomObjectsApi(namespace.admin)
    labels = {"app": "generation"}
    sleeper = {
        "name": "generation",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "600"],
        "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
    }
    pod = {"terminationGracePeriodSeconds": 0, "containers": [sleeper]}
    deployment = {
        "replicas": 0,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    apps.create_namespaced_deployment(namespace.name, {"metadata": {"name": "generation"}, "spec": deployment})
    deploy_trainer(namespace, template("sleep 600", claim=True))

    def replicas() -> int:
        return apps.read_namespaced_deployment_scale("generation", namespace.name).spec.replicas or 0

    with connected(namespace, ready_trainer(namespace), admin_kubeconfig) as service:
        body = scaled_object(target=32)
        metadata = body["spec"]["triggers"][0]["metadata"]
        metadata["scalerAddress"] = metadata["scalerAddress"].format(namespace.name)
        custom.create_namespaced_custom_object("keda.sh", "v1alpha1", namespace.name, "scaledobjects", body)
        start(service, "sampling")
        report(service, "sampling", event(1, stage_started=pb.StageStarted()))
        wait_for(lambda: replicas() == 1, "from zero")
        report(service, "sampling", queue(2, waiting=90, running=6))
        wait_for(lambda: replicas() == 3, "96 rollouts, 32 a replica")
        report(service, "sampling", queue(3, waiting=0, running=10))
        wait_for(lambda: replicas() == 1, "10 rollouts")
        report(service, "sampling", ended(4, pb.RUN_STATE_SUCCEEDED))
        wait_for(lambda: replicas() == 0, "to zero")


def event(sequence: int, **what: Any) -> pb.RunEvent:
    return pb.RunEvent(sequence=sequence, stage="ppo", **what)


def queue(sequence: int, *, waiting: int, running: int) -> pb.RunEvent:
    return event(
        sequence, rollout_queue=pb.RolloutQueue(waiting_rollouts=waiting, running_rollouts=running, replicas=1)
    )
