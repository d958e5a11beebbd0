"""The template of runs: Kubernetes objects that an operator writes, and what the launcher sets in them.

Objects are filled in as data; no text is ever put together.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import ConfigError, InvalidRequest

__all__ = ["CONTAINER", "GOES_ON", "QUEUE_LABEL", "RESUMES", "RUN_LABEL", "RunTemplate"]

CONTAINER = "run"
"""Name of the container that works on the run."""

RUN_LABEL = "trimtab.dev/run"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
"""Label of a Job that Kueue admits: the LocalQueue in which it waits, suspended."""

RESUMES = "trimtab.dev/resumes"
"""Annotation of a Job: how often the run was started again after a disruption."""

GOES_ON = "trimtab.dev/goes-on"
"""Annotation of a Job, "true" or "false": whether the launcher made it by itself, to go on with a disrupted run."""

_COMMAND = ("run", "/etc/trimtab-run/spec.yaml")
_RUNS_DIRECTORY = "/var/lib/trimtab/runs"
_SPEC_FILE = "spec.yaml"
_MOST_NAME_CHARACTERS = 63
"""Of a Job's name, which is a label of its pods, and with a number behind it the host name of each rank."""

_RUN_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class RunTemplate:
    """The objects of a run.

    Attributes:
        job: a `batch/v1` Job.
        claim: a PersistentVolumeClaim, of which each run gets its own; None: all share the one that the Job names.
    """

    job: Mapping[str, Any]
    claim: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> RunTemplate:
        """Reads and checks a template file.

        Raises:
            ConfigError: names the file, the object and what is wrong.
        """
        try:
            documents = [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise _wrong(path, " ".join(str(error).split())) from None
        kinds = [document.get("kind") if isinstance(document, dict) else None for document in documents]
        for kind, allowed in (("Job", "exactly one"), ("PersistentVolumeClaim", "at most one")):
            if kinds.count(kind) > 1 or (kind == "Job" and not kinds.count(kind)):
                raise _wrong(path, f"it has {kinds.count(kind)} {kind} documents; {allowed} is allowed")
        for document, kind in zip(documents, kinds, strict=True):
            if kind not in ("Job", "PersistentVolumeClaim"):
                raise _wrong(path, f"a document of kind {kind!r}; allowed are Job and PersistentVolumeClaim")
            if not isinstance(document.get("metadata", {}).get("name"), str):
                raise _wrong(path, f"{kind}: metadata.name is missing")
        job = documents[kinds.index("Job")]
        _check_job(path, job)
        has_claim = "PersistentVolumeClaim" in kinds
        return cls(job, documents[kinds.index("PersistentVolumeClaim")] if has_claim else None)

    def run_options(self) -> list[str]:
        """The options that the template itself gives to `trimtab run`, such as the services of every run."""
        container = _named(self.job["spec"]["template"]["spec"]["containers"], CONTAINER)
        return [str(argument) for argument in container["args"][len(_COMMAND) :]]

    def check_name(self, name: str) -> None:
        """Refuses a run's name of which no Job can be named.

        Raises:
            InvalidRequest: names the limit.
        """
        most = _MOST_NAME_CHARACTERS - len(self.job_name("")) - len(self._last_suffix)
        if not _RUN_NAME.fullmatch(name) or len(name) > most:
            raise InvalidRequest(
                f"name: {name!r} must have 1..{most} lower-case letters, digits and '-', none at its ends, since it "
                f"becomes the name of Job {self.job_name(name)!r}",
                field="name",
                value=name,
                limit=most,
            )

    @property
    def _last_suffix(self) -> str:
        """What stands behind a Job's name in the host name of the last rank; empty where a run is one pod."""
        spec = self.job["spec"]
        return f"-{spec['completions'] - 1}" if spec.get("completionMode") == "Indexed" else ""

    def job_name(self, run: str) -> str:
        """Name of a run's Job."""
        return f"{self.job['metadata']['name']}-{run}"

    def claim_name(self, run: str) -> str | None:
        """Name of a run's own claim; None where all share one."""
        return f"{self.claim['metadata']['name']}-{run}" if self.claim is not None else None

    def job_of(
        self, run: str, *, config_map: str, resume: bool, resumes: int = 0, goes_on: bool = False
    ) -> dict[str, Any]:
        """The Job of a run.

        The Job controller never starts a second pod, which would not resume: the launcher does, once it knows why the
        first one ended. A pod that the cluster disrupts fails the Job with a reason that outlives the pod.
        """
        job = copy.deepcopy(dict(self.job))
        pod = job["spec"]["template"]
        _label(job, run)
        _label(pod, run)
        job["metadata"]["name"] = self.job_name(run)
        job["metadata"].setdefault("annotations", {}).update(
            {RESUMES: str(resumes), GOES_ON: "true" if goes_on else "false"}
        )
        job["spec"]["backoffLimit"] = 0
        disrupted = {"type": "DisruptionTarget", "status": "True"}
        job["spec"]["podFailurePolicy"] = {"rules": [{"action": "FailJob", "onPodConditions": [disrupted]}]}
        job["spec"]["podReplacementPolicy"] = "Failed"
        pod["spec"]["restartPolicy"] = "Never"
        container = _named(pod["spec"]["containers"], CONTAINER)
        directory = ["--dir", self.run_directory(run), "--name", run]
        container["args"] = [*container["args"], *directory, *(["--resume"] if resume else [])]
        _named(pod["spec"]["volumes"], "spec")["configMap"]["name"] = config_map
        if claim := self.claim_name(run):
            _named(pod["spec"]["volumes"], "runs")["persistentVolumeClaim"]["claimName"] = claim
        return job

    @property
    def shared_claim(self) -> str | None:
        """Name of the claim that all runs share; None where each has its own."""
        if self.claim is not None:
            return None
        volume = _named(self.job["spec"]["template"]["spec"]["volumes"], "runs")
        return str(volume["persistentVolumeClaim"].get("claimName", ""))

    def run_directory(self, run: str) -> str:
        """Folder of a run in its pod."""
        return f"{_RUNS_DIRECTORY}/{run}"

    def claim_of(self, run: str) -> dict[str, Any] | None:
        """The claim of a run; None where all share one."""
        if self.claim is None:
            return None
        claim = copy.deepcopy(dict(self.claim))
        claim["metadata"]["name"] = self.claim_name(run)
        _label(claim, run)
        return claim

    def config_map_of(self, run: str, *, name: str, spec_yaml: str, job_uid: str) -> dict[str, Any]:
        """The ConfigMap of a run's spec; it belongs to the Job and goes with it."""
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": self.job_name(run), "uid": job_uid}
        labels = dict(self.job["metadata"].get("labels", {}))
        body: dict[str, Any] = {"metadata": {"name": name, "labels": labels, "ownerReferences": [owner]}}
        _label(body, run)
        return {**body, "immutable": True, "data": {_SPEC_FILE: spec_yaml}}


def _check_job(path: Path, job: dict[str, Any]) -> None:
    pod = job.get("spec", {}).get("template", {}).get("spec", {})
    containers = [one for one in pod.get("containers", []) if one.get("name") == CONTAINER]
    arguments = containers[0].get("args") if containers else None
    if not isinstance(arguments, list) or tuple(arguments[: len(_COMMAND)]) != _COMMAND:
        raise _wrong(path, f"Job: its pod needs a container {CONTAINER!r} whose `args` begin with {[*_COMMAND]}")
    volumes = {volume.get("name"): volume for volume in pod.get("volumes", [])}
    for name, source in (("spec", "configMap"), ("runs", "persistentVolumeClaim")):
        if not isinstance(volumes.get(name, {}).get(source), dict):
            raise _wrong(path, f"Job: its pod needs a volume {name!r} of type {source}")


def _wrong(path: Path, what: str) -> ConfigError:
    return ConfigError(f"launcher.template_file: {path}: {what}", field="launcher.template_file", value=path)


def _label(body: dict[str, Any], run: str) -> None:
    body.setdefault("metadata", {}).setdefault("labels", {})[RUN_LABEL] = run


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item.get("name") == name)
