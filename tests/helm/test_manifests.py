"""Every values file through the real engine: lint, package, schemas of several Kubernetes versions."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from helm.rendering import CHART, VALUES_FILES, Manifests, files_of, render, run_template, values_of

KUBE_VERSIONS = ("v1.30.0", "v1.34.0", "v1.37.0")
CUSTOM = {
    "ScaledObject",
    "ServiceMonitor",
    "PrometheusRule",
    "Certificate",
    "GRPCRoute",
    "HTTPRoute",
}  # the API server checks these in test_server_side.py
NEWER = {"device-claims": "1.34"}
"""Values files that use what came after the chart's own first version, and the version that it came with."""


def test_there_are_values_files_for_every_way_to_install() -> None:
    assert len(VALUES_FILES) >= 10
    assert all((CHART / "ci" / f"{name}.yaml").read_text().startswith("# ") for name in VALUES_FILES)


@pytest.mark.parametrize("name", VALUES_FILES)
def test_lint_is_strict(name: str) -> None:
    found = helm_python.lint(CHART, values_of(name), strict=True, kube_version="v1.34.0")
    assert [one for one in found.get("messages", found.get("Messages", [])) if one.get("severity", 0) >= 2] == [], found


@pytest.mark.parametrize("version", KUBE_VERSIONS)
def test_schemas_of_three_versions(version: str) -> None:
    minor, different = version[1:5], dict[str, Any]()  # most objects of one values file are those of another
    for name in VALUES_FILES:
        if float(minor) < float(NEWER.get(name, minor)):
            continue
        manifests = render(name, kube_version=version)
        for one in (*manifests.values(), *run_template(manifests).values()):
            different.setdefault(json.dumps(one, sort_keys=True), one)
    for one in different.values():
        if one["kind"] in CUSTOM:
            with pytest.raises(kubernetes_validate.SchemaNotFoundError):
                kubernetes_validate.validate(one, minor, strict=True)
        else:
            kubernetes_validate.validate(one, minor, strict=True)


def test_the_chart_says_which_kubernetes_it_needs() -> None:
    """preStop.sleep: on by default from 1.30 on."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == ">=1.30.0-0"


def test_package_has_everything_but_the_tests_inputs(tmp_path: Path) -> None:
    with tarfile.open(helm_python.package(CHART, destination=tmp_path)) as archive:
        names = archive.getnames()
    assert {"trimtab/values.schema.json", "trimtab/files/dashboard.json", "trimtab/README.md"} <= set(names)
    assert not [name for name in names if "/ci/" in name]


def test_notes_tell_the_next_three_commands() -> None:
    (notes,) = (text for path, text in files_of({}).items() if path.endswith("NOTES.txt"))
    for command in ("kubectl --namespace prod wait", "helm test rl", "trimtab runs start"):
        assert command in notes
    assert "labeling" not in notes


@pytest.mark.parametrize(
    ("values_file", "kind", "count"),
    [
        ("keda", "ScaledObject", 2),
        ("hpa", "HorizontalPodAutoscaler", 2),
        ("gateway", "GRPCRoute", 1),
        ("gateway", "HTTPRoute", 1),
        ("ingress", "Ingress", 1),
        ("cert-manager", "Certificate", 1),
        ("monitoring", "ServiceMonitor", 5),
        ("monitoring", "PrometheusRule", 1),
        ("default", "NetworkPolicy", 8),
        ("labeling", "NetworkPolicy", 9),
        ("labeling", "ServiceMonitor", 6),
        ("labeling", "PersistentVolumeClaim", 3),
        ("labeling", "Ingress", 1),
        ("labeling-postgresql", "PersistentVolumeClaim", 2),
        ("labeling-postgresql", "HTTPRoute", 1),
        ("labeling-postgresql", "GRPCRoute", 0),
        ("labeling-postgresql", "HorizontalPodAutoscaler", 1),
        ("minimal", "Deployment", 1),
        ("s3", "PersistentVolumeClaim", 1),
        ("shared-runs", "PersistentVolumeClaim", 0),
        ("airgapped", "Secret", 0),
    ],
)
def test_what_a_values_file_is_there_for(values_file: str, kind: str, count: int) -> None:
    assert len(render(values_file).of(kind)) == count


def test_an_image_by_digest_from_a_private_registry() -> None:
    manifests: Manifests = render("airgapped")
    images = {
        c["image"] for one in manifests.of("Deployment").values() for c in one["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"registry.internal:5000/rlhf/trimtab@sha256:" + 64 * "0"}
    assert {c["image"] for c in render("default").only("Pod")["spec"]["containers"]} == {"trimtab:0.1.0"}


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"pullPolicy": "Always"}},
        {"global": {"imagePullSecrets": ["a"]}},
        {"tls": {"enabled": True, "existingSecret": "a"}},
        {"common": {"podLabels": {"a": "b"}}},
    ],
    ids=["pull policy", "pull secret", "TLS", "label"],
)
def test_another_pod_of_the_bootstrap_has_another_name(values: dict[str, Any]) -> None:
    """A Job's template cannot be changed: an upgrade would be refused."""
    (before,), (after,) = (
        [one for name, one in render(given).of("Job").items() if "bootstrap" in name] for given in ({}, values)
    )
    assert before["spec"]["template"] != after["spec"]["template"]
    assert before["metadata"]["name"] != after["metadata"]["name"]


def test_a_number_of_replicas_that_nobody_set_stays_with_who_scales_by_hand() -> None:
    assert "replicas" not in render({}).of("Deployment")["rl-trimtab-generation"]["spec"]
    assert render({"generation": {"replicas": 2}}).of("Deployment")["rl-trimtab-generation"]["spec"]["replicas"] == 2


def test_keda_asks_the_trainer_service() -> None:
    spec = render("keda").of("ScaledObject")["rl-trimtab-generation"]["spec"]
    assert spec["minReplicaCount"] == 0
    assert spec["triggers"] == [
        {
            "type": "external-push",
            "metadata": {"scalerAddress": "rl-trimtab-trainer.prod.svc:50061", "targetQueuedRollouts": "64"},
        }
    ]
