"""Configuration of the labeling service."""

from __future__ import annotations

from pydantic import Field, SecretStr

from trimtab_services.runtime.config import ServiceConfig

__all__ = ["LabelingServiceConfig"]

DAY_S = 86400.0


class LabelingServiceConfig(ServiceConfig):
    """What `trimtab serve labeling` takes besides what every service takes."""

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
    secure_cookies: bool = Field(
        default=False,
        description="The session's cookie is only sent over HTTPS. Always so with `tls`; set it behind a proxy that "
        "speaks TLS.",
    )
    session_idle_s: float = Field(
        default=12 * 3600.0, gt=0, le=30 * DAY_S, description="Seconds without a request after which a session ends."
    )
    session_s: float = Field(
        default=7 * DAY_S, gt=0, le=365 * DAY_S, description="Seconds after which a session ends in any case."
    )
    login_tries: int = Field(
        default=10,
        ge=1,
        le=10_000,
        description="Failed logins of an account from one address within `login_window_s`; more are refused. Ten times "
        "as many count for an account from all addresses, and for an address with all accounts.",
    )
    login_window_s: float = Field(default=300.0, gt=0, le=DAY_S, description="Seconds in which failed logins count.")
    max_answer_characters: int = Field(
        default=100_000, ge=1, le=10_000_000, description="Most characters of a prompt, an answer or a demonstration."
    )
    max_draft_bytes: int = Field(
        default=1024 * 1024, ge=1024, le=64 * 1024 * 1024, description="Most bytes of a draft as JSON."
    )
    max_import_tasks: int = Field(default=100_000, ge=1, le=10_000_000, description="Most tasks of one import.")
    max_import_bytes: int = Field(
        default=256 * 1024 * 1024, ge=1024, le=2**40, description="Most bytes of one import, all of it in memory."
    )
    sign_of_life_s: float = Field(default=10.0, gt=0, description="Seconds between two messages of a quiet export.")
