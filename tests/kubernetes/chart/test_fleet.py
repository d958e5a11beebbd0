"""A run in pods, and what becomes of its fleet meanwhile: replicas of generation come, go and die, the weights service
is killed while it takes a version. The run goes on, and its figures are those of the same run left in peace: weights,
prompt, seed and sample index decide every draw, so a rollout that was lost, or sampled by other weights, would show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deployed import RELEASE, Deployed, wait_for
from runs_in_pods import PROMPTS, Run, release_for_runs, started
from trimtab.v1 import trainer_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ITERATIONS = 16
SLOTS = 2
"""So few that one replica takes seconds for a batch."""

_EAT = """
import os, time

while True:
    if os.fork() == 0:
        held = bytearray(b"x") * 2**26
        time.sleep(600)
    time.sleep(0.05)
"""
"""Fills the memory of a container with processes that are each smaller than its service, so that this one is killed."""

_READ_ALL = """
import json, sys
from pathlib import Path
from trimtab import Client, Token
from trimtab.v1 import weights_pb2
from trimtab.weights import fetch_version

with Client(sys.argv[1], token=Token(file=Path("/etc/trimtab-token/token")), insecure=True) as client:
    rows = client.list_versions(weights_pb2.ListVersionsRequest(run=sys.argv[2], page_size=1000)).versions
    for row in rows:
        fetched = fetch_version(client, version=row.version)
        assert fetched.weights_digest == row.weights_digest
        print(json.dumps({"version": row.version, "made": row.create_time.ToNanoseconds() / 1e9}))
"""
"""Reads every version of a run, each byte compared with its digest."""


@pytest.fixture(scope="module")
def release(kubeconfig: Path) -> Iterator[Deployed]:
    with release_for_runs(kubeconfig, {"generation": {"config": {"slots": SLOTS}}}) as release:
        yield release


@pytest.fixture(scope="module")
def calm(release: Deployed) -> list[dict[str, float]]:
    """Figures of each iteration of a run that is left in peace."""
    with started(release, "calm", iterations=ITERATIONS) as run:
        run.wait_succeeded()
        return run.figures()


def check_nothing_lost(run: Run, calm: list[dict[str, float]]) -> None:
    run.wait_succeeded()
    assert run.steps() == list(range(1, ITERATIONS + 1))
    assert run.batches() == [PROMPTS] * ITERATIONS
    assert run.figures() == calm


def test_generation_is_scaled_from_one_to_three_and_back(release: Deployed, calm: list[dict[str, float]]) -> None:
    (old,) = release.names("generation")
    with started(release, "scaled", iterations=ITERATIONS) as run:
        run.wait_step(1)
        trainer = release.lives("trainer", "run")
        release.scale(3)
        run.wait_queue(lambda queue: queue.replicas == 3, "three replicas")
        pods = release.wait_pods("generation", 3)
        for pod in set(pods) - {old}:
            run.wait(lambda pod=pod: release.counter(pod, "trimtab_generated_tokens_total"), f"tokens of {pod}")
        release.scale(1)
        run.wait_queue(lambda queue: queue.replicas == 1, "one replica again")
        check_nothing_lost(run, calm)
    assert release.lives("trainer", "run") == trainer
    release.wait_pods("generation", 1)


def test_replicas_of_generation_die_in_three_ways(release: Deployed, calm: list[dict[str, float]]) -> None:
    release.scale(2)
    release.wait_pods("generation", 2)
    with started(release, "harmed", iterations=ITERATIONS) as run:
        for harm in (force_delete, eat_memory, evict):
            run.wait_rollouts()
            pods = release.names("generation")
            told = len(run.messages())
            harm(release, pods[0])
            for new in set(release.wait_pods("generation", 2)) - set(pods):
                run.wait(lambda new=new: release.counter(new, "trimtab_generated_tokens_total"), f"tokens of {new}")
            if harm is eat_memory:  # the others may finish what they have in hand
                run.wait(lambda told=told: any(map(lost_replica, run.messages()[told:])), f"word of {pods[0]}")
        check_nothing_lost(run, calm)
    release.scale(1)


def force_delete(release: Deployed, pod: str) -> None:
    release.place.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    wait_gone(release, pod)


def eat_memory(release: Deployed, pod: str) -> None:
    with pytest.raises(Exception, match="exit status 137"):
        release.place.kubectl("exec", pod, "--", "python", "-c", _EAT)

    def why_it_ended() -> Any:
        text = release.place.kubectl("get", "pod", pod, "--output=jsonpath={.status.containerStatuses[0].lastState}")
        return text and json.loads(text).get("terminated", {}).get("reason")

    assert wait_for(why_it_ended, f"the end of {pod}") == "OOMKilled"


def evict(release: Deployed, pod: str) -> None:
    """The API's eviction, as `kubectl drain` uses it; the chart's PodDisruptionBudget allows one."""
    path = f"/api/v1/namespaces/{release.place.namespace}/pods/{pod}/eviction"
    eviction = release.folder / "eviction.json"
    eviction.write_text(json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}))
    release.place.kubectl("create", "--raw", path, "--filename", str(eviction))
    wait_gone(release, pod)


def wait_gone(release: Deployed, pod: str) -> None:
    wait_for(lambda: pod not in release.names("generation"), f"the end of {pod}")


def lost_replica(text: str) -> bool:
    return text.startswith("generation at ") and "is given out again" in text


def test_the_weights_service_is_killed_during_a_publication(release: Deployed, calm: list[dict[str, float]]) -> None:
    """It is throttled first: a version of this size is through in a moment otherwise."""
    with started(release, "unpublished", iterations=ITERATIONS) as run:
        run.wait_step(1)
        (old,) = release.names("weights")
        limits = {"name": "weights", "resources": {"requests": {"cpu": "5m"}, "limits": {"cpu": "5m"}}}
        slow = json.dumps({"spec": {"containers": [limits]}})
        release.place.kubectl("patch", "pod", old, "--subresource=resize", f"--patch={slow}")
        before = len(run.steps())
        run.wait(lambda: len(run.steps()) > before, "a publication")
        begun: pb.RunEvent = run.of("step_done")[-1]
        force_delete(release, old)
        killed = datetime.now(UTC).timestamp()
        run.wait(
            lambda: [text for text in run.messages() if text.startswith("waits for the weights service")],
            "word of the weights service",
        )
        check_nothing_lost(run, calm)
    release.start_pod("reader", _READ_ALL, f"{RELEASE}-trimtab-weights:50051", "unpublished")
    made = {row["version"]: row["made"] for row in map(json.loads, release.wait_ended("reader").splitlines())}
    told = [int(event.step_done.metrics["version"]) for event in run.of("step_done")]
    told.append(run.of("stage_done")[0].stage_done.version)
    hit = told[begun.step]
    assert begun.time.ToNanoseconds() / 1e9 < killed < made[hit]
    assert len(set(told)) == ITERATIONS + 1 and len(made) == len(told) + 2  # and one each of reward and reference
    assert set(told) < set(made)
