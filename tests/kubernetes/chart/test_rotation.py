"""Another certificate and another token in the Secrets of an mTLS release reach its pods, and nothing restarts."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from authority import Authority
from bystanders import IN_PODS, lives, pod_of, run_in, token_of
from certificate_files import Pair
from launching import wait_for
from releases import CHART, READY_S, VALUES, Place, new_place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERVERS = ("weights", "reward")
UNUSED = {name: {"enabled": False} for name in ("generation", "reference", "trainer")}
MUTUAL = {"tls": {"enabled": True, "existingSecret": "certificates", "clientCertificates": True}}
ARRIVES_S = 180
"""Kubelet reads the Secrets of a pod again about once a minute."""


def test_what_is_renewed_is_taken_by_both_sides_without_a_restart(kubeconfig: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with new_place(kubeconfig, "access") as place:
        host = f"*.{place.namespace}.svc"
        first, old = authority.issue("old", host)
        files = [f"--from-file={name}={file}" for name, file in files_of(authority, first).items()]
        place.kubectl("create", "secret", "generic", "certificates", *files)
        place.helm().install(CHART, "rl", {**VALUES, **UNUSED, **MUTUAL}, wait="watcher", timeout=READY_S)
        before = lives(place, "rl", *SERVERS)
        assert shown(place) == {old}
        second, new = authority.issue("new", host)
        put(place, "certificates", {name: file.read_bytes() for name, file in files_of(authority, second).items()})
        given, other = token_of(place, "rl-trimtab", "client"), "y" * 40
        assert (calls_with(place, given), calls_with(place, other)) == ("OK", "Unauthenticated")
        renamed = {other if token == given else token: whose for token, whose in tokens(place).items()}
        put(place, "rl-trimtab-tokens", {"weights.yaml": yaml.safe_dump(renamed).encode()})
        wait_for(lambda: shown(place) == {new}, "the old certificate is still shown", ARRIVES_S)
        wait_for(lambda: calls_with(place, other) == "OK", "the new token is not known", ARRIVES_S)
        assert calls_with(place, given) == "Unauthenticated"
        assert lives(place, "rl", *SERVERS) == before
        assert all(life.restarts == 0 and life.is_ready for life in before.values())


def files_of(authority: Authority, pair: Pair) -> dict[str, Path]:
    return {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.root}


def put(place: Place, secret: str, content: dict[str, bytes]) -> None:
    """Replaces keys of a Secret."""
    patch = {"data": {name: base64.b64encode(value).decode() for name, value in content.items()}}
    place.kubectl("patch", "secret", secret, "--type=merge", f"--patch={json.dumps(patch)}")


def tokens(place: Place) -> dict[str, Any]:
    """What the weights service knows of each token."""
    read = place.kubectl("get", "secret", "rl-trimtab-tokens", r"--output=jsonpath={.data.weights\.yaml}")
    return yaml.safe_load(base64.b64decode(read))


def shown(place: Place) -> set[int]:
    """Serial numbers of the certificates that both sides of both services show, each to its own pod, and those of the
    weights service to a replica too."""
    own, name = "127.0.0.1", f"rl-trimtab-weights.{place.namespace}.svc"
    callers = {"weights": [own], "reward": [own, name]}
    found = set()
    for caller, hosts in callers.items():
        pod = pod_of(place, "rl", caller)["metadata"]["name"]
        addresses = (f"{host}:{port}" for host in hosts for port in (50051, 8080))
        found |= set(run_in(place, pod, IN_PODS / "certificates.py", *addresses))
    return found


def calls_with(place: Place, token: str) -> str:
    """How a call of the weights service ends, from a replica's pod and with its certificate."""
    pod = pod_of(place, "rl", "reward")["metadata"]["name"]
    return run_in(place, pod, IN_PODS / "mutual_call.py", f"rl-trimtab-weights.{place.namespace}.svc:50051", token)
