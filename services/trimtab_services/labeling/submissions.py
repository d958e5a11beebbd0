"""What labelers send: drafts, labels, skips, and taking back the last one. All of it can be sent again.

Each carries an id that the page makes. One that came already is answered as the first time, whatever happened to the
first answer, so that a page whose connection drops just sends on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trimtab.errors import FailedPrecondition, InvalidRequest, LeaseHeld, Reason, VersionConflict
from trimtab_services.labeling import audit, projects
from trimtab_services.labeling.accounts import Account
from trimtab_services.labeling.agreement import agreeing_pairs, gold_pairs
from trimtab_services.labeling.assignments import Assignment, hold, read, renew, wants_more
from trimtab_services.labeling.contents import MOST_NAME, at_answers, at_places, read_label
from trimtab_services.labeling.nul import refuse_nul
from trimtab_services.labeling.tables import assignments, drafts, tasks

__all__ = ["Draft", "Kept", "Late", "draft_of", "save_draft", "skip", "submit", "undo"]

MOST_REASON = 500
MOST_ACTIVE_MS = 7 * 86_400_000


@dataclass(frozen=True, slots=True)
class Draft:
    """What a labeler has typed so far: `content` is the page's own, a JSON object."""

    draft_id: str
    content: dict[str, Any]
    save_time: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of the task of a draft that is kept.

    Attributes:
        lease_end_time: seconds since the epoch; None: the lease has ended and others took the task.
        is_withdrawn: whether the task was taken out of the project.
    """

    lease_end_time: float | None
    is_withdrawn: bool


@dataclass(frozen=True, slots=True)
class Late:
    """A label that came too late: others had finished the task. It is kept as the draft."""

    error: LeaseHeld


def draft_of(connection: sa.Connection, assignment_id: int) -> Draft | None:
    """The draft of an assignment; None when there is none."""
    row = connection.execute(sa.select(drafts).where(drafts.c.assignment_id == assignment_id)).mappings().one_or_none()
    return None if row is None else Draft(row["draft_id"], row["content"], row["save_time"])


def save_draft(
    connection: sa.Connection,
    account: Account,
    assignment_id: int,
    *,
    draft_id: str,
    base_draft_id: str,
    content: Mapping[str, Any],
) -> Kept:
    """Keeps a draft in place of the one that it was made from, and renews the lease.

    Args:
        connection: of a change.
        account: of the labeler.
        assignment_id: what it is a draft of.
        draft_id: made by the page, another for each draft.
        base_draft_id: the draft that the page knew last; empty for none.
        content: the page's own.

    Returns:
        What became of the task; the draft is kept in any case.

    Raises:
        VersionConflict: another tab saved a draft since; nothing is replaced. `limit` is the id of that draft.
        FailedPrecondition: the assignment is submitted or skipped.
    """
    _check_id("draft_id", draft_id)
    assignment = hold(connection, account, assignment_id)
    if assignment.state != "leased":
        raise _done_already(assignment)
    kept = draft_of(connection, assignment_id)
    if kept is None or kept.draft_id != draft_id:
        if kept is not None and kept.draft_id != base_draft_id:
            raise VersionConflict(
                f"base_draft_id: {base_draft_id!r:.80} is not the draft that is kept; another tab saved "
                f"{kept.draft_id!r} since",
                field="base_draft_id",
                value=base_draft_id,
                limit=kept.draft_id,
            )
        _keep(connection, assignment_id, draft_id, content)
    try:
        return Kept(renew(connection, assignment), assignment.is_withdrawn)
    except LeaseHeld:
        return Kept(None, assignment.is_withdrawn)


def submit(
    connection: sa.Connection,
    account: Account,
    assignment_id: int,
    *,
    submission_id: str,
    label: Mapping[str, Any],
    active_ms: int | None,
    max_characters: int,
) -> Assignment | Late:
    """Takes a label. While the lease lasts it is always taken; after it, as long as the task wants labels.

    Args:
        connection: of a change.
        account: of the labeler.
        assignment_id: what it is the label of.
        submission_id: made by the page, one for each label.
        label: answers by their place on the page.
        active_ms: time that the page was looked at and worked on, as it measured it; None when it did not.
        max_characters: most characters of a text.

    Returns:
        The assignment as it stands, or that the label came too late and is kept as the draft.

    Raises:
        InvalidRequest: the label, or an id.
        FailedPrecondition: another submission, perhaps of another tab, came before.
    """
    _check_id("submission_id", submission_id)
    if active_ms is not None and not 0 <= active_ms <= MOST_ACTIVE_MS:
        raise InvalidRequest(
            f"active_ms: {active_ms}; allowed: 0..{MOST_ACTIVE_MS}",
            field="active_ms",
            value=active_ms,
            limit=MOST_ACTIVE_MS,
        )
    assignment = hold(connection, account, assignment_id)
    project = assignment.project
    if assignment.state != "leased":
        if assignment.submission_id == submission_id and assignment.state == "submitted":
            return assignment
        raise _done_already(assignment)
    by_place = read_label(
        project.kind, label, assignment.task, wants_ratings=project.wants_ratings, max_characters=max_characters
    )
    now = time.time()
    if assignment.lease_end_time <= now and not wants_more(connection, assignment, counting_leases=False):
        _keep(connection, assignment_id, submission_id, _as_draft(label, active_ms))
        return Late(_too_late(assignment, now))
    by_answer = at_answers(by_place, assignment.order)
    _finish(
        connection,
        account,
        assignment,
        state="submitted",
        submission_id=submission_id,
        label=by_answer,
        active_ms=active_ms,
        **_gold_score(assignment, by_answer),
    )
    connection.execute(drafts.delete().where(drafts.c.assignment_id == assignment_id))  # the label has all of it
    projects.finish_or_reopen(connection, project, tasks.c.id == assignment.task_id, changed=True)
    actor = audit.account_actor(account.name)
    audit.note(connection, actor, "label.submit", assignment.subject, {"submission_id": submission_id})
    return read(connection, account, assignment_id)


def skip(
    connection: sa.Connection, account: Account, assignment_id: int, *, submission_id: str, reason: str
) -> Assignment:
    """Gives a task back for good; its labeler does not get it again. A skipped qualification task counts as wrong.

    The draft is kept: it comes back where the skip is taken back.

    Raises:
        InvalidRequest: no reason, or too long a one; an id.
        FailedPrecondition: it was submitted before, or skipped by another request.
    """
    _check_id("submission_id", submission_id)
    refuse_nul(reason, "reason")
    if not reason.strip() or len(reason) > MOST_REASON:
        raise InvalidRequest(
            f"reason: {len(reason)} characters; allowed: 1..{MOST_REASON}, not only blanks",
            field="reason",
            value=len(reason),
            limit=MOST_REASON,
        )
    assignment = hold(connection, account, assignment_id)
    if assignment.state != "leased":
        if assignment.submission_id == submission_id and assignment.state == "skipped":
            return assignment
        raise _done_already(assignment)
    _finish(
        connection,
        account,
        assignment,
        state="skipped",
        submission_id=submission_id,
        skip_reason=reason,
        **_gold_score(assignment, None),
    )
    audit.note(connection, audit.account_actor(account.name), "task.skip", assignment.subject, {"reason": reason})
    return read(connection, account, assignment_id)


def undo(connection: sa.Connection, account: Account, assignment_id: int) -> Assignment:
    """Takes back the labeler's last label or skip of a project; a label that was sent becomes the draft again.

    Raises:
        FailedPrecondition: it is not the last one, was sent longer ago than the project allows, or is of a
            qualification task, whose gold answers could be found out by trying.
        LeaseHeld: of a skip: others have finished the task since, or finish it now.
    """
    assignment = hold(connection, account, assignment_id)
    if assignment.state == "leased":
        return assignment
    _check_undo(connection, assignment)
    if assignment.state == "skipped" and not wants_more(connection, assignment, counting_leases=True):
        raise LeaseHeld(
            f"assignment: others took the task of {assignment.id} after you had skipped it; it stays skipped",
            reason=Reason.LEASE_LOST,
            field="assignment",
            value=assignment.id,
        )
    values = {
        "state": "leased",
        "lease_end_time": time.time() + assignment.project.fields.lease_ms / 1000,
        "group": account.group,
        **dict.fromkeys(("done_time", "submission_id", "label", "active_ms", "skip_reason")),
    }
    connection.execute(assignments.update().where(assignments.c.id == assignment_id).values(**values))
    if assignment.label is not None:
        _keep(
            connection,
            assignment_id,
            f"undone-{assignment.submission_id}"[:MOST_NAME],
            _as_draft(at_places(assignment.label, assignment.order), assignment.active_ms),
        )
        changed = tasks.c.id == assignment.task_id
        projects.finish_or_reopen(connection, assignment.project, changed, changed=True)
    told = {"was": assignment.state, "label": assignment.label, "reason": assignment.skip_reason}
    audit.note(connection, audit.account_actor(account.name), "label.undo", assignment.subject, told)
    return read(connection, account, assignment_id)


def _check_undo(connection: sa.Connection, assignment: Assignment) -> None:
    if assignment.is_qualification:
        raise FailedPrecondition(
            "assignment: a qualification task cannot be taken back", field="assignment", value=assignment.id
        )
    last = connection.execute(
        sa.select(sa.func.max(assignments.c.done_time)).where(
            assignments.c.account_id == assignment.account_id, assignments.c.project_id == assignment.project.id
        )
    ).scalar_one()
    done_time = assignment.done_time or 0.0
    if done_time < last:
        raise FailedPrecondition(
            "assignment: only the last one can be taken back, and you have done others since",
            field="assignment",
            value=assignment.id,
        )
    age_ms = 1000 * (time.time() - done_time)
    if age_ms > assignment.project.fields.undo_ms:
        raise FailedPrecondition(
            f"assignment: it was sent {age_ms / 1000:.0f} s ago; it can be taken back for "
            f"{assignment.project.fields.undo_ms / 1000:g} s",
            field="assignment",
            value=int(age_ms),
            limit=assignment.project.fields.undo_ms,
        )


def _finish(connection: sa.Connection, account: Account, assignment: Assignment, **values: object) -> None:
    """Ends a labeler's turn. The label stays one of the group that its labeler is in now."""
    mine = assignments.c.id == assignment.id
    connection.execute(assignments.update().where(mine).values(done_time=time.time(), group=account.group, **values))


def _keep(connection: sa.Connection, assignment_id: int, draft_id: str, content: Mapping[str, Any]) -> None:
    values = {"draft_id": draft_id, "content": dict(content), "save_time": time.time()}
    mine = drafts.c.assignment_id == assignment_id
    if not connection.execute(drafts.update().where(mine).values(**values)).rowcount:
        connection.execute(drafts.insert().values(assignment_id=assignment_id, **values))


def _as_draft(label: Mapping[str, Any], active_ms: int | None) -> dict[str, Any]:
    """A label by place as the page would have kept it, with the time that it took so far."""
    return {"label": dict(label)} | ({} if active_ms is None else {"active_ms": active_ms})


def _gold_score(assignment: Assignment, label: Mapping[str, Any] | None) -> dict[str, int]:
    """Columns of a qualification task: pairs that the gold answers order, and those that the label orders alike."""
    gold = assignment.task.gold_ranking
    if not gold:
        return {}
    agreeing = agreeing_pairs(gold, label["ranking"]) if label is not None else 0
    return {"gold_agreeing": agreeing, "gold_pairs": gold_pairs(gold)}


def _check_id(field: str, value: str) -> None:
    if not value or len(value) > MOST_NAME or not value.isprintable():
        raise InvalidRequest(
            f"{field}: {value!r:.80} must have 1..{MOST_NAME} printable characters",
            field=field,
            value=value,
            limit=MOST_NAME,
        )


def _done_already(assignment: Assignment) -> FailedPrecondition:
    return FailedPrecondition(
        f"assignment: {assignment.id} is {assignment.state} already, perhaps by another tab; nothing was changed",
        field="assignment",
        value=assignment.state,
        limit="leased",
    )


def _too_late(assignment: Assignment, now: float) -> LeaseHeld:
    return LeaseHeld(
        f"assignment: the lease of {assignment.id} ended {now - assignment.lease_end_time:.0f} s ago, and others have "
        "finished the task; your label is kept as the draft",
        reason=Reason.LEASE_LOST,
        field="assignment",
        value=assignment.id,
    )
