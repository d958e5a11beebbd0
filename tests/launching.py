"""A TrainerService whose runs are Jobs of a real cluster, with the ServiceAccount and the Role of the chart, and never
with the administrator's rights, which only set the stage."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes
import pytest
import yaml

from clusters import KUBECTL, cluster_with_image
from helm.rendering import render
from running import FREE_PORTS, RunningServer, client
from trimtab import Client
from trimtab.errors import TrimtabError
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer import main
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.launchers.cluster import ROLE

IMAGE = os.environ.get("TRIMTAB_TEST_IMAGE", "localhost/trimtab:dev")
RUNS = "/var/lib/trimtab/runs"
PATIENCE_S = 120.0


def wait_for(condition: Callable[[], Any], what: str = "", patience_s: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return found


@pytest.fixture(scope="session")
def admin_kubeconfig() -> Iterator[str]:
    """Of the throw-away cluster, with all rights."""
    with cluster_with_image() as path:
        yield str(path)


@pytest.fixture(scope="session")
def admin(admin_kubeconfig: str) -> Any:
    """An API client with all rights."""
    return kubernetes.config.new_client_from_config(admin_kubeconfig)


@dataclass
class Namespace:
    """A namespace of its own with the chart's ServiceAccount of a TrainerService and the rights that it has."""

    admin: Any
    directory: Path
    name: str = field(default_factory=lambda: f"launch-{uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        self.core = kubernetes.client.CoreV1Api(self.admin)
        self.batch = kubernetes.client.BatchV1Api(self.admin)
        self.rbac = kubernetes.client.RbacAuthorizationV1Api(self.admin)
        self.core.create_namespace({"metadata": {"name": self.name}})
        rendered = render({}, namespace=self.name)
        role, binding = rendered.only("Role"), rendered.only("RoleBinding")
        self.role, self.account = role["metadata"]["name"], binding["subjects"][0]["name"]
        self.core.create_namespaced_service_account(self.name, rendered["ServiceAccount", self.account])
        self.rbac.create_namespaced_role(self.name, role)
        self.rbac.create_namespaced_role_binding(self.name, binding)
        self.kubeconfig = self._kubeconfig()

    def _kubeconfig(self) -> Path:
        """Of the ServiceAccount, by a token that the API server gives out."""
        request = {"spec": {"expirationSeconds": 3600}}
        token = self.core.create_namespaced_service_account_token(self.account, self.name, request).status.token
        configuration = self.admin.configuration
        context = {"cluster": "test", "user": "trainer"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": configuration.host, "certificate-authority": configuration.ssl_ca_cert},
                }
            ],
            "users": [{"name": "trainer", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": context}],
        }
        path = self.directory / f"{self.name}.kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return path

    def allow(self, role: Any) -> None:
        """Changes the Role, and waits until the API server goes by it."""
        self.rbac.replace_namespaced_role(self.role, self.name, {"metadata": {"name": self.role}, "rules": rules(role)})
        account = kubernetes.client.AuthorizationV1Api(kubernetes.config.new_client_from_config(str(self.kubeconfig)))

        def goes_by_it() -> bool:
            return all(self._may(account, *entry) == (entry in role) for entry in ROLE)

        wait_for(goes_by_it)

    def _may(self, account: Any, verb: str, group: str, resource: str) -> bool:
        kind, _, subresource = resource.partition("/")
        attributes = {"namespace": self.name, "verb": verb, "group": group, "resource": kind}
        review = {"spec": {"resourceAttributes": {**attributes, "subresource": subresource}}}
        return bool(account.create_self_subject_access_review(review).status.allowed)

    def pods(self, run: str) -> list[Any]:
        return self.core.list_namespaced_pod(self.name, label_selector=f"trimtab.dev/run={run}").items

    def running_pod(self, run: str, *, but: str = "") -> str:
        """Name of the run's pod once it works."""

        def find() -> str:
            names = [
                pod.metadata.name
                for pod in self.pods(run)
                if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp and pod.metadata.name != but
            ]
            return names[0] if names else ""

        return str(wait_for(find, f"no running pod of {run}"))

    def jobs(self) -> list[str]:
        return [job.metadata.name for job in self.batch.list_namespaced_job(self.name).items]

    def limit(self, name: str, resource: str) -> None:
        """A ResourceQuota that allows none of a resource, once the API server goes by it."""
        self.core.create_namespaced_resource_quota(
            self.name, {"metadata": {"name": name}, "spec": {"hard": {resource: "0"}}}
        )
        wait_for(lambda: self.core.read_namespaced_resource_quota(name, self.name).status.hard)

    def delete(self) -> None:
        self.core.delete_namespace(self.name)


def rules(role: Any) -> list[dict[str, Any]]:
    return [{"apiGroups": [group], "resources": [resource], "verbs": [verb]} for verb, group, resource in sorted(role)]


@pytest.fixture(scope="module")
def namespace(admin: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    namespace = Namespace(admin, tmp_path_factory.mktemp("namespace"))
    yield namespace
    namespace.delete()


def template(script: str, *, claim: bool = False, **pod: Any) -> str:
    """A run template whose container runs a shell script instead of the trainer; `pod` overrides its pod's keys."""
    resources = pod.pop("resources", {})
    image = pod.pop("image", IMAGE)
    container = {
        "name": "run",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script, "run"],
        "args": ["run", "/etc/trimtab-run/spec.yaml"],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, **resources},
        "volumeMounts": [{"name": "spec", "mountPath": "/etc/trimtab-run"}],
    }
    volumes: list[dict[str, Any]] = [
        {"name": "spec", "configMap": {"name": "set-by-the-launcher"}},
        {"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}},
    ]
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 2,
        "containers": [container],
        "volumes": volumes,
        **pod,
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "t"}, "spec": {"template": {"spec": spec}}}
    wanted = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    own = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "t"}, "spec": wanted}
    return yaml.safe_dump_all([job, own] if claim else [job])


def spec(name: str = "x") -> str:
    return yaml.safe_dump(
        {"name": name, "directory": "unused", "model": "miniature", "miniature": {}, "stages": ["pretrain"]}
    )


@contextmanager
def trainer(
    namespace: Namespace, directory: Path, text: str, **settings: Any
) -> Iterator[tuple[RunningServer, Client]]:
    """A TrainerService with the ServiceAccount's rights."""
    template_file = directory / "template.yaml"
    template_file.write_text(text)
    launcher = {
        "kind": "kubernetes",
        "template_file": str(template_file),
        "namespace": namespace.name,
        "kubeconfig": str(settings.pop("kubeconfig", namespace.kubeconfig)),
        "resumes": settings.pop("resumes", 1),
        "reschedule_timeout_s": settings.pop("reschedule_timeout_s", 3600),
    }
    config = TrainerServiceConfig(
        directory=directory / "runs", launcher=launcher, drain_s=5.0, **settings, **FREE_PORTS
    )
    server = RunningServer(config, "trainer", "trimtab.v1.TrainerService", main.build)
    try:
        with client(server) as connection:
            yield server, connection
    finally:
        server.stop()


def start(service: Client, name: str, text: str = "") -> pb.Run:
    return service.start_run(pb.StartRunRequest(name=name, spec_yaml=text or spec()), timeout_s=120).run


def wait_state(service: Client, name: str, *states: pb.RunState.ValueType) -> pb.Run:
    return wait_for(lambda: (run := get(service, name)).state in states and run, f"{name}: {get(service, name)}")


def get(service: Client, name: str) -> pb.Run:
    return service.get_run(pb.GetRunRequest(name=name)).run


def why_failed(service: Client, name: str) -> str:
    return wait_state(service, name, pb.RUN_STATE_FAILED).error


def ended(sequence: int, state: pb.RunState.ValueType) -> pb.RunEvent:
    """The end of a run, told now."""
    event = pb.RunEvent(sequence=sequence, run_ended=pb.RunEnded(state=state))
    event.time.GetCurrentTime()
    return event


def report(service: Client, name: str, *events: pb.RunEvent) -> None:
    """Reports as the run itself would."""
    hello = pb.ReportEventsRequest(name=name)
    list(service.report_events([hello, *(pb.ReportEventsRequest(event=event) for event in events)]))


def deploy_trainer(namespace: Namespace, text: str, **settings: Any) -> None:
    """A TrainerService as a Deployment with one replica, its state on a claim, and its Service `trainer`."""
    config = {
        "host": "0.0.0.0",
        "insecure": True,
        "directory": RUNS,
        "launcher": {"kind": "kubernetes", "template_file": "/etc/trimtab/template.yaml", "resumes": 2},
        "scaler_port": 50061,
        **settings,
    }
    data = {"trainer.yaml": yaml.safe_dump(config), "template.yaml": text}
    namespace.core.create_namespaced_config_map(namespace.name, {"metadata": {"name": "trainer"}, "data": data})
    wanted = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}}}
    namespace.core.create_namespaced_persistent_volume_claim(
        namespace.name, {"metadata": {"name": "trainer"}, "spec": wanted}
    )
    container = {
        "name": "trainer",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["serve", "trainer", "--config", "/etc/trimtab/trainer.yaml"],
        "readinessProbe": {"grpc": {"port": 50052, "service": "readiness"}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/trimtab"},
            {"name": "runs", "mountPath": RUNS},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "serviceAccountName": namespace.account,
        "automountServiceAccountToken": True,
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": "trainer"}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": "trainer"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    labels = {"app": "trainer"}
    deployment = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    apps = kubernetes.client.AppsV1Api(namespace.admin)
    apps.create_namespaced_deployment(namespace.name, {"metadata": {"name": "trainer"}, "spec": deployment})
    ports = [{"name": "grpc", "port": 50051}, {"name": "scaler", "port": 50061}]
    service = {"selector": labels, "ports": ports}
    namespace.core.create_namespaced_service(namespace.name, {"metadata": {"name": "trainer"}, "spec": service})


def ready_trainer(namespace: Namespace, *, but: str = "") -> str:
    """Name of the TrainerService's pod once it is ready."""

    def find() -> str:
        for pod in namespace.core.list_namespaced_pod(namespace.name, label_selector="app=trainer").items:
            ready = [one for one in pod.status.conditions or [] if one.type == "Ready" and one.status == "True"]
            if ready and pod.metadata.name != but and not pod.metadata.deletion_timestamp:
                return str(pod.metadata.name)
        return ""

    return str(wait_for(find, "no ready trainer pod"))


@contextmanager
def connected(namespace: Namespace, pod: str, kubeconfig: str) -> Iterator[Client]:
    """A client of a TrainerService in a pod."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [KUBECTL, "--kubeconfig", kubeconfig, "-n", namespace.name, "port-forward", f"pod/{pod}", f"{port}:50051"]
    forward = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Client(f"127.0.0.1:{port}", timeout_s=30) as service:
            wait_for(lambda: _answers(service))
            yield service
    finally:
        forward.terminate()
        forward.wait()


def _answers(service: Client) -> bool:
    try:
        service.info()
    except TrimtabError:
        return False
    return True
