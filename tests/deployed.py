"""A release of the chart while it is in use: its pods and what they count, its scale, clients in pods and outside.

with deployed(kubeconfig, {"generation": {"replicas": 2}}) as release:
    release.scale(3)
    release.wait_pods("generation", 3)
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import yaml

from clusters import KUBECTL
from releases import CHART, READY_S, REGISTRY, VALUES, Place, new_place
from trimtab import Client, Token
from trimtab.errors import TrimtabError

__all__ = ["RELEASE", "Deployed", "deployed", "is_ready", "merged", "trimtab", "wait_for"]

RELEASE = "rl"

T = TypeVar("T")

_IMAGE = f"{REGISTRY}/{VALUES['image']['repository']}:{VALUES['image']['tag']}".removeprefix("/")
_COUNTER = """
import sys
from urllib.request import urlopen
from prometheus_client.parser import text_string_to_metric_families

with urlopen("http://127.0.0.1:9090/metrics", timeout=20) as reply:
    families = text_string_to_metric_families(reply.read().decode())
    print(sum(one.value for family in families for one in family.samples if one.name == sys.argv[1]))
"""


def wait_for(look: Callable[[], T | None], what: str, *, within_s: float = 120.0) -> T:
    """What `look` gives once it is true; `what` says what was waited for."""
    give_up = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < give_up, f"not within {within_s:g} s: {what}"
        time.sleep(0.2)
    return found


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Values put over one another, the later ones winning."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


@contextmanager
def deployed(
    kubeconfig: Path,
    values: Mapping[str, Any],
    *,
    prepare: Callable[[Deployed], None] = lambda release: None,
    wait: bool = True,
) -> Iterator[Deployed]:
    """The chart, installed in a namespace of its own.

    Args:
        kubeconfig: of the cluster.
        values: over the chart's own.
        prepare: makes in the namespace what must be there before the chart.
        wait: until every pod is Ready.
    """
    with new_place(kubeconfig, "fleet") as place, TemporaryDirectory() as folder:
        release = Deployed(place, merged(VALUES, values), Path(folder))
        prepare(release)
        place.helm().install(CHART, RELEASE, release.values, wait="watcher" if wait else None, timeout=READY_S)
        yield release


@dataclass(frozen=True)
class Deployed:
    """A release and its namespace.

    Attributes:
        place: where it is.
        values: that it was installed with.
        folder: for files of the test.
    """

    place: Place
    values: dict[str, Any]
    folder: Path

    @property
    def token_file(self) -> Path:
        """The token of people, once there has been a `client`."""
        return self.folder / "token"

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """Puts further values over those of the installation, and waits until the roll-out is over."""
        self.place.helm().upgrade(CHART, RELEASE, merged(self.values, values), wait="watcher", timeout=READY_S)

    def pods(self, component: str) -> list[dict[str, Any]]:
        """The pods of a component that are not on their way out, oldest first."""
        selector = f"--selector=app.kubernetes.io/component={component}"
        listed = self.place.kubectl("get", "pods", selector, "--sort-by=.metadata.creationTimestamp", "--output=json")
        return [pod for pod in json.loads(listed)["items"] if "deletionTimestamp" not in pod["metadata"]]

    def names(self, component: str) -> list[str]:
        """Names of these pods."""
        return list(map(_name, self.pods(component)))

    def lives(self, *components: str) -> dict[str, int]:
        """uid -> restarts of the pods of some components."""
        pods = [pod for component in components for pod in self.pods(component)]
        return {pod["metadata"]["uid"]: _restarts(pod) for pod in pods}

    def scale(self, count: int) -> None:
        """`trimtab scale generation=COUNT`, by the caller's own kubeconfig."""
        where = ["--release", RELEASE, "--namespace", self.place.namespace, "--kubeconfig", str(self.place.kubeconfig)]
        trimtab("scale", f"generation={count}", *where)

    def wait_pods(self, component: str, count: int) -> list[str]:
        """Names of the pods of a component once there are so many, all Ready."""

        def ready() -> list[dict[str, Any]] | None:
            pods = self.pods(component)
            return pods if len(pods) == count and all(map(is_ready, pods)) else None

        return list(map(_name, wait_for(ready, f"{count} pods of {component}, all Ready")))

    def counter(self, pod: str, name: str) -> float:
        """A counter of a service, all its labels together."""
        container = f"--container={pod.split('-')[2]}"
        return float(self.place.kubectl("exec", pod, container, "--", "python", "-c", _COUNTER, name))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Creates objects in the namespace."""
        command = [KUBECTL, f"--kubeconfig={self.place.kubeconfig}", f"--namespace={self.place.namespace}"]
        text = yaml.safe_dump_all(objects)
        subprocess.run([*command, "create", "-f", "-"], input=text, check=True, text=True, timeout=60)

    def start_pod(self, name: str, script: str, *arguments: str, caller: str = "client", claim: str = "") -> None:
        """Starts a Python script in a pod that may call every service of the release.

        Args:
            name: of the pod.
            script: what it runs.
            arguments: of the script.
            caller: whose token is at /etc/trimtab-token/token; empty: it has none.
            claim: mounted at /models; empty: none.
        """
        volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
        mounts = [{"name": "tmp", "mountPath": "/tmp"}]
        if caller:
            secret = {"secretName": f"{RELEASE}-trimtab-token-{caller}"}
            volumes.append({"name": "token", "secret": secret})
            mounts.append({"name": "token", "mountPath": "/etc/trimtab-token"})
        if claim:
            volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": claim}})
            mounts.append({"name": "models", "mountPath": "/models"})
        container = {
            "name": "client",
            "image": _IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", script, *arguments],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": mounts,
        }
        user = {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532}
        spec = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 2,
            "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": volumes,
        }
        labels = {"trimtab.dev/client-of": RELEASE}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})

    def wait_ended(self, pod: str, *, within_s: float = 120.0) -> str:
        """The log of a pod that must end well."""

        def ended() -> str | None:
            phase = self.place.kubectl("get", "pod", pod, "--output=jsonpath={.status.phase}")
            return phase if phase in ("Succeeded", "Failed") else None

        phase, log = wait_for(ended, f"the end of {pod}", within_s=within_s), self.place.kubectl("logs", pod)
        assert phase == "Succeeded", log
        return log

    @contextmanager
    def client(self, component: str) -> Iterator[Client]:
        """A client of a service, through a port-forward, with the token of people."""
        secret = f"{RELEASE}-trimtab-token-client"
        template = "--output=go-template={{.data.token | base64decode}}"
        self.token_file.write_text(self.place.kubectl("get", "secret", secret, template))
        with _forwarded(self.place, f"service/{RELEASE}-trimtab-{component}", 50051) as address:
            with Client(address, token=Token(file=self.token_file), timeout_s=30) as client:
                wait_for(lambda: _answers(client), f"an answer of {component}")
                yield client


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is Ready."""
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def trimtab(*arguments: str) -> None:
    """The command `trimtab`, which must end well."""
    command = [sys.executable, "-m", "trimtab", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def _name(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def _restarts(pod: Mapping[str, Any]) -> int:
    return sum(int(one["restartCount"]) for one in pod["status"].get("containerStatuses", []))


def _answers(client: Client) -> bool:
    try:
        client.info()
    except TrimtabError:
        return False
    return True


@contextmanager
def _forwarded(place: Place, target: str, port: int) -> Iterator[str]:
    """An address on this machine that leads to a port of a Service or a pod."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        local = free.getsockname()[1]
    where = [f"--kubeconfig={place.kubeconfig}", f"--namespace={place.namespace}"]
    command = [str(KUBECTL), *where, "port-forward", target, f"{local}:{port}"]
    forward = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{local}"
    finally:
        forward.terminate()
        forward.wait()
