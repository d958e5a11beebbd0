"""What pages share of logins: from which address one comes, and how often one may fail."""

from __future__ import annotations

import ipaddress
import time
from collections import deque
from collections.abc import Sequence

from trimtab.errors import Overloaded, Reason

__all__ = ["LoginLimit", "Network", "address_of"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MOST_SUBJECTS = 100_000
_MORE_TRIES = 10


class LoginLimit:
    """Counts failed logins in this process. Not thread-safe.

    An account from one address may fail `tries` times; an account from everywhere, and an address with all accounts,
    ten times as often: colleagues share an address, and nobody locks others out with a few wrong passwords. Where
    logins name no account, an address may fail `tries` times.

    Args:
        tries: failures allowed within the window.
        window_s: length of the window.
    """

    def __init__(self, tries: int, window_s: float) -> None:
        self._tries = tries
        self._window_s = window_s
        self._failures: dict[tuple[str, str], deque[float]] = {}

    def check(self, account: str, address: str) -> None:
        """Refuses a login that has failed too often, before its password or token is looked at.

        Args:
            account: its name; empty where logins name none.
            address: from where it comes.

        Raises:
            Overloaded: says when to try again.
        """
        now = time.monotonic()
        for subject, most in self._allowed(account, address).items():
            failures = self._recent(subject, now)
            if len(failures) >= most:
                wait_s = failures[0] + self._window_s - now
                raise Overloaded(
                    f"login: {len(failures)} tries failed within {self._window_s:g} s; try again in {wait_s:.0f} s",
                    reason=Reason.QUOTA_EXCEEDED,
                    field="login",
                    value=len(failures),
                    limit=most,
                    retry_after_s=wait_s,
                )

    def failed(self, account: str, address: str) -> None:
        """Notes a failure."""
        now = time.monotonic()
        if len(self._failures) > _MOST_SUBJECTS:
            for subject in [one for one in self._failures if not self._recent(one, now)]:
                del self._failures[subject]
        for subject in self._allowed(account, address):
            self._failures.setdefault(subject, deque()).append(now)

    def succeeded(self, account: str, address: str) -> None:
        """Forgets the failures of an account from an address."""
        self._failures.pop((account, address), None)

    def _allowed(self, account: str, address: str) -> dict[tuple[str, str], int]:
        """What a failure counts for, and how many each may have: both together, and each alone."""
        if not account:
            return {("", address): self._tries}
        more = _MORE_TRIES * self._tries
        return {(account, address): self._tries, (account, ""): more, ("", address): more}

    def _recent(self, subject: tuple[str, str], now: float) -> deque[float]:
        failures = self._failures.get(subject, deque())
        while failures and failures[0] <= now - self._window_s:
            failures.popleft()
        return failures


def address_of(remote: str, forwarded: Sequence[str], trusted_proxies: Sequence[Network]) -> str:
    """Whose request it is: of the addresses on its way, from the last one on, the first that is no trusted proxy's.

    Who sends a request may write into X-Forwarded-For what it likes; proxies add to the end what they see.

    Args:
        remote: who is connected to this server.
        forwarded: each header X-Forwarded-For, in their order.
        trusted_proxies: networks of the proxies before this server.
    """
    seen = remote
    for one in reversed([part.strip() for header in forwarded for part in header.split(",")]):
        if not _is_in(seen, trusted_proxies) or _parsed(one) is None:
            break
        seen = one
    return seen


def _is_in(address: str, networks: Sequence[Network]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in networks)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed  # a socket for both kinds sees ::ffff:10.0.0.1
