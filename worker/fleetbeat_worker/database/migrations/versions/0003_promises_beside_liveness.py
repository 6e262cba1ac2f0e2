"""Promises: they move from `agents` to `liveness`, so that one narrow table has all that a heartbeat is judged by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from fleetbeat_worker.database.column_types import Identifier, Instant

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_LIVENESS = "session_id, state, state_changed_at, last_seen_at, deadline_at"
_MOVED = "registered_at, interval_seconds, schedule, time_zone, grace_seconds"


def upgrade() -> None:
    """Rebuild `liveness` with the promises, in the order of its keys and without SQLite's row ids."""
    op.execute(f"CREATE TABLE kept AS SELECT {_LIVENESS}, {_MOVED} FROM liveness JOIN agents USING (session_id)")  # noqa: S608 - our own names
    op.drop_table("liveness")
    _create_liveness(*_moved(), sqlite_with_rowid=False, fillfactor="90")
    _take_back(f"{_LIVENESS}, {_MOVED}")
    for column in _moved():
        op.drop_column("agents", column.name)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE agents SET (fillfactor = 85)")  # of pages to come


def downgrade() -> None:
    """Undo the upgrade."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE agents RESET (fillfactor)")
    for column in _moved():
        # Columns that must not be NULL get a value first, as SQLite can't add the constraint later.
        default = {"registered_at": sa.text("0"), "grace_seconds": sa.text("0")}.get(column.name)
        if op.get_bind().dialect.name == "postgresql" and column.name == "registered_at":
            default = sa.text("'epoch'")
        column.server_default = sa.DefaultClause(default) if default is not None else None
        op.add_column("agents", column)
    names = _MOVED.split(", ")
    found = ", ".join(f"{name} = l.{name}" for name in names)
    op.execute(f"UPDATE agents AS a SET {found} FROM liveness AS l WHERE l.session_id = a.session_id")  # noqa: S608 - as above
    op.execute(f"CREATE TABLE kept AS SELECT {_LIVENESS} FROM liveness")  # noqa: S608 - as above
    op.drop_table("liveness")
    _create_liveness()
    _take_back(_LIVENESS)


def _moved() -> list[sa.Column[object]]:
    return [
        sa.Column("registered_at", Instant, nullable=False),
        sa.Column("interval_seconds", sa.Double),
        sa.Column("schedule", sa.Text),
        sa.Column("time_zone", sa.Text),
        sa.Column("grace_seconds", sa.Double, nullable=False),
    ]


def _create_liveness(*moved: sa.Column[object], sqlite_with_rowid: bool = True, fillfactor: str = "70") -> None:
    op.create_table(
        "liveness",
        sa.Column("session_id", Identifier, sa.ForeignKey("agents.session_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("state_changed_at", Instant, nullable=False),
        sa.Column("last_seen_at", Instant),
        sa.Column("deadline_at", Instant, nullable=False),
        *moved,
        sqlite_with_rowid=sqlite_with_rowid,
        postgresql_with={"fillfactor": fillfactor},
    )


def _take_back(columns: str) -> None:
    op.execute(f"INSERT INTO liveness ({columns}) SELECT {columns} FROM kept ORDER BY session_id")  # noqa: S608 - as above
    op.drop_table("kept")
