"""A release in a cluster whose namespace enforces Pod Security `restricted`: every pod Ready, then a run through all
stages in pods, in plaintext and by mTLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from certificate_files import make_pair
from releases import CHART, READY_S, VALUES, Place, pods, secrets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN_S = 600


def plaintext(place: Place, folder: Path) -> dict[str, Any]:
    """The chart's own values."""
    return {}


def mutual_tls(place: Place, folder: Path) -> dict[str, Any]:
    """One certificate for every service, which is also that of their clients and its own root."""
    pair = make_pair(folder, "release", host=f"*.{place.namespace}.svc")
    files = (f"--from-file=tls.crt={pair.certificate}", f"--from-file=ca.crt={pair.certificate}")
    place.kubectl("create", "secret", "generic", "certificates", *files, f"--from-file=tls.key={pair.key}")
    return {"tls": {"enabled": True, "existingSecret": "certificates", "clientCertificates": True}}


def two_ranks(place: Place, folder: Path) -> dict[str, Any]:
    """Runs that train in two pods together."""
    return {"trainer": {"run": {"processes": 2}}}


@pytest.mark.parametrize("values_of", [plaintext, mutual_tls, two_ranks])
def test_every_pod_gets_ready_and_a_run_goes_through(values_of: Any, place: Place, tmp_path: Path) -> None:
    helm = place.helm()
    helm.install(CHART, "rl", {**VALUES, **values_of(place, tmp_path)}, wait="watcher", timeout=READY_S)
    services = place.kubectl("get", "deployments", "--output=jsonpath={.items[*].status.readyReplicas}")
    assert services == "1 1 1 1 1"
    helm.test("rl", timeout=RUN_S)  # raises where the test's pod fails
    assert "run SUCCEEDED" in place.kubectl("logs", "--selector=app.kubernetes.io/component=test").splitlines()


def test_an_upgrade_restarts_what_has_changed_and_another_installation_finds_the_claims(place: Place) -> None:
    helm = place.helm()
    helm.install(CHART, "rl", VALUES, wait="watcher", timeout=READY_S)
    tokens = secrets(place)
    place.kubectl("scale", "deployment/rl-trimtab-generation", "--replicas=2")
    place.kubectl("rollout", "status", "deployment/rl-trimtab-generation", f"--timeout={READY_S}s")
    before = pods(place)
    helm.upgrade(CHART, "rl", {**VALUES, "reward": {"config": {"threads": 2}}}, wait="watcher", timeout=READY_S)
    after = pods(place)
    assert {name for name in before if before[name] != after[name]} == {"reward"}
    assert secrets(place) == tokens
    helm.rollback("rl", wait="watcher", timeout=READY_S)
    last = pods(place)
    assert {name for name in after if after[name] != last[name]} == {"reward"}
    scaled = place.kubectl("get", "deployment", "rl-trimtab-generation", "--output=jsonpath={.status.readyReplicas}")
    assert scaled == "2"
    helm.uninstall("rl", timeout=READY_S)
    claims = place.kubectl("get", "persistentvolumeclaims", "--output=name").split()
    assert {"persistentvolumeclaim/rl-trimtab-weights", "persistentvolumeclaim/rl-trimtab-trainer"} <= set(claims)
    helm.install(CHART, "rl", VALUES, wait="watcher", timeout=READY_S)
    told = place.kubectl("logs", "--selector=app.kubernetes.io/component=bootstrap")
    assert "every channel points to a version; nothing to do" in told.splitlines()
