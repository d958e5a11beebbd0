"""Releases of the chart in namespaces of a real cluster."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import helm_python
import pytest

from clusters import KUBECTL, cluster_with_image

CHART = Path(__file__).parents[1] / "helm" / "trimtab"
REGISTRY, _, NAME = os.environ.get("TRIMTAB_TEST_IMAGE", "localhost/trimtab:dev").rpartition("/")
VALUES = {"image": {"registry": REGISTRY, "repository": NAME.partition(":")[0], "tag": NAME.partition(":")[2]}}
"""Of the image that is tested."""

READY_S = 240


@dataclass(frozen=True)
class Place:
    """A namespace of a cluster."""

    kubeconfig: Path
    namespace: str

    def kubectl(self, *arguments: str) -> str:
        command = [KUBECTL, f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    def helm(self) -> helm_python.Config:
        return helm_python.Config(kubeconfig_path=self.kubeconfig, namespace=self.namespace)


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    with cluster_with_image() as path:
        yield path


@contextmanager
def new_place(kubeconfig: Path, prefix: str) -> Iterator[Place]:
    """A namespace that enforces Pod Security `restricted`, for as long as it is needed."""
    place = Place(kubeconfig, f"{prefix}-{uuid.uuid4().hex[:8]}")
    place.kubectl("create", "namespace", place.namespace)
    place.kubectl("label", "namespace", place.namespace, "pod-security.kubernetes.io/enforce=restricted")
    try:
        yield place
    finally:
        place.kubectl("delete", "namespace", place.namespace, "--wait=false")


@pytest.fixture
def place(kubeconfig: Path) -> Iterator[Place]:
    with new_place(kubeconfig, "release") as place:
        yield place


def secrets(place: Place) -> str:
    """What the Secrets of the release hold."""
    return place.kubectl("get", "secrets", "--field-selector=type=Opaque", "--output=jsonpath={.items[*].data}")


def pods(place: Place) -> dict[str, str]:
    """uid of the newest pod of each service."""
    path = r"{range .items[*]}{.metadata.labels.app\.kubernetes\.io/component}={.metadata.uid}{'\n'}{end}"
    listed = place.kubectl("get", "pods", "--sort-by=.metadata.creationTimestamp", f"--output=jsonpath={path}")
    found = dict(line.split("=", 1) for line in listed.splitlines())
    return {name: found[name] for name in ("weights", "generation", "reward", "reference", "trainer")}
