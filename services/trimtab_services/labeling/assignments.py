"""Who works on what: leases on tasks, given out so that nobody works twice and nobody works in vain.

A lease promises that the label of its holder is taken. It ends when its holder gives no sign of life; the task then
goes to others, and its holder keeps the draft and may still submit as long as the task wants labels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trimtab.errors import FailedPrecondition, LeaseHeld, NotFound, Reason
from trimtab_services.labeling import audit, projects
from trimtab_services.labeling.accounts import Account
from trimtab_services.labeling.contents import Task, shuffled
from trimtab_services.labeling.projects import Project, ProjectState
from trimtab_services.labeling.qualification import refuse_unqualified
from trimtab_services.labeling.tables import assignments, tasks
from trimtab_services.labeling.tables import projects as project_rows

__all__ = ["Assignment", "give_out", "hold", "read", "renew", "wants_more"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One labeler's turn at a task; times in seconds since the epoch.

    Attributes:
        state: `leased`, `submitted` or `skipped`.
        is_held_out: whether its labeler is one of those whose labels stand beside the overlap.
        wanted: labels that the task wants of labelers like this one; None: any number.
        is_withdrawn: whether the task was taken out of the project.
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
    is_withdrawn: bool
    is_held_out: bool
    wanted: int | None
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


def give_out(connection: sa.Connection, account: Account, project_name: str) -> Assignment | None:
    """The task that a labeler works on, or the next one; None when there is none for this labeler now.

    Raises:
        NotFound: no such project.
        FailedPrecondition: the project is not open, or the labeler did not pass the qualification.
    """
    project = projects.hold(connection, project_name)
    held = _held(connection, account, project)
    if held is not None:
        renew(connection, held)
        return read(connection, account, held.id)
    state = project.fields.state
    if state is not ProjectState.OPEN:
        raise FailedPrecondition(
            f"project: {project.name} is {state} and gives out no tasks", field="project", value=project.name
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
            group=account.group,
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
    is_held_out = project.is_held_out(account.group)
    return Assignment(
        project=project,
        task=Task.model_validate(row["content"]),
        is_withdrawn=row["withdraw_time"] is not None,
        is_held_out=is_held_out,
        wanted=(project.fields.held_out_overlap or None) if is_held_out else row["overlap"] or project.fields.overlap,
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
    """Whether a task wants another label than those of others: of a held-out labeler, beside those of held-out ones.

    Args:
        connection: in a transaction that holds the project.
        assignment: of the labeler who asks.
        counting_leases: counts labels that others are promised to be able to give, too.
    """
    if assignment.is_qualification or assignment.wanted is None:
        return True
    taken = _taken(assignment.project, assignment.is_held_out, counting_leases).where(
        assignments.c.task_id == assignment.task_id, assignments.c.account_id != assignment.account_id
    )
    count = connection.execute(taken).scalar_one()
    return bool(count < assignment.wanted)


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
        if found.is_withdrawn:
            continue
        if found.lease_end_time > time.time() or wants_more(connection, found, counting_leases=True):
            return found
    return None


def _next_task(connection: sa.Connection, account: Account, project: Project) -> tuple[int, dict[str, Any]] | None:
    """Number and content of the next task for a labeler.

    Those of the qualification come first, then those that others have begun, to finish them. A held-out labeler, for
    whose label nothing waits, gets those with the fewest labels of its kind, to measure on as many as there are.
    """
    had = sa.exists().where(assignments.c.task_id == tasks.c.id, assignments.c.account_id == account.id)
    query = sa.select(tasks.c.id, tasks.c.content).where(tasks.c.withdraw_time.is_(None), ~had)
    in_project = tasks.c.project_id == project.id
    asked = connection.execute(
        query.where(in_project, tasks.c.is_qualification.is_(True)).order_by(tasks.c.id).limit(1)
    ).first()
    if asked is not None:
        return asked.id, asked.content
    refuse_unqualified(connection, account, project)
    query = query.where(tasks.c.is_qualification.is_(False)).limit(1)
    is_held_out = project.is_held_out(account.group)
    taken = _taken(project, is_held_out, True).where(assignments.c.task_id == tasks.c.id)
    taken_now = taken.correlate(tasks).scalar_subquery()
    if is_held_out:
        if most := project.fields.held_out_overlap:
            query = query.where(tasks.c.held_out_count < most, taken_now < most)
        is_free = taken_now <= tasks.c.held_out_count  # no other of them works on it
        at_work = sa.select(assignments.c.task_id).where(
            assignments.c.project_id == project.id,
            assignments.c.state == "leased",
            assignments.c.lease_end_time > time.time(),
        )
        free = query.where(in_project, is_free).order_by(tasks.c.held_out_count, tasks.c.id)
        # these are few; the sum has the database sort them, not look at all tasks in the order of the index again
        barred = query.where(tasks.c.id.in_(at_work)).order_by(tasks.c.held_out_count + 0, tasks.c.id)
        next_one = connection.execute(free).first() or connection.execute(barred).first()
    else:
        query = query.where(
            in_project, tasks.c.finished_sequence.is_(None), taken_now < projects.labels_wanted(project)
        )
        next_one = connection.execute(query.order_by(tasks.c.label_count.desc(), tasks.c.id)).first()
    return None if next_one is None else (next_one.id, next_one.content)


def _taken(project: Project, of_held_out: bool, counting_leases: bool) -> sa.Select[int]:
    """Counts labels of held-out labelers, or of the others, with those that leases promise."""
    condition: sa.ColumnElement[bool] = assignments.c.state == "submitted"
    if counting_leases:
        leased = sa.and_(assignments.c.state == "leased", assignments.c.lease_end_time > time.time())
        condition = sa.or_(condition, leased)
    kind = projects.held_out_labels(project)
    return sa.select(sa.func.count()).select_from(assignments).where(condition, kind if of_held_out else ~kind)


_PROJECT = "project_"
_READ = (
    sa.select(
        assignments,
        tasks.c.key.label("task_key"),
        tasks.c.content,
        tasks.c.is_qualification,
        tasks.c.overlap,
        tasks.c.withdraw_time,
        *(column.label(_PROJECT + column.name) for column in project_rows.c if column.name != "id"),
    )
    .join(tasks, tasks.c.id == assignments.c.task_id)
    .join(project_rows, project_rows.c.id == assignments.c.project_id)
    .where(assignments.c.id == sa.bindparam("assignment"), assignments.c.account_id == sa.bindparam("account"))
)
"""The statement of every call, made once; `project_id` is a column of `assignments`."""
_COLUMNS = tuple(set(Assignment.__dataclass_fields__) - {"project", "task", "is_withdrawn", "is_held_out", "wanted"})
