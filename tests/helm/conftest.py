"""The throw-away cluster for what only an API server can tell."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters import KUBECTL, throw_away_cluster


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """Of the cluster."""
    with throw_away_cluster() as path:
        yield path


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
