"""Reading what changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select

from fleetbeat_worker.database.tables import Event


def latest_events(
    connection: Connection,
    limit: int,
    *,
    agent_name: str | None = None,
    session_id: UUID | None = None,
    types: Collection[str] = (),
) -> Sequence[Row[Any]]:
    """Return the latest events, the newest last: all columns of `events`.

    `agent_name`, `session_id`, `types`: only the events of that agent, of that session, of these types (`EventType`).
    """
    query = select(Event.__table__).order_by(Event.id.desc()).limit(limit)
    if agent_name is not None:
        query = query.where(Event.agent_name == agent_name)
    if session_id is not None:
        query = query.where(Event.session_id == session_id)
    if types:
        query = query.where(Event.type.in_(types))
    return connection.execute(query).all()[::-1]
