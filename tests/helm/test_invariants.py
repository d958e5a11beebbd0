"""What schemas miss: references between objects, selectors, names, quantities, times. Over every values file."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes.utils import parse_quantity

from helm.rendering import NAMESPACE, VALUES_FILES, Manifests, pods, render, run_template, values_of

PORTS = {"grpc": 50051, "health": 50052, "http": 8080, "metrics": 9090, "scaler": 50061}


@pytest.fixture(scope="module", params=VALUES_FILES)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """The objects of each values file; nobody changes them."""
    return render(request.param)


def given_names(manifests: Manifests) -> set[str]:
    """All texts of the values files: names of objects that are there before the chart."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for one in value.values():
                yield from texts(one)
        elif isinstance(value, list):
            for one in value:
                yield from texts(one)
        elif isinstance(value, str):
            yield value

    return {text for name in VALUES_FILES for text in texts(values_of(name))}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_names_and_namespaces(manifests: Manifests) -> None:
    for (kind, name), one in manifests.items():
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 63, (kind, name)
        assert one["metadata"]["namespace"] == NAMESPACE, (kind, name)


def test_labels_that_helm_recommends(manifests: Manifests) -> None:
    for key, one in manifests.items():
        labels = one["metadata"]["labels"]
        wanted = {f"app.kubernetes.io/{part}" for part in ("name", "instance", "component")}
        assert wanted <= labels.keys(), key
        assert all(re.fullmatch(r"([A-Za-z0-9]([-\w.]*[A-Za-z0-9])?)?", value) for value in labels.values()), key


def test_selectors_match_their_own_pods(manifests: Manifests) -> None:
    for name, one in manifests.of("Deployment").items():
        selector = one["spec"]["selector"]["matchLabels"]
        assert matches(selector, one["spec"]["template"]["metadata"]["labels"]), name
        assert not any("version" in key or "chart" in key for key in selector), f"{name}: a selector never changes"


def test_a_service_selects_one_component(manifests: Manifests) -> None:
    for name, one in manifests.of("Service").items():
        found = {
            pod for pod, template in pods(manifests) if matches(one["spec"]["selector"], template["metadata"]["labels"])
        }
        assert found == {re.sub("-ranks$", "-run", name).removesuffix("-headless")}


def test_ports_exist(manifests: Manifests) -> None:
    deployments = manifests.of("Deployment")
    for name, one in manifests.of("Service").items():
        if name.endswith("-ranks"):
            assert "ports" not in one["spec"], "a name, and nothing that listens"
            continue
        pod = deployments[name.removesuffix("-headless")]["spec"]["template"]
        offered = {port["name"]: port["containerPort"] for c in containers(pod) for port in c.get("ports", [])}
        for port in one["spec"]["ports"]:
            assert port["port"] == offered[port["targetPort"]] == PORTS[port["name"]]
    for name, one in manifests.of("ServiceMonitor").items():
        ports = {port["name"] for port in manifests.of("Service")[f"{name}-headless"]["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in one["spec"]["endpoints"]} <= ports


def test_probes_ask_the_plaintext_health_port_by_number(manifests: Manifests) -> None:
    for name, one in manifests.of("Deployment").items():
        (container,) = one["spec"]["template"]["spec"]["containers"]
        for probe in ("startup", "liveness", "readiness"):
            assert container[f"{probe}Probe"]["grpc"] == {"port": 50052, "service": probe}, name


def test_everything_referred_to_is_there(manifests: Manifests) -> None:
    given = given_names(manifests)
    made_for_each_run = {name for _, name in run_template(manifests)}

    def check(kind: str, name: str, where: str) -> None:
        known = manifests.of(kind).keys() | given
        if where.endswith("-run") and kind in ("ConfigMap", "PersistentVolumeClaim"):
            known |= made_for_each_run  # the launcher makes them and puts their names there
        elif kind == "Secret":
            known |= {one["spec"]["secretName"] for one in manifests.of("Certificate").values()}
        assert name in known, f"{where}: {kind} {name}"

    for where, pod in pods(manifests):
        spec = pod["spec"]
        if "serviceAccountName" in spec:
            check("ServiceAccount", spec["serviceAccountName"], where)
        mounted = {volume["name"] for volume in spec["volumes"]}
        assert len(mounted) == len(spec["volumes"]), f"{where}: a volume twice"
        for volume in spec["volumes"]:
            if "configMap" in volume:
                check("ConfigMap", volume["configMap"]["name"], where)
            if "secret" in volume:
                secret = volume["secret"]["secretName"]
                check("Secret", secret, where)
                if made := manifests.of("Secret").get(secret):
                    assert {item["key"] for item in volume["secret"].get("items", [])} <= made["data"].keys(), where
            if "persistentVolumeClaim" in volume:
                check("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], where)
        for container in containers(pod):
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(set(paths)) == len(paths), f"{where}: two volumes at one path"
            assert {mount["name"] for mount in container["volumeMounts"]} <= mounted, where
            claims = {claim["name"] for claim in container["resources"].get("claims", [])}
            assert claims == {claim["name"] for claim in spec.get("resourceClaims", [])}, where


def test_quantities(manifests: Manifests) -> None:
    for where, pod in pods(manifests):
        for container in containers(pod):
            asked = container["resources"]
            for quantity in (*asked.get("limits", {}).values(), *asked.get("requests", {}).values()):
                assert parse_quantity(quantity) > 0, where
            for resource, quantity in asked.get("requests", {}).items():
                if resource in asked.get("limits", {}):
                    assert parse_quantity(quantity) <= parse_quantity(asked["limits"][resource]), (where, resource)
    for (_, name), one in {**manifests, **run_template(manifests)}.items():
        if one["kind"] == "PersistentVolumeClaim":
            assert parse_quantity(one["spec"]["resources"]["requests"]["storage"]) > 0, name


def test_pods_live_as_long_as_their_work(manifests: Manifests) -> None:
    for name, one in manifests.of("Deployment").items():
        spec = one["spec"]["template"]["spec"]
        component = one["metadata"]["labels"]["app.kubernetes.io/component"]
        config = yaml.safe_load(manifests[("ConfigMap", name)]["data"][f"{component}.yaml"])
        sleep = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert spec["terminationGracePeriodSeconds"] >= sleep + config["drain_s"] + 5, name


def test_scaling_has_a_target_and_one_owner(manifests: Manifests) -> None:
    deployments = manifests.of("Deployment")
    scaled = [*manifests.of("HorizontalPodAutoscaler").values(), *manifests.of("ScaledObject").values()]
    owned = [one["spec"]["scaleTargetRef"]["name"] for one in scaled]
    assert len(set(owned)) == len(owned)
    for name, one in deployments.items():
        assert not ("replicas" in one["spec"] and name in owned), name
    assert set(owned) <= deployments.keys()


def test_budgets_are_of_pods_that_exist(manifests: Manifests) -> None:
    for name, one in manifests.of("PodDisruptionBudget").items():
        selector = one["spec"]["selector"]["matchLabels"]
        assert [pod for pod, template in pods(manifests) if matches(selector, template["metadata"]["labels"])] == [name]


def test_every_pod_refuses_connections_that_are_not_allowed(manifests: Manifests) -> None:
    policies = manifests.of("NetworkPolicy").values()
    for where, pod in pods(manifests) if policies else ():  # none where the values turn them off
        own = [p for p in policies if matches(p["spec"]["podSelector"]["matchLabels"], pod["metadata"]["labels"])]
        assert len(own) == 1 and own[0]["spec"]["policyTypes"] == ["Ingress"], where
        for rule in own[0]["spec"].get("ingress", []):
            among_ranks = rule["from"] == [{"podSelector": own[0]["spec"]["podSelector"]}]
            assert rule["from"] and (among_ranks or rule["ports"]), f"{where}: an empty list means everybody"


def test_pod_security_restricted(manifests: Manifests) -> None:
    for where, pod in pods(manifests):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 65532, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, where


def test_a_pod_has_a_token_of_the_cluster_where_a_role_needs_it_and_nowhere_else(manifests: Manifests) -> None:
    bound = {account["name"] for one in manifests.of("RoleBinding").values() for account in one["subjects"]}
    for where, pod in pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] == (spec.get("serviceAccountName") in bound), where
    assert all(not one["automountServiceAccountToken"] for one in manifests.of("ServiceAccount").values())


def test_only_runs_may_publish(manifests: Manifests) -> None:
    for name, secret in manifests.of("Secret").items():
        for key, content in secret.get("data", {}).items():
            if name.endswith("-tokens"):
                table = yaml.safe_load(base64.b64decode(content))
                publishing = {entry["name"] for entry in table.values() if "weights.publish" in entry["scopes"]}
                assert publishing == ({"run"} if key == "weights.yaml" else set())
    for where, pod in pods(manifests):
        secrets = {v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v}
        if any(name.endswith("-token-run") for name in secrets):
            assert where.endswith(("-trainer", "-run")) or "-bootstrap-" in where


def test_two_releases_never_select_each_others_pods() -> None:
    """Nor one whose name begins with the other's."""
    first, second = render("monitoring", release="rl"), render("monitoring", release="rl-two")
    assert not first.keys() & second.keys()
    for one, other in ((first, second), (second, first)):
        foreign = [pod["metadata"]["labels"] for _, pod in pods(other)]
        for key, thing in one.items():
            for selector in selectors(thing):
                assert not any(matches(selector, labels) for labels in foreign), key


def selectors(value: Any) -> Iterator[dict[str, str]]:
    """Every label selector anywhere in an object."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "matchLabels" or (key == "selector" and value.get("ports")):
                yield one
            yield from selectors(one)
    elif isinstance(value, list):
        for one in value:
            yield from selectors(one)


def test_only_what_changed_restarts() -> None:
    """A setting of one component changes the pods of no other; another version of the chart or more replicas none."""

    def templates(values: dict[str, Any]) -> dict[str, Any]:
        return {name: one["spec"]["template"] for name, one in render(values).of("Deployment").items()}

    before = templates({})
    after = templates({"generation": {"config": {"slots": 16}, "replicas": 3}, "reward": {"replicas": 2}})
    assert [name for name in before if before[name] != after[name]] == ["rl-trimtab-generation"]
    after = templates({"trainer": {"run": {"stopSeconds": 30}}, "commonLabels": {"team": "a"}})
    assert [name for name in before if before[name] != after[name]] == ["rl-trimtab-trainer"]
