"""Tasks that are taken out of a project, and put back. Nothing is deleted: their labels stay with them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import sqlalchemy as sa

from trimtab.errors import InvalidRequest, NotFound, Reason
from trimtab_services.labeling import audit, projects
from trimtab_services.labeling.tables import assignments, tasks

__all__ = ["withdraw"]

MOST_KEYS = 10_000
_ROWS_AT_ONCE = 500


def withdraw(
    connection: sa.Connection, actor: str, project_name: str, keys: Sequence[str], *, restore: bool
) -> tuple[int, int]:
    """Withdraws tasks, all or none; those that are withdrawn already stay so.

    Args:
        connection: of a change.
        actor: who does it.
        project_name: of the project.
        keys: names of the tasks.
        restore: puts them back instead. A finished one gets a new number, so that who follows sees it again.

    Returns:
        Tasks that were not as asked before, and labels of all that were named.

    Raises:
        NotFound: no such project, or no such task; then nothing is changed.
        InvalidRequest: no key, or too many.
    """
    if not 1 <= len(keys) <= MOST_KEYS:
        raise InvalidRequest(
            f"task_keys: {len(keys)}; allowed: 1..{MOST_KEYS}",
            reason=Reason.TOO_MANY_ITEMS if keys else Reason.FIELD_MISSING,
            field="task_keys",
            value=len(keys),
            limit=MOST_KEYS,
        )
    project = projects.hold(connection, project_name)
    found: dict[str, sa.RowMapping] = {}
    labels = 0
    distinct = list(dict.fromkeys(keys))
    for start in range(0, len(distinct), _ROWS_AT_ONCE):
        some = distinct[start : start + _ROWS_AT_ONCE]
        query = sa.select(tasks.c.id, tasks.c.key, tasks.c.withdraw_time).where(
            tasks.c.project_id == project.id, tasks.c.key.in_(some)
        )
        rows = connection.execute(query).mappings().all()
        found |= {row["key"]: row for row in rows}
        counted = sa.select(sa.func.count()).where(
            assignments.c.task_id.in_([row["id"] for row in rows]), assignments.c.state == "submitted"
        )
        labels += connection.execute(counted).scalar_one()
    for index, key in enumerate(keys):
        if key not in found:
            field = f"task_keys[{index}]"
            raise NotFound(f"{field}: no task {key!r:.80} in {project.name}", field=field, value=key)
    changed = [row for row in found.values() if (row["withdraw_time"] is None) is not restore]
    at = None if restore else time.time()
    for start in range(0, len(changed), _ROWS_AT_ONCE):
        which = tasks.c.id.in_([row["id"] for row in changed[start : start + _ROWS_AT_ONCE]])
        connection.execute(tasks.update().where(which).values(withdraw_time=at))
        if restore:
            projects.finish_or_reopen(connection, project, which, changed=True)
    subjects = [f"task:{project.name}/{row['key']}" for row in changed]
    audit.note_each(connection, actor, "task.restore" if restore else "task.withdraw", subjects)
    return len(changed), labels
