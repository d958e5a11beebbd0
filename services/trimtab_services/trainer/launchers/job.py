"""The work of one run on Kubernetes: its Job, followed from a launch or from the service's return to its end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress

from trimtab.errors import NotFound, Unavailable
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.launchers.base import Ending, Place, log_end
from trimtab_services.trainer.launchers.cluster import Cluster, Conflict, Model
from trimtab_services.trainer.launchers.pod_log import PodLog
from trimtab_services.trainer.launchers.pod_state import (
    decisive,
    ending_of,
    has_begun,
    is_finished,
    is_over,
    place_of,
    rank_of,
    why_pending,
)
from trimtab_services.trainer.launchers.template import CONTAINER, GOES_ON, QUEUE_LABEL, RESUMES

__all__ = ["KubernetesWork"]

_log = logging.getLogger(__name__)

_LOOK_S = 5.0
"""Most seconds between two looks at the Job; every change of a pod is seen at once."""

_SOON_S = 5.0
"""Within this time of its pod's end a Job has ended too, or goes on with others."""

_AGAIN_S = 2.0
_LOG_S = 60.0
"""The end of a pod's log is given up once nothing of it has come for that long."""

_NOT_STARTED = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "Failed")


class KubernetesWork:
    """One Job.

    Args:
        cluster: where it is.
        job: its name.
        log: of the run.
        uid: of the Job, which tells it from an earlier one of its name; None: not read yet.
        resumes, goes_on: as in `Work`, until the Job is read.
        has_run: whether a pod of it has worked already.
    """

    pid = 0

    def __init__(
        self,
        cluster: Cluster,
        job: str,
        log: PodLog,
        uid: str | None = None,
        resumes: int = 0,
        *,
        goes_on: bool = False,
        has_run: bool = False,
    ) -> None:
        self._cluster = cluster
        self._job = job
        self._log = log
        self._uid = uid
        self._resumes = resumes
        self._goes_on = goes_on
        self._has_run = has_run
        self._is_finished = False
        self._is_requeued = False  # it was suspended after it had run
        self._queue: str | None = None  # while the Job is suspended, the queue that it waits in; empty: of no name
        self._most_ranks = 1
        self._ranks: dict[int, Model] = {}  # the newest pod of each rank, as it was last seen
        self._copying: asyncio.Task[None] | None = None

    @property
    def resumes(self) -> int:
        """As `Work.resumes`."""
        return self._resumes

    @property
    def goes_on(self) -> bool:
        """As `Work.goes_on`."""
        return self._goes_on

    @property
    def place(self) -> Place:
        """As `Work.place`; a Job is suspended while a queue such as Kueue's keeps it until there is room."""
        return Place.QUEUED if self._queue is not None else place_of(self._ranks.values(), self._most_ranks)

    async def ended(self) -> Ending:
        """As `Work.ended`. While the API is away the run is taken to go on.

        A Job that is suspended after it has worked ends here too, once its pod has saved a checkpoint: the arguments of
        a Job cannot change, and its next pod would begin anew, so the run goes on in a Job that resumes it.

        Raises:
            FailedPrecondition: a permission is missing.
        """
        try:
            job = await self._until_over()
            self._is_finished = True
            await self._until_copied()
        finally:
            if self._copying is not None:
                self._copying.cancel()
        if self._is_requeued and job is not None:
            what = f"{self._cluster.named('Job', self._job)} was suspended, and its pod ended"
            return Ending(pb.RUN_STATE_FAILED, what, disrupted=True, requeued=True)
        log = await asyncio.to_thread(log_end, self._log.path)
        return ending_of(job, self._job, decisive(self._ranks), self._cluster.namespace, log)

    async def stop(self) -> None:
        """Deletes the Job: its pod gets SIGTERM, and its grace period for a checkpoint."""
        with suppress(NotFound, Conflict):
            await self._cluster.delete_job(self._job, self._uid)

    async def kill(self) -> None:
        """Deletes the Job; nothing is faster than the pod's grace period."""
        await self.stop()

    async def why_silent(self) -> str:
        """What its pods wait for, or why there is none."""
        name = self._cluster.named("Job", self._job)
        if self._queue is not None:
            return f"{name} is suspended: it waits for admission by {_queue(self._queue)}"
        if not self._ranks:
            problem = await self._cluster.last_event("Job", self._job, "FailedCreate")
            return f"{name}: its pod could not be created: {problem}" if problem else f"{name} has no pod yet"
        pods = [pod for _, pod in sorted(self._ranks.items())]
        for pod in pods:
            if pending := why_pending(pod, self._cluster.namespace):
                return pending
        pod = next((pod for pod in pods if pod.status.phase == "Pending"), pods[0])
        problem = await self._cluster.last_event("Pod", pod.metadata.name, *_NOT_STARTED)
        return f"{self._cluster.named('Pod', pod.metadata.name)}: {problem or f'is {pod.status.phase}'}"

    async def clean_up(self) -> None:
        """Deletes the Job, and with it its pods and the spec's ConfigMap."""
        await self.stop()

    async def _until_copied(self) -> None:
        """Waits for the end of the log, as long as more of it comes."""
        if self._copying is None:
            return
        before = -1
        while not self._copying.done() and self._log.copied_bytes > before:
            before = self._log.copied_bytes
            await asyncio.wait({self._copying}, timeout=_LOG_S)
        if not self._copying.done():
            self._copying.cancel()
            await self._log.cut_short()

    async def _until_over(self) -> Model | None:
        """Follows the Job until it has finished, which is then returned, or is gone."""
        is_away = False
        while True:
            try:
                return await self._follow()
            except Unavailable as error:
                if not is_away:
                    _log.warning("a run cannot be followed for now", extra={"job": self._job, "error": error.message})
                is_away = True
            await asyncio.sleep(_AGAIN_S)

    async def _follow(self) -> Model | None:
        job = await self._read()
        if job is None:
            return None
        selector = f"batch.kubernetes.io/controller-uid={self._uid}"
        async with aclosing(self._cluster.watch_pods(selector, every_s=_LOOK_S)) as changes:
            async for pods in changes:
                self._see(list(pods.values()))
                over = any(is_over(pod) or pod.metadata.name not in pods for pod in self._ranks.values())
                job = await (self._read_soon() if over else self._read())
                if job is None or is_finished(job) or (self._is_requeued and all(map(is_over, pods.values()))):
                    return job
        return job

    def _see(self, pods: list[Model]) -> None:
        """Notes the newest pod of each rank, and copies the log of rank 0 once there may be one."""
        for pod in sorted(pods, key=lambda pod: pod.metadata.creation_timestamp):
            self._ranks[rank_of(pod)] = pod
        first = self._ranks.get(0)
        if first is None or first.status.phase in (None, "Pending"):
            return
        self._has_run = True
        if self._copying is None and (has_begun(first) or is_over(first)):
            self._copying = asyncio.create_task(self._log.follow(first.metadata.name, CONTAINER, self._is_first_over))

    def _is_first_over(self) -> bool:
        """Whether the pod of rank 0 works no more."""
        return self._is_finished or is_over(self._ranks[0])

    async def _read(self) -> Model | None:
        """The Job as it is now; None where it is gone, or its name is a later one's."""
        try:
            job = await self._cluster.job(self._job)
        except NotFound:
            return None
        if self._uid is None:
            self._uid = job.metadata.uid
            annotations = job.metadata.annotations or {}
            self._resumes = int(annotations.get(RESUMES, "0"))
            self._goes_on = annotations.get(GOES_ON) == "true"
        if job.metadata.uid != self._uid:
            return None
        self._most_ranks = job.spec.completions or 1
        queue = (job.metadata.labels or {}).get(QUEUE_LABEL, "") if job.spec.suspend else None
        self._queue = queue
        self._is_requeued = self._is_requeued or (queue is not None and self._has_run)
        return job

    async def _read_soon(self) -> Model | None:
        """The Job once it has ended, or as it is after a while."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _SOON_S
        while (job := await self._read()) is not None and not is_finished(job) and loop.time() < give_up:
            if self._queue is not None:
                break
            await asyncio.sleep(0.2)
        return job


def _queue(name: str) -> str:
    return f"queue {name!r}" if name else f"whoever suspended it; it has no label {QUEUE_LABEL}"
