"""What reviewers see: everybody's labels, progress and agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from aiohttp import web

from trimtab_services.labeling import agreement_report, listing, projects, qualification
from trimtab_services.labeling.accounts import Account, Role
from trimtab_services.labeling.audit import account_actor
from trimtab_services.labeling.database import Database
from trimtab_services.labeling.http.people import People
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.queries import limit_of, number_of

__all__ = ["ReviewRoutes"]


class ReviewRoutes:
    """Routes for reviewers.

    Args:
        database: where everything is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def routes(self, people: People) -> Sequence[Route]:
        """All of them."""
        one = "projects/{project}"
        return [
            people.route("GET", f"{one}/progress", self._progress, Role.REVIEWER),
            people.route("GET", f"{one}/agreement", self._agreement, Role.REVIEWER),
            people.route("GET", f"{one}/labels", self._labels, Role.REVIEWER),
            people.route("POST", f"{one}/qualification/{{labeler}}", self._reset_qualification, Role.REVIEWER),
        ]

    async def _progress(self, request: web.Request, account: Account) -> object:
        def work(connection: sa.Connection) -> dict[str, Any]:
            return asdict(projects.progress(connection, projects.get(connection, request.match_info["project"])))

        return await self._database.read(work)

    async def _agreement(self, request: web.Request, account: Account) -> object:
        return asdict(await self._database.read(agreement_report.report, request.match_info["project"]))

    async def _reset_qualification(self, request: web.Request, account: Account) -> object:
        done = await self._database.change(
            qualification.reset,
            account_actor(account.name),
            request.match_info["project"],
            request.match_info["labeler"],
        )
        return {"reset_tasks": done}

    async def _labels(self, request: web.Request, account: Account) -> object:
        after, limit = number_of(request, "after") or 0, limit_of(request)

        def work(connection: sa.Connection) -> list[dict[str, Any]]:
            project = projects.get(connection, request.match_info["project"])
            labeler = request.query.get("labeler", "")
            rows = listing.everybodys(connection, project, after=after, labeler=labeler, limit=limit)
            return [_label(row) for row in rows]

        found = await self._database.read(work)
        return {"labels": found, "next_after": found[-1]["id"] if len(found) == limit else None}


def _label(row: sa.RowMapping) -> dict[str, Any]:
    """A label with its task; answers by their index in the task."""
    return {
        "id": row["id"],
        "labeler": row["labeler"],
        "group": row["group"],
        "task_key": row["task_key"],
        "task": row["content"],
        "is_qualification": row["is_qualification"],
        "is_withdrawn": bool(row["is_withdrawn"]),
        "state": row["state"],
        "label": row["label"],
        "skip_reason": row["skip_reason"],
        "seconds": round(row["done_time"] - row["assign_time"], 3),
        "active_ms": row["active_ms"],
        "gold_agreeing": row["gold_agreeing"],
        "gold_pairs": row["gold_pairs"],
    }
