"""How runs and their events look to the page, as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from trimtab.cli.replica import reported_replica_row
from trimtab.run_plots import RunPlot
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.reported_replicas import ReplicaReport
from trimtab_services.trainer.run_rows import ENDED, RunRow
from trimtab_services.trainer.web.digest import (
    PublishedVersion,
    ReportedRollout,
    RunDigest,
    figures_of,
    is_log_entry,
    is_warning,
)

__all__ = [
    "event_json",
    "log_json",
    "plot_json",
    "queue_json",
    "replicas_json",
    "rollout_json",
    "run_json",
    "version_json",
]


def run_json(run: RunRow, digest: RunDigest | None) -> dict[str, Any]:
    """A run as lists show it; times are seconds since the epoch, `seconds_left` is null while it is not known."""
    return {
        "name": run.name,
        "state": pb.RunState.Name(run.state).removeprefix("RUN_STATE_"),
        "has_ended": run.state in ENDED,
        "error": run.error,
        "stage": run.stage,
        "step": run.step,
        "total_steps": run.total_steps,
        "create_time": run.create_time,
        "update_time": run.update_time,
        "seconds_left": None if digest is None else digest.seconds_left(run),
        "seconds_a_step": None if digest is None or run.state in ENDED else digest.seconds_a_step(),
    }


def plot_json(plot: RunPlot) -> dict[str, Any]:
    """A row of the table of plots."""
    return {
        "stage": plot.stage,
        "title": plot.title,
        "figures": plot.figures,
        "root_of": plot.root_of,
        "x_label": plot.x_label,
    }


def version_json(version: PublishedVersion) -> dict[str, Any]:
    """A version that the run has published."""
    return {"version": version.version, "stage": version.stage, "step": version.step, "time": version.time}


def rollout_json(rollout: ReportedRollout) -> dict[str, Any]:
    """A rollout that the run has told of, as text."""
    sample = rollout.sample
    return {
        "sequence": rollout.sequence,
        "stage": rollout.stage,
        "step": rollout.step,
        "prompt": sample.prompt,
        "completion": sample.completion,
        "reward": sample.reward,
        "ended": sample.ended,
    }


def queue_json(queue: pb.RolloutQueue | None) -> dict[str, int] | None:
    """The rollout queue; null where none is known."""
    if queue is None:
        return None
    return {"waiting": queue.waiting_rollouts, "running": queue.running_rollouts, "replicas": queue.replicas}


def replicas_json(report: ReplicaReport | None) -> dict[str, Any]:
    """What a run told last of its replicas, as the keys of a run; null where it told of none.

    `replicas_time` is when it did, and `replicas_seconds_ago` how long that is ago.
    """
    if report is None:
        return {"replicas": None, "replicas_time": None, "replicas_seconds_ago": None}
    return {
        "replicas": [reported_replica_row(one) for one in report.replicas.replicas],
        "replicas_time": report.time,
        "replicas_seconds_ago": max(0.0, time.time() - report.time),
    }


def event_json(event: pb.RunEvent) -> dict[str, Any]:
    """An event on the live stream.

    `figures` of a step are those that a plot shows; `log` is there where people read it; `queue` where it changed;
    `version` is 0 where none was published; `rollouts` counts those that a step tells of.
    """
    told: dict[str, Any] = {"sequence": event.sequence, "stage": event.stage, "step": event.step}
    if is_log_entry(event):
        told["log"] = log_json(event)
    match event.WhichOneof("event"):
        case "step_done":
            metrics = event.step_done.metrics
            told["figures"] = {name: metrics[name] for name in figures_of(event.stage) if name in metrics}
            told["version"] = int(metrics["version"]) if "version" in metrics else 0
            told["rollouts"] = len(event.step_done.samples)
        case "stage_done":
            told |= {"version": event.stage_done.version, "queue": None}
        case "rollout_queue":
            told["queue"] = queue_json(event.rollout_queue)
        case "stage_started" | "run_ended":
            told["queue"] = None
    return told | {"time": event.time.ToNanoseconds() / 1e9}


def log_json(event: pb.RunEvent) -> dict[str, Any]:
    """An event as a line for people, with the figures that it has."""
    figures: Mapping[str, float] = {}
    match event.WhichOneof("event"):
        case "message":
            text = event.message.text
        case "stage_started":
            text = f"goes on after step {event.step}" if event.step else "begins"
        case "stage_done":
            text, figures = "done", event.stage_done.metrics
        case _:
            state = pb.RunState.Name(event.run_ended.state).removeprefix("RUN_STATE_")
            text = f"run {state}{': ' if event.run_ended.error else ''}{event.run_ended.error}"
    is_error = event.message.severity == pb.SEVERITY_ERROR or event.run_ended.state == pb.RUN_STATE_FAILED
    severity = "error" if is_error else "warning" if is_warning(event) else "info"
    return {
        "sequence": event.sequence,
        "time": event.time.ToNanoseconds() / 1e9,
        "stage": event.stage,
        "severity": severity,
        "text": text,
        "figures": dict(figures),
    }
