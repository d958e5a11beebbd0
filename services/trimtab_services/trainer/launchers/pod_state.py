"""Reads the state of Jobs and pods: how a run's work ended, and what keeps a pod from working. No calls are made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from trimtab.pods import why_waiting
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.launchers.base import STOPPED_EXIT_CODE, Ending, Place
from trimtab_services.trainer.launchers.cluster import Model
from trimtab_services.trainer.launchers.template import CONTAINER

__all__ = [
    "decisive",
    "ending_of",
    "failed_condition",
    "has_begun",
    "is_finished",
    "is_over",
    "place_of",
    "rank_of",
    "why_pending",
]

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def is_finished(job: Model) -> bool:
    """Whether a Job has succeeded or failed, its pods included."""
    return any(one.type in ("Complete", "Failed") and one.status == "True" for one in _conditions(job))


def is_over(pod: Model) -> bool:
    """Whether a pod will not work any more."""
    return pod.status is not None and pod.status.phase in ("Succeeded", "Failed")


def has_begun(pod: Model) -> bool:
    """Whether the container of its run works or has worked, so that there is a log."""
    statuses = pod.status.container_statuses or [] if pod.status is not None else []
    return any(
        one.name == CONTAINER and one.state is not None and (one.state.running or one.state.terminated)
        for one in statuses
    )


def rank_of(pod: Model) -> int:
    """Number of a pod among those of its run; 0 for the only one."""
    return int((pod.metadata.annotations or {}).get("batch.kubernetes.io/job-completion-index", "0"))


def decisive(ranks: Mapping[int, Model]) -> Model | None:
    """The pod whose end tells how the run ended: the first one that failed or was disrupted, else rank 0.

    Such a rank takes the others with it, and these only tell that they were ended.

    Args:
        ranks: the newest pod of each rank; may lack some.
    """
    failed = [pod for pod in ranks.values() if is_over(pod) and (_disruption(pod) or not _has_ended_well(pod))]
    return min(failed, key=_ended_at, default=ranks.get(0))


def failed_condition(job: Model) -> Model | None:
    """The condition that tells of a Job's failure."""
    return next((one for one in _conditions(job) if one.type == "Failed" and one.status == "True"), None)


def ending_of(job: Model | None, job_name: str, pod: Model | None, namespace: str, log: str) -> Ending:
    """How a run's work ended.

    Args:
        job: finished, or None where it is gone.
        job_name: of the Job.
        pod: as it was last seen; None where none was.
        namespace: of both.
        log: the last lines of the pod's log.
    """
    failure = failed_condition(job) if job is not None else None
    if failure is not None and failure.reason == "DeadlineExceeded":
        return Ending(pb.RUN_STATE_FAILED, f"Job {namespace}/{job_name}: {failure.reason}: {failure.message}")
    was_deleted = job is None or job.metadata.deletion_timestamp is not None
    if pod is not None:
        name = f"Pod {namespace}/{pod.metadata.name}"
        if (ending := _ending_of_pod(pod, name, log, was_deleted=was_deleted)) is not None:
            return ending
    if failure is not None:
        disrupted = failure.reason == "PodFailurePolicy"
        what = f"Job {namespace}/{job_name}: {failure.reason}: {failure.message}"
        return Ending(pb.RUN_STATE_FAILED, what, disrupted=disrupted)
    if was_deleted:
        return Ending(pb.RUN_STATE_FAILED, f"Job {namespace}/{job_name} was deleted", terminated=True)
    return Ending(pb.RUN_STATE_SUCCEEDED)


def _ending_of_pod(pod: Model, name: str, log: str, *, was_deleted: bool) -> Ending | None:
    """What a pod tells of its end; None where it tells nothing."""
    terminated = _terminated(pod)
    code = terminated.exit_code if terminated is not None else None
    if code == 0:
        return Ending(pb.RUN_STATE_SUCCEEDED)
    disruption = _disruption(pod)
    if disruption is not None and not was_deleted:
        what = _DISRUPTIONS.get(disruption.reason or "", f"was disrupted ({disruption.reason})")
        return Ending(pb.RUN_STATE_FAILED, f"{name} {what}: {disruption.message}", disrupted=True)
    if pod.status.reason == "Evicted":
        return Ending(pb.RUN_STATE_FAILED, f"{name} was evicted: {pod.status.message}")
    if terminated is None:
        return None
    if terminated.reason == "OOMKilled":
        return Ending(pb.RUN_STATE_FAILED, f"{name} was OOM-killed: {_memory_limit(pod)}")
    if code == STOPPED_EXIT_CODE:
        return Ending(pb.RUN_STATE_STOPPED)
    error = f"{name} ended with exit code {code}{f' ({terminated.message})' if terminated.message else ''}: {log}"
    return Ending(pb.RUN_STATE_FAILED, error, terminated=was_deleted)


_DISRUPTIONS = {
    "PreemptionByScheduler": "was preempted",
    "EvictionByEvictionAPI": "was evicted",
    "TerminationByKubelet": "was evicted by its node",
    "DeletionByTaintManager": "was evicted from its node",
    "DeletionByPodGC": "was lost with its node",
}


def place_of(pods: Collection[Model], ranks: int) -> Place:
    """How far a Job that is not suspended is on the way to its place: as far as the last of its pods.

    Args:
        pods: the newest of each rank; may lack some.
        ranks: how many there are to be.
    """
    places = {_place_of_pod(pod) for pod in pods}
    if len(pods) < ranks or Place.SOUGHT in places:
        return Place.SOUGHT
    return Place.PREPARING if Place.PREPARING in places else Place.HELD


def _place_of_pod(pod: Model) -> Place:
    if not pod.spec.node_name:
        return Place.SOUGHT
    return Place.PREPARING if pod.status.phase in (None, "Pending") and not why_waiting(pod) else Place.HELD


def why_pending(pod: Model, namespace: str) -> str:
    """What keeps a pod from working, as far as its own state tells; empty where it does not."""
    why = why_waiting(pod)
    return f"Pod {namespace}/{pod.metadata.name}: {why}" if why else ""


def _memory_limit(pod: Model) -> str:
    container = next((one for one in pod.spec.containers if one.name == CONTAINER), None)
    limits = container.resources.limits if container is not None and container.resources is not None else None
    limit = (limits or {}).get("memory")
    if limit is None:
        return f"its node ran out of memory, and container {CONTAINER!r} has no memory limit"
    return f"container {CONTAINER!r} passed its memory limit of {limit}"


def _terminated(pod: Model) -> Model | None:
    for status in pod.status.container_statuses or []:
        if status.name == CONTAINER and status.state is not None:
            return status.state.terminated
    return None


def _disruption(pod: Model) -> Model | None:
    """The condition that tells that the cluster took the pod away."""
    found = (one for one in pod.status.conditions or [] if one.type == "DisruptionTarget" and one.status == "True")
    return next(found, None)


def _has_ended_well(pod: Model) -> bool:
    terminated = _terminated(pod)
    return terminated is not None and terminated.exit_code in (0, STOPPED_EXIT_CODE)


def _ended_at(pod: Model) -> datetime:
    """When a pod's work ended; one that never began failed before all others."""
    terminated = _terminated(pod)
    return terminated.finished_at if terminated is not None and terminated.finished_at else _LONG_AGO


def _conditions(job: Model) -> list[Model]:
    return (job.status.conditions or []) if job.status is not None else []
