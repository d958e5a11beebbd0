"""Labels as rows of the trainer's dataset formats, in the order in which their tasks were finished.

| project | row |
| --- | --- |
| rank, compare | rankings: `prompt` or `messages`, `context`, `answers`, `labels`, an entry for each labeler |
| demonstrate | demonstrations: `prompt` or `messages`, `completion`; a row for each label |

An entry of `labels` has `labeler`, `group` (its labeler's when the label was sent), `order` (index of the answer at
each place of the page), `ranking`, `ratings`, `flags`, `seconds` and `active_seconds`; a row of a demonstration has
what is no ranking of these. Rows also have `task_key`, and `category`, `user` and the `sources` of the answers where
they are known. The trainer reads the fields that its formats name and leaves the others alone.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trimtab_services.labeling.contents import TaskKind
from trimtab_services.labeling.projects import Project, held_out_labels, labels_wanted
from trimtab_services.labeling.tables import GROUP_OF_LABEL, accounts, assignments, tasks

__all__ = ["Page", "Row", "finished", "settled_parts", "unfinished", "unsettled"]


@dataclass(frozen=True, slots=True)
class Row:
    """One exported row; `sequence` is 0 for an unfinished task, and that of the last whole task for a settled part."""

    row_json: str
    task_key: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of some tasks.

    Attributes:
        rows: none for a task without a label of the groups asked for.
        last: sequence of the last task, or its id where `finished` did not make the page; None when there were no more.
    """

    rows: list[Row]
    last: int | None


def finished(
    connection: sa.Connection,
    project: Project,
    *,
    after: int,
    groups: Sequence[str],
    settled_only: bool,
    with_withdrawn: bool,
    limit: int,
) -> Page:
    """Finished tasks after a number, at most `limit` of them.

    Args:
        connection: any.
        project: whose tasks.
        after: sequence number.
        groups: of labelers; none for all.
        settled_only: ends before the first task with a label that can still be taken back: later ones come later.
        with_withdrawn: also tasks that were withdrawn.
        limit: most tasks.
    """
    query = (
        sa.select(tasks)
        .where(tasks.c.project_id == project.id, tasks.c.finished_sequence > after, _is_asked_for(with_withdrawn))
        .order_by(tasks.c.finished_sequence)
        .limit(limit)
    )
    found = list(connection.execute(query).mappings())
    if settled_only:
        settled = _settled(project)
        found = found[: next((i for i, row in enumerate(found) if row["finish_time"] > settled), len(found))]
    return _page(connection, project, found, groups, "finished_sequence")


def settled_parts(
    connection: sa.Connection,
    project: Project,
    *,
    after: int,
    after_id: int,
    groups: Sequence[str],
    with_withdrawn: bool,
    limit: int,
) -> Page:
    """Tasks that `finished` leaves out for a label that can still be taken back, and that are finished without it.

    So a label of a held-out labeler does not take those of the others out of an export that begins now. Rows have the
    settled labels alone, and come again, whole, to who goes on after the number that they have.

    Args:
        connection: any.
        project: whose tasks.
        after: sequence number of the last task that `finished` gave.
        after_id: number of a task: those after it, at most `limit`.
        groups: of labelers; none for all.
        with_withdrawn: also tasks that were withdrawn.
        limit: most tasks.
    """
    settled = _settled(project)
    labels = sa.select(sa.func.count()).select_from(assignments)
    labels = labels.where(
        assignments.c.task_id == tasks.c.id,
        assignments.c.state == "submitted",
        assignments.c.done_time <= settled,
        ~held_out_labels(project),
    )
    query = (
        sa.select(tasks)
        .where(
            tasks.c.project_id == project.id,
            tasks.c.finished_sequence > after,
            tasks.c.id > after_id,
            labels.correlate(tasks).scalar_subquery() >= labels_wanted(project),
            _is_asked_for(with_withdrawn),
        )
        .order_by(tasks.c.id)
        .limit(limit)
    )
    found = [dict(row) | {"finished_sequence": after} for row in connection.execute(query).mappings()]
    return _page(connection, project, found, groups, "id", until=settled)


def unsettled(
    connection: sa.Connection, project: Project, *, after: int, groups: Sequence[str], with_withdrawn: bool
) -> int:
    """Finished tasks after a number that `finished` leaves out for now, where it is to send settled ones only.

    Counted are those with a label of the groups asked for; none: all.
    """
    query = sa.select(sa.func.count()).where(
        tasks.c.project_id == project.id, tasks.c.finished_sequence > after, _is_asked_for(with_withdrawn)
    )
    if groups:
        theirs = sa.select(assignments.c.task_id).join(accounts, accounts.c.id == assignments.c.account_id)
        theirs = theirs.where(assignments.c.state == "submitted", GROUP_OF_LABEL.in_(groups))
        query = query.where(theirs.where(assignments.c.task_id == tasks.c.id).correlate(tasks).exists())
    return connection.execute(query).scalar_one()


def unfinished(
    connection: sa.Connection,
    project: Project,
    *,
    after: int,
    groups: Sequence[str],
    with_withdrawn: bool,
    with_unlabeled: bool,
    limit: int,
) -> Page:
    """Tasks that have a label and want more, after a number of a task, at most `limit` of them.

    With `with_unlabeled` also those without a label of the groups, and those of the qualification, all without labels.
    """
    query = (
        sa.select(tasks)
        .where(
            tasks.c.project_id == project.id,
            tasks.c.id > after,
            tasks.c.finished_sequence.is_(None),
            _is_asked_for(with_withdrawn),
        )
        .order_by(tasks.c.id)
        .limit(limit)
    )
    if not with_unlabeled:
        query = query.where(
            tasks.c.label_count + tasks.c.held_out_count > 0,
            tasks.c.is_qualification.is_(False),
        )
    found = list(connection.execute(query).mappings())
    return _page(connection, project, found, groups, "id", with_unlabeled=with_unlabeled)


def _settled(project: Project) -> float:
    """When a label must have been sent that can no longer be taken back."""
    return time.time() - project.fields.undo_ms / 1000


def _is_asked_for(with_withdrawn: bool) -> sa.ColumnElement[bool]:
    return sa.true() if with_withdrawn else tasks.c.withdraw_time.is_(None)


def _page(
    connection: sa.Connection,
    project: Project,
    found: Sequence[sa.RowMapping | dict[str, Any]],
    groups: Sequence[str],
    key: str,
    *,
    until: float | None = None,
    with_unlabeled: bool = False,
) -> Page:
    exported = [row["id"] for row in found if not row["is_qualification"]]
    labels = _labels(connection, exported, groups, until)
    rows = [
        Row(json.dumps(row, ensure_ascii=False), task["key"], task["finished_sequence"] or 0)
        for task in found
        for row in _rows(project.kind, task, labels[task["id"]], with_unlabeled)
    ]
    return Page(rows, found[-1][key] if found else None)


def _labels(
    connection: sa.Connection, task_ids: Sequence[int], groups: Sequence[str], until: float | None
) -> dict[int, list[sa.RowMapping]]:
    query = (
        sa.select(
            assignments.c.task_id,
            assignments.c.label,
            assignments.c.assign_time,
            assignments.c.done_time,
            assignments.c.active_ms,
            assignments.c.order,
            accounts.c.name,
            GROUP_OF_LABEL,
        )
        .join(accounts, accounts.c.id == assignments.c.account_id)
        .where(assignments.c.task_id.in_(task_ids), assignments.c.state == "submitted")
        .order_by(assignments.c.done_time, assignments.c.id)
    )
    if groups:
        query = query.where(GROUP_OF_LABEL.in_(groups))
    if until is not None:
        query = query.where(assignments.c.done_time <= until)
    by_task: dict[int, list[sa.RowMapping]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        by_task[row["task_id"]].append(row)
    return by_task


def _rows(
    kind: TaskKind, task: sa.RowMapping | dict[str, Any], labels: Sequence[sa.RowMapping], with_unlabeled: bool
) -> Iterator[dict[str, Any]]:
    if not labels and not with_unlabeled:
        return
    content = {key: value for key, value in task["content"].items() if key != "gold_ranking"}
    content["task_key"] = task["key"]
    if task["is_qualification"]:
        content["qualification"] = True
    if not labels and kind is TaskKind.DEMONSTRATE:
        yield content
    if kind is not TaskKind.DEMONSTRATE:
        yield content | {
            "labels": [_who(label) | {"order": label["order"]} | _said(label["label"]) for label in labels]
        }
        return
    for label in labels:
        yield content | label["label"] | _who(label)


def _said(label: dict[str, Any]) -> dict[str, Any]:
    """A label of a ranking, without what was not asked or not answered."""
    return {key: value for key, value in label.items() if value}


def _who(label: sa.RowMapping) -> dict[str, Any]:
    """Who labeled, and how long it took: from the lease to the label, and as the page measured it."""
    facts: dict[str, Any] = {
        "labeler": label["name"],
        "group": label["group"],
        "seconds": round(label["done_time"] - label["assign_time"], 3),
    }
    if label["active_ms"] is not None:
        facts["active_seconds"] = label["active_ms"] / 1000
    return facts
