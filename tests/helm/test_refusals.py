"""Wrong values: a misspelt key by the schema, a wrong combination by one sentence that names the keys."""

from __future__ import annotations

import json
from typing import Any

import helm_python
import pytest

from helm.rendering import CHART, render


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"generation": {"replica": 3}}, "replica"),
        ({"generaton": {"replicas": 3}}, "generaton"),
        ({"weights": {"autoscaling": {"kind": "hpa"}}}, "autoscaling"),
        ({"trainer": {"run": {"persistence": {"accessmodes": []}}}}, "accessmodes"),
        ({"common": {"resources": {"limit": {}}}}, "limit"),
        ({"generation": {"replicas": "3"}}, "/generation/replicas"),
        ({"generation": {"resources": {"limits": {"memory": "12Gx"}}}}, "memory"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"fullnameOverride": "Not_A_Name"}, "fullnameOverride"),
        ({"generation": {"autoscaling": {"kind": "both"}}}, "/generation/autoscaling/kind"),
        ({"trainer": {"run": {"discovery": "consul"}}}, "/trainer/run/discovery"),
        ({"trainer": {"run": {"queueName": "Team A"}}}, "/trainer/run/queueName"),
        ({"labeling": {"database": {"kind": "mysql"}}}, "/labeling/database/kind"),
        ({"labeling": {"database": {"url": "postgresql://a:b@c/d"}}}, "url"),
        ({"labeling": {"gateway": {"grpcHostname": "a"}}}, "grpcHostname"),
        ({"generation": {"config": {"slotz": 8}}}, "slotz"),
        ({"generation": {"config": {"slots": "eight"}}}, "/generation/config/slots"),
        ({"weights": {"config": {"slots": 8}}}, "slots"),
        ({"common": {"config": {"log": {"level": "loud"}}}}, "/common/config/log/level"),
        ({"reward": {"config": {"models": {"a": {"kind": "remote", "uri": "http://a/"}}}}}, "uri"),
        ({"trainer": {"config": {"silence_timeout": 5}}}, "silence_timeout"),
        ({"labeling": {"config": {"lease": 5}}}, "lease"),
    ],
)
def test_the_schema_names_what_is_wrong(values: dict[str, Any], says: str) -> None:
    with pytest.raises(helm_python.HelmValuesError, match=says):
        render(values)


def test_the_schema_is_strict_everywhere() -> None:
    """Objects of the schema allow no unknown keys, but for maps whose keys are the user's."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def check(node: Any, path: str) -> None:
        if isinstance(node, dict):
            if "properties" in node:
                assert node.get("additionalProperties") is False, path
            for key, one in node.items():
                check(one, f"{path}/{key}")
        elif isinstance(node, list):
            for number, one in enumerate(node):
                check(one, f"{path}/{number}")

    check(schema, "")


GPU = {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}}
FROM = {"from": [{"namespaceSelector": {}}]}
HPA = {"kind": "hpa", "hpa": {"metrics": [{"type": "Resource"}]}}
POSTGRESQL = {"kind": "postgresql", "postgresql": {"existingSecret": "labels"}}
SECRETS = {name: {"existingSecret": name} for name in ("run", "replica", "client")}


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"fullnameOverride": 31 * "a"}, ["fullnameOverride"]),
        ({"tls": {"enabled": True}}, ["tls.enabled", "tls.existingSecret", "tls.certManager.enabled"]),
        (
            {
                "tls": {
                    "enabled": True,
                    "existingSecret": "a",
                    "certManager": {"enabled": True, "issuerRef": {"name": "b"}},
                }
            },
            ["tls.existingSecret", "tls.certManager.enabled"],
        ),
        ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, ["tls.certManager.issuerRef.name"]),
        ({"tls": {"clientCertificates": True}}, ["tls.clientCertificates", "tls.enabled"]),
        ({"auth": {"existingSecret": "a"}}, ["auth.existingSecret", "auth.callers.client.existingSecret"]),
        (
            {"auth": {"callers": {"run": {"existingSecret": "a"}}}},
            ["auth.callers.run.existingSecret", "auth.existingSecret"],
        ),
        (
            {"auth": {"enabled": False, "existingSecret": "a", "callers": SECRETS}},
            ["auth.existingSecret", "auth.enabled"],
        ),
        ({"weights": {"replicas": 2}}, ["weights.replicas", "weights.persistence"]),
        ({"weights": {"store": {"kind": "s3"}}}, ["weights.store.kind", "weights.store.s3.url"]),
        ({"weights": {"store": {"s3": {"url": "s3://b/w"}}}}, ["weights.store.kind", "weights.store.s3.url"]),
        ({"trainer": {"replicas": 2}}, ["trainer.replicas", "trainer.persistence"]),
        ({"weights": {"enabled": False}}, ["models.bootstrap.enabled", "weights.enabled"]),
        (
            {"weights": {"enabled": False}, "models": {"bootstrap": {"enabled": False}}},
            ["generation.model.folder", "weights.enabled"],
        ),
        (
            {"reward": {"model": {"s3": {"url": "s3://b/m"}, "folder": "/models/m"}}},
            ["reward.model.s3.url", "reward.model.folder"],
        ),
        (
            {"reward": {"model": {"s3": {"url": "s3://b/m"}, "volume": {"emptyDir": {}}}}},
            ["reward.model.s3.url", "reward.model.volume"],
        ),
        (
            {"generation": {"replicas": 2, "autoscaling": {"kind": "keda"}}},
            ["generation.replicas", "generation.autoscaling.kind"],
        ),
        (
            {"reward": {"autoscaling": {"kind": "keda", "minReplicas": 9, "keda": {"triggers": [{}]}}}},
            ["reward.autoscaling.minReplicas", "reward.autoscaling.maxReplicas"],
        ),
        (
            {"reward": {"autoscaling": {"kind": "hpa", "minReplicas": 0, "hpa": {"metrics": [{}]}}}},
            ["reward.autoscaling.minReplicas", "reward.autoscaling.kind"],
        ),
        ({"reward": {"autoscaling": {"kind": "hpa"}}}, ["reward.autoscaling.hpa.metrics"]),
        ({"reward": {"autoscaling": {"kind": "keda"}}}, ["reward.autoscaling.keda.queue.enabled", "keda.triggers"]),
        (
            {"generation": {"autoscaling": {"kind": "keda"}}, "trainer": {"enabled": False}},
            ["generation.autoscaling.keda.queue.enabled", "trainer.enabled"],
        ),
        (
            {"generation": {"autoscaling": {"kind": "keda"}}, "networkPolicy": {"scalerFrom": []}},
            ["generation.autoscaling.keda.queue.enabled", "networkPolicy.scalerFrom"],
        ),
        ({"generation": {"config": {"device": "cuda"}}}, ["generation.config.device", "generation.resources.limits"]),
        (
            {"generation": {"config": {"device": "cuda"}, "resources": GPU}},
            ["generation.config.device", "image.variant"],
        ),
        (
            {"trainer": {"run": {"resources": GPU, "resourceClaims": [{"name": "gpu"}]}}},
            ["trainer.run.resources.limits", "trainer.run.resourceClaims"],
        ),
        (
            {"generation": {"terminationGracePeriodSeconds": 60}},
            ["generation.terminationGracePeriodSeconds", "preStopSeconds", "drainSeconds", "125"],
        ),
        (
            {"trainer": {"run": {"persistence": {"existingClaim": "runs"}}}},
            ["trainer.run.persistence", "perRun", "existingClaim"],
        ),
        ({"trainer": {"run": {"persistence": {"perRun": False}}}}, ["trainer.run.persistence", "existingClaim"]),
        ({"trainer": {"run": {"resources": GPU}}}, ["trainer.run.resources.limits", "trainer.run.image.variant"]),
        ({"generation": {"config": {"drain_s": 900}}}, ["generation.config.drain_s", "drainSeconds"]),
        ({"weights": {"config": {"health_port": 1}}}, ["weights.config.health_port", "50052"]),
        ({"common": {"serviceAccount": {"name": "a"}}}, ["common.serviceAccount.name"]),
        (
            {"reward": {"podLabels": {"app.kubernetes.io/instance": "a"}}},
            ["reward.podLabels", "app.kubernetes.io/instance"],
        ),
        (
            {"reward": {"enabled": False, "ingress": {"enabled": True, "hostname": "a"}}},
            ["reward.ingress", "reward.enabled"],
        ),
        ({"reward": {"ingress": {"enabled": True}}}, ["reward.ingress.hostname"]),
        (
            {"reward": {"ingress": {"enabled": True, "hostname": "a"}}},
            ["reward.ingress.enabled", "reward.networkPolicy.from"],
        ),
        (
            {"reward": {"networkPolicy": FROM, "gateway": {"enabled": True, "grpcHostname": "a"}}},
            ["reward.gateway.parentRefs"],
        ),
        (
            {"reward": {"networkPolicy": FROM, "gateway": {"enabled": True, "parentRefs": [{"name": "g"}]}}},
            ["reward.gateway.grpcHostname", "reward.gateway.httpHostname"],
        ),
        (
            {
                "reward": {
                    "networkPolicy": FROM,
                    "gateway": {
                        "enabled": True,
                        "parentRefs": [{"name": "g"}],
                        "grpcHostname": "a",
                        "httpHostname": "a",
                    },
                }
            },
            ["reward.gateway.grpcHostname", "reward.gateway.httpHostname"],
        ),
        (
            {"labeling": {"enabled": True, "replicas": 2}},
            ["labeling.replicas is 2", "labeling.database.kind is sqlite"],
        ),
        (
            {"labeling": {"enabled": True, "autoscaling": HPA}},
            ["labeling.autoscaling.kind is hpa", "labeling.database.kind is sqlite"],
        ),
        (
            {"labeling": {"enabled": True, "database": {"kind": "postgresql"}}},
            ["labeling.database.kind", "labeling.database.postgresql.existingSecret"],
        ),
        (
            {"labeling": {"enabled": True, "database": {**POSTGRESQL, "kind": "sqlite"}}},
            ["labeling.database.postgresql.existingSecret", "labeling.database.kind"],
        ),
        (
            {"labeling": {"enabled": True, "config": {"database": "postgresql://a:b@c/d"}}},
            ["labeling.config.database", "labeling.database.postgresql.existingSecret"],
        ),
        (
            {"labeling": {"enabled": True, "database": POSTGRESQL, "replicas": 2, "autoscaling": HPA}},
            ["labeling.replicas", "labeling.autoscaling.kind"],
        ),
        (
            {"labeling": {"ingress": {"enabled": True, "hostname": "a"}}},
            ["labeling.ingress.enabled", "labeling.enabled"],
        ),
        (
            {"labeling": {"enabled": True, "ingress": {"enabled": True, "hostname": "a"}}},
            ["labeling.ingress.enabled", "labeling.networkPolicy.from"],
        ),
        (
            {
                "labeling": {
                    "enabled": True,
                    "networkPolicy": FROM,
                    "gateway": {"enabled": True, "parentRefs": [{"name": "g"}]},
                }
            },
            ["labeling.gateway.enabled", "labeling.gateway.httpHostname"],
        ),
    ],
)
def test_a_wrong_combination_is_one_sentence_that_names_the_keys(values: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render(values)
    message = str(refused.value).rpartition("error calling fail: ")[2]
    assert message and "\n" not in message.strip()
    for key in keys:
        assert key in message
