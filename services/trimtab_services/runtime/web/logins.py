"""What pages share of logins: from which address one comes, and how often one may fail."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from trimtab.errors import Overloaded, Reason, Unauthenticated, Unavailable

__all__ = ["LoginLimit", "Network", "address_of"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MOST_SUBJECTS = 100_000
_MORE_TRIES = 10
_IPV6_PREFIX = 64
_UNDER_WAY_S = 1.0
"""When to come back where tries under way, not failures, are too many."""

_Subject = tuple[str, str]
"""An account and an address; empty: any."""


class LoginLimit:
    """Counts failed logins in this process. Not thread-safe.

    An account from one address may fail `tries` times; an account from everywhere, and an address with all accounts,
    ten times as often: colleagues share an address, and nobody locks others out with a few wrong passwords. Where
    logins name no account, an address may fail `tries` times. An IPv6 address counts by its /64, which is one
    customer's. Beyond 100,000 accounts and addresses the one that failed longest ago is forgotten.

    Args:
        tries: failures allowed within the window.
        window_s: length of the window.
    """

    def __init__(self, tries: int, window_s: float) -> None:
        self._tries = tries
        self._window_s = window_s
        self._failures: OrderedDict[_Subject, deque[float]] = OrderedDict()
        """Times of failures; who failed last comes last."""
        self._under_way: Counter[_Subject] = Counter()

    @contextmanager
    def trying(self, account: str, address: str) -> Iterator[None]:
        """Around a look at a password or a token, which fails by an error; how it ends is counted.

        While it is under way it counts as failed: tries at the same time get no further than one after another. One
        that is broken off counts as failed. One that looked at nothing (Overloaded, Unavailable, no token) does not
        count. One that succeeds is forgotten, with the failures of that account from that address.

        Args:
            account: its name; empty where logins name none.
            address: from where it comes.

        Raises:
            Overloaded: too many have failed; says when to try again.
        """
        subjects = self._allowed(account, _counted(address))
        self._check(subjects)
        self._under_way.update(subjects.keys())
        try:
            yield
        except BaseException as error:
            if not _looked_at_nothing(error):
                self._note(subjects)
            raise
        else:
            if account:
                self._failures.pop((account, _counted(address)), None)
        finally:
            self._under_way -= Counter(subjects.keys())

    def _check(self, subjects: dict[_Subject, int]) -> None:
        now = time.monotonic()
        for subject, most in subjects.items():
            failures, under_way = self._recent(subject, now), self._under_way[subject]
            if len(failures) + under_way < most:
                continue
            wait_s = failures[0] + self._window_s - now if len(failures) >= most else _UNDER_WAY_S
            others = f" and {under_way} are under way" if under_way else ""
            raise Overloaded(
                f"login: {len(failures)} tries failed within {self._window_s:g} s{others}; try again in "
                f"{math.ceil(wait_s)} s",
                reason=Reason.QUOTA_EXCEEDED,
                field="login",
                value=len(failures) + under_way,
                limit=most,
                retry_after_s=wait_s,
            )

    def _note(self, subjects: Iterable[_Subject]) -> None:
        now = time.monotonic()
        for subject in subjects:
            self._failures.setdefault(subject, deque()).append(now)
            self._failures.move_to_end(subject)
        while len(self._failures) > _MOST_SUBJECTS:
            self._failures.popitem(last=False)

    def _allowed(self, account: str, address: str) -> dict[_Subject, int]:
        """What a try counts for, and how many each may have: both together, and each alone."""
        if not account:
            return {("", address): self._tries}
        more = _MORE_TRIES * self._tries
        return {(account, address): self._tries, (account, ""): more, ("", address): more}

    def _recent(self, subject: _Subject, now: float) -> deque[float]:
        failures = self._failures.get(subject, deque())
        while failures and failures[0] <= now - self._window_s:
            failures.popleft()
        return failures


def _looked_at_nothing(error: BaseException) -> bool:
    is_no_token = isinstance(error, Unauthenticated) and error.reason is Reason.TOKEN_MISSING
    return is_no_token or isinstance(error, Overloaded | Unavailable)


def _counted(address: str) -> str:
    """What an address counts for."""
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(parsed), _IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)


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
