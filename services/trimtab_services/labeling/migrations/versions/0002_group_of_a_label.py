"""The group of a label is its labeler's when it was sent; of earlier labels, the group of today."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the change."""
    op.add_column("assignments", sa.Column("group", sa.String(length=63), nullable=True))
    op.execute(
        'UPDATE assignments SET "group" = (SELECT "group" FROM accounts WHERE accounts.id = assignments.account_id) '
        "WHERE state <> 'leased'"
    )
