"""Lists of labels: a labeler's own ones, and for reviewers everybody's."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from trimtab_services.labeling.accounts import Account
from trimtab_services.labeling.projects import Project
from trimtab_services.labeling.tables import GROUP_OF_LABEL, accounts, assignments, tasks

__all__ = ["counts_of", "everybodys", "own_numbers"]


def own_numbers(
    connection: sa.Connection, account: Account, project: Project, *, before: int | None, limit: int
) -> Sequence[int]:
    """A labeler's own assignments of a project by number, newest first, older than `before` when it is given."""
    query = (
        sa.select(assignments.c.id)
        .where(assignments.c.account_id == account.id, assignments.c.project_id == project.id)
        .order_by(assignments.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(assignments.c.id < before)
    return connection.execute(query).scalars().all()


def counts_of(connection: sa.Connection, account: Account, of_projects: Sequence[Project]) -> dict[int, dict[str, int]]:
    """How many assignments a labeler has in each state, in each of some projects, by their number."""
    query = (
        sa.select(assignments.c.project_id, assignments.c.state, sa.func.count())
        .where(
            assignments.c.account_id == account.id,
            assignments.c.project_id.in_([project.id for project in of_projects]),
        )
        .group_by(assignments.c.project_id, assignments.c.state)
    )
    counts: dict[int, dict[str, int]] = {project.id: {} for project in of_projects}
    for project, state, count in connection.execute(query):
        counts[project][state] = count
    return counts


def everybodys(
    connection: sa.Connection, project: Project, *, after: int, labeler: str, limit: int
) -> list[sa.RowMapping]:
    """Labels and skips of a project after a number of an assignment, by all or by one labeler, with their tasks."""
    query = (
        sa.select(
            *(column for column in assignments.c if column is not assignments.c.group),
            tasks.c.key.label("task_key"),
            tasks.c.content,
            tasks.c.is_qualification,
            tasks.c.withdraw_time.is_not(None).label("is_withdrawn"),
            accounts.c.name.label("labeler"),
            GROUP_OF_LABEL,
        )
        .join(tasks, tasks.c.id == assignments.c.task_id)
        .join(accounts, accounts.c.id == assignments.c.account_id)
        .where(assignments.c.project_id == project.id, assignments.c.state != "leased", assignments.c.id > after)
        .order_by(assignments.c.id)
        .limit(limit)
    )
    if labeler:
        query = query.where(accounts.c.name == labeler)
    return list(connection.execute(query).mappings())
