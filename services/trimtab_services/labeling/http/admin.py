"""What admins do over HTTP: accounts, projects, the audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from aiohttp import web
from pydantic import Field

from trimtab.types.shared import Record, Text
from trimtab_services.labeling import accounts, audit, projects
from trimtab_services.labeling.accounts import Account, Role
from trimtab_services.labeling.audit import account_actor
from trimtab_services.labeling.contents import StoredText, TaskKind
from trimtab_services.labeling.database import Database
from trimtab_services.labeling.hashing import Hashing
from trimtab_services.labeling.http.people import People, account_json
from trimtab_services.labeling.http.work import project_json
from trimtab_services.labeling.projects import ProjectFields, ProjectState
from trimtab_services.labeling.withdrawals import withdraw
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.json_body import read_json
from trimtab_services.runtime.queries import limit_of, number_of

__all__ = ["AdminRoutes"]


class _NewAccount(Record):
    name: Text
    password: Text = Field(repr=False)
    role: Role
    group: Text = ""


class _AccountChange(Record):
    password: Text | None = Field(default=None, repr=False)
    role: Role | None = None
    group: Text | None = None
    enabled: bool | None = None


class _ProjectChange(Record):
    instructions: Text | None = None
    overlap: int | None = None
    lease_ms: int | None = None
    undo_ms: int | None = None
    qualification_pass: float | None = None
    state: ProjectState | None = None
    held_out_group: Text | None = None
    held_out_overlap: int | None = None

    def changes(self) -> dict[str, Any]:
        """What is set of `ProjectFields`."""
        names = ProjectFields.__dataclass_fields__
        return {name: value for name, value in self.model_dump(exclude_none=True).items() if name in names}


class _NewProject(_ProjectChange):
    name: Text
    kind: TaskKind
    wants_ratings: bool = False


class _Withdrawal(Record):
    task_keys: tuple[StoredText, ...]
    restore: bool = False


class AdminRoutes:
    """Routes for admins.

    Args:
        database: where everything is kept.
        hashing: of passwords.
    """

    def __init__(self, database: Database, hashing: Hashing) -> None:
        self._database = database
        self._hashing = hashing

    def routes(self, people: People) -> Sequence[Route]:
        """All of them."""
        return [
            people.route("GET", "accounts", self._list_accounts, Role.ADMIN),
            people.route("POST", "accounts", self._create_account, Role.ADMIN),
            people.route("POST", "accounts/{account}", self._update_account, Role.ADMIN),
            people.route("POST", "projects", self._create_project, Role.ADMIN),
            people.route("POST", "projects/{project}", self._update_project, Role.ADMIN),
            people.route("POST", "projects/{project}/withdraw", self._withdraw, Role.ADMIN),
            people.route("GET", "audit", self._list_audit, Role.ADMIN),
        ]

    async def _list_accounts(self, request: web.Request, account: Account) -> object:
        limit = limit_of(request)
        found = await self._database.read(accounts.page, request.query.get("after", ""), limit)
        return {
            "accounts": [account_json(one) for one in found],
            "groups": await self._database.read(accounts.groups),
            "next_after": found[-1].name if len(found) == limit else None,
        }

    async def _create_account(self, request: web.Request, account: Account) -> object:
        body = _NewAccount(**await read_json(request))
        made = await self._database.change(
            accounts.create,
            account_actor(account.name),
            name=body.name,
            password=await self._hashing.new_password(body.password),
            role=body.role,
            group=body.group,
        )
        return account_json(made)

    async def _update_account(self, request: web.Request, account: Account) -> object:
        body = _AccountChange(**await read_json(request))
        changed = await self._database.change(
            accounts.update,
            account_actor(account.name),
            request.match_info["account"],
            password=None if body.password is None else await self._hashing.new_password(body.password),
            role=body.role,
            group=body.group,
            enabled=body.enabled,
        )
        return account_json(changed)

    async def _create_project(self, request: web.Request, account: Account) -> object:
        body = _NewProject(**await read_json(request))
        made = await self._database.change(
            projects.create,
            account_actor(account.name),
            body.name,
            body.kind,
            wants_ratings=body.wants_ratings,
            fields=ProjectFields(**body.changes()),
        )
        return project_json(made)

    async def _update_project(self, request: web.Request, account: Account) -> object:
        body = _ProjectChange(**await read_json(request))
        name = request.match_info["project"]

        def work(connection: sa.Connection) -> dict[str, Any]:
            return project_json(projects.update(connection, account_actor(account.name), name, **body.changes()))

        return await self._database.change(work)

    async def _withdraw(self, request: web.Request, account: Account) -> object:
        body = _Withdrawal(**await read_json(request))
        changed, labels = await self._database.change(
            withdraw,
            account_actor(account.name),
            request.match_info["project"],
            body.task_keys,
            restore=body.restore,
        )
        return {"changed_tasks": changed, "labels": labels}

    async def _list_audit(self, request: web.Request, account: Account) -> object:
        limit = limit_of(request)
        rows = await self._database.read(audit.events, number_of(request, "after") or 0, limit)
        return {
            "events": [dict(row) for row in rows],
            "next_after": rows[-1]["sequence"] if len(rows) == limit else None,
        }
