"""How runs find replicas: rights and token only where they watch EndpointSlices."""

from __future__ import annotations

import json
from typing import Any

from helm.rendering import Manifests, render, run_template

SLICES = {"trainer": {"run": {"discovery": "endpointSlices"}}}


def run_pod(manifests: Manifests) -> dict[str, Any]:
    return run_template(manifests).only("Job")["spec"]["template"]["spec"]


def services(manifests: Manifests) -> dict[str, Any]:
    (given,) = [one for one in run_pod(manifests)["containers"][0]["args"] if one.startswith("--set=services=")]
    return json.loads(given.removeprefix("--set=services="))


def test_by_default_a_run_has_no_right_and_no_token() -> None:
    manifests = render({})
    assert not run_pod(manifests)["automountServiceAccountToken"]
    assert {name for kind, name in manifests if kind in ("Role", "RoleBinding")} == {"rl-trimtab-launcher"}
    assert services(manifests)["reward"] == {"dns": "rl-trimtab-reward-headless.prod.svc:50051"}


def test_with_endpoint_slices_it_may_list_and_watch_them_and_nothing_else() -> None:
    manifests = render(SLICES)
    pod = run_pod(manifests)
    assert pod["automountServiceAccountToken"]
    rules = [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]
    assert manifests["Role", "rl-trimtab-run"]["rules"] == rules
    binding = manifests["RoleBinding", "rl-trimtab-run"]
    assert binding["roleRef"]["name"] == "rl-trimtab-run"
    assert [one["name"] for one in binding["subjects"]] == [pod["serviceAccountName"]] == ["rl-trimtab-run"]
    for name in ("generation", "reward", "reference"):
        service = f"rl-trimtab-{name}-headless"
        assert services(manifests)[name] == {"endpoint_slices": f"prod/{service}:grpc"}
        assert "grpc" in [port["name"] for port in manifests["Service", service]["spec"]["ports"]]
