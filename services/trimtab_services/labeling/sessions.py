"""Sessions of people: an opaque cookie, of which only the digest is kept, and the CSRF token that goes with it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

import sqlalchemy as sa

from trimtab.errors import PermissionDenied, Reason, Unauthenticated
from trimtab_services.labeling import accounts, audit
from trimtab_services.labeling.accounts import Account
from trimtab_services.labeling.tables import sessions

__all__ = ["Session", "begin", "check_csrf", "end", "find", "touch"]

_USE_STEP_S = 60.0
"""The time of last use is written no more often than this."""


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


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode(errors="replace")).hexdigest()
