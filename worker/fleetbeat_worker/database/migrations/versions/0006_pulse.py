"""When the last pulse was, as the last sweep found it: a Redis that comes back without its data doesn't know."""

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
    """Take back what the upgrade made."""
    op.drop_column("pipeline", "pulse_at")
