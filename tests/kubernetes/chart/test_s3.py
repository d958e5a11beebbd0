"""The values for a store in a bucket, against an S3 server in a pod that checks signatures and what a user may do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bystanders import IN_PODS, bystander, pod_of, run_in, stand_by, token_of
from guests import start_guest
from launching import wait_for
from releases import CHART, READY_S, VALUES, Place, new_place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BUCKET = "rlhf"
TOKEN_IDS = "[5, 6, 7, 8]"
SERVICES = ("weights", "generation", "reward", "reference", "trainer")
PACKAGES = ("moto[s3]>=5.2", "flask>=3", "flask-cors>=5")
SERVE = "exec python -m moto.server --host 0.0.0.0 --port 9000"
SETTINGS = {
    "INITIAL_NO_AUTH_ACTION_COUNT": "4",  # calls that it takes from anybody: those of in_pods/make_bucket.py
    "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true",  # its own name is the host, and no bucket's
}
"""Environment of the server."""


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server in the place's pod `s3`."""

    place: Place
    key: str
    secret: str

    def values(self, *, name: str = BUCKET, credentials: str = "bucket") -> dict[str, Any]:
        """Of the chart, for a store in the bucket."""
        return {"store": {"kind": "s3", "s3": self.folder(f"s3://{name}/weights", credentials)}}

    def folder(self, url: str, credentials: str = "bucket") -> dict[str, str]:
        """Of the chart, for a folder of the server."""
        endpoint = f"http://s3.{self.place.namespace}.svc:9000"
        return {"url": url, "endpoint": endpoint, "region": "us-east-1", "existingSecret": credentials}

    def objects(self) -> dict[str, int]:
        """Bytes of each object, by its name without the prefix."""
        found = run_in(self.place, "s3", IN_PODS / "bucket_objects.py", BUCKET, self.key, self.secret)
        return {name.removeprefix("weights/"): size for name, size in found.items()}


@pytest.fixture(scope="module")
def place(kubeconfig: Path) -> Iterator[Place]:
    with new_place(kubeconfig, "access") as place:
        yield place


@pytest.fixture(scope="module")
def bucket(place: Place) -> Bucket:
    start_guest(place, "s3", PACKAGES, SERVE, 9000, SETTINGS)
    key, secret = run_in(place, "s3", IN_PODS / "make_bucket.py", BUCKET)
    for name, value in {"bucket": secret, "wrong": "x" * len(secret)}.items():
        pairs = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": value}
        literals = [f"--from-literal={pair}={text}" for pair, text in pairs.items()]
        place.kubectl("create", "secret", "generic", name, *literals)
    return Bucket(place, key, secret)


@pytest.fixture(scope="module")
def frozen(bucket: Bucket) -> list[float]:
    """Log-probs of TOKEN_IDS by a model, which lies in the pod of the server then."""
    made: list[float] = run_in(bucket.place, "s3", IN_PODS / "make_model.py", "/tmp/frozen", TOKEN_IDS)
    return made


@pytest.fixture(scope="module")
def release(bucket: Bucket, frozen: list[float]) -> Bucket:
    """The release `rl`, its reference with a model from the bucket, every pod Ready, and a pod that may call it."""
    upload = ("/tmp/frozen", BUCKET, "models/frozen", bucket.key, bucket.secret)
    assert "model.safetensors" in run_in(bucket.place, "s3", IN_PODS / "upload.py", *upload)
    reference = {"model": {"s3": bucket.folder(f"s3://{BUCKET}/models/frozen")}}
    values = {**VALUES, "weights": bucket.values(), "reference": reference}
    bucket.place.helm().install(CHART, "rl", values, wait="watcher", timeout=READY_S)
    stand_by(bucket.place, bystander("client", {"trimtab.dev/client-of": "rl"}))
    return bucket


def held(place: Place) -> dict[str, Any]:
    """Versions and channels, as the weights service tells them."""
    target = f"rl-trimtab-weights.{place.namespace}.svc:50051"
    return run_in(place, "client", IN_PODS / "versions.py", target, token_of(place, "rl-trimtab", "client"))


def test_every_version_is_objects_of_the_bucket(release: Bucket) -> None:
    ready = release.place.kubectl("get", "deployments", "--output=jsonpath={.items[*].status.readyReplicas}")
    assert ready == "1 1 1 1 1"
    told = held(release.place)
    assert told["channels"].keys() >= {"policy/latest", "reward/serving", "reference/serving"}
    assert {str(version) for version in told["channels"].values()} <= told["versions"].keys()
    objects = release.objects()
    manifests = [name for name in objects if name.startswith("manifests/")]
    assert len(manifests) == len(told["versions"]) > 0
    assert sum(size for name, size in objects.items() if name.startswith("blobs/")) > 10_000
    claims = release.place.kubectl("get", "persistentvolumeclaims", "--output=name").split()
    assert claims == ["persistentvolumeclaim/rl-trimtab-trainer"]


def test_a_service_has_its_model_from_the_bucket(release: Bucket, frozen: list[float]) -> None:
    place = release.place
    target, token = f"rl-trimtab-reference.{place.namespace}.svc:50051", token_of(place, "rl-trimtab", "client")
    told = run_in(place, "client", IN_PODS / "logprobs.py", target, token, TOKEN_IDS)
    assert told["version"] == 0 and told["logprobs"] == pytest.approx(frozen, abs=1e-4)


def stored(objects: dict[str, int]) -> dict[str, int]:
    """What versions are made of; the rest tells the state of the service."""
    return {name: size for name, size in objects.items() if name.startswith(("blobs/", "manifests/"))}


def test_another_pod_goes_on_with_the_same_versions(release: Bucket) -> None:
    place = release.place
    before, objects = held(place), release.objects()
    old = pod_of(place, "rl", "weights")["metadata"]
    place.kubectl("delete", "pod", old["name"])
    place.kubectl("rollout", "status", "deployment/rl-trimtab-weights", "--timeout=110s")
    assert pod_of(place, "rl", "weights")["metadata"]["uid"] != old["uid"]
    assert held(place) == before
    assert stored(release.objects()) == stored(objects)
    hosts = {name: f"rl-trimtab-{name}.{place.namespace}.svc" for name in SERVICES}
    tokens = {"run": token_of(place, "rl-trimtab", "run")}
    ended = run_in(place, "client", IN_PODS / "calls.py", json.dumps(hosts), json.dumps(tokens))
    assert set(ended["run"].values()) == {"OK"}  # among them a publication
    assert len(held(place)["versions"]) == len(before["versions"]) + 1


WRONG = {
    "wrong-key": (
        {"credentials": "wrong"},
        f"s3://{BUCKET}/weights: bucket {BUCKET}: refused to these credentials (403): key or secret is wrong, or their "
        "user may not list it",
    ),
    "no-bucket": ({"name": "absent"}, "s3://absent/weights: no such bucket: absent"),
}


@pytest.mark.parametrize("release", WRONG)
def test_a_bucket_that_cannot_be_used_is_one_line(bucket: Bucket, release: str) -> None:
    place = bucket.place
    changes, says = WRONG[release]
    alone = {name: {"enabled": False} for name in SERVICES if name != "weights"}
    values = {**VALUES, **alone, "models": {"bootstrap": {"enabled": False}}, "weights": bucket.values(**changes)}
    place.helm().install(CHART, release, values)

    def end() -> dict[str, Any]:
        pod = wait_for(lambda: pods_of(place, release))
        (container,) = pod[0]["status"].get("containerStatuses") or [{}]
        return container.get("lastState", {}).get("terminated", {})

    assert wait_for(end, f"{release} does not end")["exitCode"] == 2
    log = place.kubectl("logs", f"deployment/{release}-trimtab-weights", "--previous")
    assert log == f"error: store: {says}\n"
    place.helm().uninstall(release)


def pods_of(place: Place, release: str) -> list[dict[str, Any]]:
    listed = place.kubectl("get", "pods", f"--selector=app.kubernetes.io/instance={release}", "--output=json")
    return json.loads(listed)["items"]
