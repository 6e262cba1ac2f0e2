"""Verdicts: pauses, maintenance, incidents, stuck and flapping agents, and notifications."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from fleetbeat_worker.database.column_types import Identifier, Instant, JsonObject

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_COLUMNS: dict[str, dict[str, Any]] = {
    "agents": {
        "changed_at": Instant,
        "stuck_after": sa.Integer,
        "stuck_at": Instant,
        "flapping_at": Instant,
        "paused_at": Instant,
        "paused_until": Instant,
        "pause_reason": sa.Text,
        "incident_id": sa.BigInteger,
        "unjudged_at": Instant,
    },
    "liveness": {"missed_limit": sa.Integer, "resumed_at": Instant},
    "pipeline": {"maintenance_since": Instant, "cleared_at": Instant, "unjudged": sa.Integer},
}
_RARE = ("unjudged_at", "flapping_at", "incident_id", "stuck_after")
"""Columns of `agents` that few rows have and that a sweep searches for: each has an index of its non-NULL values."""
_TABLES = ("notifications", "maintenance", "incidents")


def upgrade() -> None:
    """Add the columns and create the tables."""
    for table, columns in _COLUMNS.items():
        for name, kind in columns.items():
            op.add_column(table, sa.Column(name, kind))
    for name in _RARE:
        there = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"ix_agents_{name}", "agents", [name], sqlite_where=there, postgresql_where=there)
    changes = sa.text("type IN ('degraded', 'recovered')")
    op.create_index(
        "ix_events_changes", "events", ["session_id", "occurred_at"], sqlite_where=changes, postgresql_where=changes
    )
    op.create_table(
        "incidents",
        sa.Column("id", BIG_KEY, primary_key=True),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("ended_at", Instant),
        sa.Column("agents", sa.Integer, nullable=False),
        sa.Column("live_agents", sa.Integer, nullable=False),
        sa.Column("first_silent_at", Instant, nullable=False),
        sa.Column("last_silent_at", Instant, nullable=False),
    )
    op.create_table(
        "maintenance",
        sa.Column("id", BIG_KEY, primary_key=True),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("starts_at", Instant, nullable=False),
        sa.Column("ends_at", Instant),
        sa.Column("schedule", sa.Text),
        sa.Column("time_zone", sa.Text),
        sa.Column("duration_seconds", sa.Double),
        sa.Column("reason", sa.Text),
        sa.Column("ended_at", Instant),
        sa.Column("cut_at", Instant),
    )
    paused = sa.text("paused_until IS NOT NULL")
    op.create_index("ix_agents_paused_until", "agents", ["paused_until"], sqlite_where=paused, postgresql_where=paused)
    _create_notifications()


def _create_notifications() -> None:
    op.create_table(
        "notifications",
        sa.Column("id", BIG_KEY, primary_key=True),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("expires_at", Instant, nullable=False),
        sa.Column("session_id", Identifier),
        sa.Column("agent_name", sa.Text),
        sa.Column("project", sa.Text),
        sa.Column("detail", JsonObject, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("due_at", Instant, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("delivered", JsonObject),
        sa.Column("sent_at", Instant),
        sa.Column("failure", sa.Text),
    )
    waiting = sa.text("state = 'waiting'")
    op.create_index(
        "ix_notifications_due_at", "notifications", ["due_at"], sqlite_where=waiting, postgresql_where=waiting
    )
    op.create_index("ix_notifications_created_at", "notifications", ["created_at"])


def downgrade() -> None:
    """Undo the upgrade."""
    for table in _TABLES:
        op.drop_table(table)
    op.drop_index("ix_agents_paused_until", "agents")
    op.drop_index("ix_events_changes", "events")
    for name in _RARE:
        op.drop_index(f"ix_agents_{name}", "agents")
    for table, columns in _COLUMNS.items():
        for name in columns:
            op.drop_column(table, name)
