"""Replicas that come and go behind a real Service: when EndpointSlices tell of them and when DNS does, in a pod."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import kubernetes
import pytest

from helm.rendering import render
from launching import IMAGE, Namespace, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WATCHER = """
import json, sys, time
from trimtab.endpoint_slices import EndpointSliceResolver
from trimtab.resolver import DNSResolver

namespace, service = sys.argv[1:]
both = {
    "slices": EndpointSliceResolver.of(f"{namespace}/{service}:grpc"),
    "dns": DNSResolver.of(f"{service}.{namespace}.svc:50051"),
}
known = {name: None for name in both}
while True:
    for name, resolver in both.items():
        found = resolver.addresses()
        if found != known[name]:
            known[name] = found
            told = {"by": name, "at": time.time(), "addresses": found, "problem": resolver.problem}
            print(json.dumps(told), flush=True)
    time.sleep(0.05)
"""
SERVER = "import socket, time; s = socket.create_server(('', 50051)); time.sleep(600)"


def container(name: str, script: str, *arguments: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", script, *arguments],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
    }


@pytest.fixture(scope="module")
def account(namespace: Namespace) -> str:
    """The chart's ServiceAccount of runs, with the rights that the chart gives it."""
    manifests = render({"trainer": {"run": {"discovery": "endpointSlices"}}}, namespace=namespace.name)
    name = "rl-trimtab-run"
    namespace.core.create_namespaced_service_account(namespace.name, manifests["ServiceAccount", name])
    namespace.rbac.create_namespaced_role(namespace.name, manifests["Role", name])
    namespace.rbac.create_namespaced_role_binding(namespace.name, manifests["RoleBinding", name])
    return name


@pytest.fixture
def servers(namespace: Namespace) -> Iterator[Any]:
    """Sets the number of pods behind the headless Service `servers`."""
    apps = kubernetes.client.AppsV1Api(namespace.admin)
    labels = {"app": "servers"}
    one = {**container("server", SERVER), "ports": [{"name": "grpc", "containerPort": 50051}]}
    one["readinessProbe"] = {"tcpSocket": {"port": "grpc"}, "periodSeconds": 1}
    # Time in which a pod that is being ended still answers.
    one["lifecycle"] = {"preStop": {"sleep": {"seconds": 8}}}
    pod = {"containers": [one], "terminationGracePeriodSeconds": 10}
    spec = {
        "replicas": 0,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    apps.create_namespaced_deployment(namespace.name, {"metadata": {"name": "servers"}, "spec": spec})
    ports = [{"name": "grpc", "port": 50051, "targetPort": "grpc"}]
    service = {"clusterIP": "None", "selector": labels, "ports": ports}
    namespace.core.create_namespaced_service(namespace.name, {"metadata": {"name": "servers"}, "spec": service})
    yield lambda count: apps.patch_namespaced_deployment_scale("servers", namespace.name, {"spec": {"replicas": count}})
    apps.delete_namespaced_deployment("servers", namespace.name)
    namespace.core.delete_namespaced_service("servers", namespace.name)


def watch(namespace: Namespace, account: str) -> None:
    spec = {
        "serviceAccountName": account,
        "automountServiceAccountToken": True,
        "terminationGracePeriodSeconds": 0,
        "containers": [container("watcher", WATCHER, namespace.name, "servers")],
    }
    namespace.core.create_namespaced_pod(namespace.name, {"metadata": {"name": "watcher"}, "spec": spec})
    wait_for(lambda: len({one["by"] for one in told(namespace)}) == 2, "a first answer of both")


def told(namespace: Namespace) -> list[dict[str, Any]]:
    """What the watcher has said so far."""
    try:
        log = namespace.core.read_namespaced_pod_log("watcher", namespace.name)
    except kubernetes.client.ApiException:  # it has not begun
        return []
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def known_at(namespace: Namespace, count: int) -> dict[str, float]:
    """When each resolver first knew just so many addresses, of what it said last; waits until both do."""

    def find() -> dict[str, float]:
        found = {}
        for name in ("slices", "dns"):
            said = [one for one in told(namespace) if one["by"] == name]
            if said and len(said[-1]["addresses"]) == count:
                found[name] = said[-1]["at"]
        return found if len(found) == 2 else {}

    found: dict[str, float] = wait_for(find, f"{count} addresses: {told(namespace)}")
    return found


def pods(namespace: Namespace) -> list[Any]:
    found: list[Any] = namespace.core.list_namespaced_pod(namespace.name, label_selector="app=servers").items
    return found


def ready_at(namespace: Namespace) -> float:
    """When the last pod got ready, by kubelet's clock, which is this machine's; in whole seconds."""
    times: list[datetime] = [
        condition.last_transition_time
        for pod in pods(namespace)
        for condition in pod.status.conditions
        if condition.type == "Ready" and condition.status == "True"
    ]
    return max(times).timestamp()


def test_replicas_come_and_go(
    namespace: Namespace, account: str, servers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    servers(1)
    watch(namespace, account)
    known_at(namespace, 1)
    servers(3)
    came = known_at(namespace, 3)
    ready = ready_at(namespace)
    last = [one for one in told(namespace) if one["by"] == "slices"][-1]
    assert last["addresses"] == sorted(f"{pod.status.pod_ip}:50051" for pod in pods(namespace))
    assert last["problem"] == "" and came["slices"] - ready < 2.5  # `ready` is up to a second too early
    servers(1)
    went = known_at(namespace, 1)
    assert [pod for pod in pods(namespace) if pod.metadata.deletion_timestamp], "known only after the pods were gone"
    with capsys.disabled():
        print(
            f"\nfrom Ready to known: slices {came['slices'] - ready:.2f} s, DNS {came['dns'] - ready:.2f} s; "
            f"going known by slices {went['dns'] - went['slices']:.2f} s before DNS"
        )
    assert came["slices"] <= came["dns"] and went["slices"] <= went["dns"]
