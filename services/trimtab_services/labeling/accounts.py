"""Accounts of people: names, roles, groups, and passwords of which only an Argon2id hash is kept."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from trimtab.errors import InvalidRequest, NotFound, Reason
from trimtab_services.labeling import audit
from trimtab_services.labeling.tables import accounts, assignments, projects, sessions

__all__ = [
    "Account",
    "KeptPassword",
    "NewPassword",
    "Role",
    "by_name",
    "check_group",
    "create",
    "get",
    "groups",
    "kept_password",
    "page",
    "update",
]

LEAST_PASSWORD, MOST_PASSWORD = 12, 1000
MOST_GROUP = 63
_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""Argon2id with the least parameters of OWASP's Password Storage Cheat Sheet: 50 people who begin at nine share a core.
"""
_NOBODY = _hasher.hash("no account has this hash")


class Role(StrEnum):
    """What a person may do; each role may do what those before it may."""

    LABELER = "labeler"
    REVIEWER = "reviewer"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """Whether who has this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Account:
    """One person; `group` as in exported rows, `create_time` in seconds since the epoch."""

    id: int
    name: str
    role: Role
    group: str
    enabled: bool
    create_time: float


@dataclass(frozen=True, slots=True)
class NewPassword:
    """A password that an account gets, and its hash. It is made before the change that keeps it, which others wait for.

    Attributes:
        text: as it was given.
        hash: what is kept.
    """

    text: str = field(repr=False)
    hash: str = field(repr=False)

    @classmethod
    def of(cls, text: str) -> NewPassword:
        """Checks a password's length, the one rule that NIST SP 800-63B leaves, and hashes it.

        Raises:
            InvalidRequest: it is too short or too long; the message does not quote it.
        """
        if not LEAST_PASSWORD <= len(text) <= MOST_PASSWORD:
            raise InvalidRequest(
                f"password: {len(text)} characters; allowed: {LEAST_PASSWORD}..{MOST_PASSWORD}",
                field="password",
                value=len(text),
                limit=f"{LEAST_PASSWORD}..{MOST_PASSWORD}",
            )
        return cls(text, _hasher.hash(text))


@dataclass(frozen=True, slots=True)
class KeptPassword:
    """What a login by a name is held against.

    Attributes:
        hash: of the account's password; of no password where no account has the name.
        account: whom the password lets in; None where no account has the name, or it is not enabled.
    """

    hash: str = field(repr=False)
    account: Account | None

    def lets_in(self, password: str) -> Account | None:
        """The account, if this is its password; None for all else, after the same work: some 40 ms of a core."""
        return self.account if _matches(self.hash, password[: MOST_PASSWORD + 1]) else None


def create(
    connection: sa.Connection, actor: str, *, name: str, password: NewPassword, role: Role, group: str = ""
) -> Account:
    """Makes an account, or returns the one that a first try made.

    Raises:
        InvalidRequest: name or group; DUPLICATE_ID: an account of that name has another password or fields.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"name: {name!r:.80} must have 1..63 letters, digits, '-', '_' or '.'", field="name", value=name, limit=63
        )
    check_group(group)
    found = _row(connection, accounts.c.name == name)
    if found is not None:
        account = _account(found)
        if (account.role, account.group) == (role, group) and _matches(found["password_hash"], password.text):
            return account
        raise InvalidRequest(
            f"name: account {name!r} exists already; change it by an update",
            reason=Reason.DUPLICATE_ID,
            field="name",
            value=name,
        )
    connection.execute(
        accounts.insert().values(
            name=name,
            password_hash=password.hash,
            role=role.value,
            group=group,
            enabled=True,
            create_time=time.time(),
        )
    )
    audit.note(connection, actor, "account.create", f"account:{name}", {"role": role.value, "group": group})
    return by_name(connection, name)


def update(
    connection: sa.Connection,
    actor: str,
    name: str,
    *,
    password: NewPassword | None = None,
    role: Role | None = None,
    group: str | None = None,
    enabled: bool | None = None,
) -> Account:
    """Sets those fields that are not None; a new password, another role and disabling end the account's sessions.

    What the account works on now counts for the group that it is in now, as the label will.

    Raises:
        NotFound: no such account.
        InvalidRequest: group.
    """
    account = by_name(connection, name)
    values: dict[str, object] = {}
    if password is not None:
        values["password_hash"] = password.hash
    if group is not None:
        check_group(group)
        values["group"] = group
    if role is not None:
        values["role"] = role.value
    if enabled is not None:
        values["enabled"] = enabled
    if not values:
        return account
    if group is not None and group != account.group:
        _move_leases(connection, account, group)
    connection.execute(accounts.update().where(accounts.c.id == account.id).values(**values))
    if password is not None or enabled is False or (role is not None and role != account.role):
        connection.execute(sessions.delete().where(sessions.c.account_id == account.id))
    told = {key: value for key, value in values.items() if key != "password_hash"}
    audit.note(
        connection, actor, "account.update", f"account:{name}", told | ({"password": "changed"} if password else {})
    )
    return by_name(connection, name)


def _move_leases(connection: sa.Connection, account: Account, group: str) -> None:
    leases = sa.and_(assignments.c.account_id == account.id, assignments.c.state == "leased")
    # whoever counts the leases of a project holds it
    held = sa.select(projects.c.id).where(projects.c.id.in_(sa.select(assignments.c.project_id).where(leases)))
    connection.execute(held.order_by(projects.c.id).with_for_update())
    connection.execute(assignments.update().where(leases).values(group=group))


def by_name(connection: sa.Connection, name: str) -> Account:
    """One account.

    Raises:
        NotFound: no account of that name.
    """
    found = _row(connection, accounts.c.name == name)
    if found is None:
        raise NotFound(f"name: no account {name!r:.80}", field="name", value=name)
    return _account(found)


def get(connection: sa.Connection, account_id: int) -> Account:
    """One account by its number.

    Raises:
        NotFound: there is none.
    """
    found = _row(connection, accounts.c.id == account_id)
    if found is None:
        raise NotFound(f"no account {account_id}", field="account", value=account_id)
    return _account(found)


def page(connection: sa.Connection, after: str, limit: int) -> Sequence[Account]:
    """Accounts by name, after a name, at most `limit`."""
    query = sa.select(accounts).where(accounts.c.name > after).order_by(accounts.c.name).limit(limit)
    return [_account(row) for row in connection.execute(query).mappings()]


def groups(connection: sa.Connection) -> Sequence[str]:
    """Groups that accounts are in, by name."""
    query = sa.select(accounts.c.group).where(accounts.c.group != "").distinct().order_by(accounts.c.group)
    return connection.execute(query).scalars().all()


def kept_password(connection: sa.Connection, name: str) -> KeptPassword:
    """What a login by that name is held against, whether or not there is such an account."""
    found = _row(connection, accounts.c.name == name[:64])
    if found is None:
        return KeptPassword(_NOBODY, None)
    return KeptPassword(found["password_hash"], _account(found) if found["enabled"] else None)


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def check_group(group: str, field: str = "group") -> None:
    """Checks the name of a group of labelers; raises InvalidRequest under `field`."""
    if len(group) > MOST_GROUP or not group.isprintable():
        raise InvalidRequest(
            f"{field}: {group!r:.80} must have at most {MOST_GROUP} printable characters",
            field=field,
            value=group,
            limit=MOST_GROUP,
        )


def _row(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> sa.RowMapping | None:
    return connection.execute(sa.select(accounts).where(condition)).mappings().one_or_none()


def _account(row: sa.RowMapping) -> Account:
    return Account(row["id"], row["name"], Role(row["role"]), row["group"], row["enabled"], row["create_time"])
