"""Imports of tasks: all of one, or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import sqlalchemy as sa

from trimtab.errors import InvalidRequest, Reason
from trimtab_services.labeling import audit, projects
from trimtab_services.labeling.contents import MOST_NAME, Task, check_task
from trimtab_services.labeling.tables import imports, tasks

__all__ = ["add"]

_ROWS_AT_ONCE = 500


def add(
    connection: sa.Connection,
    actor: str,
    project_name: str,
    import_id: str,
    new: Sequence[Task],
    *,
    max_characters: int,
) -> int:
    """Adds tasks to a project; returns how many. An import that was added before is not added again.

    Args:
        connection: of a change.
        actor: who imports.
        project_name: of the project.
        import_id: name of the import, made by the caller.
        new: the tasks.
        max_characters: most characters of a text.

    Raises:
        NotFound: no such project.
        InvalidRequest: names the first bad task as tasks[i]; DUPLICATE_ID for a key that is there already, and for an
            import of that name with other tasks.
    """
    if not import_id or len(import_id) > MOST_NAME:
        raise InvalidRequest(
            f"import_id: {len(import_id)} characters; allowed: 1..{MOST_NAME}", field="import_id", limit=MOST_NAME
        )
    project = projects.hold(connection, project_name)
    digest = _digest(new)
    before = connection.execute(
        sa.select(imports.c.digest).where(imports.c.project_id == project.id, imports.c.import_id == import_id)
    ).scalar_one_or_none()
    if before is not None:
        if before != digest:
            raise InvalidRequest(
                f"import_id: {import_id!r} was used for other tasks; take another name",
                reason=Reason.DUPLICATE_ID,
                field="import_id",
                value=import_id,
            )
        return len(new)
    for index, task in enumerate(new):
        try:
            check_task(project.kind, task, max_characters=max_characters)
        except InvalidRequest as error:
            raise error.under(f"tasks[{index}]") from None
    keys = [task.made_key() for task in new]
    _refuse_known(connection, project.id, keys)
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
    ]
    connection.execute(tasks.insert(), rows)
    connection.execute(
        imports.insert().values(project_id=project.id, import_id=import_id, digest=digest, task_count=len(new))
    )
    audit.note(
        connection, actor, "tasks.import", f"project:{project.name}", {"import_id": import_id, "tasks": len(new)}
    )
    return len(new)


def _digest(new: Sequence[Task]) -> str:
    """SHA-256 of what an import says."""
    digest = hashlib.sha256()
    for task in new:
        digest.update(json.dumps(task.model_dump(mode="json"), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _refuse_known(connection: sa.Connection, project_id: int, keys: Sequence[str]) -> None:
    """Refuses a key that stands twice in the import, or that the project has already."""
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key in first:
            raise _duplicate(index, key, f"as tasks[{first[key]}] has it")
        first[key] = index
    for start in range(0, len(keys), _ROWS_AT_ONCE):
        some = keys[start : start + _ROWS_AT_ONCE]
        query = sa.select(tasks.c.key).where(tasks.c.project_id == project_id, tasks.c.key.in_(some))
        known = set(connection.execute(query).scalars())
        if known:
            index = min(first[key] for key in known)
            raise _duplicate(index, keys[index], "the project has it already")


def _duplicate(index: int, key: str, where: str) -> InvalidRequest:
    field = f"tasks[{index}].task_key"
    return InvalidRequest(
        f"{field}: {key!r} is there twice, {where}", reason=Reason.DUPLICATE_ID, field=field, value=key
    )
