"""Labeling: where its labels are kept, who may write there, who may reach it, and when its sessions need HTTPS."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import sqlalchemy
import yaml

from helm.rendering import Manifests, files_of, render, values_of

NAME = "rl-trimtab-labeling"
POSTGRESQL = {"kind": "postgresql", "postgresql": {"existingSecret": "labels", "key": "uri"}}
FROM = {"from": [{"namespaceSelector": {}}]}


def labeling(**values: Any) -> Manifests:
    return render({"labeling": {"enabled": True, **values}})


def pod(manifests: Manifests) -> dict[str, Any]:
    return manifests["Deployment", NAME]["spec"]["template"]["spec"]


def config(manifests: Manifests) -> dict[str, Any]:
    return yaml.safe_load(manifests["ConfigMap", NAME]["data"]["labeling.yaml"])


def test_by_default_there_is_none_of_it() -> None:
    manifests = render({})
    assert not [key for key in manifests if "labeling" in key[1]]
    assert "labeling.yaml" not in manifests["Secret", "rl-trimtab-tokens"]["data"]


def test_turning_it_on_restarts_the_trainer_alone_which_tells_runs_of_it() -> None:
    before, after = render({}).of("Deployment"), labeling().of("Deployment")
    changed = [name for name, one in before.items() if after[name]["spec"]["template"] != one["spec"]["template"]]
    assert changed == ["rl-trimtab-trainer"]
    old, new = (one["rl-trimtab-trainer"]["spec"]["template"]["metadata"].pop("annotations") for one in (before, after))
    assert before["rl-trimtab-trainer"]["spec"]["template"] == after["rl-trimtab-trainer"]["spec"]["template"]
    assert {key for key in old if old[key] != new[key]} == {"checksum/run-template"}


def test_sqlite_is_a_file_on_a_claim_that_outlives_the_release_and_has_one_writer() -> None:
    manifests = labeling()
    spec = manifests["Deployment", NAME]["spec"]
    assert "replicas" not in spec and spec["strategy"] == {"type": "Recreate"}
    (mount,) = [one for one in pod(manifests)["containers"][0]["volumeMounts"] if one["name"] == "data"]
    file = sqlalchemy.make_url(config(manifests)["database"]).database
    assert file is not None and file.rpartition("/")[0] == mount["mountPath"]
    (volume,) = [one for one in pod(manifests)["volumes"] if one["name"] == "data"]
    claim = manifests["PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_a_claim_that_is_there_is_taken_and_none_is_made() -> None:
    manifests = labeling(persistence={"existingClaim": "labels"})
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "labels"}} in pod(manifests)["volumes"]
    assert NAME not in manifests.of("PersistentVolumeClaim")


def test_postgresql_is_told_by_its_secret_alone() -> None:
    manifests = labeling(database=POSTGRESQL, replicas=3)
    spec = manifests["Deployment", NAME]["spec"]
    assert spec["replicas"] == 3 and spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    (variable,) = [v for v in pod(manifests)["containers"][0]["env"] if v["name"] == "TRIMTAB_LABELING__DATABASE"]
    assert variable == {"name": variable["name"], "valueFrom": {"secretKeyRef": {"name": "labels", "key": "uri"}}}
    assert "database" not in config(manifests)
    assert {"name": "data", "emptyDir": {}} in pod(manifests)["volumes"]
    assert NAME not in manifests.of("PersistentVolumeClaim")


def test_postgresql_can_be_scaled_by_figures() -> None:
    metrics = [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]
    manifests = labeling(database=POSTGRESQL, autoscaling={"kind": "hpa", "hpa": {"metrics": metrics}})
    assert manifests.only("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == NAME
    assert "replicas" not in manifests["Deployment", NAME]["spec"]


def test_only_runs_clients_by_label_and_peers_of_ones_own_may_connect() -> None:
    """Of the release only runs call it, for their datasets, and it calls nothing of the release."""
    manifests = labeling(networkPolicy=FROM)
    calls, metrics = manifests["NetworkPolicy", NAME]["spec"]["ingress"]
    client = {"podSelector": {"matchLabels": {"trimtab.dev/client-of": "rl"}}}
    run = {
        "app.kubernetes.io/name": "trimtab",
        "app.kubernetes.io/instance": "rl",
        "app.kubernetes.io/component": "run",
    }
    assert calls["from"] == [{"podSelector": {"matchLabels": run}}, client, *FROM["from"]]
    assert [one["port"] for one in calls["ports"]] == [50051, 8080]
    assert [one["port"] for one in metrics["ports"]] == [9090]
    for name, policy in manifests.of("NetworkPolicy").items():
        if name != NAME:
            assert '"app.kubernetes.io/component": "labeling"' not in json.dumps(policy["spec"]), name
    assert not pod(manifests)["automountServiceAccountToken"]


def test_the_clients_token_alone_may_label_and_that_of_runs_reads() -> None:
    data = labeling().of("Secret")["rl-trimtab-tokens"]["data"]
    table = yaml.safe_load(base64.b64decode(data["labeling.yaml"]))
    scopes = {one["name"]: one["scopes"] for one in table.values()}
    assert scopes == {"client": ["label"], "run": ["label.read"]}


@pytest.mark.parametrize(
    ("values", "secure"),
    [
        ({}, False),
        ({"ingress": {"enabled": True, "hostname": "a"}}, False),
        ({"ingress": {"enabled": True, "hostname": "a", "tlsSecret": "b"}}, True),
        ({"ingress": {"enabled": False, "hostname": "a", "tlsSecret": "b"}}, False),
        ({"gateway": {"enabled": True, "parentRefs": [{"name": "g"}], "httpHostname": "a"}}, True),
        ({"gateway": {"enabled": True, "parentRefs": [{"name": "g"}], "httpHostname": "a", "tls": False}}, False),
        ({"config": {"secure_cookies": True}}, True),
    ],
)
def test_sessions_need_https_where_tls_ends_in_front(values: dict[str, Any], secure: bool) -> None:
    assert config(labeling(networkPolicy=FROM, **values))["secure_cookies"] is secure


@pytest.mark.parametrize(
    ("values", "page"),
    [
        ({"labeling": {"enabled": True}}, "http://localhost:8080/labeling/"),
        (values_of("labeling"), "https://labels.example.com/labeling/"),
        (values_of("labeling-postgresql"), "https://labels.example.com/labeling/"),
    ],
)
def test_notes_tell_the_page_and_the_first_admin(values: dict[str, Any], page: str) -> None:
    (notes,) = (text for path, text in files_of(values).items() if path.endswith("NOTES.txt"))
    assert f"The page for people is {page}\n" in notes
    assert "trimtab labeling accounts add NAME --role admin --target localhost:50054 --token-file client.token" in notes
    assert (" --ca-file ca.crt\n" in notes) == values.get("tls", {}).get("enabled", False)


def test_the_page_alone_is_a_release_of_its_own() -> None:
    services = ("weights", "generation", "reward", "reference", "trainer")
    off = {**{name: {"enabled": False} for name in services}, "models": {"bootstrap": {"enabled": False}}}
    values = {**off, "labeling": {"enabled": True}}
    assert list(render(values).of("Deployment")) == [NAME]
    (notes,) = (text for path, text in files_of(values).items() if path.endswith("NOTES.txt"))
    assert "trimtab runs" not in notes and "helm test" not in notes and "client.token" in notes
