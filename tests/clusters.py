"""A throw-away Kubernetes cluster for tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from building import built_image, missing

__all__ = ["KUBECTL", "cluster_with_image", "throw_away_cluster"]

KUBECTL = Path(sys.executable).parent / "kubectl"
_CLUSTER = Path(__file__).parents[2] / "shared" / "kube" / "cluster"


@contextmanager
def throw_away_cluster() -> Iterator[Path]:
    """kubeconfig of `TRIMTAB_TEST_KUBECONFIG`, or of a cluster that is started for the tests unless it runs already.

    Without any the test is skipped, but not where TRIMTAB_TEST_NEEDS_CLUSTER is set, as `make test-kubernetes` does.
    """
    if given := os.environ.get("TRIMTAB_TEST_KUBECONFIG"):
        yield Path(given)
        return
    if not _CLUSTER.exists():
        missing("no cluster: neither TRIMTAB_TEST_KUBECONFIG nor ../shared/kube is there")
    ran_before = "'Ready': 'True'" in _cluster("status", check=False)
    try:
        told = _cluster("up", "--keda")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        missing(f"no cluster: {_CLUSTER.name} up did not start one: {error}")
    found = re.search(r"KUBECONFIG=['\"]?([^\s'\";]+)", told)
    assert found, told
    try:
        yield Path(found[1])
    finally:
        if not ran_before:
            _cluster("down")


@contextmanager
def cluster_with_image() -> Iterator[Path]:
    """As `throw_away_cluster`; one that was started for the tests has the image of this tree on its node.

    A cluster of `TRIMTAB_TEST_KUBECONFIG`, and every cluster where `TRIMTAB_TEST_IMAGE` names an image, has it already.
    """
    with throw_away_cluster() as kubeconfig:
        if not os.environ.get("TRIMTAB_TEST_KUBECONFIG") and not os.environ.get("TRIMTAB_TEST_IMAGE"):
            _cluster("load", built_image())
        yield kubeconfig


def _cluster(*arguments: str, check: bool = True) -> str:
    return subprocess.run([_CLUSTER, *arguments], check=check, capture_output=True, text=True, timeout=600).stdout
