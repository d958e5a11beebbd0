"""Failed logins: whose address counts behind proxies, and for what a failure counts."""

from __future__ import annotations

import time

import pytest

from trimtab.errors import Overloaded, Reason
from trimtab_services.runtime.web.config import PageServiceConfig
from trimtab_services.runtime.web.logins import LoginLimit, address_of


@pytest.mark.parametrize(
    ("remote", "headers", "address"),
    [
        ("203.0.113.5", ["192.0.2.1"], "203.0.113.5"),
        ("::ffff:10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1, 198.51.100.2", "10.0.0.9"], "198.51.100.2"),
        ("10.0.0.1", ["10.0.0.8"], "10.0.0.8"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["192.0.2.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("", ["192.0.2.1"], ""),
    ],
)
def test_the_address_of_a_person(remote: str, headers: list[str], address: str) -> None:
    config = PageServiceConfig.model_validate({"trusted_proxies": ["10.0.0.0/8"]})
    assert address_of(remote, headers, config.trusted_proxies) == address


def test_old_failures_do_not_count() -> None:
    limit = LoginLimit(1, 0.05)
    limit.failed("ann", "here")
    time.sleep(0.06)
    limit.check("ann", "here")


def test_without_accounts_each_address_counts_alone() -> None:
    limit = LoginLimit(2, 60.0)
    for _ in range(2):
        limit.check("", "here")
        limit.failed("", "here")
    with pytest.raises(Overloaded, match="login: 2 tries failed within 60 s") as caught:
        limit.check("", "here")
    assert caught.value.reason is Reason.QUOTA_EXCEEDED and caught.value.limit == "2"
    assert 59 < (caught.value.retry_after_s or 0) <= 60
    for number in range(50):
        limit.failed("", f"address-{number}")
    limit.check("", "elsewhere")
