"""Lists of labels: a labeler's own ones, and for reviewers everybody's."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from trimtab_services.labeling.accounts import Account
from trimtab_services.labeling.projects import Project
from trimtab_services.labeling.tables import accounts, assignments, tasks

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


def counts_of(connection: sa.Connection, account: Account, project: Project) -> dict[str, int]:
    """How many assignments of a project a labeler has in each state."""
    query = (
        sa.select(assignments.c.state, sa.func.count())
        .where(assignments.c.account_id == account.id, assignments.c.project_id == project.id)
        .group_by(assignments.c.state)
    )
    return {state: count for state, count in connection.execute(query)}


def everybodys(
    connection: sa.Connection, project: Project, *, after: int, labeler: str, limit: int
) -> list[sa.RowMapping]:
    """Labels and skips of a project after a number of an assignment, by all or by one labeler, with their tasks."""
    query = (
        sa.select(
            assignments,
            tasks.c.key.label("task_key"),
            tasks.c.content,
            tasks.c.is_qualification,
            accounts.c.name.label("labeler"),
            accounts.c.group,
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
