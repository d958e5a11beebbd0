"""The qualification of labelers: tasks with gold answers, which come before all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from trimtab.errors import FailedPrecondition
from trimtab_services.labeling import accounts, audit, projects
from trimtab_services.labeling.accounts import Account
from trimtab_services.labeling.projects import Project
from trimtab_services.labeling.tables import assignments, drafts, tasks

__all__ = ["Qualification", "qualifications", "refuse_unqualified", "reset", "score_of"]


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


def qualifications(
    connection: sa.Connection, account: Account, of_projects: Sequence[Project]
) -> dict[int, Qualification]:
    """How a labeler did so far in each of some projects, by their number."""
    theirs = sa.and_(
        tasks.c.project_id.in_([project.id for project in of_projects]),
        tasks.c.is_qualification.is_(True),
        tasks.c.withdraw_time.is_(None),
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
        project.id: score_of(project, wanted.get(project.id, 0), *scores.get(project.id, (0, 0, 0)))
        for project in of_projects
    }


def refuse_unqualified(connection: sa.Connection, account: Account, project: Project) -> None:
    """Lets those through whom the qualification does not bar.

    Raises:
        FailedPrecondition: the labeler did not pass it.
    """
    if not project.fields.qualification_pass:
        return
    found = qualifications(connection, account, [project])[project.id]
    if found.passed is False:
        raise FailedPrecondition(
            f"qualification: not passed: {found.agreeing} of {found.pairs} pairs of answers are ordered as the gold "
            f"answers order them; {project.name} needs {project.fields.qualification_pass:.0%}",
            field="qualification",
            value=found.agreeing,
            limit=project.fields.qualification_pass,
        )


def reset(connection: sa.Connection, actor: str, project_name: str, account_name: str) -> int:
    """Lets a labeler try again: what it said of the qualification tasks goes to the audit, and it gets them anew.

    Nothing but the labeler's own share of all pairs was ever told to it, so the tasks still measure something.

    Args:
        connection: of a change.
        actor: who lets it.
        project_name: of the project.
        account_name: of the labeler.

    Returns:
        Tasks that it had done.

    Raises:
        NotFound: no such project, or no such account.
    """
    project = projects.hold(connection, project_name)
    account = accounts.by_name(connection, account_name)
    query = (
        sa.select(assignments, tasks.c.key)
        .join(tasks, tasks.c.id == assignments.c.task_id)
        .where(
            assignments.c.account_id == account.id,
            assignments.c.project_id == project.id,
            assignments.c.state != "leased",
            tasks.c.is_qualification.is_(True),
        )
    )
    done = connection.execute(query).mappings().all()
    if not done:
        return 0
    numbers = [row["id"] for row in done]
    connection.execute(drafts.delete().where(drafts.c.assignment_id.in_(numbers)))
    connection.execute(assignments.delete().where(assignments.c.id.in_(numbers)))
    for row in done:
        told = {name: row[name] for name in ("state", "label", "skip_reason", "gold_agreeing", "gold_pairs")}
        subject = f"task:{project.name}/{row['key']}"
        audit.note(connection, actor, "qualification.reset", subject, {"account": account.name, **told})
    return len(done)


def score_of(project: Project, wanted: int, done: int, agreeing: int, pairs: int) -> Qualification:
    """What the counts of a labeler come to in a project; the meaning of each is that of the field of its name."""
    if done < wanted:
        return Qualification(done, wanted, 0, 0, None)
    passed = pairs == 0 or agreeing / pairs >= project.fields.qualification_pass
    return Qualification(done, wanted, agreeing, pairs, passed)
