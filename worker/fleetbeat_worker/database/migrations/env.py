"""Alembic runs this; `fleetbeat_worker.database.schema` gives it the connection."""

from __future__ import annotations

from alembic import context

from fleetbeat_worker.database.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
