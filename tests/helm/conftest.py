"""A throw-away cluster for what only an API server can tell."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

_CLUSTER = Path(__file__).parents[3] / "shared" / "kube" / "cluster"
KUBECTL = Path(sys.executable).parent / "kubectl"


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """kubeconfig of `TRIMTAB_TEST_KUBECONFIG`, or of a cluster that is started for the tests unless it runs already."""
    if given := os.environ.get("TRIMTAB_TEST_KUBECONFIG"):
        yield Path(given)
        return
    if not _CLUSTER.exists():
        pytest.skip("no cluster: neither TRIMTAB_TEST_KUBECONFIG nor ../shared/kube is there")
    ran_before = "'Ready': 'True'" in _cluster("status", check=False)
    try:
        exported = _cluster("up", "--keda")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no cluster: {_CLUSTER.name} up did not start one: {error}")
    path = next(line.partition("=")[2] for line in exported.splitlines() if "KUBECONFIG=" in line)
    try:
        yield Path(path.strip("'\";"))
    finally:
        if not ran_before:
            _cluster("down")


@pytest.fixture
def namespace(kubeconfig: Path) -> Iterator[str]:
    """A namespace of its own that warns of whatever Pod Security `restricted` would refuse."""
    name = f"chart-{uuid.uuid4().hex[:8]}"
    kubectl = [str(KUBECTL), f"--kubeconfig={kubeconfig}", "--request-timeout=60s"]
    subprocess.run([*kubectl, "create", "namespace", name], check=True, capture_output=True, timeout=90)
    label = "pod-security.kubernetes.io/warn=restricted"
    try:
        subprocess.run([*kubectl, "label", "namespace", name, label], check=True, capture_output=True, timeout=90)
        yield name
    finally:
        subprocess.run([*kubectl, "delete", "namespace", name, "--wait=false"], capture_output=True, timeout=90)


def _cluster(*arguments: str, check: bool = True) -> str:
    return subprocess.run([_CLUSTER, *arguments], check=check, capture_output=True, text=True, timeout=170).stdout
