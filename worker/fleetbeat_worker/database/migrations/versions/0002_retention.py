"""Retention: the table of stray heartbeats, and indexes on times that never change."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fleetbeat_worker.database.column_types import Identifier, Instant

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The ids of a day before and a day after the receipt, in the order of ids. SQLite's ids sort the same as text.
_STRAYS = {
    "sqlite": """
        INSERT INTO stray_heartbeats (id, received_at)
        SELECT id, received_at FROM heartbeats
        WHERE hex(id) NOT BETWEEN printf('%012X', received_at - 86400000) AND printf('%012X', received_at + 86400000)
    """,
    "postgresql": """
        INSERT INTO stray_heartbeats (id, received_at)
        SELECT id, received_at FROM heartbeats, CAST(date_part('epoch', received_at) * 1000 AS bigint) AS received
        WHERE id NOT BETWEEN CAST(lpad(to_hex(received - 86400000), 12, '0') || repeat('0', 20) AS uuid)
                         AND CAST(lpad(to_hex(received + 86400000), 12, '0') || repeat('0', 20) AS uuid)
    """,
}


def upgrade() -> None:
    """Create and fill the table of strays, and create the indexes."""
    op.create_table(
        "stray_heartbeats",
        sa.Column("id", Identifier, primary_key=True),
        sa.Column("received_at", Instant, nullable=False),
    )
    op.execute(_STRAYS[op.get_bind().dialect.name])
    op.create_index("ix_stray_heartbeats_received_at", "stray_heartbeats", ["received_at"])
    op.create_index("ix_events_occurred_at", "events", ["occurred_at"])
    for column in ("ended_at", "parent_id"):
        there = sa.text(f"{column} IS NOT NULL")
        op.create_index(f"ix_agents_{column}", "agents", [column], sqlite_where=there, postgresql_where=there)


def downgrade() -> None:
    """Undo the upgrade."""
    for index, table in (
        ("ix_agents_parent_id", "agents"),
        ("ix_agents_ended_at", "agents"),
        ("ix_events_occurred_at", "events"),
    ):
        op.drop_index(index, table_name=table)
    op.drop_table("stray_heartbeats")
