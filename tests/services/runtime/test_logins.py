"""Failed logins: whose address counts behind proxies, and for what a failure counts."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from trimtab.errors import Overloaded, Reason, Unauthenticated, Unavailable
from trimtab_services.runtime.web import logins
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


def fail(limit: LoginLimit, account: str, address: str) -> None:
    """A login that is looked at and has a wrong password."""
    with pytest.raises(Unauthenticated), limit.trying(account, address):
        raise Unauthenticated("wrong", reason=Reason.TOKEN_UNKNOWN)


def is_open(limit: LoginLimit, account: str, address: str) -> bool:
    """Whether a login is looked at; that says nothing of its password."""
    looked = False
    with suppress(Overloaded), limit.trying(account, address):
        looked = True
        raise Overloaded("others wait")
    return looked


def test_old_failures_do_not_count() -> None:
    limit = LoginLimit(1, 0.05)
    fail(limit, "ann", "here")
    time.sleep(0.06)
    assert is_open(limit, "ann", "here")


def test_without_accounts_each_address_counts_alone() -> None:
    limit = LoginLimit(2, 60.0)
    for _ in range(2):
        fail(limit, "", "here")
    with pytest.raises(Overloaded, match="login: 2 tries failed within 60 s; try again in 60 s") as caught:
        fail(limit, "", "here")
    assert caught.value.reason is Reason.QUOTA_EXCEEDED and caught.value.limit == "2"
    assert 59 < (caught.value.retry_after_s or 0) <= 60
    for number in range(50):
        fail(limit, "", f"address-{number}")
    assert is_open(limit, "", "elsewhere")
    with limit.trying("", "elsewhere"):
        pass  # who has one token must not guess others for ever
    fail(limit, "", "elsewhere")
    with limit.trying("", "elsewhere"):
        pass
    fail(limit, "", "elsewhere")
    assert not is_open(limit, "", "elsewhere")


def test_tries_under_way_count_until_they_succeed() -> None:
    limit = LoginLimit(2, 60.0)
    fail(limit, "ann", "here")
    with limit.trying("ann", "here"):
        with pytest.raises(Overloaded, match="1 tries failed within 60 s and 1 are under way") as caught:
            fail(limit, "ann", "here")
        assert (caught.value.retry_after_s or 60) <= 1  # it may succeed
        assert is_open(limit, "ann", "there")
    for _ in range(2):  # a success forgets the failure before it
        assert is_open(limit, "ann", "here")
        fail(limit, "ann", "here")
    assert not is_open(limit, "ann", "here")


def test_a_try_that_is_broken_off_counts_and_one_that_looked_at_nothing_does_not() -> None:
    limit = LoginLimit(2, 60.0)
    for error in (Overloaded("others wait"), Unavailable("no database"), Unauthenticated("no token")):
        for _ in range(3):
            with pytest.raises(type(error)), limit.trying("ann", "here"):
                raise error
    for _ in range(2):
        with pytest.raises(asyncio.CancelledError), limit.trying("ann", "here"):
            raise asyncio.CancelledError  # who hangs up has had a password hashed
    assert not is_open(limit, "ann", "here")


def test_an_ipv6_address_counts_by_its_network() -> None:
    limit = LoginLimit(2, 60.0)
    for host in ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"):
        fail(limit, "", host)
    assert not is_open(limit, "", "2001:db8:0:1::3")
    assert is_open(limit, "", "2001:db8:0:2::1")
    for address in ("192.0.2.1", "::ffff:192.0.2.1"):
        fail(limit, "", address)
    assert not is_open(limit, "", "192.0.2.1") and is_open(limit, "", "192.0.2.2")


def test_who_failed_longest_ago_is_forgotten_at_once_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "_MOST_SUBJECTS", 100)
    limit = LoginLimit(1, 60.0)
    for number in range(100):
        fail(limit, "", f"address-{number}")
    assert not is_open(limit, "", "address-0")
    fail(limit, "", "one more")
    assert is_open(limit, "", "address-0") and not is_open(limit, "", "address-1")
