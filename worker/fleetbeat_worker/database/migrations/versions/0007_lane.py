"""Registrations and ends come in their order, so neither their positions nor what overtook them is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fleetbeat_worker.database.column_types import Identifier, Instant

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SAID_AT = ("work_said_at", "metadata_said_at", "error_said_at")


def upgrade() -> None:
    """Drop what is needed no more; add when registrations and ends said what heartbeats say, too."""
    op.drop_index("ix_rejected_messages_awaits_session_id", "rejected_messages")
    op.drop_column("rejected_messages", "awaits_session_id")
    op.drop_column("agents", "lifecycle_entry")
    for name in SAID_AT:
        op.add_column("agents", sa.Column(name, Instant))


def downgrade() -> None:
    """Take back what the upgrade made."""
    for name in SAID_AT:
        op.drop_column("agents", name)
    op.add_column("agents", sa.Column("lifecycle_entry", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("rejected_messages", sa.Column("awaits_session_id", Identifier))
    awaiting = sa.text("awaits_session_id IS NOT NULL")
    op.create_index(
        "ix_rejected_messages_awaits_session_id",
        "rejected_messages",
        ["awaits_session_id"],
        sqlite_where=awaiting,
        postgresql_where=awaiting,
    )
