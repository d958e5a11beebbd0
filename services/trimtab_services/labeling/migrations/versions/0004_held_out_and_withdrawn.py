"""Held-out labels are counted apart, tasks can be withdrawn, projects archived.

Projects that are there go on counting all labels alike: no task is opened again behind anybody's back. The column
`is_open`, which `state` replaces, stays until a later migration: servers of the version before ask for it while an
update replaces them one by one.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_IS_NORMAL = {
    "sqlite": "is_qualification IS 0 AND withdraw_time IS NULL",
    "postgresql": "is_qualification IS false AND withdraw_time IS NULL",
}


def upgrade() -> None:
    """Makes the change."""
    for column in (
        sa.Column("state", sa.String(length=16), nullable=False, server_default="open"),
        sa.Column("held_out_group", sa.String(length=63), nullable=False, server_default=sa.text("''")),
        sa.Column("held_out_overlap", sa.Integer(), nullable=False, server_default="0"),
    ):
        op.add_column("projects", column)
    op.execute("UPDATE projects SET state = 'closed' WHERE NOT is_open")
    op.add_column("tasks", sa.Column("held_out_count", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("withdraw_time", sa.Double(), nullable=True))
    op.drop_index("ix_tasks_open", "tasks")
    is_open = _where(" AND finished_sequence IS NULL")
    op.create_index("ix_tasks_open", "tasks", ["project_id", sa.text("label_count DESC"), "id"], **is_open)
    op.create_index("ix_tasks_held_out", "tasks", ["project_id", "held_out_count", "id"], **_where(""))


def _where(more: str) -> dict[str, Any]:
    return {f"{dialect}_where": sa.text(condition + more) for dialect, condition in _IS_NORMAL.items()}
