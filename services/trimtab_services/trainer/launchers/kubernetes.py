"""The Kubernetes launcher: a run is a Job, made from a template that the operator writes.

A run's Job is named `TEMPLATE-RUN`; its spec is in a ConfigMap that the Job owns. The run's folder is on a claim of its
own, which outlives the Job, or in a folder of one that all share.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from trimtab.errors import FailedPrecondition, NotFound, TrimtabError
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.config import KubernetesLauncherConfig
from trimtab_services.trainer.launchers.base import Removed
from trimtab_services.trainer.launchers.check import check_spec
from trimtab_services.trainer.launchers.cluster import Cluster, Conflict
from trimtab_services.trainer.launchers.job import KubernetesWork
from trimtab_services.trainer.launchers.pod_log import PodLog
from trimtab_services.trainer.launchers.template import RunTemplate
from trimtab_services.trainer.run_rows import RunRow

__all__ = ["KubernetesLauncher"]

_GONE_S = 60.0
_LOOK_S = 0.2
_AGAIN_S = 5.0


class KubernetesLauncher:
    """Starts and finds the Jobs of runs.

    Args:
        cluster: where they are; closed by `close`.
        template: what they are made from.
        most_resumes: how often a disrupted run is started again by itself.
        reschedule_timeout_s: how long it may take then until it has a place.
    """

    disrupts = True

    def __init__(
        self, cluster: Cluster, template: RunTemplate, *, most_resumes: int, reschedule_timeout_s: float
    ) -> None:
        self.most_resumes = most_resumes
        self.reschedule_timeout_s = reschedule_timeout_s
        self._cluster = cluster
        self._template = template

    @classmethod
    async def connect(cls, config: KubernetesLauncherConfig) -> KubernetesLauncher:
        """Reads the template and how to reach the cluster; makes no call.

        Raises:
            ConfigError: names the key, the file and what is wrong.
        """
        template = RunTemplate.read(config.template_file)
        cluster = await Cluster.connect(config.namespace, config.kubeconfig)
        return cls(cluster, template, most_resumes=config.resumes, reschedule_timeout_s=config.reschedule_timeout_s)

    def check_name(self, name: str) -> None:
        """As `RunTemplate.check_name`."""
        self._template.check_name(name)

    async def check(self, spec_file: Path) -> None:
        """As `Launcher.check`, with the options that the run's pod gets.

        The files that the spec names are on the volumes of that pod, which this one does not have. It looks for them
        before anything else, and one that is missing is the run's error, with key and path.
        """
        await check_spec(spec_file, *self._template.run_options(), "--check-spec")

    async def start(self, run: RunRow, *, resume: bool, resumes: int = 0, goes_on: bool = False) -> KubernetesWork:
        """Creates the run's Job, after what is left of an earlier one is gone.

        Raises:
            FailedPrecondition: a permission or quota is missing, or the API refuses an object; names it. With
                `retry_after_s`: the earlier Job is still there.
            Unavailable: the API does not answer.
        """
        name = self._template.job_name(run.name)
        await self._remove_job(name)
        claim = self._template.claim_of(run.name)
        if claim is not None:
            with suppress(Conflict):  # the run's own, from its first launch
                await self._cluster.create_claim(claim)
        config_map = f"{name}-{secrets.token_hex(4)}"
        job = await self._cluster.create_job(
            self._template.job_of(run.name, config_map=config_map, resume=resume, resumes=resumes, goes_on=goes_on)
        )
        uid: str = job.metadata.uid
        body = self._template.config_map_of(run.name, name=config_map, spec_yaml=run.spec_yaml, job_uid=uid)
        work = self._work(run, uid, resumes, goes_on=goes_on)
        try:
            await self._cluster.create_config_map(body)
        except TrimtabError:
            with suppress(TrimtabError):
                await work.stop()
            raise
        return work

    async def find(self, run: RunRow) -> KubernetesWork | None:
        """The run's Job; that it is gone is found by following it."""
        return self._work(run, has_run=run.state != pb.RUN_STATE_STARTING)

    async def forget(self, run: RunRow) -> Removed:
        """Deletes the run's Job, and with it the spec's ConfigMap, and its own claim, with all data.

        Raises:
            FailedPrecondition: a permission is missing, or they are still there after a minute.
            Unavailable: the API does not answer.
        """
        await self._remove_job(self._template.job_name(run.name))
        claim = self._template.claim_name(run.name)
        if claim is None:
            shared = self._cluster.named("PersistentVolumeClaim", self._template.shared_claim or "")
            folder = self._template.run_directory(run.name)
            return Removed(
                left=f"folder {folder} on {shared}, which runs share: only a pod that mounts it can remove it"
            )
        capacity = await self._capacity(claim)
        await self._remove("PersistentVolumeClaim", claim, self._cluster.delete_claim, self._cluster.claim)
        return Removed(capacity)

    async def _capacity(self, claim: str) -> int:
        """Bytes of a bound claim; 0 where it is not bound or not there."""
        try:
            status = (await self._cluster.claim(claim)).status
        except NotFound:
            return 0
        return int(parse_quantity((status.capacity or {}).get("storage", "0")))

    async def close(self) -> None:
        """Closes the connections; the Jobs go on."""
        await self._cluster.close()

    def _work(self, run: RunRow, uid: str | None = None, resumes: int = 0, **facts: bool) -> KubernetesWork:
        log = PodLog(self._cluster, Path(run.directory) / "run.log", run.name)
        return KubernetesWork(self._cluster, self._template.job_name(run.name), log, uid, resumes, **facts)

    async def _remove_job(self, name: str) -> None:
        await self._remove("Job", name, self._cluster.delete_job, self._cluster.job)

    async def _remove(self, kind: str, name: str, delete: Any, read: Any) -> None:
        """Deletes an object and waits until it is gone; nothing where there is none."""
        try:
            async with asyncio.timeout(_GONE_S):
                await delete(name)
                while True:
                    await read(name)
                    await asyncio.sleep(_LOOK_S)
        except NotFound:
            return
        except TimeoutError:
            what = self._cluster.named(kind, name)
            raise FailedPrecondition(
                f"{what} of an earlier launch is still there {_GONE_S:.0f} s after it was deleted; try again later",
                field=what,
                retry_after_s=_AGAIN_S,
            ) from None
