"""Runs while the API server is away for the TrainerService, or slow for one of them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from launching import Namespace, get, report, start, template, trainer, wait_for, wait_state, why_failed
from trimtab import Client
from trimtab.v1 import trainer_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SLEEP = "trap 'exit 130' TERM; sleep 600 & wait"


class Door:
    """A way to the API server that can be shut: connections through it break, and new ones are refused."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        content = yaml.safe_load(namespace.kubeconfig.read_text())
        cluster = content["clusters"][0]["cluster"]
        server = urlsplit(cluster["server"])
        assert server.hostname and server.port
        self._server = server.hostname, server.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        cluster |= {
            "server": f"https://127.0.0.1:{self._listener.getsockname()[1]}",
            "tls-server-name": server.hostname,
        }
        self.kubeconfig = directory / "through-the-door.kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(content))
        self._open: list[socket.socket] = []
        self.is_shut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        self.is_shut = True
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self.shut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                inside, _ = self._listener.accept()
                if self.is_shut:
                    inside.close()
                    continue
                outside = socket.create_connection(self._server)
                self._open += [inside, outside]
                for one, other in ((inside, outside), (outside, inside)):
                    threading.Thread(target=_carry, args=(one, other), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def disrupted(namespace: Namespace, directory: Path, run: str, **settings: float) -> Iterator[tuple[Client, Door, str]]:
    """A run that was evicted while the API server was away, which it still is; the name of its pod."""
    door = Door(namespace, directory)
    text = template(SLEEP, claim=True)
    try:
        with trainer(namespace, directory, text, kubeconfig=door.kubeconfig, **settings) as (_, service):
            start(service, run)
            pod = namespace.running_pod(run)
            report(service, run, pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9)))
            hold(namespace, run)
            namespace.core.create_namespaced_pod_eviction(pod, namespace.name, {"metadata": {"name": pod}})
            wait_state(service, run, pb.RUN_STATE_STARTING)
            jobs = namespace.batch
            wait_for(lambda: jobs.read_namespaced_job(f"t-{run}", namespace.name).metadata.deletion_timestamp)
            door.shut()
            release(namespace, run)
            wait_for(lambda: f"t-{run}" not in namespace.jobs())
            yield service, door, pod
    finally:
        door.close()


def hold(namespace: Namespace, run: str) -> None:
    """Keeps the run's Job from going away."""
    patch = {"metadata": {"finalizers": ["trimtab.dev/held"]}}
    namespace.batch.patch_namespaced_job(f"t-{run}", namespace.name, patch)


def release(namespace: Namespace, run: str) -> None:
    job = namespace.batch.read_namespaced_job(f"t-{run}", namespace.name)
    kept = [one for one in job.metadata.finalizers or [] if one != "trimtab.dev/held"]
    patch = [{"op": "replace", "path": "/metadata/finalizers", "value": kept}]
    namespace.batch.patch_namespaced_job(f"t-{run}", namespace.name, patch)


def test_a_disrupted_run_goes_on_once_the_api_is_back(namespace: Namespace, tmp_path: Path) -> None:
    with disrupted(namespace, tmp_path, "patient") as (service, door, pod):
        time.sleep(12)  # more than one try
        assert get(service, "patient").state == pb.RUN_STATE_STARTING, get(service, "patient").error
        door.is_shut = False
        namespace.running_pod("patient", but=pod)
        job = namespace.batch.read_namespaced_job("t-patient", namespace.name)
        assert job.metadata.annotations["trimtab.dev/resumes"] == "1"
        assert job.spec.template.spec.containers[0].args[-1] == "--resume"
        service.stop_run(pb.StopRunRequest(name="patient"))
        wait_state(service, "patient", pb.RUN_STATE_STOPPED)


def test_a_disrupted_run_waits_for_the_api_no_longer_than_it_may(namespace: Namespace, tmp_path: Path) -> None:
    with disrupted(namespace, tmp_path, "brief", reschedule_timeout_s=4.0) as (service, _, pod):
        error = why_failed(service, "brief")
    assert f"Pod {namespace.name}/{pod} was evicted" in error
    assert "it could not be started again: the Kubernetes API does not answer: " in error
    assert error.endswith("; it was tried for 4 s (launcher.reschedule_timeout_s)")


def test_a_disrupted_run_goes_on_in_the_next_life_of_the_service(namespace: Namespace, tmp_path: Path) -> None:
    with disrupted(namespace, tmp_path, "reborn") as (_, _, pod):
        pass
    with trainer(namespace, tmp_path, template(SLEEP, claim=True)) as (_, service):
        namespace.running_pod("reborn", but=pod)
        assert get(service, "reborn").state == pb.RUN_STATE_STARTING
        service.stop_run(pb.StopRunRequest(name="reborn"))
        wait_state(service, "reborn", pb.RUN_STATE_STOPPED)


def leave_a_job(namespace: Namespace, run: str) -> None:
    """A Job in the run's way that does not go when it is deleted."""
    job = next(iter(yaml.safe_load_all(template(SLEEP))))
    job["metadata"] = {"name": f"t-{run}"}
    job["spec"] |= {"suspend": True}
    job["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    namespace.batch.create_namespaced_job(namespace.name, job)
    hold(namespace, run)


def test_a_run_that_is_launched_slowly_keeps_no_other_waiting(namespace: Namespace, tmp_path: Path) -> None:
    """What is left of its earlier Job takes its time."""
    with trainer(namespace, tmp_path, template(SLEEP, claim=True)) as (_, service):
        start(service, "quick")
        namespace.running_pod("quick")
        report(service, "quick", pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9)))
        start(service, "slow")
        namespace.running_pod("slow")
        report(service, "slow", pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9)))
        service.stop_run(pb.StopRunRequest(name="slow"))
        wait_state(service, "slow", pb.RUN_STATE_STOPPED)
        wait_for(lambda: "t-slow" not in namespace.jobs())
        leave_a_job(namespace, "slow")
        resuming = threading.Thread(target=lambda: service.resume_run(pb.ResumeRunRequest(name="slow"), timeout_s=120))
        resuming.start()
        time.sleep(1)
        began = time.monotonic()
        service.stop_run(pb.StopRunRequest(name="quick"), timeout_s=10)
        assert time.monotonic() - began < 5 and resuming.is_alive()
        release(namespace, "slow")
        resuming.join(60)
        assert not resuming.is_alive()
        for name in ("quick", "slow"):
            service.stop_run(pb.StopRunRequest(name=name))
            wait_state(service, name, pb.RUN_STATE_STOPPED)
