"""Runs that Kueue admits: the label and the suspension of their Jobs, and no trace of either without a queue."""

from __future__ import annotations

from typing import Any

from helm.rendering import render, run_template

LABEL = "kueue.x-k8s.io/queue-name"


def job(values: dict[str, Any]) -> dict[str, Any]:
    return run_template(render(values)).only("Job")


def test_jobs_of_a_queue_are_suspended() -> None:
    found = job({"trainer": {"run": {"queueName": "rlhf"}}})
    assert found["metadata"]["labels"][LABEL] == "rlhf" and found["spec"]["suspend"] is True


def test_without_a_queue_they_begin_at_once() -> None:
    found = job({})
    assert LABEL not in found["metadata"]["labels"] and "suspend" not in found["spec"]
