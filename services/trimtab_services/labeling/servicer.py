"""LabelingService over the database. Every question to it is asked in a thread; the event loop only waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import sqlalchemy as sa

from trimtab.errors import InvalidRequest, Reason, Unavailable
from trimtab.v1 import labeling_pb2 as pb
from trimtab.v1 import labeling_pb2_grpc
from trimtab_services.labeling import (
    accounts,
    agreement_report,
    audit,
    export,
    imports,
    messages,
    projects,
    qualification,
)
from trimtab_services.labeling.accounts import Role
from trimtab_services.labeling.audit import program_actor
from trimtab_services.labeling.config import LabelingServiceConfig
from trimtab_services.labeling.contents import Task
from trimtab_services.labeling.database import Database
from trimtab_services.labeling.export import Page, Row
from trimtab_services.labeling.hashing import Hashing
from trimtab_services.labeling.nul import refusing_nul
from trimtab_services.labeling.projects import Project
from trimtab_services.labeling.withdrawals import withdraw
from trimtab_services.runtime.calls import current_call
from trimtab_services.runtime.state import Runtime

__all__ = ["LabelingServicer"]

Context = grpc.aio.ServicerContext[Any, Any]

MOST_PAGE, USUAL_PAGE = 1000, 50
_EXPORTED_AT_ONCE = 100
_FOLLOW_S = 0.5
"""Seconds between two looks for newly finished tasks; other servers of the same database finish some, too."""


@refusing_nul
class LabelingServicer(labeling_pb2_grpc.LabelingServiceServicer):
    """Projects, tasks, accounts and labels, for programs.

    Args:
        runtime: the server it lives in.
        database: where everything is kept.
        hashing: of passwords.
    """

    def __init__(self, runtime: Runtime[LabelingServiceConfig], database: Database, hashing: Hashing) -> None:
        self._runtime = runtime
        self._config = runtime.config
        self._database = database
        self._hashing = hashing

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> pb.CreateProjectResponse:
        """Makes a project; idempotent by name."""
        asked, actor = request.project, _actor()
        kind = messages.kind_of(asked.kind)

        def work(connection: sa.Connection) -> pb.Project:
            fields = messages.fields_of(asked)
            project = projects.create(
                connection,
                actor,
                asked.name,
                kind,
                wants_ratings=asked.wants_ratings,
                fields=fields,
                names_group=asked.HasField("held_out_group"),
            )
            return _told(connection, project)

        return pb.CreateProjectResponse(project=await self._database.change(work))

    async def GetProject(self, request: pb.GetProjectRequest, context: Context) -> pb.GetProjectResponse:
        """One project with its progress."""

        def work(connection: sa.Connection) -> pb.Project:
            return _told(connection, projects.get(connection, request.name))

        return pb.GetProjectResponse(project=await self._database.read(work))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsResponse:
        """A page of projects by name."""
        size = _page_size(request.page_size)

        def work(connection: sa.Connection) -> list[pb.Project]:
            return [_told(connection, one) for one in projects.page(connection, request.page_token, size + 1)]

        found = await self._database.read(work)
        token = found[size - 1].name if len(found) > size else ""
        return pb.ListProjectsResponse(projects=found[:size], next_page_token=token)

    async def UpdateProject(self, request: pb.UpdateProjectRequest, context: Context) -> pb.UpdateProjectResponse:
        """Sets fields of a project."""
        actor = _actor()

        def work(connection: sa.Connection) -> pb.Project:
            changes = messages.project_changes(request)
            return _told(connection, projects.update(connection, actor, request.name, **changes))

        return pb.UpdateProjectResponse(project=await self._database.change(work))

    async def ImportTasks(
        self, request_iterator: AsyncIterator[pb.ImportTasksRequest], context: Context
    ) -> pb.ImportTasksResponse:
        """Adds tasks, all or none."""
        project, import_id, new = await self._read_import(request_iterator)
        added = await self._database.change(
            imports.add, _actor(), project, import_id, new, max_characters=self._config.max_answer_characters
        )
        return pb.ImportTasksResponse(
            added_tasks=added.tasks,
            known_tasks=added.known,
            withdrawn_tasks=added.withdrawn,
            was_added_before=added.before,
        )

    async def _read_import(self, requests: AsyncIterator[pb.ImportTasksRequest]) -> tuple[str, str, list[Task]]:
        first: pb.ImportTasksRequest | None = None
        new: list[Task] = []
        size = 0
        async for request in requests:
            first = first or request
            size += request.ByteSize()
            if len(new) + len(request.tasks) > self._config.max_import_tasks:
                raise _too_many("tasks", len(new) + len(request.tasks), self._config.max_import_tasks)
            if size > self._config.max_import_bytes:
                raise _too_many("bytes", size, self._config.max_import_bytes)
            new += await asyncio.to_thread(_tasks, request, len(new))
        if first is None or not new:
            raise InvalidRequest("tasks: an import has at least one", reason=Reason.FIELD_MISSING, field="tasks")
        return first.project, first.import_id, new

    async def WithdrawTasks(self, request: pb.WithdrawTasksRequest, context: Context) -> pb.WithdrawTasksResponse:
        """Takes tasks out of a project, or puts them back."""
        changed, labels = await self._database.change(
            withdraw, _actor(), request.project, list(request.task_keys), restore=request.restore
        )
        return pb.WithdrawTasksResponse(changed_tasks=changed, labels=labels)

    async def ResetQualification(
        self, request: pb.ResetQualificationRequest, context: Context
    ) -> pb.ResetQualificationResponse:
        """Lets a labeler try the qualification again."""
        done = await self._database.change(qualification.reset, _actor(), request.project, request.account)
        return pb.ResetQualificationResponse(reset_tasks=done)

    async def ExportLabels(
        self, request: pb.ExportLabelsRequest, context: Context
    ) -> AsyncIterator[pb.ExportLabelsResponse]:
        """Rows in the order in which their tasks were finished."""
        for field in ("include_unfinished", "include_unlabeled"):
            if request.follow and getattr(request, field):
                raise InvalidRequest(f"{field}: not with follow", field=field)
        project = await self._database.read(projects.get, request.project)
        after, is_last_pass = request.after_sequence, not (request.include_unfinished or request.include_unlabeled)
        quiet_s, is_told = 0.0, False  # of the tasks that wait, at the beginning and after each row
        while True:
            page = await self._database.read(_finished, request, after)
            for row in page.rows:
                yield _exported(row)
            if page.last is not None:
                after, is_told = page.last, False
                continue
            if not is_last_pass:
                async for row in self._unfinished(project, request):
                    yield _exported(row)
                is_last_pass = True  # for what was finished meanwhile
                continue
            if not request.follow:
                if request.settled_only:
                    async for row in self._settled_parts(request, after):
                        yield _exported(row)
                break
            self._refuse_while_draining(after)
            if not is_told or quiet_s >= self._config.sign_of_life_s:
                quiet_s, is_told = 0.0, True
                waiting = await self._database.read(_unsettled, request, after)
                yield pb.ExportLabelsResponse(unsettled_tasks=waiting)
            await self._wait()
            quiet_s += _FOLLOW_S

    async def _settled_parts(self, request: pb.ExportLabelsRequest, after: int) -> AsyncIterator[Row]:
        after_id: int | None = 0
        while after_id is not None:
            page = await self._database.read(_settled_parts, request, after, after_id)
            for row in page.rows:
                yield row
            after_id = page.last

    async def _unfinished(self, project: Project, request: pb.ExportLabelsRequest) -> AsyncIterator[Row]:
        after: int | None = 0
        while after is not None:
            page = await self._database.read(
                export.unfinished,
                project,
                after=after,
                groups=list(request.groups),
                with_withdrawn=request.include_withdrawn,
                with_unlabeled=request.include_unlabeled,
                limit=_EXPORTED_AT_ONCE,
            )
            for row in page.rows:
                yield row
            after = page.last

    def _refuse_while_draining(self, after: int) -> None:
        if self._runtime.draining.is_set():
            raise Unavailable(
                f"{self._runtime.replica} drains; go on after {after} at its successor", reason=Reason.DRAINING
            )

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_FOLLOW_S):
                await self._runtime.draining.wait()
        except TimeoutError:
            pass

    async def GetAgreement(self, request: pb.GetAgreementRequest, context: Context) -> pb.GetAgreementResponse:
        """Agreement of labelers."""
        return messages.agreement_message(await self._database.read(agreement_report.report, request.project))

    async def CreateAccount(self, request: pb.CreateAccountRequest, context: Context) -> pb.CreateAccountResponse:
        """Makes an account; idempotent by name."""
        role = messages.role_of(request.role, required=True) or Role.LABELER
        password = await self._hashing.new_password(request.password)
        account = await self._database.change(
            accounts.create,
            _actor(),
            name=request.name,
            password=password,
            role=role,
            group=request.group,
        )
        return pb.CreateAccountResponse(account=messages.account_message(account))

    async def UpdateAccount(self, request: pb.UpdateAccountRequest, context: Context) -> pb.UpdateAccountResponse:
        """Sets fields of an account."""
        has_password = request.HasField("password")
        password = await self._hashing.new_password(request.password) if has_password else None
        account = await self._database.change(
            accounts.update,
            _actor(),
            request.name,
            password=password,
            role=messages.role_of(request.role, required=False),
            group=request.group if request.HasField("group") else None,
            enabled=request.enabled if request.HasField("enabled") else None,
        )
        return pb.UpdateAccountResponse(account=messages.account_message(account))

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Context) -> pb.ListAccountsResponse:
        """A page of accounts by name."""
        size = _page_size(request.page_size)
        found = await self._database.read(accounts.page, request.page_token, size + 1)
        token = found[size - 1].name if len(found) > size else ""
        return pb.ListAccountsResponse(
            accounts=[messages.account_message(one) for one in found[:size]], next_page_token=token
        )

    async def ListAuditEvents(self, request: pb.ListAuditEventsRequest, context: Context) -> pb.ListAuditEventsResponse:
        """A page of the audit, oldest first."""
        rows = await self._database.read(audit.events, request.after_sequence, _page_size(request.page_size))
        return pb.ListAuditEventsResponse(events=[messages.audit_message(row) for row in rows])


def _told(connection: sa.Connection, project: Project) -> pb.Project:
    return messages.project_message(project, projects.progress(connection, project))


def _tasks(request: pb.ImportTasksRequest, first: int) -> list[Task]:
    return [messages.task_of(task, f"tasks[{index}]") for index, task in enumerate(request.tasks, first)]


def _finished(connection: sa.Connection, request: pb.ExportLabelsRequest, after: int) -> Page:
    return export.finished(
        connection,
        projects.get(connection, request.project),  # its time for taking back may have changed
        after=after,
        groups=list(request.groups),
        settled_only=request.settled_only or request.follow,
        with_withdrawn=request.include_withdrawn,
        limit=_EXPORTED_AT_ONCE,
    )


def _settled_parts(connection: sa.Connection, request: pb.ExportLabelsRequest, after: int, after_id: int) -> Page:
    return export.settled_parts(
        connection,
        projects.get(connection, request.project),
        after=after,
        after_id=after_id,
        groups=list(request.groups),
        with_withdrawn=request.include_withdrawn,
        limit=_EXPORTED_AT_ONCE,
    )


def _unsettled(connection: sa.Connection, request: pb.ExportLabelsRequest, after: int) -> int:
    return export.unsettled(
        connection,
        projects.get(connection, request.project),
        after=after,
        groups=list(request.groups),
        with_withdrawn=request.include_withdrawn,
    )


def _exported(row: Row) -> pb.ExportLabelsResponse:
    return pb.ExportLabelsResponse(row_json=row.row_json, task_key=row.task_key, sequence=row.sequence)


def _actor() -> str:
    call = current_call()
    return program_actor(call.caller if call is not None else "unknown")


def _page_size(size: int) -> int:
    if not 0 <= size <= MOST_PAGE:
        raise InvalidRequest(
            f"page_size: {size} is not in 0..{MOST_PAGE}", field="page_size", value=size, limit=MOST_PAGE
        )
    return size or USUAL_PAGE


def _too_many(what: str, count: int, most: int) -> InvalidRequest:
    return InvalidRequest(
        f"tasks: {count} {what} in one import; allowed: {most}; import the rest under another import_id",
        reason=Reason.TOO_MANY_ITEMS,
        field="tasks",
        value=count,
        limit=most,
    )
