"""What labelers ask for: projects, tasks, and to take what they typed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from aiohttp import web
from pydantic import Field

from trimtab.errors import InvalidRequest
from trimtab.types.shared import Record, Text
from trimtab_services.labeling import assignments, listing, projects, submissions
from trimtab_services.labeling.accounts import Account, Role
from trimtab_services.labeling.assignments import Assignment
from trimtab_services.labeling.config import LabelingServiceConfig
from trimtab_services.labeling.contents import FLAGS, at_places
from trimtab_services.labeling.database import Database
from trimtab_services.labeling.http.people import People
from trimtab_services.labeling.projects import Project
from trimtab_services.labeling.qualification import qualifications
from trimtab_services.labeling.submissions import Draft, Late
from trimtab_services.labeling.web import instructions_tree
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.json_body import read_json
from trimtab_services.runtime.queries import limit_of, number_of, path_number

__all__ = ["WorkRoutes", "project_json"]


class _Draft(Record):
    draft_id: Text
    base_draft_id: Text = ""
    content: dict[str, Any]


class _Submission(Record):
    submission_id: Text
    label: dict[str, Any]
    active_ms: int | None = Field(default=None, ge=0)


class _Skip(Record):
    submission_id: Text
    reason: Text


class WorkRoutes:
    """Routes for labelers; each sees and changes its own assignments only.

    Args:
        config: of the service.
        database: where everything is kept.
    """

    def __init__(self, config: LabelingServiceConfig, database: Database) -> None:
        self._config = config
        self._database = database

    def routes(self, people: People) -> Sequence[Route]:
        """All of them."""
        one = "assignments/{assignment}"
        return [
            people.route("GET", "projects", self._list_projects),
            people.route("GET", "projects/{project}", self._show_project),
            people.route("POST", "projects/{project}/next", self._next),
            people.route("GET", "projects/{project}/assignments", self._list_own),
            people.route("GET", one, self._show),
            people.route("POST", f"{one}/renew", self._renew),
            people.route("PUT", f"{one}/draft", self._save_draft),
            people.route("POST", f"{one}/submit", self._submit),
            people.route("POST", f"{one}/skip", self._skip),
            people.route("POST", f"{one}/undo", self._undo),
        ]

    async def _list_projects(self, request: web.Request, account: Account) -> object:
        after, limit = request.query.get("after", ""), limit_of(request)

        def work(connection: sa.Connection) -> list[dict[str, Any]]:
            with_archived = account.role.includes(Role.REVIEWER)
            return self._projects(
                connection, account, projects.page(connection, after, limit, with_archived=with_archived)
            )

        found = await self._database.read(work)
        return {"projects": found, "next_after": found[-1]["name"] if len(found) == limit else None}

    async def _show_project(self, request: web.Request, account: Account) -> object:
        def work(connection: sa.Connection) -> dict[str, Any]:
            project = projects.get(connection, request.match_info["project"])
            (shown,) = self._projects(connection, account, [project])
            return shown | {"instructions_tree": instructions_tree(project.fields.instructions)}

        return await self._database.read(work)

    async def _next(self, request: web.Request, account: Account) -> object:
        def work(connection: sa.Connection) -> dict[str, Any] | None:
            given = assignments.give_out(connection, account, request.match_info["project"])
            return None if given is None else _shown(connection, given)

        return {"assignment": await self._database.change(work)}

    async def _list_own(self, request: web.Request, account: Account) -> object:
        before, limit = number_of(request, "before"), limit_of(request)

        def work(connection: sa.Connection) -> list[dict[str, Any]]:
            project = projects.get(connection, request.match_info["project"])
            numbers = listing.own_numbers(connection, account, project, before=before, limit=limit)
            return [_shown(connection, assignments.read(connection, account, number)) for number in numbers]

        found = await self._database.read(work)
        return {"assignments": found, "next_before": found[-1]["id"] if len(found) == limit else None}

    async def _show(self, request: web.Request, account: Account) -> object:
        number = path_number(request, "assignment")

        def work(connection: sa.Connection) -> dict[str, Any]:
            return _shown(connection, assignments.read(connection, account, number))

        return await self._database.read(work)

    async def _renew(self, request: web.Request, account: Account) -> object:
        number = path_number(request, "assignment")

        def work(connection: sa.Connection) -> dict[str, Any]:
            held = assignments.hold(connection, account, number)
            until = assignments.renew(connection, held)
            return {"lease_left_ms": _left_ms(until), "is_withdrawn": held.is_withdrawn}

        return await self._database.change(work)

    async def _save_draft(self, request: web.Request, account: Account) -> object:
        body = _Draft(**await read_json(request))
        size = len(json.dumps(body.content, ensure_ascii=False).encode())
        if size > self._config.max_draft_bytes:
            raise InvalidRequest(
                f"content: {size} bytes; allowed: {self._config.max_draft_bytes}",
                field="content",
                value=size,
                limit=self._config.max_draft_bytes,
            )
        kept = await self._database.change(
            submissions.save_draft,
            account,
            path_number(request, "assignment"),
            draft_id=body.draft_id,
            base_draft_id=body.base_draft_id,
            content=body.content,
        )
        until = kept.lease_end_time
        return {"lease_left_ms": 0 if until is None else _left_ms(until), "is_withdrawn": kept.is_withdrawn}

    async def _submit(self, request: web.Request, account: Account) -> object:
        body = _Submission(**await read_json(request))
        number = path_number(request, "assignment")

        def work(connection: sa.Connection) -> dict[str, Any] | Late:
            outcome = submissions.submit(
                connection,
                account,
                number,
                submission_id=body.submission_id,
                label=body.label,
                active_ms=body.active_ms,
                max_characters=self._config.max_answer_characters,
            )
            return outcome if isinstance(outcome, Late) else _shown(connection, outcome)

        outcome = await self._database.change(work)
        if isinstance(outcome, Late):  # told only now that the draft is on disk
            raise outcome.error
        return outcome

    async def _skip(self, request: web.Request, account: Account) -> object:
        body = _Skip(**await read_json(request))
        number = path_number(request, "assignment")

        def work(connection: sa.Connection) -> dict[str, Any]:
            skipped = submissions.skip(
                connection, account, number, submission_id=body.submission_id, reason=body.reason
            )
            return _shown(connection, skipped)

        return await self._database.change(work)

    async def _undo(self, request: web.Request, account: Account) -> object:
        number = path_number(request, "assignment")

        def work(connection: sa.Connection) -> dict[str, Any]:
            return _shown(connection, submissions.undo(connection, account, number))

        return await self._database.change(work)

    def _projects(self, connection: sa.Connection, account: Account, found: Sequence[Project]) -> list[dict[str, Any]]:
        """Projects with what the labeler did in each, asked for all of them at once."""
        counts = listing.counts_of(connection, account, found)
        qualified = qualifications(connection, account, found)
        return [
            {
                **project_json(project),
                "flags": list(FLAGS),
                "limits": {
                    "max_answer_characters": self._config.max_answer_characters,
                    "max_draft_bytes": self._config.max_draft_bytes,
                },
                "mine": {
                    "labels": counts[project.id].get("submitted", 0),
                    "skips": counts[project.id].get("skipped", 0),
                    "qualification": asdict(qualified[project.id]),
                },
            }
            for project in found
        ]


def project_json(project: Project) -> dict[str, Any]:
    """A project as the page gets it."""
    facts = {"name": project.name, "kind": project.kind.value, "wants_ratings": project.wants_ratings}
    return facts | asdict(project.fields)


def _shown(connection: sa.Connection, given: Assignment) -> dict[str, Any]:
    """An assignment as its labeler gets it: answers in its own order, and nothing of where they come from."""
    task = given.task
    draft = submissions.draft_of(connection, given.id)
    return {
        "id": given.id,
        "project": given.project.name,
        "kind": given.project.kind.value,
        "state": given.state,
        "is_withdrawn": given.is_withdrawn,
        "prompt": task.prompt,
        "messages": [turn.model_dump() for turn in task.messages],
        "context": task.context,
        "category": task.category,
        "answers": [task.answers[index] for index in given.order],
        "writes_prompt": not task.prompt and not task.messages,
        "wants_ratings": given.project.wants_ratings,
        "lease_left_ms": _left_ms(given.lease_end_time) if given.state == "leased" else 0,
        "undo_left_ms": _undo_left_ms(given),
        "draft": _draft(draft),
        "label": at_places(given.label, given.order) if given.label is not None else None,
        "skip_reason": given.skip_reason,
    }


def _draft(draft: Draft | None) -> dict[str, Any] | None:
    return None if draft is None else {"draft_id": draft.draft_id, "content": draft.content}


def _left_ms(until: float) -> int:
    """Milliseconds until a time: the clock of a page may be wrong."""
    return max(0, round(1000 * (until - time.time())))


def _undo_left_ms(given: Assignment) -> int:
    if given.done_time is None or given.is_qualification:
        return 0
    return _left_ms(given.done_time + given.project.fields.undo_ms / 1000)
