"""Indexes of the open tasks, in the order in which they are given out, and of the qualification."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_IS_OPEN = {
    "sqlite": "is_qualification IS 0 AND finished_sequence IS NULL",
    "postgresql": "is_qualification IS false AND finished_sequence IS NULL",
}
_IS_QUALIFICATION = {"sqlite": "is_qualification IS 1", "postgresql": "is_qualification IS true"}


def upgrade() -> None:
    """Makes the change."""
    op.create_index("ix_tasks_open", "tasks", ["project_id", sa.text("label_count DESC"), "id"], **_where(_IS_OPEN))
    op.create_index("ix_tasks_qualification", "tasks", ["project_id", "id"], **_where(_IS_QUALIFICATION))


def _where(conditions: dict[str, str]) -> dict[str, Any]:
    return {f"{dialect}_where": sa.text(condition) for dialect, condition in conditions.items()}
