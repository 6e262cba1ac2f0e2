"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fleetbeat_worker.database.column_types import Identifier, Instant, JsonObject

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables of an empty database."""
    _create_agents()
    _create_heartbeats()
    _create_events_and_tasks()
    _create_the_rest()


def _create_agents() -> None:
    op.create_table(
        "agents",
        sa.Column("session_id", Identifier, primary_key=True),
        sa.Column("agent_name", sa.Text, nullable=False),
        sa.Column("interval_seconds", sa.Double),
        sa.Column("schedule", sa.Text),
        sa.Column("time_zone", sa.Text),
        sa.Column("grace_seconds", sa.Double, nullable=False),
        sa.Column("project", sa.Text),
        sa.Column("parent_id", Identifier),
        sa.Column("parallel", sa.Boolean, nullable=False),
        sa.Column("metadata", JsonObject),
        sa.Column("registered_at", Instant, nullable=False),
        sa.Column("ended_at", Instant),
        sa.Column("exit_status", sa.Integer),
        sa.Column("lifecycle_entry", sa.BigInteger, nullable=False),
        sa.Column("current_work", sa.Text),
        sa.Column("work_item_id", sa.Text),
        sa.Column("progress", sa.Text),
        sa.Column("status", sa.Text),
        sa.Column("summary", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("open_tasks", sa.Integer),
        sa.Column("stale_tasks", sa.Integer),
        sa.Column("reported_at", Instant),
        sa.Column("reported_entry", sa.BigInteger),
    )
    live = sa.text("ended_at IS NULL AND NOT parallel")
    op.create_index(
        "uq_agents_live_name", "agents", ["agent_name"], unique=True, sqlite_where=live, postgresql_where=live
    )
    op.create_index("ix_agents_agent_name", "agents", ["agent_name"])
    op.create_table(
        "liveness",
        sa.Column("session_id", Identifier, sa.ForeignKey("agents.session_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("state_changed_at", Instant, nullable=False),
        sa.Column("last_seen_at", Instant),
        sa.Column("deadline_at", Instant, nullable=False),
        postgresql_with={"fillfactor": "70"},
    )


def _create_heartbeats() -> None:
    op.create_table(
        "heartbeats",
        sa.Column("id", Identifier, primary_key=True),
        sa.Column("session_id", Identifier, nullable=False),
        sa.Column("received_at", Instant, nullable=False),
        sa.Column("seen_at", Instant, nullable=False),
        sa.Column("sent_at", Instant, nullable=False),
        sa.Column("progress", sa.Text),
        sa.Column("work_item_id", sa.Text),
        sa.Column("status", sa.Text),
        sa.Column("summary", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("open_tasks", sa.Integer),
        sa.Column("stale_tasks", sa.Integer),
        sa.Column("metadata", JsonObject),
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (id)",
    )
    if op.get_bind().dialect.name == "postgresql":
        # Ids whose time is far off land here; the days' own partitions are made by `database.partitions`.
        op.execute("CREATE TABLE heartbeats_default PARTITION OF heartbeats DEFAULT")


def _create_events_and_tasks() -> None:
    op.create_table(
        "events",
        sa.Column("id", BIG_KEY, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("occurred_at", Instant, nullable=False),
        sa.Column("session_id", Identifier),
        sa.Column("agent_name", sa.Text),
        sa.Column("message_id", Identifier, unique=True),
        sa.Column("text", sa.Text),
        sa.Column("detail", JsonObject),
    )
    op.create_index("ix_events_session_id_id", "events", ["session_id", "id"])
    op.create_index("ix_events_agent_name_id", "events", ["agent_name", "id"])
    op.create_table(
        "tasks",
        sa.Column("id", BIG_KEY, primary_key=True),
        sa.Column("agent_name", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
    )
    op.create_index("ix_tasks_agent_name_state", "tasks", ["agent_name", "state"])


def _create_the_rest() -> None:
    op.create_table(
        "rejected_messages",
        sa.Column("id", BIG_KEY, primary_key=True),
        sa.Column("entry_id", sa.Text, nullable=False, unique=True),
        sa.Column("received_at", Instant, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("session_id", Identifier),
        sa.Column("rejected_at", Instant, nullable=False),
        sa.Column("awaits_session_id", Identifier),
        sa.Column("raw", sa.LargeBinary, nullable=False),
    )
    awaiting = sa.text("awaits_session_id IS NOT NULL")
    op.create_index(
        "ix_rejected_messages_awaits_session_id",
        "rejected_messages",
        ["awaits_session_id"],
        sqlite_where=awaiting,
        postgresql_where=awaiting,
    )
    op.create_index("ix_rejected_messages_received_at", "rejected_messages", ["received_at"])
    op.create_table(
        "outages",
        sa.Column("id", BIG_KEY, primary_key=True),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("ended_at", Instant, nullable=False),
    )
    op.create_index("ix_outages_ended_at", "outages", ["ended_at"])
    op.create_table(
        "pipeline",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("watermark", Instant),
        sa.Column("last_sweep_at", Instant),
        sa.Column("sweep_seconds", sa.Double),
        sa.Column("inbox_life", sa.Text),
        sa.Column("inbox_lost", sa.BigInteger),
        sa.Column("inbox_backlog", sa.BigInteger),
    )
    op.execute("INSERT INTO pipeline (id) VALUES (1)")


def downgrade() -> None:
    """Drop everything; the first migration has nothing to go back to."""
    for table in ("pipeline", "outages", "rejected_messages", "tasks", "events", "heartbeats", "liveness", "agents"):
        op.drop_table(table)
