"""Projects: what is labeled, by how many, and how far it is."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from trimtab.errors import InvalidRequest, NotFound, Reason
from trimtab_services.labeling import audit
from trimtab_services.labeling.accounts import check_group
from trimtab_services.labeling.contents import MOST_OVERLAP, TaskKind
from trimtab_services.labeling.nul import refuse_nul
from trimtab_services.labeling.tables import assignments, projects, tasks

__all__ = [
    "Progress",
    "Project",
    "ProjectFields",
    "ProjectState",
    "create",
    "finish_or_reopen",
    "from_row",
    "get",
    "held_out_labels",
    "hold",
    "hold_of",
    "labels_wanted",
    "page",
    "progress",
    "update",
]

MOST_INSTRUCTIONS = 200_000
DAY_MS = 86_400_000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


class ProjectState(StrEnum):
    """Whether a project gives out tasks; the meaning of each state is in labeling.proto."""

    OPEN = "open"
    CLOSED = "closed"
    ARCHIVED = "archived"


@dataclass(frozen=True, slots=True)
class ProjectFields:
    """What a project is made with and what an update changes; the meaning of each is in labeling.proto."""

    instructions: str = ""
    overlap: int = 1
    lease_ms: int = 1_800_000
    undo_ms: int = 600_000
    qualification_pass: float = 0.0
    state: ProjectState = ProjectState.OPEN
    held_out_group: str = "heldout"
    held_out_overlap: int = 0

    def check(self) -> None:
        """Raises InvalidRequest for a value out of bounds."""
        bounds = {
            "overlap": (self.overlap, 1, MOST_OVERLAP),
            "lease_ms": (self.lease_ms, 1000, DAY_MS),
            "undo_ms": (self.undo_ms, 0, DAY_MS),
            "qualification_pass": (self.qualification_pass, 0, 1),
            "held_out_overlap": (self.held_out_overlap, 0, MOST_OVERLAP),
        }
        for field, (value, least, most) in bounds.items():
            if not least <= value <= most:
                raise InvalidRequest(
                    f"{field}: {value}; allowed: {least}..{most}", field=field, value=value, limit=f"{least}..{most}"
                )
        check_group(self.held_out_group, "held_out_group")
        refuse_nul(self.instructions, "instructions")
        if len(self.instructions) > MOST_INSTRUCTIONS:
            raise InvalidRequest(
                f"instructions: {len(self.instructions)} characters; allowed: {MOST_INSTRUCTIONS}",
                field="instructions",
                value=len(self.instructions),
                limit=MOST_INSTRUCTIONS,
            )

    def columns(self) -> dict[str, Any]:
        """As they are kept."""
        return asdict(self) | {"state": self.state.value, "is_open": self.state is ProjectState.OPEN}


@dataclass(frozen=True, slots=True)
class Project:
    """One project as it stands."""

    id: int
    name: str
    kind: TaskKind
    wants_ratings: bool
    fields: ProjectFields
    create_time: float

    def is_held_out(self, group: str | None) -> bool:
        """Whether labels of a group of labelers stand beside the overlap."""
        return bool(self.fields.held_out_group) and group == self.fields.held_out_group


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a project is; the meaning of each count is in labeling.proto."""

    tasks: int = 0
    finished_tasks: int = 0
    labels: int = 0
    leased_tasks: int = 0
    qualification_tasks: int = 0
    held_out_labels: int = 0
    withdrawn_tasks: int = 0


def create(
    connection: sa.Connection,
    actor: str,
    name: str,
    kind: TaskKind,
    *,
    wants_ratings: bool,
    fields: ProjectFields,
    names_group: bool = True,
) -> Project:
    """Makes a project, or returns the one that a first try made.

    Args:
        connection: of a change.
        actor: who makes it.
        name: of the project.
        kind: what a labeler does.
        wants_ratings: whether each answer must be rated.
        fields: all else.
        names_group: whether the caller chose `held_out_group`; who did not takes that of a project that is there.

    Raises:
        InvalidRequest: a field; DUPLICATE_ID: a project of that name has other fields.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"name: {name!r:.80} must have 1..63 letters, digits, '-' or '_'", field="name", value=name, limit=63
        )
    fields.check()
    if kind is TaskKind.DEMONSTRATE and (wants_ratings or fields.qualification_pass):
        field = "wants_ratings" if wants_ratings else "qualification_pass"
        raise InvalidRequest(f"{field}: a project of kind {kind} has no answers to compare", field=field)
    row = connection.execute(_BY_NAME, {"name": name}).mappings().one_or_none()
    if row is not None:
        project = from_row(row)
        asked: dict[str, object] = {"kind": kind, "wants_ratings": wants_ratings} | asdict(fields)
        if not names_group:
            del asked["held_out_group"]
        there = {"kind": project.kind, "wants_ratings": project.wants_ratings} | asdict(project.fields)
        others = sorted(field for field, value in asked.items() if there[field] != value)
        if not others:
            return project
        raise InvalidRequest(
            f"name: project {name!r} exists already with other {', '.join(others)}; change it by an update",
            reason=Reason.DUPLICATE_ID,
            field="name",
            value=name,
        )
    connection.execute(
        projects.insert().values(
            name=name,
            kind=kind.value,
            wants_ratings=wants_ratings,
            create_time=time.time(),
            finished_count=0,
            **fields.columns(),
        )
    )
    told = fields.columns() | {"kind": kind.value, "wants_ratings": wants_ratings}
    audit.note(connection, actor, "project.create", f"project:{name}", told)
    return get(connection, name)


def update(connection: sa.Connection, actor: str, name: str, **changes: object) -> Project:
    """Sets fields of `ProjectFields`; tasks that have enough labels by the new ones are finished, others are not.

    Raises:
        NotFound: no such project.
        InvalidRequest: a field.
    """
    project = hold(connection, name)
    fields = replace(project.fields, **changes)  # type: ignore[arg-type]  # names and types are the callers' own
    fields.check()
    if fields == project.fields:
        return project
    if project.kind is TaskKind.DEMONSTRATE and fields.qualification_pass:
        raise InvalidRequest("qualification_pass: a demonstration has no gold answers", field="qualification_pass")
    connection.execute(projects.update().where(projects.c.id == project.id).values(**fields.columns()))
    audit.note(connection, actor, "project.update", f"project:{name}", changes)
    updated = get(connection, name)
    affected = []
    if fields.overlap != project.fields.overlap:
        affected.append(tasks.c.overlap == 0)
    groups = {fields.held_out_group, project.fields.held_out_group}
    if len(groups) > 1:  # what these have said counts otherwise now
        theirs = sa.select(assignments.c.task_id).where(
            assignments.c.project_id == project.id,
            assignments.c.state == "submitted",
            assignments.c.group.in_(groups - {""}),
        )
        affected.append(tasks.c.id.in_(theirs))
    if affected:
        finish_or_reopen(connection, updated, sa.or_(*affected))
    return updated


def get(connection: sa.Connection, name: str) -> Project:
    """One project.

    Raises:
        NotFound: no project of that name.
    """
    return _found(connection.execute(_BY_NAME, {"name": name}), name)


def hold(connection: sa.Connection, name: str) -> Project:
    """One project, which nobody else changes until the transaction ends: every change of its tasks begins with this.

    Raises:
        NotFound: no project of that name.
    """
    return _found(connection.execute(_HOLD, {"name": name}), name)


def hold_of(connection: sa.Connection, assignment_id: int) -> None:
    """As `hold`, by the number of an assignment; one that there is none of holds nothing."""
    connection.execute(_HOLD_OF, {"assignment": assignment_id})


def page(connection: sa.Connection, after: str, limit: int, *, with_archived: bool = True) -> Sequence[Project]:
    """Projects by name, after a name, at most `limit`."""
    query = sa.select(projects).where(projects.c.name > after).order_by(projects.c.name).limit(limit)
    if not with_archived:
        query = query.where(projects.c.state != ProjectState.ARCHIVED.value)
    return [from_row(row) for row in connection.execute(query).mappings()]


def progress(connection: sa.Connection, project: Project) -> Progress:
    """Counts its tasks and labels."""
    mine = tasks.c.project_id == project.id
    is_there = sa.and_(mine, tasks.c.withdraw_time.is_(None))
    counted = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.count(tasks.c.finished_sequence),
            sa.func.coalesce(sa.func.sum(tasks.c.label_count), 0),
            sa.func.coalesce(sa.func.sum(tasks.c.held_out_count), 0),
        ).where(is_there, tasks.c.is_qualification.is_(False))
    ).one()
    qualification = connection.execute(
        sa.select(sa.func.count()).where(is_there, tasks.c.is_qualification.is_(True))
    ).scalar_one()
    withdrawn = connection.execute(
        sa.select(sa.func.count()).where(mine, tasks.c.withdraw_time.is_not(None))
    ).scalar_one()
    leased = connection.execute(
        sa.select(sa.func.count(sa.distinct(assignments.c.task_id)))
        .join(tasks, tasks.c.id == assignments.c.task_id)
        .where(
            assignments.c.project_id == project.id,
            assignments.c.state == "leased",
            assignments.c.lease_end_time > time.time(),
            tasks.c.withdraw_time.is_(None),
        )
    ).scalar_one()
    return Progress(counted[0], counted[1], counted[2] + counted[3], leased, qualification, counted[3], withdrawn)


def held_out_labels(project: Project) -> sa.ColumnElement[bool]:
    """The assignments that count beside the overlap, as a condition."""
    group = project.fields.held_out_group
    return sa.func.coalesce(assignments.c.group, "") == group if group else sa.false()


def labels_wanted(project: Project) -> sa.ColumnElement[int]:
    """How many labels beside those of held-out labelers each task wants."""
    return sa.func.coalesce(sa.func.nullif(tasks.c.overlap, 0), project.fields.overlap)


def finish_or_reopen(
    connection: sa.Connection, project: Project, which: sa.ColumnElement[bool], *, changed: bool = False
) -> None:
    """Counts the labels of tasks, which are finished exactly where the overlap has what it wants.

    Those of the held-out group neither finish a task nor are waited for. The caller holds the project. However many
    tasks there are, it is four statements: others wait for the end of the change.

    Args:
        connection: in the transaction of the change.
        project: of the tasks.
        which: a condition on the tasks.
        changed: their labels have changed: finished tasks get new numbers, so that who follows sees them again.
    """
    affected = sa.and_(tasks.c.project_id == project.id, which)
    theirs = sa.and_(assignments.c.task_id == tasks.c.id, assignments.c.state == "submitted")
    is_held_out = held_out_labels(project)
    counts = {
        name: sa.select(sa.func.count()).select_from(assignments).where(theirs, kind).correlate(tasks).scalar_subquery()
        for name, kind in (("label_count", ~is_held_out), ("held_out_count", is_held_out))
    }
    connection.execute(tasks.update().where(affected).values(counts))
    is_finished = sa.and_(tasks.c.is_qualification.is_(False), tasks.c.label_count >= labels_wanted(project))
    reopened = sa.and_(affected, tasks.c.finished_sequence.is_not(None), ~is_finished)
    connection.execute(tasks.update().where(reopened).values(finished_sequence=None, finish_time=None))
    finished = sa.and_(affected, is_finished, sa.true() if changed else tasks.c.finished_sequence.is_(None))
    numbered = sa.select(tasks.c.id, sa.func.row_number().over(order_by=tasks.c.id).label("place")).where(finished)
    place = numbered.subquery()
    last = sa.select(projects.c.finished_count).where(projects.c.id == project.id).scalar_subquery()
    done = connection.execute(
        tasks.update()
        .where(tasks.c.id == place.c.id)
        .values(finished_sequence=last + place.c.place, finish_time=time.time())
    )
    if done.rowcount:
        total = projects.c.finished_count + done.rowcount
        connection.execute(projects.update().where(projects.c.id == project.id).values(finished_count=total))


def from_row(row: sa.RowMapping, prefix: str = "") -> Project:
    """A project out of a row that has the columns of `projects`, each with a prefix before its name."""
    values: dict[str, Any] = {name: row[prefix + name] for name in ProjectFields.__dataclass_fields__}
    values["state"] = ProjectState(values["state"])
    fields = ProjectFields(**values)
    facts = {name: row[prefix + name] for name in ("id", "name", "wants_ratings", "create_time")}
    return Project(kind=TaskKind(row[prefix + "kind"]), fields=fields, **facts)


def _found(result: sa.CursorResult[Any], name: str) -> Project:
    row = result.mappings().one_or_none()
    if row is None:
        raise NotFound(f"name: no project {name!r:.80}", field="name", value=name)
    return from_row(row)


# The statements of every call, made once.
_BY_NAME = sa.select(projects).where(projects.c.name == sa.bindparam("name"))
_HOLD = _BY_NAME.with_for_update()
_HOLD_OF = (
    sa.select(projects.c.id)
    .where(
        projects.c.id
        == sa.select(assignments.c.project_id).where(assignments.c.id == sa.bindparam("assignment")).scalar_subquery()
    )
    .with_for_update()
)
