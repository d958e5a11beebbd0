"""Configuration of the TrainerService."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trimtab_services.runtime.config import ClientTLS
from trimtab_services.runtime.web.config import PageServiceConfig

__all__ = ["KubernetesLauncherConfig", "LocalLauncherConfig", "TrainerServiceConfig"]


class LocalLauncherConfig(BaseModel):
    """Runs are processes of this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["local"] = Field(default="local", description="Runs are processes of this machine.")
    processes: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Processes of each run, which train together, with `device: cuda` each on a GPU of its own.",
    )


class KubernetesLauncherConfig(BaseModel):
    """Runs are Jobs of a Kubernetes cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["kubernetes"] = Field(description="Runs are Jobs of a Kubernetes cluster.")
    template_file: Path = Field(
        description="YAML: one Job, whose pod has a container `run` and the volumes `spec` and `runs`, and at most one "
        "PersistentVolumeClaim, of which each run then gets its own."
    )
    namespace: str = Field(default="", description="Namespace of the Jobs. Empty: that of this service's pod.")
    resumes: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="How often a run whose pod was evicted or preempted, or whose node was lost, is started again from "
        "its last checkpoint before it counts as FAILED.",
    )
    reschedule_timeout_s: float = Field(
        default=3600.0,
        gt=0,
        le=7 * 86400,
        description="How long such a run may take until its new pod works, before it counts as FAILED: until whoever "
        "preempted it leaves, a node is there, a lost one lets go of its volume, the image is pulled. Time in a queue "
        "does not count.",
    )
    kubeconfig: Path | None = Field(
        default=None, description="How to reach the cluster from outside. Unset: by the pod's own ServiceAccount."
    )


class TrainerServiceConfig(PageServiceConfig):
    """What `trimtab serve trainer` takes besides what every service with a page takes."""

    directory: Path = Field(
        default=Path("runs"), description="Volume of the runs: events, checkpoints, models, reports."
    )
    endpoints_file: Path | None = Field(
        default=None,
        description="endpoints.json given to runs on this machine whose spec names no services; Jobs get theirs by the "
        "template. Unset: such a spec is refused.",
    )
    token_file: Path | None = Field(
        default=None, description="File with the bearer token (scope `runs`) that run processes report with."
    )
    report_tls: ClientTLS | None = Field(
        default=None, description="How run processes reach this service over TLS. Set it where `tls` is set."
    )
    stop_runs_on_drain: bool = Field(
        default=False,
        description="A drain also stops the runs, each with a checkpoint. Otherwise they outlive this service and "
        "report to it when it is back on the same address.",
    )
    stop_runs_s: float = Field(
        default=600.0,
        gt=0,
        le=86400,
        description="Seconds that the runs get, on a drain that stops them, to finish their step and save a "
        "checkpoint. A second SIGTERM or Ctrl-C ends them at once.",
    )
    start_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="A run that has not reported by then is ended and FAILED. On Kubernetes it is counted twice: until "
        "a first pod has a node, and from there on, with the time in which the image is pulled. For a run that goes on "
        "after a disruption it counts once its new pod works; see `launcher.reschedule_timeout_s`.",
    )
    launcher: Annotated[LocalLauncherConfig | KubernetesLauncherConfig, Field(discriminator="kind")] = Field(
        default_factory=LocalLauncherConfig, description="Where runs work: `kind` is `local` or `kubernetes`."
    )
    scaler_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of KEDA's external scaler, plaintext and without tokens, for KEDA alone. Unset: none.",
    )

    session_s: float = Field(
        default=12 * 3600.0,
        gt=0,
        le=365 * 86400,
        description="Seconds after which who has signed in to the page for runs does so again.",
    )

    @model_validator(mode="after")
    def _runs_can_report(self) -> TrainerServiceConfig:
        if self.tls is not None and self.report_tls is None:
            raise ValueError("`tls` is set, so run processes need `report_tls` to report to this service")
        if self.stop_runs_on_drain and self.launcher.kind == "kubernetes":
            raise ValueError(
                "`stop_runs_on_drain` is for `launcher.kind: local`; Jobs outlive this service, which finds them again"
            )
        return self
