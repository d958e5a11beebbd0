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
from trimtab_services.labeling.projects import Project
from trimtab_services.labeling.tables import GROUP_OF_LABEL, accounts, assignments, tasks

__all__ = ["Page", "Row", "finished", "unfinished"]


@dataclass(frozen=True, slots=True)
class Row:
    """One exported row; `sequence` is 0 for an unfinished task."""

    row_json: str
    task_key: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of some tasks.

    Attributes:
        rows: none for a task without a label of the groups asked for.
        last: sequence, or id of an unfinished task, of the last task; None when there were no more tasks.
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
        settled = time.time() - project.fields.undo_ms / 1000
        found = found[: next((i for i, row in enumerate(found) if row["finish_time"] > settled), len(found))]
    return _page(connection, project, found, groups, "finished_sequence")


def unsettled(connection: sa.Connection, project: Project, *, after: int, with_withdrawn: bool) -> int:
    """Finished tasks after a number that `finished` leaves out for now, where it is to send settled ones only."""
    query = sa.select(sa.func.count()).where(
        tasks.c.project_id == project.id, tasks.c.finished_sequence > after, _is_asked_for(with_withdrawn)
    )
    return connection.execute(query).scalar_one()


def unfinished(
    connection: sa.Connection,
    project: Project,
    *,
    after: int,
    groups: Sequence[str],
    with_withdrawn: bool,
    limit: int,
) -> Page:
    """Tasks that have a label and want more, after a number of a task, at most `limit` of them."""
    query = (
        sa.select(tasks)
        .where(
            tasks.c.project_id == project.id,
            tasks.c.id > after,
            tasks.c.label_count + tasks.c.heldout_count > 0,
            tasks.c.finished_sequence.is_(None),
            tasks.c.is_qualification.is_(False),
            _is_asked_for(with_withdrawn),
        )
        .order_by(tasks.c.id)
        .limit(limit)
    )
    return _page(connection, project, list(connection.execute(query).mappings()), groups, "id")


def _is_asked_for(with_withdrawn: bool) -> sa.ColumnElement[bool]:
    return sa.true() if with_withdrawn else tasks.c.withdraw_time.is_(None)


def _page(
    connection: sa.Connection, project: Project, found: Sequence[sa.RowMapping], groups: Sequence[str], key: str
) -> Page:
    labels = _labels(connection, [row["id"] for row in found], groups)
    rows = [
        Row(json.dumps(row, ensure_ascii=False), task["key"], task["finished_sequence"] or 0)
        for task in found
        for row in _rows(project.kind, task, labels[task["id"]])
    ]
    return Page(rows, found[-1][key] if found else None)


def _labels(
    connection: sa.Connection, task_ids: Sequence[int], groups: Sequence[str]
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
    by_task: dict[int, list[sa.RowMapping]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        by_task[row["task_id"]].append(row)
    return by_task


def _rows(kind: TaskKind, task: sa.RowMapping, labels: Sequence[sa.RowMapping]) -> Iterator[dict[str, Any]]:
    if not labels:
        return
    content = {key: value for key, value in task["content"].items() if key != "gold_ranking"}
    content["task_key"] = task["key"]
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
