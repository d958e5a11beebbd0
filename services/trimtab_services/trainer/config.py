"""Configuration of the TrainerService."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from trimtab_services.runtime.config import ClientTLS, ServiceConfig

__all__ = ["TrainerServiceConfig"]


class TrainerServiceConfig(ServiceConfig):
    """What `trimtab serve trainer` takes besides what every service takes."""

    directory: Path = Field(
        default=Path("runs"), description="Volume of the runs: events, checkpoints, models, reports."
    )
    endpoints_file: Path | None = Field(
        default=None,
        description="endpoints.json given to runs whose spec names no services. Unset: such a spec is refused.",
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
        default=120.0, gt=0, le=3600, description="A run process that has not reported by then is ended and FAILED."
    )

    @model_validator(mode="after")
    def _runs_can_report(self) -> TrainerServiceConfig:
        if self.tls is not None and self.report_tls is None:
            raise ValueError("`tls` is set, so run processes need `report_tls` to report to this service")
        return self
