"""A release whose generation KEDA scales on the queue of rollouts, as the TrainerService's own external scaler tells
it: none between runs, one when a run begins, more while many rollouts wait."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from deployed import Deployed, wait_for
from runs_in_pods import PROMPTS, Run, release_for_runs, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TARGET = 100
SLOTS = 2
NEW_TOKENS = 24
ITERATIONS = 3
SAMPLES = 4
"""Of a prompt: a batch that takes longer than KEDA's metrics need to come, and a replica to start."""

_AT_ONCE = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 1}]}
VALUES: dict[str, Any] = {
    "generation": {
        "config": {"slots": SLOTS},
        "preStopSeconds": 1,
        "autoscaling": {
            "kind": "keda",
            "minReplicas": 0,
            "maxReplicas": 3,
            "keda": {
                "pollingInterval": 2,
                "cooldownPeriod": 5,
                "behavior": {"scaleUp": _AT_ONCE},
                "queue": {"targetQueuedRollouts": TARGET},
            },
        },
    }
}
PPO: dict[str, Any] = {
    "iterations": ITERATIONS,
    "samples_per_prompt": SAMPLES,
    "sampling": {"max_new_tokens": NEW_TOKENS},
}


def test_from_zero_up_and_back_to_zero(kubeconfig: Path) -> None:
    with release_for_runs(kubeconfig, VALUES) as release:
        wait_for(lambda: not release.names("generation"), "no replica before a run")
        began = time.monotonic()
        with started(release, "scaled", **PPO) as run:
            first = run.wait(lambda: release.names("generation"), "a first replica")
            trainer = release.lives("trainer", "run")
            woken = time.monotonic()
            run.wait_queue(lambda queue: queue.waiting_rollouts > TARGET, "a queue")
            grown = time.monotonic()
            new_one = run.wait(lambda: has_answered(release, set(first)), "a completion of a new replica")
            answered = time.monotonic()
            run.wait_succeeded()
            ended = time.monotonic()
            check_whole(run)
        assert release.lives("trainer", "run") == trainer
        wait_for(lambda: not release.names("generation"), "no replica after it")
        gone = time.monotonic()
    print(f"from a run's start to a first replica {woken - began:.1f} s")
    print(f"from a queue to the first completion of {new_one} {answered - grown:.1f} s")
    print(f"from the end to no replica {gone - ended:.1f} s")


def has_answered(release: Deployed, but: set[str]) -> str:
    """A further replica that has ended a completion for certain: it has sampled more tokens than its slots can hold."""
    for pod in release.pods("generation"):
        name = pod["metadata"]["name"]
        is_up = any(one.get("started") for one in pod["status"].get("containerStatuses", []))
        if name not in but and is_up and release.counter(name, "trimtab_generated_tokens_total") > SLOTS * NEW_TOKENS:
            return name
    return ""


def check_whole(run: Run) -> None:
    assert run.steps() == list(range(1, ITERATIONS + 1))
    assert run.batches() == [PROMPTS * SAMPLES] * ITERATIONS
