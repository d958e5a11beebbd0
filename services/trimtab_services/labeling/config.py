"""Configuration of the labeling service."""

from __future__ import annotations

from pydantic import Field, SecretStr, model_validator

from trimtab_services.runtime.config import MEBIBYTE
from trimtab_services.runtime.quota import Quota
from trimtab_services.runtime.web.config import PageServiceConfig

__all__ = ["LabelingServiceConfig"]

DAY_S = 86400.0
_KEYS_BYTES = 4096


class LabelingServiceConfig(PageServiceConfig):
    """What `trimtab serve labeling` takes besides what every service with a page takes."""

    database: SecretStr = Field(
        default=SecretStr("sqlite:///labeling.sqlite"),
        description="Where everything is kept: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME. A secret may "
        "come from the environment: TRIMTAB_LABELING__DATABASE.",
    )
    database_wait_s: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="Seconds that a call waits for a connection or a lock of the database; after it UNAVAILABLE.",
    )
    database_threads: int = Field(
        default=8, ge=1, le=64, description="Calls that ask the database at once; each has a connection of its own."
    )
    people_quota: Quota | None = Field(
        default=Quota(requests_per_s=20.0, burst_s=60.0),
        description="What each person who is signed in may ask for, by account. null: no limit. `quota` counts "
        "programs by their token, and people by the address that their requests come from.",
    )
    session_idle_s: float = Field(
        default=12 * 3600.0, gt=0, le=30 * DAY_S, description="Seconds without a request after which a session ends."
    )
    session_s: float = Field(
        default=7 * DAY_S, gt=0, le=365 * DAY_S, description="Seconds after which a session ends in any case."
    )
    max_answer_characters: int = Field(
        default=100_000, ge=1, le=10_000_000, description="Most characters of a prompt, an answer or a demonstration."
    )
    max_draft_bytes: int = Field(
        default_factory=lambda known: _draft_bytes(known.get("max_answer_characters", 0)),
        ge=1024,
        le=128 * MEBIBYTE,
        description="Most bytes of a draft as JSON. Unset: what the longest label takes, 12 for each of "
        "`max_answer_characters` and 4,096; less is refused.",
    )
    max_import_tasks: int = Field(default=100_000, ge=1, le=10_000_000, description="Most tasks of one import.")
    max_import_bytes: int = Field(
        default=256 * 1024 * 1024, ge=1024, le=2**40, description="Most bytes of one import, all of it in memory."
    )
    sign_of_life_s: float = Field(default=10.0, gt=0, description="Seconds between two messages of a quiet export.")

    @model_validator(mode="after")
    def _drafts_hold_labels(self) -> LabelingServiceConfig:
        least = _draft_bytes(self.max_answer_characters)
        if self.max_draft_bytes < least:
            raise ValueError(
                f"max_draft_bytes: {self.max_draft_bytes} is too small for labels of `max_answer_characters` "
                f"{self.max_answer_characters}; allowed: at least {least}"
            )
        return self

    @model_validator(mode="after")
    def _requests_hold_drafts(self) -> LabelingServiceConfig:
        least = self.max_draft_bytes + _KEYS_BYTES
        if self.max_request_bytes < least:
            raise ValueError(
                f"max_request_bytes: {self.max_request_bytes} is too small for drafts of `max_draft_bytes` "
                f"{self.max_draft_bytes}; allowed: at least {least}"
            )
        return self


def _draft_bytes(max_answer_characters: int) -> int:
    """What the longest label takes as a draft: prompt and answer of a demonstration, and the keys.

    JSON writes a control character in 6 bytes, as \\u0001; all others take 4 or fewer in UTF-8.
    """
    return 2 * 6 * max_answer_characters + _KEYS_BYTES
