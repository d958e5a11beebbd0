"""A real run in a pod, from its start to its end, with a TrainerService that is a pod too and whose pod goes away."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest
import yaml

from launching import (
    IMAGE,
    KUBECTL,
    RUNS,
    Namespace,
    connected,
    deploy_trainer,
    get,
    ready_trainer,
    wait_for,
    wait_state,
)
from trimtab import Client
from trimtab.v1 import trainer_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def template() -> str:
    """The trainer itself, on a claim of its own."""
    container = {
        "name": "run",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["run", "/etc/trimtab-run/spec.yaml", "--report-to=trainer:50051"],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        "securityContext": {"readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "spec", "mountPath": "/etc/trimtab-run"},
            {"name": "runs", "mountPath": RUNS},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "containers": [container],
        "volumes": [
            {"name": "spec", "configMap": {"name": "set-by-the-launcher"}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": "set-by-the-launcher"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "t"}, "spec": {"template": {"spec": pod}}}
    wanted = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "t"}, "spec": wanted}
    return yaml.safe_dump_all([job, claim])


def spec(**changes: Any) -> str:
    return yaml.safe_dump(
        {
            "name": "x",
            "directory": "unused",
            "model": "miniature",
            "miniature": {},
            "stages": ["pretrain"],
            "tensorboard": False,
            "pretrain": {"checkpoint_every": 5},
            **changes,
        }
    )


def wait_step(service: Client, name: str, step: int) -> pb.Run:
    return wait_for(lambda: (run := get(service, name)).step >= step and run, f"{name}: {get(service, name)}")


def test_started_adopted_evicted_stopped_resumed(namespace: Namespace, admin_kubeconfig: str) -> None:
    """One run over all of it: no event is missing, and no step is done again after a stop."""
    deploy_trainer(namespace, template())
    trainer = ready_trainer(namespace)
    with connected(namespace, trainer, admin_kubeconfig) as service:
        service.start_run(pb.StartRunRequest(name="long", spec_yaml=spec()), timeout_s=120)
        before = wait_step(service, "long", 3)
        pod = namespace.running_pod("long")
        assert get(service, "long").state == pb.RUN_STATE_RUNNING

    namespace.core.delete_namespaced_pod(trainer, namespace.name, grace_period_seconds=0)  # killed, without a drain
    trainer = ready_trainer(namespace, but=trainer)
    with connected(namespace, trainer, admin_kubeconfig) as service:
        seen = wait_step(service, "long", before.step + 3)
        assert seen.state == pb.RUN_STATE_RUNNING and namespace.running_pod("long") == pod

        namespace.core.create_namespaced_pod_eviction(pod, namespace.name, {"metadata": {"name": pod}})
        moved = namespace.running_pod("long", but=pod)
        wait_for(lambda: get(service, "long").state == pb.RUN_STATE_RUNNING and get(service, "long").step > seen.step)
        assert namespace.running_pod("long") == moved

        service.stop_run(pb.StopRunRequest(name="long"))
        stopped = wait_state(service, "long", pb.RUN_STATE_STOPPED, pb.RUN_STATE_FAILED)
        assert stopped.state == pb.RUN_STATE_STOPPED, stopped.error
        wait_for(lambda: not namespace.jobs() and not namespace.pods("long"))

        service.resume_run(pb.ResumeRunRequest(name="long"))
        resumed = wait_step(service, "long", stopped.step + 2)
        assert resumed.state == pb.RUN_STATE_RUNNING
        service.stop_run(pb.StopRunRequest(name="long"))
        wait_state(service, "long", pb.RUN_STATE_STOPPED)

        events = [reply.event for reply in service.watch_run(pb.WatchRunRequest(name="long"), timeout_s=60)]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        steps = [event.step for event in events if event.HasField("step_done")]
        assert steps == list(range(1, len(steps) + 1))  # each stop saved a checkpoint of its last step

    log = ["exec", trainer, "--", "cat", f"{RUNS}/long/run.log"]
    told = subprocess.run(
        [KUBECTL, "--kubeconfig", admin_kubeconfig, "-n", namespace.name, *log], capture_output=True, text=True
    ).stdout
    assert told.count("stopped; go on with `trimtab runs resume long`") == 3  # one for each life of the run


def test_a_stop_before_the_first_report(namespace: Namespace, admin_kubeconfig: str) -> None:
    trainer = ready_trainer(namespace)
    with connected(namespace, trainer, admin_kubeconfig) as service:
        began = time.monotonic()
        service.start_run(pb.StartRunRequest(name="early", spec_yaml=spec()), timeout_s=120)
        service.stop_run(pb.StopRunRequest(name="early"))
        stopped = wait_state(service, "early", pb.RUN_STATE_STOPPED, pb.RUN_STATE_FAILED)
        assert stopped.state == pb.RUN_STATE_STOPPED, stopped.error
        assert time.monotonic() - began < 60
        wait_for(lambda: "t-early" not in namespace.jobs())
