"""The page for runs: who may reach it, and when its sessions need HTTPS."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from helm.rendering import files_of, render, values_of

NAME = "rl-trimtab-trainer"
FROM = {"from": [{"namespaceSelector": {}}]}
GATEWAY = {"enabled": True, "parentRefs": [{"name": "g"}], "httpHostname": "runs.example.com"}


def test_by_default_only_a_port_forward_reaches_it() -> None:
    manifests = render({})
    assert not manifests.of("Ingress") and not manifests.of("HTTPRoute")
    (notes,) = (text for path, text in files_of({}).items() if path.endswith("NOTES.txt"))
    assert "at http://localhost:8081/runs/, signed in with the token in client.token:" in notes
    assert "port-forward service/rl-trimtab-trainer 8081:8080 &" in notes


def test_an_ingress_leads_to_the_page_alone() -> None:
    values = values_of("runs-page")
    (rule,) = render(values).only("Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"]) == ("runs.example.com", "/runs")
    assert path["backend"]["service"] == {"name": NAME, "port": {"name": "http"}}
    (notes,) = (text for path, text in files_of(values).items() if path.endswith("NOTES.txt"))
    assert "at https://runs.example.com/runs/, signed in" in notes and "8081" not in notes


def test_a_gateway_leads_to_http_alone() -> None:
    manifests = render({"trainer": {"gateway": GATEWAY, "networkPolicy": FROM}})
    assert manifests.only("HTTPRoute")["spec"]["rules"] == [{"backendRefs": [{"name": NAME, "port": 8080}]}]
    assert not manifests.of("GRPCRoute")


@pytest.mark.parametrize(
    ("values", "secure"),
    [
        ({}, False),
        ({"ingress": {"enabled": True, "hostname": "a"}}, False),
        ({"ingress": {"enabled": True, "hostname": "a", "tlsSecret": "b"}}, True),
        ({"gateway": GATEWAY}, True),
        ({"gateway": {**GATEWAY, "tls": False}}, False),
        ({"config": {"secure_cookies": True}}, True),
    ],
)
def test_sessions_need_https_where_tls_ends_in_front(values: dict[str, Any], secure: bool) -> None:
    manifests = render({"trainer": {"networkPolicy": FROM, **values}})
    config = yaml.safe_load(manifests["ConfigMap", NAME]["data"]["trainer.yaml"])
    assert config["secure_cookies"] is secure
