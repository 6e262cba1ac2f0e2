"""Sessions: reading agents' sessions with their liveness, and locking them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, exists, func, select

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.tables import Agent, Liveness
from fleetbeat_worker.rules.spans import to_milliseconds

_LIVENESS = [column for column in Liveness.__table__.columns if not column.primary_key]
SESSIONS: Select[Any] = select(Agent.__table__, *_LIVENESS).join(Liveness, Liveness.session_id == Agent.session_id)


def read_sessions(
    connection: Connection, *, live: bool = True, ended: bool = False, agent_name: str | None = None
) -> Sequence[Row[Any]]:
    """Read sessions, live ones or ended ones or both, in no order.

    Each row has all columns of `agents` and `liveness`.
    """
    query = SESSIONS
    if agent_name is not None:
        query = query.where(Agent.agent_name == agent_name)
    if not ended:
        query = query.where(Agent.ended_at.is_(None))
    if not live:
        query = query.where(Agent.ended_at.is_not(None))
    return connection.execute(query).all()


def read_session(connection: Connection, session_id: UUID) -> Row[Any] | None:
    """Return one session as `sessions` does, or None."""
    return connection.execute(SESSIONS.where(Agent.session_id == session_id)).one_or_none()


def read_newest_session(connection: Connection, agent_name: str) -> Row[Any] | None:
    """Return the session of a name that was registered last, a live one before an ended one; or None."""
    query = SESSIONS.where(Agent.agent_name == agent_name)
    query = query.order_by(Agent.ended_at.is_not(None), Liveness.registered_at.desc(), Agent.session_id.desc())
    return connection.execute(query.limit(1)).one_or_none()


def count_states(connection: Connection) -> dict[str, int]:
    """Count the sessions in each stored state."""
    return dict(iter(connection.execute(select(Liveness.state, func.count()).group_by(Liveness.state))))


def agent_is_known(connection: Connection, agent_name: str) -> bool:
    """Find out whether an agent of this name was ever registered."""
    return bool(connection.execute(select(exists().where(Agent.agent_name == agent_name))).scalar())


def lock_sessions(connection: Connection, *which: ColumnElement[bool]) -> None:
    """Lock sessions in the order of their keys, as all transactions do, so that there is no deadlock.

    No row is fetched, however large the fleet is. SQLite has one writer, and no such locks.
    """
    if connection.dialect.name == "postgresql":
        lock = select(Liveness.session_id).where(*which).order_by(Liveness.session_id).with_for_update()
        connection.execute(select(func.count()).select_from(lock.cte())).scalar()


_AGENTS: Table = Agent.__table__  # type: ignore[assignment] # a mapped class has a Table


CHUNK_SIZE = 10_000
"""How many sessions one query names: SQLite takes 32,766 parameters at most."""


_NAMES = select(Agent.session_id, Agent.agent_name, Agent.project)


def in_chunks(ids: Collection[UUID]) -> Iterator[list[UUID]]:
    """Split ids into lists of at most `IDS_AT_ONCE`, as statements take only so many parameters."""
    listed = list(ids)
    return (listed[start : start + CHUNK_SIZE] for start in range(0, len(listed), CHUNK_SIZE))


def read_work(connection: Connection, ids: Collection[UUID]) -> dict[UUID, dict[str, Any]]:
    """Read what agents last reported of their work."""
    names = ("current_work", "progress", "summary", "error")
    columns = [_AGENTS.c[name] for name in ("session_id", *names)]
    return {
        session_id: dict(zip(names, values, strict=True))
        for some in in_chunks(ids)
        for session_id, values in bulk.select(connection, columns, some)
    }


class SessionName(NamedTuple):
    """A session, with what names it."""

    session_id: UUID
    agent_name: str
    project: str | None


def read_names(connection: Connection, ids: Collection[UUID]) -> list[SessionName]:
    """Read agents' session ids, names and projects."""
    queries = (_NAMES.where(Agent.session_id.in_(some)) for some in in_chunks(ids))
    return [SessionName(*row) for query in queries for row in connection.execute(query)]


def set_time(connection: Connection, column: str, ids: Collection[UUID], moment: datetime | None) -> None:
    """Write one of the times of `agents`, or None, for some sessions that are locked."""
    value = None if moment is None else to_milliseconds(moment)
    bulk.update(connection, _AGENTS, ("session_id", column), [(session_id, value) for session_id in ids])
