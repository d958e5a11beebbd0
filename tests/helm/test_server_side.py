"""Every object of every values file, custom resources too, by the API server itself: a dry run with strict fields."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from clusters import KUBECTL
from helm.rendering import VALUES_FILES, render, run_template


@pytest.mark.timeout(300)
def test_the_api_server_takes_every_object(kubeconfig: Path, namespace: str) -> None:
    """Also what Pod Security `restricted` says to pods: a warning is an error here."""
    objects = []
    for name in VALUES_FILES:
        manifests = render(name, namespace=namespace)
        made_from = [
            one | {"metadata": one["metadata"] | {"namespace": namespace}} for one in run_template(manifests).values()
        ]
        objects += [*manifests.values(), *made_from]
    finished = apply(kubeconfig, objects)
    assert finished.returncode == 0, finished.stderr[-5000:]
    assert len(finished.stdout.splitlines()) == len(objects)


def test_the_dry_run_finds_what_is_wrong(kubeconfig: Path, namespace: str) -> None:
    """A misspelt key of a custom resource, which no schema of Kubernetes itself knows."""
    scaled = render("keda", namespace=namespace).of("ScaledObject")["rl-trimtab-generation"]
    scaled["spec"]["maxReplicas"] = 3
    finished = apply(kubeconfig, [scaled])
    assert finished.returncode != 0 and 'unknown field "spec.maxReplicas"' in finished.stderr


def apply(kubeconfig: Path, objects: list[dict]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            KUBECTL,
            f"--kubeconfig={kubeconfig}",
            "apply",
            "--dry-run=server",
            "--validate=strict",
            "--warnings-as-errors",
            "-f-",
        ],
        input=yaml.safe_dump_all(objects),
        capture_output=True,
        text=True,
        timeout=240,
    )
