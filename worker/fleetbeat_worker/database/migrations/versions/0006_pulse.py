"""Pulse: the last one that a sweep read, for a Redis that comes back without its data."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fleetbeat_worker.database.column_types import Instant

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("pipeline", sa.Column("pulse_at", Instant))


def downgrade() -> None:
    """Undo the upgrade."""
    op.drop_column("pipeline", "pulse_at")
