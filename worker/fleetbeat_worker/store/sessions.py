"""Reading sessions of agents with their liveness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, exists, func, select

from fleetbeat_worker.database.tables import Agent, Liveness

_LIVENESS = [column for column in Liveness.__table__.columns if not column.primary_key]
_SESSIONS: Select[Any] = select(Agent.__table__, *_LIVENESS).join(Liveness, Liveness.session_id == Agent.session_id)


def sessions(
    connection: Connection, *, live: bool = True, ended: bool = False, agent_name: str | None = None
) -> Sequence[Row[Any]]:
    """Return sessions, live ones or ended ones or both, in no order.

    Each row has all columns of `agents` and `liveness`.
    """
    query = _SESSIONS
    if agent_name is not None:
        query = query.where(Agent.agent_name == agent_name)
    if not ended:
        query = query.where(Agent.ended_at.is_(None))
    if not live:
        query = query.where(Agent.ended_at.is_not(None))
    return connection.execute(query).all()


def session(connection: Connection, session_id: UUID) -> Row[Any] | None:
    """Return one session as `sessions` does, or None."""
    return connection.execute(_SESSIONS.where(Agent.session_id == session_id)).one_or_none()


def newest_session(connection: Connection, agent_name: str) -> Row[Any] | None:
    """Return the session of a name that was registered last, a live one before an ended one; or None."""
    query = _SESSIONS.where(Agent.agent_name == agent_name)
    query = query.order_by(Agent.ended_at.is_not(None), Liveness.registered_at.desc(), Agent.session_id.desc())
    return connection.execute(query.limit(1)).one_or_none()


def count_states(connection: Connection) -> dict[str, int]:
    """Return how many sessions are in each state that is stored."""
    return dict(iter(connection.execute(select(Liveness.state, func.count()).group_by(Liveness.state))))


def name_is_known(connection: Connection, agent_name: str) -> bool:
    """Return whether an agent of this name was ever registered."""
    return bool(connection.execute(select(exists().where(Agent.agent_name == agent_name))).scalar())
