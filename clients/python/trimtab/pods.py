"""What the state of a Kubernetes pod means, in plain words. No calls are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["Pod", "is_ready", "restarts_of", "why_not_ready", "why_waiting"]

Pod = Any
"""A V1Pod of the synchronous or of the asyncio client; in its types every field may be None."""

_USUAL = (None, "ContainerCreating", "PodInitializing")


def is_ready(pod: Pod) -> bool:
    """Whether the pod's readiness probes have passed, and it is not being ended."""
    return pod.metadata.deletion_timestamp is None and _condition(pod, "Ready", "True") is not None


def restarts_of(pod: Pod) -> int:
    """How often its containers have been started again, all together."""
    return sum(status.restart_count for status in pod.status.container_statuses or [])


def why_waiting(pod: Pod) -> str:
    """What keeps a pod from working at all, such as no node or no image; empty where nothing does."""
    unscheduled = _condition(pod, "PodScheduled", "False")
    if unscheduled is not None:
        return f"cannot be scheduled ({unscheduled.reason}): {unscheduled.message}"
    for status in _statuses(pod):
        waiting = status.state.waiting if status.state is not None else None
        if waiting is None or waiting.reason in _USUAL:
            continue
        if "Image" in waiting.reason or waiting.reason == "RegistryUnavailable":
            return f"image {status.image!r} cannot be pulled ({waiting.reason}): {waiting.message}"
        return f"container {status.name!r} waits ({waiting.reason}): {_last_end(pod, status) or waiting.message}"
    return ""


def why_not_ready(pod: Pod) -> str:
    """Why a pod is not ready, in one sentence; empty where it is, or has done its work."""
    if pod.metadata.deletion_timestamp is not None:
        return f"is being ended since {pod.metadata.deletion_timestamp:%H:%M:%S} UTC"
    if is_ready(pod) or pod.status.phase == "Succeeded":
        return ""
    if pod.status.phase == "Failed":
        ends = [_end_of(pod, status, status.state) for status in _statuses(pod)]
        return _failure(pod) or next(filter(None, ends), "has failed")
    if waiting := why_waiting(pod):
        return waiting
    for status in _statuses(pod):
        if end := _last_end(pod, status):
            return f"container {status.name!r} was started again: {end}"
    running = [one for one in pod.status.container_statuses or [] if one.state and one.state.running]
    if not running:
        return "its volumes and containers are being prepared"
    return "runs, and its startup probe has not passed yet" if not all(one.started for one in running) else "not ready"


def _failure(pod: Pod) -> str:
    if pod.status.reason == "Evicted":
        return f"was evicted: {pod.status.message}"
    return f"{pod.status.reason}: {pod.status.message}" if pod.status.reason else ""


def _last_end(pod: Pod, status: Any) -> str:
    """How the container's life before this one ended."""
    return _end_of(pod, status, status.last_state)


def _end_of(pod: Pod, status: Any, state: Any) -> str:
    terminated = state.terminated if state is not None else None
    if terminated is None:
        return ""
    if terminated.reason == "OOMKilled":
        limits = {one.name: (one.resources and one.resources.limits) or {} for one in pod.spec.containers}
        limit = limits.get(status.name, {}).get("memory")
        return f"it was OOM-killed: it passed its memory limit of {limit}" if limit else "it was OOM-killed"
    said = (terminated.message or "").strip().splitlines()
    return f"it ended with exit code {terminated.exit_code}{f': {said[-1]}' if said else ''}"


def _condition(pod: Pod, kind: str, status: str) -> Any | None:
    return next((one for one in pod.status.conditions or [] if one.type == kind and one.status == status), None)


def _statuses(pod: Pod) -> Iterable[Any]:
    return [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
