"""Configuration of the weights service."""

from __future__ import annotations

from pydantic import Field

from trimtab_services.runtime.config import ServiceConfig

__all__ = ["WeightsServiceConfig"]

GIBIBYTE = 1024**3


class WeightsServiceConfig(ServiceConfig):
    """What `trimtab serve weights` takes."""

    store: str = Field(
        min_length=1,
        description=(
            "Folder of the store, or a URL that fsspec knows, such as s3://bucket/weights. Credentials and endpoint of "
            "an object store come from the environment: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3, ..."
        ),
    )
    read_only: bool = Field(
        default=False,
        description="Serve a store that another process writes: any number may. Publications and all other changes are "
        "refused here.",
    )
    refresh_s: float = Field(default=1.0, gt=0, description="With read_only: seconds between two looks for news.")
    blob_grace_s: float = Field(
        default=3600.0,
        ge=0,
        description="Seconds after its upload, or after a publisher asked for it, in which Prune leaves a blob alone.",
    )
    keep_versions: int | None = Field(
        default=64,
        ge=1,
        description="Newest versions of each run that are kept; older ones go when the run publishes, unless they are "
        "pinned, pointed to by a channel or needed by a kept one. With fewer than a run publishes between two "
        "checkpoints a resumed run may give a policy another number than before. null: all.",
    )
    max_blob_bytes: int = Field(default=64 * GIBIBYTE, ge=1024, description="Most bytes of one uploaded blob.")
    blob_idle_s: float = Field(
        default=60.0, gt=0, description="Seconds without a byte after which an upload or download of a blob is ended."
    )
    sign_of_life_s: float = Field(default=10.0, gt=0, description="Seconds between two messages of a quiet Watch.")
