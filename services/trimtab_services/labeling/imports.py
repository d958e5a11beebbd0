"""Imports of tasks: all of one, or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from trimtab.errors import InvalidRequest, Reason
from trimtab_services.labeling import audit, projects
from trimtab_services.labeling.contents import MOST_NAME, Task, check_task
from trimtab_services.labeling.tables import imports, tasks

__all__ = ["Added", "add"]

_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Added:
    """What an import did.

    Attributes:
        tasks: that it added.
        known: tasks that the project had already, with equal content.
        withdrawn: of both, tasks that are withdrawn now.
        before: whether an earlier call under the same name did it.
    """

    tasks: int
    known: int
    withdrawn: int
    before: bool


def add(
    connection: sa.Connection,
    actor: str,
    project_name: str,
    import_id: str,
    new: Sequence[Task],
    *,
    max_characters: int,
) -> Added:
    """Adds to a project those tasks that it has not yet. An import that was added before is not added again.

    Args:
        connection: of a change.
        actor: who imports.
        project_name: of the project.
        import_id: name of the import, made by the caller.
        new: the tasks.
        max_characters: most characters of a text.

    Raises:
        NotFound: no such project.
        InvalidRequest: names the first bad task as tasks[i]; DUPLICATE_ID for a key that is there already with
            other content, or twice in the import, and for an import of that name with other tasks.
    """
    if not import_id or len(import_id) > MOST_NAME:
        raise InvalidRequest(
            f"import_id: {len(import_id)} characters; allowed: 1..{MOST_NAME}", field="import_id", limit=MOST_NAME
        )
    project = projects.hold(connection, project_name)
    digest = _digest(new)
    keys = [task.made_key() for task in new]
    before = connection.execute(
        sa.select(imports.c.digest, imports.c.task_count).where(
            imports.c.project_id == project.id, imports.c.import_id == import_id
        )
    ).one_or_none()
    if before is not None:
        if before.digest != digest:
            raise InvalidRequest(
                f"import_id: {import_id!r} was used for other tasks; take another name",
                reason=Reason.DUPLICATE_ID,
                field="import_id",
                value=import_id,
            )
        withdrawn = _withdrawn(connection, project.id, keys)
        return Added(before.task_count, len(new) - before.task_count, withdrawn, before=True)
    for index, task in enumerate(new):
        try:
            check_task(project.kind, task, max_characters=max_characters)
        except InvalidRequest as error:
            raise error.under(f"tasks[{index}]") from None
    _refuse_repeated(keys)
    known = _known(connection, project.id, keys, new)
    rows = [
        {
            "project_id": project.id,
            "key": key,
            "content": task.content(),
            "overlap": task.overlap,
            "is_qualification": bool(task.gold_ranking),
            "label_count": 0,
        }
        for key, task in zip(keys, new, strict=True)
        if key not in known
    ]
    if rows:
        connection.execute(tasks.insert(), rows)
    connection.execute(
        imports.insert().values(project_id=project.id, import_id=import_id, digest=digest, task_count=len(rows))
    )
    told = {"import_id": import_id, "tasks": len(rows), "known": len(known)}
    audit.note(connection, actor, "tasks.import", f"project:{project.name}", told)
    return Added(len(rows), len(known), _withdrawn(connection, project.id, sorted(known)), before=False)


def _digest(new: Sequence[Task]) -> str:
    """SHA-256 of what an import says."""
    digest = hashlib.sha256()
    for task in new:
        digest.update(json.dumps(task.model_dump(mode="json"), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _refuse_repeated(keys: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key in first:
            raise _duplicate(index, key, f"is there twice, as tasks[{first[key]}] has it")
        first[key] = index


def _known(connection: sa.Connection, project_id: int, keys: Sequence[str], new: Sequence[Task]) -> set[str]:
    """Keys that the project has already; refuses the first whose content there is another."""
    known: set[str] = set()
    for start in range(0, len(keys), _ROWS_AT_ONCE):
        some = keys[start : start + _ROWS_AT_ONCE]
        query = sa.select(tasks.c.key, tasks.c.content, tasks.c.overlap).where(
            tasks.c.project_id == project_id, tasks.c.key.in_(some)
        )
        there = {row.key: {**row.content, "overlap": row.overlap} for row in connection.execute(query)}
        for index, key in enumerate(some, start):
            if key in there:
                others = _differing(there[key], {**new[index].content(), "overlap": new[index].overlap})
                if others:
                    raise _duplicate(index, key, f"is in the project already, with other {', '.join(others)}")
        known |= set(there)
    return known


def _withdrawn(connection: sa.Connection, project_id: int, keys: Sequence[str]) -> int:
    """How many of these tasks are withdrawn."""
    count = 0
    for start in range(0, len(keys), _ROWS_AT_ONCE):
        some = tasks.c.key.in_(keys[start : start + _ROWS_AT_ONCE])
        query = sa.select(sa.func.count()).where(tasks.c.project_id == project_id, some)
        count += connection.execute(query.where(tasks.c.withdraw_time.is_not(None))).scalar_one()
    return count


def _differing(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _duplicate(index: int, key: str, why: str) -> InvalidRequest:
    field = f"tasks[{index}].task_key"
    return InvalidRequest(f"{field}: {key!r} {why}", reason=Reason.DUPLICATE_ID, field=field, value=key)
