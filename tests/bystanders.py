"""Namespaces that the tests of a module share, and pods that stand by in them: some listen, and in each of them tests
run Python, since what a pod may do shows only from inside it."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clusters import KUBECTL
from releases import NAME, REGISTRY, Place

__all__ = [
    "IN_PODS",
    "Life",
    "apply",
    "bystander",
    "labels_of",
    "lives",
    "pod_of",
    "restricted_pod",
    "run_in",
    "stand_by",
    "token_of",
]

IN_PODS = Path(__file__).parent / "kubernetes" / "chart" / "in_pods"
"""Scripts for `run_in`."""

IMAGE = f"{REGISTRY}/{NAME}" if REGISTRY else NAME

LISTEN = """
import signal, socket, sys
listening = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
signal.pause()
"""


def labels_of(release: str, component: str) -> dict[str, str]:
    """The labels that every pod of a component has, and that everything selects by."""
    parts = {"name": "trimtab", "instance": release, "component": component}
    return {f"app.kubernetes.io/{key}": value for key, value in parts.items()}


def restricted_pod(name: str, labels: Mapping[str, str], **container: Any) -> dict[str, Any]:
    """A pod of the image that Pod Security `restricted` takes; `container` are keys of its only container."""
    ours = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [ours | container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(labels)}, "spec": spec}


def bystander(name: str, labels: Mapping[str, str], *ports: int) -> dict[str, Any]:
    """A pod that listens on ports and does nothing. It never becomes Ready, so that no Service sends anybody to it."""
    listens = {"readinessProbe": {"tcpSocket": {"port": ports[-1]}, "periodSeconds": 1}} if ports else {}
    pod = restricted_pod(name, labels, command=["python", "-c", LISTEN, *map(str, ports)], **listens)
    pod["spec"]["readinessGates"] = [{"conditionType": "trimtab.dev/never-ready"}]
    return pod


def apply(place: Place, *objects: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """Makes objects in the namespace; what the API server refuses is in the result."""
    command = [KUBECTL, f"--kubeconfig={place.kubeconfig}", f"--namespace={place.namespace}", "apply", "--filename=-"]
    text = yaml.safe_dump_all(objects)
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)


def stand_by(place: Place, *pods: Mapping[str, Any]) -> None:
    """Starts pods and waits until they run."""
    made = apply(place, *pods)
    assert made.returncode == 0, made.stderr
    names = [f"pod/{pod['metadata']['name']}" for pod in pods]
    place.kubectl("wait", "--for=condition=ContainersReady", "--timeout=110s", *names)


def pod_of(place: Place, release: str, component: str) -> dict[str, Any]:
    """The one pod of a service, without those that stand by with its labels."""
    selector = ",".join(f"{key}={value}" for key, value in labels_of(release, component).items())
    listed = place.kubectl("get", "pods", f"--selector={selector},pod-template-hash", "--output=json")
    (pod,) = json.loads(listed)["items"]
    return pod


@dataclass(frozen=True)
class Life:
    """Which pod it is, how often its container was restarted, and whether it is ready."""

    uid: str
    restarts: int
    is_ready: bool


def lives(place: Place, release: str, *components: str) -> dict[str, Life]:
    """Life of the one pod of each service: equal as long as nothing was replaced or restarted."""
    found = {}
    for component in components:
        pod = pod_of(place, release, component)
        (container,) = pod["status"]["containerStatuses"]
        found[component] = Life(pod["metadata"]["uid"], container["restartCount"], container["ready"])
    return found


def token_of(place: Place, fullname: str, caller: str) -> str:
    """The token that the chart made for a caller; `fullname` is what every name of the release begins with."""
    read = place.kubectl("get", "secret", f"{fullname}-token-{caller}", "--output=jsonpath={.data.token}")
    return base64.b64decode(read).decode()


def run_in(place: Place, pod: str, script: Path, *arguments: str, timeout_s: float = 120) -> Any:
    """Runs a Python script inside a pod; returns what it prints, which is JSON."""
    command = [KUBECTL, f"--kubeconfig={place.kubeconfig}", f"--namespace={place.namespace}", "exec", "--stdin", pod]
    command += ["--", "python", "-", *arguments]
    ended = subprocess.run(command, input=script.read_text(), capture_output=True, text=True, timeout=timeout_s)
    assert ended.returncode == 0, f"{script.name} in {pod}: {ended.stderr[-3000:]}"
    return json.loads(ended.stdout)
