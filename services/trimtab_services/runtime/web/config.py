"""Configuration that services with a page for people share."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from pydantic import Field

from trimtab_services.runtime.config import ServiceConfig

__all__ = ["PageServiceConfig"]


class PageServiceConfig(ServiceConfig):
    """What every service takes, and what one takes besides that has a page to which people log in."""

    secure_cookies: bool = Field(
        default=False,
        description="The cookie of the page is only sent over HTTPS. Always so with `tls`; set it behind a proxy that "
        "speaks TLS.",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(),
        description="Networks, such as 10.0.0.0/8, of the proxies before this service. Of a request that comes from "
        "one, the last address in X-Forwarded-For that is no such proxy's counts as the person's, for `login_tries`. "
        "Unset: behind a proxy all people share its address.",
    )
    login_tries: int = Field(
        default=10,
        ge=1,
        le=10_000,
        description="Failed logins from one address within `login_window_s`; more are refused. Where people log in by "
        "an account and its password, those of one account; ten times as many count for an account from all "
        "addresses, and for an address with all accounts.",
    )
    login_window_s: float = Field(default=300.0, gt=0, le=86400, description="Seconds in which failed logins count.")

    @property
    def has_secure_cookies(self) -> bool:
        """Whether browsers reach the page over HTTPS."""
        return self.secure_cookies or self.tls is not None
