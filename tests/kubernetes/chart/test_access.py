"""Who may connect to whom, and who may call what, in one release with the chart's default values and labeling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from bystanders import IN_PODS, apply, bystander, labels_of, pod_of, run_in, stand_by, token_of
from releases import CHART, READY_S, VALUES, Place, new_place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GRPC, HEALTH, HTTP, METRICS, SCALER = PORTS = (50051, 50052, 8080, 9090, 50061)
SERVICES = ("weights", "generation", "reward", "reference", "trainer", "labeling")
OTHERS = ("run", "bootstrap", "test")
COMPONENTS = (*SERVICES, *OTHERS)

CALLS = {
    "weights": (),
    "generation": ("weights",),
    "reward": ("weights",),
    "reference": ("weights",),
    "trainer": (),
    "labeling": (),
    "run": SERVICES,
    "bootstrap": ("weights",),
    "test": ("trainer",),
    "client": SERVICES,  # a pod with the label trimtab.dev/client-of
    "stranger": (),  # any other pod of the namespace
    "client-elsewhere": (),  # the same label in another namespace
}
"""Whom each component, and who stands beside the release, calls by gRPC and HTTP."""

ALLOWED = {
    *((caller, called, port) for caller, names in CALLS.items() for called in names for port in (GRPC, HTTP)),
    *(("prometheus", called, METRICS) for called in SERVICES),
    ("keda", "trainer", SCALER),
}
"""(caller, called, port) of every connection that goes through."""

PUBLISHING = {"AcquireLease", "ReleaseLease", "FindMissingBlobs", "Publish", "SetChannel", "Pin", "Prune"}
"""Methods of the weights service that need the scope `weights.publish`."""


@dataclass(frozen=True)
class Pod:
    """A pod under the name by which the tables above know it."""

    who: str
    place: Place
    name: str
    address: str


@dataclass(frozen=True)
class Neighborhood:
    """The release `rl`, and pods beside it.

    Attributes:
        place: its namespace.
        callers: one pod of everybody in the tables above.
        called: two pods of each component, so that it can be tried from one to the other: of services a real one and
            one that stands by with the same labels.
    """

    place: Place
    callers: dict[str, Pod]
    called: list[Pod]


def addresses(place: Place) -> dict[str, str]:
    """IP of every pod by name."""
    path = r"{range .items[*]}{.metadata.name}={.status.podIP}{'\n'}{end}"
    listed = place.kubectl("get", "pods", f"--output=jsonpath={path}")
    return dict(line.split("=", 1) for line in listed.splitlines())


@pytest.fixture(scope="module")
def neighborhood(kubeconfig: Path) -> Iterator[Neighborhood]:
    with new_place(kubeconfig, "access") as place, new_place(kubeconfig, "access") as elsewhere:
        outside = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": elsewhere.namespace}}}
        policy = {
            "metricsFrom": [outside | {"podSelector": {"matchLabels": {"app": "prometheus"}}}],
            "scalerFrom": [outside | {"podSelector": {"matchLabels": {"app": "keda"}}}],
        }
        values = {**VALUES, "networkPolicy": policy, "labeling": {"enabled": True}}
        place.helm().install(CHART, "rl", values, wait="watcher", timeout=READY_S)
        client = {"trimtab.dev/client-of": "rl"}
        stand_by(
            place,
            *(bystander(f"second-{name}", labels_of("rl", name), *PORTS) for name in COMPONENTS),
            *(bystander(name, labels_of("rl", name), *PORTS) for name in OTHERS),
            bystander("client", client),
            bystander("stranger", {"app": "stranger"}),
        )
        stand_by(
            elsewhere,
            bystander("client-elsewhere", client),
            *(bystander(name, {"app": name}) for name in ("prometheus", "keda")),
        )
        here, there = addresses(place), addresses(elsewhere)
        names = {name: pod_of(place, "rl", name)["metadata"]["name"] for name in SERVICES}
        names |= {name: name for name in (*OTHERS, "client", "stranger")}
        callers = {who: Pod(who, place, name, here[name]) for who, name in names.items()}
        callers |= {name: Pod(name, elsewhere, name, address) for name, address in there.items()}
        second = [Pod(name, place, f"second-{name}", here[f"second-{name}"]) for name in COMPONENTS]
        yield Neighborhood(place, callers, [callers[name] for name in COMPONENTS] + second)


def reached(neighborhood: Neighborhood, who: str) -> set[tuple[str, str, int]]:
    """(caller, pod, port) of every connection that goes through from one caller to a pod other than its own."""
    caller = neighborhood.callers[who]
    names = {pod.address: pod.name for pod in neighborhood.called if pod != caller}
    tried = [f"{address}:{port}" for address in names for port in PORTS]
    taken = run_in(caller.place, caller.name, IN_PODS / "connects.py", *tried)
    return {(who, names[address.partition(":")[0]], int(address.partition(":")[2])) for address in taken}


@pytest.mark.parametrize("name", SERVICES)
def test_services_listen_on_what_is_tried(neighborhood: Neighborhood, name: str) -> None:
    """From inside the pod, where no policy reaches: what does not connect below was refused, and not absent."""
    pod = neighborhood.callers[name]
    taken = run_in(pod.place, pod.name, IN_PODS / "connects.py", *(f"127.0.0.1:{port}" for port in PORTS))
    assert len(taken) == (5 if name == "trainer" else 4)


def test_each_allowed_pair_connects_and_no_other(neighborhood: Neighborhood) -> None:
    with ThreadPoolExecutor(len(neighborhood.callers)) as pool:
        found = set().union(*pool.map(partial(reached, neighborhood), neighborhood.callers))
    assert found == {
        (who, pod.name, port)
        for who, caller in neighborhood.callers.items()
        for pod in neighborhood.called
        for port in PORTS
        if (who, pod.who, port) in ALLOWED and pod != caller
    }


def test_a_call_needs_a_token_with_its_scope(neighborhood: Neighborhood) -> None:
    """By gRPC and HTTP, through the names of the Services, from a pod that the policies let in."""
    place = neighborhood.place
    hosts = {name: f"rl-trimtab-{name}.{place.namespace}.svc" for name in SERVICES}
    tokens = {"nobody": None, "wrong": "x" * 40}
    tokens |= {caller: token_of(place, "rl-trimtab", caller) for caller in ("replica", "client", "run")}
    found = run_in(place, "client", IN_PODS / "calls.py", json.dumps(hosts), json.dumps(tokens), timeout_s=300)
    health = {f"health of {name}{way}" for name in SERVICES for way in ("", " over HTTP")}
    for caller, outcomes in found.items():
        assert {outcomes.pop(call) for call in health} == {"OK"}, caller
    publishing = {"weights.publish", "upload", *PUBLISHING}
    reading = {"weights.read", "info of weights", "info of weights over HTTP"}
    assert found["nobody"].keys() == found["client"].keys() >= publishing | reading
    assert set(found["nobody"].values()) == {"Unauthenticated"}
    assert set(found["wrong"].values()) == {"Unauthenticated"}
    assert {call: outcome for call, outcome in found["run"].items() if outcome != "OK"} == {"label": "PermissionDenied"}
    for call, outcome in found["client"].items():
        assert outcome == ("PermissionDenied" if call in publishing else "OK"), call
    for call, outcome in found["replica"].items():
        known = "PermissionDenied" if call in publishing else "OK"
        assert outcome == (known if call in publishing | reading else "Unauthenticated"), call


def test_pods_hold_no_token_but_their_own(neighborhood: Neighborhood) -> None:
    place = neighborhood.place
    callers = {"generation": "replica", "reward": "replica", "reference": "replica", "trainer": "run"}
    for name, caller in callers.items():
        held = place.kubectl("exec", neighborhood.callers[name].name, "--", "cat", "/etc/trimtab-token/token")
        assert held == token_of(place, "rl-trimtab", caller), name


def test_a_pod_that_is_not_restricted_is_refused(neighborhood: Neighborhood) -> None:
    """The namespace's label acts: every pod of the release has passed it."""
    pod = bystander("loose", {})
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    refused = apply(neighborhood.place, pod)
    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false' in refused.stderr
