"""`trimtab status --release`, from outside the cluster with a kubeconfig and nothing else."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import yaml

from certificate_files import make_pair
from clusters import KUBECTL
from launching import IMAGE, spec, start, wait_for
from releases import CHART, READY_S, VALUES, Place
from trimtab import Client, Token
from trimtab.cli.port_forward import forwarded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KEDA = {"generation": {"autoscaling": {"kind": "keda", "minReplicas": 1}}}
DEADLINE_S = 10.0
"""Of a pod that hangs: the way to it, and a call."""


def new_place(kubeconfig: str) -> Iterator[Place]:
    place = Place(Path(kubeconfig), f"status-{uuid.uuid4().hex[:8]}")
    place.kubectl("create", "namespace", place.namespace)
    try:
        yield place
    finally:
        place.kubectl("delete", "namespace", place.namespace, "--wait=false")


@pytest.fixture(scope="module")
def place(admin_kubeconfig: str) -> Iterator[Place]:
    """A release `rl` whose generation KEDA scales."""
    for place in new_place(admin_kubeconfig):
        place.helm().install(CHART, "rl", {**VALUES, **KEDA}, wait="watcher", timeout=READY_S)
        yield place


def call(place: Place, *options: str, kubeconfig: Path | None = None, release: str = "rl") -> Any:
    where = ["--release", release, "--namespace", place.namespace, "--kubeconfig", str(kubeconfig or place.kubeconfig)]
    command = [sys.executable, "-m", "trimtab", "status", *where, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def status(place: Place, *options: str, **how: Any) -> dict[str, Any]:
    done = call(place, "--json", *options, **how)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def of(found: dict[str, Any], component: str) -> list[dict[str, Any]]:
    return [row for row in found["pods"] if row["component"] == component]


def test_components_pods_and_versions(place: Place) -> None:
    found = status(place)
    scaled = {row["component"]: row["scaled_by"] for row in found["components"]}
    assert scaled.pop("generation") == "ScaledObject rl-trimtab-generation" and set(scaled.values()) == {"hand"}
    assert all(row["desired"] == row["ready"] == 1 for row in found["components"]) and found["notes"] == []
    assert [row["component"] for row in found["pods"]] == ["weights", "generation", "reward", "reference", "trainer"]
    for row in found["pods"]:
        assert (row["phase"], row["ready"], row["restarts"], row["note"]) == ("Running", True, 0, "")
        assert row["node"] and row["state"] == "SERVING" and (row["waiting"], row["running"]) == (0, 0)
    (generation,) = of(found, "generation")
    assert generation["version"] == generation["newest"] > 0 and generation["lag"] == 0
    told = call(place).stdout
    assert "ScaledObject" in told and f"{generation['pod']} " in told


def test_runs_of_the_release(place: Place) -> None:
    (trainer,) = of(status(place), "trainer")
    token = json.loads(place.kubectl("get", "secret", "rl-trimtab-token-client", "--output=json"))["data"]["token"]
    with trainer_of(place, trainer["pod"], token) as service:
        start(service, "first", spec("first"))
        found = status(place)
        (run,) = found["runs"]
        assert run["name"] == "first" and run["state"] in ("STARTING", "RUNNING") and run["error"] == ""
        assert wait_for(lambda: [row for row in status(place)["pods"] if row["component"] == "run"])


def test_a_run_that_waits_in_a_queue(place: Place) -> None:
    labels = {"app.kubernetes.io/name": "trimtab", "app.kubernetes.io/instance": "rl"}
    labels |= {"app.kubernetes.io/component": "run", "trimtab.dev/run": "later", "kueue.x-k8s.io/queue-name": "team-a"}
    pod = {"restartPolicy": "Never", "containers": [{"name": "run", "image": IMAGE}]}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "later", "labels": labels}}
    apply(place, {**body, "spec": {"suspend": True, "template": {"spec": pod}}})
    assert status(place)["notes"] == ["run later: its Job is suspended until queue team-a admits it"]
    place.kubectl("delete", "job", "later")


def test_pods_that_are_not_ready_say_why(place: Place) -> None:
    image = '{"spec":{"template":{"spec":{"containers":[{"name":"reference","image":"localhost:1/absent:1"}]}}}}'
    place.kubectl("patch", "deployment", "rl-trimtab-reference", f"--patch={image}")
    nowhere = '{"spec":{"template":{"spec":{"nodeSelector":{"of":"nobody"}}}}}'
    place.kubectl("patch", "deployment", "rl-trimtab-reward", f"--patch={nowhere}")

    def notes() -> tuple[str, str]:
        found = status(place)
        texts = [
            "".join(row["note"] for row in of(found, name) if not row["ready"]) for name in ("reference", "reward")
        ]
        return texts[0], texts[1]

    wait_for(lambda: "image 'localhost:1/absent:1' cannot be pulled (" in notes()[0], f"{notes()}")
    assert "cannot be scheduled (Unschedulable): 0/1 nodes are available" in notes()[1]
    found = status(place)
    for component in ("reference", "reward"):  # the old pod serves on
        assert [row["state"] for row in of(found, component) if row["ready"]] == ["SERVING"]
        place.kubectl("rollout", "undo", f"deployment/rl-trimtab-{component}")


def test_a_pod_that_hangs_holds_nobody_up(place: Place) -> None:
    deaf = "import socket, time; s = socket.create_server(('', 50051)); time.sleep(600)"
    labels = {"name": "trimtab", "instance": "rl", "component": "generation"}
    container = {
        "name": "generation",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", deaf],
    }
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "deaf", "labels": {f"app.kubernetes.io/{key}": value for key, value in labels.items()}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }
    apply(place, body)
    place.kubectl("wait", "--for=condition=Ready", "pod/deaf", "--timeout=60s")
    time.sleep(1)  # for its interpreter to listen
    began = time.monotonic()
    found = status(place)
    assert time.monotonic() - began < DEADLINE_S + 8
    rows = {row["pod"]: row for row in of(found, "generation")}
    assert rows.pop("deaf")["state"] == "UNREACHABLE"
    (other,) = rows.values()
    assert other["state"] == "SERVING"
    place.kubectl("delete", "pod", "deaf")


def test_what_the_caller_may_not_do_is_named(place: Place, tmp_path: Path) -> None:
    account = limited(place, tmp_path, [])
    refused = call(place, kubeconfig=account)
    assert refused.returncode != 0 and 'cannot list resource "deployments"' in refused.stderr
    limited(place, tmp_path, [("apps", "deployments"), ("", "pods")])
    found = status(place, kubeconfig=account)
    notes = "\n".join(found["notes"])
    assert 'cannot list resource "horizontalpodautoscalers"' in notes and 'cannot get resource "secrets"' in notes
    assert "--token-file" in notes and "runs are unknown" in notes and 'cannot list resource "jobs"' in notes
    for row in found["pods"]:
        if row["component"] == "run":  # serves nothing
            continue
        assert row["ready"] and row["state"] == row["version"] == ""
        assert "what it serves is unknown" in row["note"] and "pods/portforward" in row["note"]
    assert {row["scaled_by"] for row in found["components"]} == {""}


def test_a_token_that_is_refused_is_an_error(place: Place, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong")
    refused = call(place, "--json", "--token-file", str(tmp_path / "token"))
    assert refused.returncode == 1, refused.stderr
    services = [row for row in json.loads(refused.stdout)["pods"] if row["ready"] and row["component"] != "run"]
    assert {row["state"] for row in services} == {"REFUSED"}


def test_no_such_release_cluster_or_kubeconfig(place: Place, tmp_path: Path) -> None:
    absent = call(place, release="absent")
    assert absent.returncode != 0 and "has no Deployment of release 'absent'" in absent.stderr
    no_file = call(place, kubeconfig=tmp_path / "absent")
    assert no_file.returncode != 0 and "error: kubeconfig: " in no_file.stderr
    with socket.create_server(("127.0.0.1", 0)) as silent:
        content = yaml.safe_load(place.kubeconfig.read_text())
        content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "silent").write_text(yaml.safe_dump(content))
        began = time.monotonic()
        no_answer = call(place, kubeconfig=tmp_path / "silent")
    assert no_answer.returncode != 0 and "the Kubernetes API does not answer" in no_answer.stderr
    assert time.monotonic() - began < 20


def test_a_release_with_mtls(admin_kubeconfig: str, tmp_path: Path) -> None:
    for place in new_place(admin_kubeconfig):
        pair = make_pair(tmp_path, "release", host=f"*.{place.namespace}.svc")
        parts = {"tls.crt": pair.certificate, "ca.crt": pair.certificate, "tls.key": pair.key}
        given = [f"--from-file={name}={path}" for name, path in parts.items()]
        place.kubectl("create", "secret", "generic", "certificates", *given)
        values = {name: {"enabled": False} for name in ("generation", "reference", "trainer")}
        tls = {"enabled": True, "existingSecret": "certificates", "clientCertificates": True}
        place.helm().install(CHART, "rl", {**VALUES, **values, "tls": tls}, wait="watcher", timeout=READY_S)
        blind = status(place)
        assert {row["state"] for row in blind["pods"]} == {""}
        assert all("the release has TLS; give --ca-file" in row["note"] for row in blind["pods"])
        files = ("--ca-file", str(pair.certificate), "--certificate-file", str(pair.certificate))
        found = status(place, *files, "--key-file", str(pair.key))
        assert {row["state"] for row in found["pods"]} == {"SERVING"}, found
        assert of(found, "reward")[0]["version"] > 0
        assert found["notes"] == ["runs are unknown: no pod of the trainer is ready"]


def apply(place: Place, *bodies: dict[str, Any]) -> None:
    command = [KUBECTL, f"--kubeconfig={place.kubeconfig}", f"--namespace={place.namespace}", "apply", "--filename=-"]
    text = yaml.safe_dump_all(bodies)
    subprocess.run(command, input=text, check=True, capture_output=True, text=True, timeout=60)


def limited(place: Place, folder: Path, lists: list[tuple[str, str]]) -> Path:
    """kubeconfig of an account that may list some resources and nothing else."""
    rules = [{"apiGroups": [group], "resources": [resource], "verbs": ["list"]} for group, resource in lists]
    kinds = "rbac.authorization.k8s.io"
    meta = {"name": "limited"}
    subject = {"kind": "ServiceAccount", "name": "limited", "namespace": place.namespace}
    role = {"apiGroup": kinds, "kind": "Role", "name": "limited"}
    apply(
        place,
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": f"{kinds}/v1", "kind": "Role", "metadata": meta, "rules": rules},
        {
            "apiVersion": f"{kinds}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": role,
            "subjects": [subject],
        },
    )
    account = f"--as=system:serviceaccount:{place.namespace}:limited"
    for group, resource in lists:
        kind = f"{resource}.{group}" if group else resource
        wait_for(lambda kind=kind: may_list(place, kind, account))
    content = yaml.safe_load(place.kubeconfig.read_text())
    content["users"][0]["user"] = {"token": place.kubectl("create", "token", "limited").strip()}
    path = folder / "limited.kubeconfig"
    path.write_text(yaml.safe_dump(content))
    return path


def may_list(place: Place, kind: str, account: str) -> bool:
    try:
        return place.kubectl("auth", "can-i", "list", kind, account).strip() == "yes"
    except subprocess.CalledProcessError:
        return False


@contextmanager
def trainer_of(place: Place, pod: str, token: str) -> Iterator[Client]:
    """A client of the TrainerService in a pod."""
    configuration = kubernetes.config.new_client_from_config(str(place.kubeconfig)).configuration
    with (
        forwarded(configuration, place.namespace, pod, 50051, timeout_s=30) as address,
        Client(address, timeout_s=60, token=Token(base64.b64decode(token).decode())) as service,
    ):
        yield service
