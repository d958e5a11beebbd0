"""The tables, as they stand after the last migration; a test compares the two.

Times are seconds since the epoch, by the service's clock. Texts that people wrote are text and nothing else.

    projects ── tasks ── assignments ── drafts
    accounts ──────────────┘      accounts ── sessions
    imports (of tasks)            audit (append-only: triggers refuse changes)

An assignment is one labeler's turn at a task, from the lease to the label; there is never more than one for a labeler
and a task, which is how nobody gets a task twice.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

__all__ = [
    "GROUP_OF_LABEL",
    "accounts",
    "assignments",
    "audit",
    "drafts",
    "imports",
    "metadata",
    "projects",
    "sessions",
    "tasks",
]

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up in columns of type INTEGER only


def _where(condition: sa.ColumnElement[bool]) -> dict[str, Any]:
    """Of an index of a part of the rows."""
    return {"sqlite_where": condition, "postgresql_where": condition}


accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("password_hash", sa.String(300), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("group", sa.String(63), nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),  # SHA-256 of the cookie: who reads the table cannot log in
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False, index=True),
    sa.Column("csrf_token", sa.String(64), nullable=False),
    sa.Column("use_time", sa.Double, nullable=False),
    sa.Column("end_time", sa.Double, nullable=False),
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("instructions", sa.Text, nullable=False),
    sa.Column("overlap", sa.Integer, nullable=False),
    sa.Column("lease_ms", sa.BigInteger, nullable=False),
    sa.Column("undo_ms", sa.BigInteger, nullable=False),
    sa.Column("qualification_pass", sa.Double, nullable=False),
    sa.Column("wants_ratings", sa.Boolean, nullable=False),
    sa.Column("create_time", sa.Double, nullable=False),
    sa.Column("finished_count", sa.BigInteger, nullable=False),  # the last finished_sequence that was given
    sa.Column("state", sa.String(16), nullable=False, server_default="open"),  # open, closed or archived
    sa.Column("is_open", sa.Boolean, nullable=False),  # for servers of the version before, which know no `state`
    sa.Column(
        "held_out_group", sa.String(63), nullable=False, server_default=sa.text("''")
    ),  # empty: all labels count alike
    sa.Column("held_out_overlap", sa.Integer, nullable=False, server_default="0"),  # 0: any number
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("key", sa.String(200), nullable=False),
    sa.Column("content", sa.JSON, nullable=False),  # as `contents.Task.content` gives it
    sa.Column("overlap", sa.Integer, nullable=False),  # 0: the project's
    sa.Column("is_qualification", sa.Boolean, nullable=False),
    sa.Column("label_count", sa.Integer, nullable=False),  # without those of the project's held-out group
    sa.Column("finished_sequence", sa.BigInteger, nullable=True),
    sa.Column("finish_time", sa.Double, nullable=True),
    sa.Column("held_out_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("withdraw_time", sa.Double, nullable=True),
    sa.UniqueConstraint("project_id", "key"),
    sa.Index(None, "project_id", "finished_sequence", "label_count"),
)
# in the order in which they are given out, so that the next one is the first that fits
sa.Index(
    "ix_tasks_open",
    tasks.c.project_id,
    tasks.c.label_count.desc(),
    tasks.c.id,
    **_where(
        sa.and_(
            tasks.c.is_qualification.is_(False), tasks.c.finished_sequence.is_(None), tasks.c.withdraw_time.is_(None)
        )
    ),
)
sa.Index(
    "ix_tasks_held_out",
    tasks.c.project_id,
    tasks.c.held_out_count,
    tasks.c.id,
    **_where(sa.and_(tasks.c.is_qualification.is_(False), tasks.c.withdraw_time.is_(None))),
)
sa.Index(
    "ix_tasks_qualification",
    tasks.c.project_id,
    tasks.c.id,
    **_where(tasks.c.is_qualification.is_(True)),
)

assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("task_id", sa.ForeignKey("tasks.id"), nullable=False),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("project_id", sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # leased, submitted or skipped
    sa.Column("order", sa.JSON, nullable=False),  # index of the answer that stands at each place of the page
    sa.Column("assign_time", sa.Double, nullable=False),
    sa.Column("lease_end_time", sa.Double, nullable=False),
    sa.Column("done_time", sa.Double, nullable=True),
    sa.Column("submission_id", sa.String(200), nullable=True),
    sa.Column("group", sa.String(63), nullable=True),  # its labeler's when it was sent, and of a lease when it began
    sa.Column("label", sa.JSON(none_as_null=True), nullable=True),  # of `contents.read_label`, by index of answer
    sa.Column("skip_reason", sa.String(500), nullable=True),
    sa.Column("active_ms", sa.BigInteger, nullable=True),  # as the page measured it
    sa.Column("gold_agreeing", sa.Integer, nullable=True),  # pairs of the gold answers that the label orders alike
    sa.Column("gold_pairs", sa.Integer, nullable=True),
    sa.UniqueConstraint("task_id", "account_id"),
    sa.Index(None, "account_id", "project_id", "state"),
    sa.Index(None, "project_id", "state"),
)

GROUP_OF_LABEL = sa.func.coalesce(assignments.c.group, accounts.c.group).label("group")
"""The group of a label. A server of an earlier version, while an update replaces it, leaves the column empty."""

drafts = sa.Table(
    "drafts",
    metadata,
    sa.Column("assignment_id", sa.ForeignKey("assignments.id"), primary_key=True),
    sa.Column("draft_id", sa.String(200), nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("save_time", sa.Double, nullable=False),
)

imports = sa.Table(
    "imports",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("project_id", sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("import_id", sa.String(200), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("task_count", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("project_id", "import_id"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("sequence", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("actor", sa.String(300), nullable=False),
    sa.Column("action", sa.String(63), nullable=False),
    sa.Column("subject", sa.String(300), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice
)
