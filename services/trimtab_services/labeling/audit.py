"""Who changed what: written in the transaction of the change itself, and never changed again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from trimtab_services.labeling.tables import audit

__all__ = ["SERVICE", "account_actor", "events", "note", "note_each", "program_actor"]

SERVICE = "service"
"""The actor of what nobody asked for."""


def account_actor(name: str) -> str:
    """A person, as an actor."""
    return f"account:{name}"


def program_actor(name: str) -> str:
    """A program, by the name of its token, as an actor."""
    return f"program:{name[:200]}"


def note(
    connection: sa.Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any] | None = None
) -> None:
    """Adds an entry.

    Args:
        connection: in the transaction of the change.
        actor: who.
        action: what, such as `label.submit`.
        subject: on what, such as `task:summaries/42`.
        detail: further facts; never a password.
    """
    connection.execute(audit.insert(), [_entry(actor, action, subject, detail or {})])


def note_each(connection: sa.Connection, actor: str, action: str, subjects: Sequence[str]) -> None:
    """Adds an entry without further facts for each of many subjects, as `note` does for one."""
    if subjects:
        connection.execute(audit.insert(), [_entry(actor, action, subject, {}) for subject in subjects])


def _entry(actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    return {"time": time.time(), "actor": actor, "action": action, "subject": subject[:300], "detail": dict(detail)}


def events(connection: sa.Connection, after: int, limit: int) -> list[sa.RowMapping]:
    """Entries after a number, oldest first, at most `limit`."""
    query = sa.select(audit).where(audit.c.sequence > after).order_by(audit.c.sequence).limit(limit)
    return list(connection.execute(query).mappings())
