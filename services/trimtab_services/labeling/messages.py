"""Records of this service to messages of labeling.proto, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp

from trimtab.errors import InvalidRequest, Reason
from trimtab.types import ChatMessage
from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling.accounts import Account, Role
from trimtab_services.labeling.agreement import Proportion
from trimtab_services.labeling.agreement_report import AgreementReport
from trimtab_services.labeling.contents import Task, TaskKind, read_record
from trimtab_services.labeling.projects import Progress, Project, ProjectFields, ProjectState

__all__ = [
    "account_message",
    "agreement_message",
    "audit_message",
    "fields_of",
    "kind_of",
    "project_changes",
    "project_message",
    "role_of",
    "state_of",
    "task_of",
]

_KINDS = {
    pb.TASK_KIND_DEMONSTRATE: TaskKind.DEMONSTRATE,
    pb.TASK_KIND_RANK: TaskKind.RANK,
    pb.TASK_KIND_COMPARE: TaskKind.COMPARE,
}
_ROLES = {
    pb.ACCOUNT_ROLE_LABELER: Role.LABELER,
    pb.ACCOUNT_ROLE_REVIEWER: Role.REVIEWER,
    pb.ACCOUNT_ROLE_ADMIN: Role.ADMIN,
}
_STATES = {
    pb.PROJECT_STATE_OPEN: ProjectState.OPEN,
    pb.PROJECT_STATE_CLOSED: ProjectState.CLOSED,
    pb.PROJECT_STATE_ARCHIVED: ProjectState.ARCHIVED,
}
_DEFAULTS = ProjectFields()


def kind_of(value: pb.TaskKind.ValueType) -> TaskKind:
    """The kind of a project; raises InvalidRequest for none and for one that is not known."""
    if value not in _KINDS:
        raise InvalidRequest(
            "project.kind: must be one of DEMONSTRATE, RANK, COMPARE",
            reason=Reason.FIELD_INVALID if value else Reason.FIELD_MISSING,
            field="project.kind",
            value=value,
        )
    return _KINDS[value]


def role_of(value: pb.AccountRole.ValueType, *, required: bool) -> Role | None:
    """A role; None for none; raises InvalidRequest for one that is not known, and for none where it is required."""
    if value not in _ROLES and (value or required):
        raise InvalidRequest(
            "role: must be one of LABELER, REVIEWER, ADMIN",
            reason=Reason.FIELD_INVALID if value else Reason.FIELD_MISSING,
            field="role",
            value=value,
        )
    return _ROLES.get(value)


def state_of(value: pb.ProjectState.ValueType) -> ProjectState | None:
    """The state of a project; None for none; raises InvalidRequest for one that is not known."""
    if value and value not in _STATES:
        raise InvalidRequest("state: must be one of OPEN, CLOSED, ARCHIVED", field="state", value=value)
    return _STATES.get(value)


def fields_of(project: pb.Project) -> ProjectFields:
    """What a new project is made with."""
    return ProjectFields(
        instructions=project.instructions,
        overlap=project.overlap or _DEFAULTS.overlap,
        lease_ms=project.lease_ms or _DEFAULTS.lease_ms,
        undo_ms=project.undo_ms,
        qualification_pass=project.qualification_pass,
        state=state_of(project.state) or _DEFAULTS.state,
        held_out_group=project.held_out_group if project.HasField("held_out_group") else _DEFAULTS.held_out_group,
        held_out_overlap=project.held_out_overlap,
    )


def project_changes(request: pb.UpdateProjectRequest) -> dict[str, Any]:
    """Fields of `ProjectFields` that a request sets."""
    known = ProjectFields.__dataclass_fields__
    changes = {field.name: value for field, value in request.ListFields() if field.name in known}
    if state := state_of(request.state):
        changes["state"] = state
    return changes


def task_of(message: pb.LabelTask, field: str) -> Task:
    """A task to import; raises InvalidRequest under `field`."""
    values: dict[str, Any] = {
        "key": message.task_key,
        "prompt": message.prompt,
        "messages": tuple(
            read_record(ChatMessage, {"role": turn.role, "content": turn.content}, f"{field}.messages[{index}]")
            for index, turn in enumerate(message.messages)
        ),
        "context": message.context,
        "answers": tuple(message.answers),
        "sources": tuple(
            {
                "model": source.model,
                "version": source.version,
                "temperature": source.temperature,
                "seed": source.seed,
                "sample_index": source.sample_index,
            }
            for source in message.sources
        ),
        "category": message.category,
        "user": message.user,
        "overlap": message.overlap,
        "gold_ranking": tuple(tuple(group.indices) for group in message.gold_ranking),
    }
    task: Task = read_record(Task, values, field)
    return task


def project_message(project: Project, progress: Progress) -> pb.Project:
    """A project and how far it is."""
    fields = project.fields
    return pb.Project(
        name=project.name,
        kind=next(value for value, kind in _KINDS.items() if kind is project.kind),
        instructions=fields.instructions,
        overlap=fields.overlap,
        lease_ms=fields.lease_ms,
        undo_ms=fields.undo_ms,
        qualification_pass=fields.qualification_pass,
        wants_ratings=project.wants_ratings,
        state=next(value for value, state in _STATES.items() if state is fields.state),
        held_out_group=fields.held_out_group,
        held_out_overlap=fields.held_out_overlap,
        create_time=_timestamp(project.create_time),
        progress=pb.ProjectProgress(**asdict(progress)),
    )


def account_message(account: Account) -> pb.Account:
    """An account."""
    return pb.Account(
        name=account.name,
        role=next(value for value, role in _ROLES.items() if role is account.role),
        group=account.group,
        enabled=account.enabled,
        create_time=_timestamp(account.create_time),
    )


def audit_message(row: sa.RowMapping) -> pb.AuditEvent:
    """An entry of the audit."""
    return pb.AuditEvent(
        sequence=row["sequence"],
        time=_timestamp(row["time"]),
        actor=row["actor"],
        action=row["action"],
        subject=row["subject"],
        detail_json=json.dumps(row["detail"], ensure_ascii=False),
    )


def agreement_message(report: AgreementReport) -> pb.GetAgreementResponse:
    """Agreement between labelers."""
    return pb.GetAgreementResponse(
        agreement=_proportion(report.agreement),
        labelers=[
            pb.LabelerAgreement(
                labeler=one.labeler,
                group=one.group,
                labels=one.labels,
                skips=one.skips,
                agreement=_proportion(one.agreement),
                gold=_proportion(one.gold),
                median_ms=one.median_ms,
                passed=one.passed,
            )
            for one in report.labelers
        ],
        pairs=_pairs(report),
    )


def _pairs(report: AgreementReport) -> Sequence[pb.PairAgreement]:
    return [
        pb.PairAgreement(
            labeler_a=pair.labeler_a,
            labeler_b=pair.labeler_b,
            agreement=_proportion(pair.agreement),
            tau=pair.tau,
            tau_tasks=pair.tau_tasks,
        )
        for pair in report.pairs
    ]


def _proportion(one: Proportion) -> pb.Proportion:
    return pb.Proportion(**asdict(one))


def _timestamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(int(seconds * 1e9))
    return made
