"""Incidents: an agent's incident moves from `agents` to `liveness`, where the flag itself is written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_THERE = sa.text("incident_id IS NOT NULL")


def upgrade() -> None:
    """Move the column, and drop its index."""
    op.add_column("liveness", sa.Column("incident_id", sa.BigInteger))
    _copy("agents", "liveness")
    op.drop_index("ix_agents_incident_id", "agents")
    op.drop_column("agents", "incident_id")


def downgrade() -> None:
    """Undo the upgrade."""
    op.add_column("agents", sa.Column("incident_id", sa.BigInteger))
    _copy("liveness", "agents")
    op.create_index("ix_agents_incident_id", "agents", ["incident_id"], sqlite_where=_THERE, postgresql_where=_THERE)
    op.drop_column("liveness", "incident_id")


def _copy(source: str, target: str) -> None:
    op.execute(
        f"UPDATE {target} AS t SET incident_id = s.incident_id FROM {source} AS s"  # noqa: S608 - our own names
        " WHERE s.session_id = t.session_id AND s.incident_id IS NOT NULL"
    )
