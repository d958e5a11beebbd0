"""Who works on what: leases on tasks, given out so that nobody works twice and nobody works in vain.

A lease promises that the label of its holder is taken. It ends when its holder gives no sign of life; the task then
goes to others, and its holder keeps the draft and may still submit as long as the task wants labels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trimtab.errors import FailedPrecondition, LeaseHeld, NotFound, Reason
from trimtab_services.labeling import audit, projects
from trimtab_services.labeling.accounts import Account
from trimtab_services.labeling.contents import Task, shuffled
from trimtab_services.labeling.projects import Project
from trimtab_services.labeling.tables import assignments, tasks
from trimtab_services.labeling.tables import projects as project_rows

__all__ = ["Assignment", "Qualification", "give_out", "hold", "qualifications", "read", "renew", "wants_more"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One labeler's turn at a task; times in seconds since the epoch.

    Attributes:
        state: `leased`, `submitted` or `skipped`.
        wanted: labels that the task wants.
        order: for each place of the page, the index of its answer.
        label: by index of answer; None before it is submitted.
        active_ms: time worked on it, as the page measured it.
    """

    id: int
    project: Project
    account_id: int
    task_id: int
    task_key: str
    task: Task
    is_qualification: bool
    wanted: int
    state: str
    order: list[int]
    assign_time: float
    lease_end_time: float
    done_time: float | None
    submission_id: str | None
    label: dict[str, Any] | None
    active_ms: int | None
    skip_reason: str | None

    @property
    def subject(self) -> str:
        """Its task, for the audit."""
        return f"task:{self.project.name}/{self.task_key}"


@dataclass(frozen=True, slots=True)
class Qualification:
    """How a labeler did on the qualification tasks.

    Attributes:
        done, wanted: tasks; a skipped one is done, and agrees in nothing.
        agreeing, pairs: of answers that the gold answers order; 0 while some are left to do, so that nobody finds out
            the gold answers of one task by its effect.
        passed: whether other tasks are given out; None while some are left to do.
    """

    done: int
    wanted: int
    agreeing: int
    pairs: int
    passed: bool | None


def give_out(connection: sa.Connection, account: Account, project_name: str) -> Assignment | None:
    """The task that a labeler works on, or the next one; None when there is none for this labeler now.

    Raises:
        NotFound: no such project.
        FailedPrecondition: the project is closed, or the labeler did not pass the qualification.
    """
    project = projects.hold(connection, project_name)
    held = _held(connection, account, project)
    if held is not None:
        renew(connection, held)
        return read(connection, account, held.id)
    if not project.fields.is_open:
        raise FailedPrecondition(
            f"project: {project.name} is closed and gives out no tasks", field="project", value=project.name
        )
    found = _next_task(connection, account, project)
    if found is None:
        return None
    task_id, content = found
    now = time.time()
    added = connection.execute(
        assignments.insert()
        .values(
            task_id=task_id,
            account_id=account.id,
            project_id=project.id,
            state="leased",
            order=shuffled(len(content.get("answers", ())), project.name, task_id, account.id),
            assign_time=now,
            lease_end_time=now + project.fields.lease_ms / 1000,
        )
        .returning(assignments.c.id)
    ).scalar_one()
    given = read(connection, account, added)
    audit.note(connection, audit.account_actor(account.name), "task.assign", given.subject, {"assignment": added})
    return given


def read(connection: sa.Connection, account: Account, assignment_id: int) -> Assignment:
    """One of a labeler's own assignments.

    Raises:
        NotFound: there is none of that number, or it is somebody else's.
    """
    row = connection.execute(_READ, {"assignment": assignment_id, "account": account.id}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"assignment: you have no assignment {assignment_id}", field="assignment", value=assignment_id)
    project = projects.from_row(row, _PROJECT)
    return Assignment(
        project=project,
        task=Task.model_validate(row["content"]),
        wanted=row["overlap"] or project.fields.overlap,
        **{name: row[name] for name in _COLUMNS},
    )


def hold(connection: sa.Connection, account: Account, assignment_id: int) -> Assignment:
    """One of a labeler's own assignments, whose project nobody else changes until the transaction ends.

    Raises:
        NotFound: as `read`.
    """
    projects.hold_of(connection, assignment_id)
    return read(connection, account, assignment_id)


def renew(connection: sa.Connection, assignment: Assignment) -> float:
    """Makes a lease last for its whole time again, also one that has ended while the task still wants the label.

    Returns:
        When it ends.

    Raises:
        LeaseHeld: others finished the task, or finish it now.
        FailedPrecondition: it was submitted or skipped.
    """
    if assignment.state != "leased":
        raise FailedPrecondition(
            f"assignment: {assignment.id} is {assignment.state} already",
            field="assignment",
            value=assignment.state,
            limit="leased",
        )
    now = time.time()
    if assignment.lease_end_time <= now and not wants_more(connection, assignment, counting_leases=True):
        raise LeaseHeld(
            f"assignment: the lease of {assignment.id} ended {now - assignment.lease_end_time:.0f} s ago, and others "
            "took the task; the draft is kept",
            reason=Reason.LEASE_LOST,
            field="assignment",
            value=assignment.id,
        )
    until = now + assignment.project.fields.lease_ms / 1000
    connection.execute(assignments.update().where(assignments.c.id == assignment.id).values(lease_end_time=until))
    return until


def wants_more(connection: sa.Connection, assignment: Assignment, *, counting_leases: bool) -> bool:
    """Whether a task wants another label than those of others.

    Args:
        connection: in a transaction that holds the project.
        assignment: of the labeler who asks.
        counting_leases: counts labels that others are promised to be able to give, too.
    """
    if assignment.is_qualification:
        return True
    taken = _taken(counting_leases).where(assignments.c.account_id != assignment.account_id)
    count = connection.execute(taken.where(assignments.c.task_id == assignment.task_id)).scalar_one()
    return bool(count < assignment.wanted)


def qualifications(
    connection: sa.Connection, account: Account, of_projects: Sequence[Project]
) -> dict[int, Qualification]:
    """How a labeler did so far in each of some projects, by their number."""
    theirs = sa.and_(
        tasks.c.project_id.in_([project.id for project in of_projects]), tasks.c.is_qualification.is_(True)
    )
    counted = sa.select(tasks.c.project_id, sa.func.count()).where(theirs).group_by(tasks.c.project_id)
    wanted = {project: count for project, count in connection.execute(counted)}
    scored = (
        sa.select(
            tasks.c.project_id,
            sa.func.count(),
            sa.func.sum(assignments.c.gold_agreeing),
            sa.func.sum(assignments.c.gold_pairs),
        )
        .select_from(assignments.join(tasks, tasks.c.id == assignments.c.task_id))
        .where(theirs, assignments.c.account_id == account.id, assignments.c.state != "leased")
        .group_by(tasks.c.project_id)
    )
    scores = {
        project: (done, int(agreeing), int(pairs)) for project, done, agreeing, pairs in connection.execute(scored)
    }
    return {
        project.id: _qualification(project, wanted.get(project.id, 0), *scores.get(project.id, (0, 0, 0)))
        for project in of_projects
    }


def _qualification(project: Project, wanted: int, done: int, agreeing: int, pairs: int) -> Qualification:
    if done < wanted:
        return Qualification(done, wanted, 0, 0, None)
    passed = pairs == 0 or agreeing / pairs >= project.fields.qualification_pass
    return Qualification(done, wanted, agreeing, pairs, passed)


def _held(connection: sa.Connection, account: Account, project: Project) -> Assignment | None:
    """The labeler's newest lease that holds, or else can be had again."""
    query = (
        sa.select(assignments.c.id)
        .where(
            assignments.c.account_id == account.id,
            assignments.c.project_id == project.id,
            assignments.c.state == "leased",
        )
        .order_by(assignments.c.lease_end_time.desc())
    )
    for number in connection.execute(query).scalars().all():
        found = read(connection, account, number)
        if found.lease_end_time > time.time() or wants_more(connection, found, counting_leases=True):
            return found
    return None


def _next_task(connection: sa.Connection, account: Account, project: Project) -> tuple[int, dict[str, Any]] | None:
    """Number and content of the next task for a labeler.

    Those of the qualification come first, then those that others have begun, to finish them.
    """
    had = sa.exists().where(assignments.c.task_id == tasks.c.id, assignments.c.account_id == account.id)
    query = sa.select(tasks.c.id, tasks.c.content).where(tasks.c.project_id == project.id, ~had)
    asked = connection.execute(query.where(tasks.c.is_qualification.is_(True)).order_by(tasks.c.id).limit(1)).first()
    if asked is not None:
        return asked.id, asked.content
    _refuse_unqualified(connection, account, project)
    taken = _taken(True).where(assignments.c.task_id == tasks.c.id).correlate(tasks).scalar_subquery()
    wanted = sa.func.coalesce(sa.func.nullif(tasks.c.overlap, 0), project.fields.overlap)
    query = query.where(
        tasks.c.is_qualification.is_(False), tasks.c.finished_sequence.is_(None), taken < wanted
    ).order_by(tasks.c.label_count.desc(), tasks.c.id)
    next_one = connection.execute(query.limit(1)).first()
    return None if next_one is None else (next_one.id, next_one.content)


def _refuse_unqualified(connection: sa.Connection, account: Account, project: Project) -> None:
    if not project.fields.qualification_pass:
        return
    found = qualifications(connection, account, [project])[project.id]
    if found.passed is False:
        raise FailedPrecondition(
            f"qualification: {found.agreeing} of {found.pairs} pairs of answers are ordered as the gold answers order "
            f"them; {project.name} needs {project.fields.qualification_pass:.0%}",
            field="qualification",
            value=found.agreeing,
            limit=project.fields.qualification_pass,
        )


def _taken(counting_leases: bool) -> sa.Select[int]:
    """Counts labels, with those that leases promise."""
    condition: sa.ColumnElement[bool] = assignments.c.state == "submitted"
    if counting_leases:
        leased = sa.and_(assignments.c.state == "leased", assignments.c.lease_end_time > time.time())
        condition = sa.or_(condition, leased)
    return sa.select(sa.func.count()).select_from(assignments).where(condition)


_PROJECT = "project_"
_READ = (
    sa.select(
        assignments,
        tasks.c.key.label("task_key"),
        tasks.c.content,
        tasks.c.is_qualification,
        tasks.c.overlap,
        *(column.label(_PROJECT + column.name) for column in project_rows.c if column.name != "id"),
    )
    .join(tasks, tasks.c.id == assignments.c.task_id)
    .join(project_rows, project_rows.c.id == assignments.c.project_id)
    .where(assignments.c.id == sa.bindparam("assignment"), assignments.c.account_id == sa.bindparam("account"))
)
"""The statement of every call, made once; `project_id` is a column of `assignments`."""
_COLUMNS = tuple(set(Assignment.__dataclass_fields__) - {"project", "task", "wanted"})
