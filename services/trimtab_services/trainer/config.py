"""Configuration of the TrainerService."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from trimtab_services.runtime.config import ServiceConfig

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
    start_timeout_s: float = Field(
        default=120.0, gt=0, le=3600, description="A run process that has not reported by then is ended and FAILED."
    )
