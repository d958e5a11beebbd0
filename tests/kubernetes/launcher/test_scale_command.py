"""`trimtab scale --release`: by the caller's own kubeconfig, and never against an autoscaler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from launching import IMAGE, Namespace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Scale = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def scale(namespace: Namespace, admin_kubeconfig: str) -> Scale:
    def run(*arguments: str, release: str = "r", kubeconfig: str = admin_kubeconfig) -> Any:
        where = ["--release", release, "--namespace", namespace.name, "--kubeconfig", kubeconfig]
        command = [sys.executable, "-m", "trimtab", "scale", *arguments, *where]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(scope="module")
def replicas(namespace: Namespace) -> Callable[[str], int]:
    """Deployments of two releases, as the chart labels them, with no pods wanted."""
    from kubernetes import client

    apps = client.AppsV1Api(namespace.admin)
    for release in ("r", "other"):
        labels = {f"app.kubernetes.io/{key}": value for key, value in (("name", "trimtab"), ("instance", release))}
        labels["app.kubernetes.io/component"] = "generation"
        spec = {
            "replicas": 0,
            "paused": True,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "x", "image": IMAGE}]}},
        }
        body = {"metadata": {"name": f"{release}-generation", "labels": labels}, "spec": spec}
        apps.create_namespaced_deployment(namespace.name, body)
    return lambda release: (
        apps.read_namespaced_deployment_scale(f"{release}-generation", namespace.name).spec.replicas or 0
    )


def test_it_sets_the_number_of_this_release_alone(scale: Scale, replicas: Callable[[str], int]) -> None:
    done = scale("generation=2", "--json")
    assert (done.returncode, done.stdout) == (0, '{"generation": 2}\n'), done.stderr
    assert (replicas("r"), replicas("other")) == (2, 0)
    assert scale("generation=0").stdout == "generation: 0 wanted\n" and replicas("r") == 0


def test_what_cannot_be_scaled(scale: Scale, replicas: Callable[[str], int], namespace: Namespace) -> None:
    assert "has no Deployment of reward of release 'r'" in scale("reward=2").stderr
    assert "has no Deployment of generation of release 'absent'" in scale("generation=2", release="absent").stderr
    assert "'weights' cannot be scaled; generation, reward, reference can" in scale("weights=2").stderr
    assert "kubeconfig: " in scale("generation=2", kubeconfig="/absent").stderr
    denied = scale("generation=2", kubeconfig=str(namespace.kubeconfig))
    assert denied.returncode != 0 and "403" in denied.stderr and 'cannot list resource "deployments"' in denied.stderr
    assert replicas("r") == 0


def test_an_autoscaler_is_not_fought(scale: Scale, replicas: Callable[[str], int], namespace: Namespace) -> None:
    from kubernetes import client

    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "r-generation"}
    spec = {"scaleTargetRef": target, "maxReplicas": 3}
    client.AutoscalingV2Api(namespace.admin).create_namespaced_horizontal_pod_autoscaler(
        namespace.name, {"metadata": {"name": "by-load"}, "spec": spec}
    )
    refused = scale("generation=2")
    assert refused.returncode != 0 and replicas("r") == 0
    assert "generation: HorizontalPodAutoscaler by-load sets the number of replicas" in refused.stderr
    assert scale("generation=1", release="other").returncode == 0 and replicas("other") == 1
