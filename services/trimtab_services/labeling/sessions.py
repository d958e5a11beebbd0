"""Sessions of people: an opaque cookie, of which only the digest is kept, and the CSRF token that goes with it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from dataclasses import dataclass

import sqlalchemy as sa

from trimtab.errors import Overloaded, PermissionDenied, Reason, Unauthenticated
from trimtab_services.labeling import accounts, audit
from trimtab_services.labeling.accounts import Account
from trimtab_services.labeling.tables import sessions

__all__ = ["LoginLimit", "Session", "begin", "check_csrf", "end", "find", "touch"]

_USE_STEP_S = 60.0
"""The time of last use is written no more often than this."""

_MOST_SUBJECTS = 100_000
_MORE_TRIES = 10


@dataclass(frozen=True, slots=True)
class Session:
    """A person at work."""

    account: Account
    csrf_token: str


def begin(connection: sa.Connection, account: Account, *, ends_after_s: float) -> tuple[str, Session]:
    """Begins a session; returns what the cookie holds, which is nowhere else, and the session."""
    now = time.time()
    connection.execute(sessions.delete().where(sessions.c.end_time < now))
    cookie, csrf_token = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    connection.execute(
        sessions.insert().values(
            digest=_digest(cookie),
            account_id=account.id,
            csrf_token=csrf_token,
            use_time=now,
            end_time=now + ends_after_s,
        )
    )
    audit.note(connection, audit.account_actor(account.name), "session.begin", f"account:{account.name}")
    return cookie, Session(account, csrf_token)


def find(connection: sa.Connection, cookie: str, *, idle_s: float) -> tuple[Session, bool]:
    """The session of a cookie, and whether its time of last use is to be written by `touch`.

    Raises:
        Unauthenticated: there is none, or it has ended.
    """
    now = time.time()
    query = sa.select(sessions).where(sessions.c.digest == _digest(cookie))
    row = connection.execute(query).mappings().one_or_none() if cookie else None
    if row is None or row["end_time"] < now or row["use_time"] + idle_s < now:
        raise Unauthenticated(
            "session: none, or it has ended; log in",
            reason=Reason.TOKEN_UNKNOWN if cookie else Reason.TOKEN_MISSING,
            field="session",
        )
    session = Session(accounts.get(connection, row["account_id"]), row["csrf_token"])
    return session, row["use_time"] + min(_USE_STEP_S, idle_s / 4) < now


def touch(connection: sa.Connection, cookie: str) -> None:
    """Writes that a session was used now."""
    connection.execute(sessions.update().where(sessions.c.digest == _digest(cookie)).values(use_time=time.time()))


def end(connection: sa.Connection, cookie: str, session: Session) -> None:
    """Ends a session."""
    connection.execute(sessions.delete().where(sessions.c.digest == _digest(cookie)))
    actor = audit.account_actor(session.account.name)
    audit.note(connection, actor, "session.end", f"account:{session.account.name}")


def check_csrf(session: Session, token: str) -> None:
    """Checks the token that a page of ours has and one of another origin has not, in constant time.

    Raises:
        PermissionDenied: it is missing or another.
    """
    if not hmac.compare_digest(session.csrf_token.encode(), token.encode(errors="replace")):
        raise PermissionDenied("x-csrf-token: missing or not that of this session; load the page again", field="csrf")


class LoginLimit:
    """Counts failed logins in this process. Not thread-safe.

    An account from one address may fail `tries` times; an account from everywhere, and an address with all accounts,
    ten times as often: colleagues share an address, and nobody locks others out with a few wrong passwords.

    Args:
        tries: failures allowed within the window.
        window_s: length of the window.
    """

    def __init__(self, tries: int, window_s: float) -> None:
        self._tries = tries
        self._window_s = window_s
        self._failures: dict[tuple[str, str], deque[float]] = {}

    def check(self, account: str, address: str) -> None:
        """Refuses a login that has failed too often, before its password is looked at.

        Raises:
            Overloaded: says when to try again.
        """
        now = time.monotonic()
        for subject in _subjects(account, address):
            most = self._tries if all(subject) else _MORE_TRIES * self._tries
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
        for subject in _subjects(account, address):
            self._failures.setdefault(subject, deque()).append(now)

    def succeeded(self, account: str, address: str) -> None:
        """Forgets the failures of an account from an address."""
        self._failures.pop((account, address), None)

    def _recent(self, subject: tuple[str, str], now: float) -> deque[float]:
        failures = self._failures.get(subject, deque())
        while failures and failures[0] <= now - self._window_s:
            failures.popleft()
        return failures


def _subjects(account: str, address: str) -> tuple[tuple[str, str], ...]:
    """What failures count for: both together, and each alone."""
    return (account, address), (account, ""), ("", address)


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode(errors="replace")).hexdigest()
