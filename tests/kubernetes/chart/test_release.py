"""A release in a cluster whose namespace enforces Pod Security `restricted`: every pod Ready, then a run through all
stages in pods, in plaintext and by mTLS."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import pytest

from certificate_files import make_pair
from clusters import KUBECTL, throw_away_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHART = Path(__file__).parents[3] / "helm" / "trimtab"
REGISTRY, _, NAME = os.environ.get("TRIMTAB_TEST_IMAGE", "localhost/trimtab:dev").rpartition("/")
VALUES = {"image": {"registry": REGISTRY, "repository": NAME.partition(":")[0], "tag": NAME.partition(":")[2]}}
READY_S, RUN_S = 240, 600


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


@pytest.fixture(scope="module")
def kubeconfig() -> Iterator[Path]:
    with throw_away_cluster() as path:
        yield path


@pytest.fixture
def place(kubeconfig: Path) -> Iterator[Place]:
    place = Place(kubeconfig, f"release-{uuid.uuid4().hex[:8]}")
    place.kubectl("create", "namespace", place.namespace)
    place.kubectl("label", "namespace", place.namespace, "pod-security.kubernetes.io/enforce=restricted")
    try:
        yield place
    finally:
        place.kubectl("delete", "namespace", place.namespace, "--wait=false")


def plaintext(place: Place, folder: Path) -> dict[str, Any]:
    """The chart's own values."""
    return {}


def mutual_tls(place: Place, folder: Path) -> dict[str, Any]:
    """One certificate for every service, which is also that of their clients and its own root."""
    pair = make_pair(folder, "release", host=f"*.{place.namespace}.svc")
    files = (f"--from-file=tls.crt={pair.certificate}", f"--from-file=ca.crt={pair.certificate}")
    place.kubectl("create", "secret", "generic", "certificates", *files, f"--from-file=tls.key={pair.key}")
    return {"tls": {"enabled": True, "existingSecret": "certificates", "clientCertificates": True}}


@pytest.mark.parametrize("values_of", [plaintext, mutual_tls])
def test_every_pod_gets_ready_and_a_run_goes_through(values_of: Any, place: Place, tmp_path: Path) -> None:
    helm = place.helm()
    helm.install(CHART, "rl", {**VALUES, **values_of(place, tmp_path)}, wait="watcher", timeout=READY_S)
    services = place.kubectl("get", "deployments", "--output=jsonpath={.items[*].status.readyReplicas}")
    assert services == "1 1 1 1 1"
    helm.test("rl", timeout=RUN_S)  # raises where the test's pod fails
    assert "run SUCCEEDED" in place.kubectl("logs", "--selector=app.kubernetes.io/component=test").splitlines()


def test_an_upgrade_restarts_what_has_changed_and_nothing_else(place: Place) -> None:
    helm = place.helm()
    helm.install(CHART, "rl", VALUES, wait="watcher", timeout=READY_S)
    before, tokens = pods(place), secrets(place)
    helm.upgrade(CHART, "rl", {**VALUES, "reward": {"config": {"threads": 2}}}, wait="watcher", timeout=READY_S)
    after = pods(place)
    assert {name for name in before if before[name] != after[name]} == {"reward"}
    assert secrets(place) == tokens
    helm.rollback("rl", wait="watcher", timeout=READY_S)
    last = pods(place)
    assert {name for name in after if after[name] != last[name]} == {"reward"}
    helm.uninstall("rl", timeout=READY_S)
    claims = place.kubectl("get", "persistentvolumeclaims", "--output=name").split()
    assert {"persistentvolumeclaim/rl-trimtab-weights", "persistentvolumeclaim/rl-trimtab-trainer"} <= set(claims)


def secrets(place: Place) -> str:
    """What the Secrets of the release hold."""
    return place.kubectl("get", "secrets", "--field-selector=type=Opaque", "--output=jsonpath={.items[*].data}")


def pods(place: Place) -> dict[str, str]:
    """uid of the newest pod of each service."""
    path = r"{range .items[*]}{.metadata.labels.app\.kubernetes\.io/component}={.metadata.uid}{'\n'}{end}"
    listed = place.kubectl("get", "pods", "--sort-by=.metadata.creationTimestamp", f"--output=jsonpath={path}")
    found = dict(line.split("=", 1) for line in listed.splitlines())
    return {name: found[name] for name in ("weights", "generation", "reward", "reference", "trainer")}
