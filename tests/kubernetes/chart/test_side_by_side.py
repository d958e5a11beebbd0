"""Two releases in one namespace, the name of one the beginning of the other's: neither selects, scales, protects or
lets in what belongs to the other, and one outlives the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bystanders import IN_PODS, bystander, lives, pod_of, run_in, stand_by, token_of
from releases import CHART, READY_S, VALUES, Place, new_place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ONE, TWO = RELEASES = ("trimtab", "trimtab-two")
SERVICES = ("weights", "generation", "reward", "reference", "trainer")
INSTANCE, COMPONENT = "app.kubernetes.io/instance", "app.kubernetes.io/component"

CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}
SCALED = {
    "common": {"podDisruptionBudget": {"enabled": True}},
    "generation": {"autoscaling": {"kind": "keda", "minReplicas": 1}},
    "reward": {"autoscaling": {"kind": "hpa", "hpa": {"metrics": [CPU]}}},
}


def listed(place: Place, kind: str, *options: str) -> list[dict[str, Any]]:
    return json.loads(place.kubectl("get", kind, *options, "--output=json"))["items"]


def labels(one: dict[str, Any]) -> tuple[str, str]:
    """Release and component."""
    found = one["metadata"]["labels"]
    return found[INSTANCE], found[COMPONENT]


@pytest.fixture(scope="module")
def place(kubeconfig: Path) -> Iterator[Place]:
    with new_place(kubeconfig, "access") as place:
        helm = place.helm()
        helm.install(CHART, ONE, {**VALUES, **SCALED})
        helm.install(CHART, TWO, {**VALUES, **SCALED}, wait="watcher", timeout=READY_S)
        place.kubectl("wait", "--for=condition=Available", "--timeout=110s", "deployments", "--all")
        stand_by(place, bystander("client", {"trimtab.dev/client-of": ONE}))
        yield place


def selected(place: Place, selector: dict[str, Any]) -> set[tuple[str, str]]:
    """Release and component of the pods that a selector finds now."""
    assert selector.keys() == {"matchLabels"}
    pairs = ",".join(f"{key}={value}" for key, value in selector["matchLabels"].items())
    return {labels(pod) for pod in listed(place, "pods", f"--selector={pairs}")}


def test_a_service_sends_to_its_own_pods_alone(place: Place) -> None:
    pods = {pod["metadata"]["name"]: pod for pod in listed(place, "pods")}
    services = {one["metadata"]["name"]: labels(one) for one in listed(place, "services")}
    reached: dict[str, set[str]] = {name: set() for name in services}
    for slice_ in listed(place, "endpointslices"):
        targets = {end["targetRef"]["name"] for end in slice_["endpoints"] or []}
        reached[slice_["metadata"]["labels"]["kubernetes.io/service-name"]] |= targets
    assert len(reached) == 2 * 2 * len(SERVICES)  # one with an address of its own and a headless one
    for name, targets in reached.items():
        assert [labels(pods[target]) for target in targets] == [services[name]], name


@pytest.mark.parametrize("kind", ["deployments", "poddisruptionbudgets", "networkpolicies"])
def test_a_selector_finds_its_own_pods_alone(place: Place, kind: str) -> None:
    found = {}
    for one in listed(place, kind):
        own = labels(one)
        found[own] = selected(place, one["spec"].get("podSelector") or one["spec"]["selector"])
        assert found[own] <= {own}
    assert {own for own, pods in found.items() if pods} >= {(one, name) for one in RELEASES for name in SERVICES}


def test_a_budget_counts_its_own_pods_alone(place: Place) -> None:
    counted = {labels(one): one["status"]["expectedPods"] for one in listed(place, "poddisruptionbudgets")}
    assert counted == {(release, name): 1 for release in RELEASES for name in SERVICES}


def test_a_policy_lets_its_own_pods_in_alone(place: Place) -> None:
    let_in = 0
    for policy in listed(place, "networkpolicies"):
        release, _ = labels(policy)
        for rule in policy["spec"].get("ingress", []):
            for peer in rule["from"]:
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    wanted = peer["podSelector"]["matchLabels"]
                    assert release in (wanted.get(INSTANCE), wanted.get("trimtab.dev/client-of")), policy["metadata"]
                    let_in += 1
    assert let_in
    for caller in RELEASES:
        pod = pod_of(place, caller, "reward")["metadata"]["name"]
        addresses = {pod_of(place, called, "weights")["status"]["podIP"]: called for called in RELEASES}
        taken = run_in(place, pod, IN_PODS / "connects.py", *(f"{address}:50051" for address in addresses))
        assert [addresses[address.partition(":")[0]] for address in taken] == [caller]


def test_an_autoscaler_owns_its_own_deployment_alone(place: Place) -> None:
    deployments = {one["metadata"]["name"]: labels(one) for one in listed(place, "deployments")}
    scaled = {one["metadata"]["name"]: one for one in listed(place, "scaledobjects")}
    owned = []
    for scaler in listed(place, "horizontalpodautoscalers"):
        by_keda = scaler["metadata"]["labels"].get("scaledobject.keda.sh/name")
        owner = scaled[by_keda] if by_keda else scaler
        target = scaler["spec"]["scaleTargetRef"]["name"]
        assert target == owner["spec"]["scaleTargetRef"]["name"]
        assert deployments[target] == labels(owner)
        owned.append(labels(owner))
    assert sorted(owned) == sorted((release, name) for release in RELEASES for name in ("generation", "reward"))


def calls(place: Place, tokens: dict[str, str]) -> dict[str, dict[str, str]]:
    """How every call to the first release ends, by whose token it carries."""
    hosts = {name: f"{ONE}-{name}.{place.namespace}.svc" for name in SERVICES}
    return run_in(place, "client", IN_PODS / "calls.py", json.dumps(hosts), json.dumps(tokens), timeout_s=300)


def test_the_token_of_one_is_not_known_to_the_other(place: Place) -> None:
    found = calls(place, {release: token_of(place, release, "run") for release in RELEASES})
    assert set(found[ONE].values()) == {"OK"}
    assert {outcome for call, outcome in found[TWO].items() if not call.startswith("health")} == {"Unauthenticated"}


def test_one_outlives_the_other(place: Place) -> None:
    before = lives(place, ONE, *SERVICES)
    selector = f"--selector={INSTANCE}="
    kinds = "deployments,services,secrets,configmaps,networkpolicies,poddisruptionbudgets,serviceaccounts,roles"
    objects = place.kubectl("get", kinds, f"{selector}{ONE}", "--output=name")
    place.helm().uninstall(TWO, timeout=READY_S)
    place.kubectl("wait", "--for=delete", "pods", f"{selector}{TWO}", "--timeout=110s")
    assert place.kubectl("get", kinds, f"{selector}{TWO}", "--output=name") == ""
    assert place.kubectl("get", kinds, f"{selector}{ONE}", "--output=name") == objects
    assert lives(place, ONE, *SERVICES) == before
    assert all(life.restarts == 0 and life.is_ready for life in before.values())
    assert set(calls(place, {"run": token_of(place, ONE, "run")})["run"].values()) == {"OK"}
    claims = {labels(one) for one in listed(place, "persistentvolumeclaims")}
    assert claims == {(release, name) for release in RELEASES for name in ("weights", "trainer")}
