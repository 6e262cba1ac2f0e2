"""Finding what is older than its age, and removing it.

What is found is a list of keys, read while nothing is locked. What is removed is those keys, in a short transaction of
its own: how many rows a lock covers is then known beforehand, whatever lies between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import MetaData, Table, delete, exists, func, select, text

from fleetbeat_worker.partitions import id_at
from fleetbeat_worker.tables import (
    Agent,
    Event,
    Liveness,
    OutageRow,
    RejectedMessage,
    StoredHeartbeat,
    StrayHeartbeat,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection, Select

_PRUNING_LOCK = 0x626561740002
"""One number for all that remove on PostgreSQL: two of them would wait for each other's rows in a circle."""

_HEARTBEATS: Table = StoredHeartbeat.__table__  # type: ignore[assignment] # a mapped class has a Table
_STRAYS: Table = StrayHeartbeat.__table__  # type: ignore[assignment] # as above
_EVENTS: Table = Event.__table__  # type: ignore[assignment] # as above
_REJECTED: Table = RejectedMessage.__table__  # type: ignore[assignment] # as above
_OUTAGES: Table = OutageRow.__table__  # type: ignore[assignment] # as above
_AGENTS: Table = Agent.__table__  # type: ignore[assignment] # as above
_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # as above

# On PostgreSQL the days' own partitions go whole; row by row goes what lies in none of them.
_DEFAULT = _HEARTBEATS.to_metadata(MetaData(), name="heartbeats_default")


class Found(NamedTuple):
    """A row whose time is over."""

    key: Any
    place: Any
    """Where it stands in the order in which the rows are looked through."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Rows that go by one age, and how they are found and removed."""

    table: str
    """The table that they count for."""
    due: Callable[[Connection, datetime], Select[Any]]
    """Return what selects the key and the place of each row that is older than a moment, in the order of the places."""
    place: Callable[[Connection], ColumnElement[Any]]
    remove: Callable[[Connection, datetime, Sequence[Any]], int]
    """Remove the rows with these keys, if they are still older than the moment; return how many there were."""


def count_due(connection: Connection, kind: Kind, before: datetime) -> int:
    """Return how many rows are older than a moment."""
    due = kind.due(connection, before).order_by(None).subquery()
    return int(connection.execute(select(func.count()).select_from(due)).scalar_one())


def find_due(connection: Connection, kind: Kind, before: datetime, after: object, limit: int) -> list[Found]:
    """Return the first rows that are older than a moment, from the place `after` on (None: from the start)."""
    query = kind.due(connection, before).limit(limit)
    if after is not None:
        query = query.where(kind.place(connection) >= after)
    return [Found(*row) for row in connection.execute(query)]


def remove(connection: Connection, kind: Kind, before: datetime, keys: Sequence[Any]) -> int:
    """Remove rows that were found; return how many were still there, and still old."""
    take_turn(connection)
    return kind.remove(connection, before, keys)


def take_turn(connection: Connection) -> None:
    """Wait until nobody else removes anything, until the end of this transaction. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PRUNING_LOCK})


def _older(table: Table, name: str) -> Kind:
    """Return the rows of a table by a time that has an index."""
    key, moment = table.c[next(iter(table.primary_key)).name], table.c[name]
    return Kind(
        table.name,
        due=lambda _, before: select(key, moment).where(moment < before).order_by(moment),
        place=lambda _: moment,
        remove=lambda connection, _, keys: _delete(connection, table, keys),
    )


def _delete(connection: Connection, table: Table, keys: Sequence[Any]) -> int:
    key = table.c[next(iter(table.primary_key)).name]
    return connection.execute(delete(table).where(key.in_(keys))).rowcount


def _in_order_of_ids(connection: Connection) -> Table:
    return _DEFAULT if connection.dialect.name == "postgresql" else _HEARTBEATS


def _due_heartbeats(connection: Connection, before: datetime) -> Select[Any]:
    table = _in_order_of_ids(connection)
    # Ids grow with time, so the old ones are at the start; strays among them that are young stay, those elsewhere are
    # another kind. A clock that is fast by less than a day makes a heartbeat stay that much longer.
    query = select(table.c.id, table.c.id.label("place"))
    query = query.where(table.c.id < id_at(before), table.c.received_at < before)
    return query.where(~exists().where(_STRAYS.c.id == table.c.id)).order_by(table.c.id)


def _remove_heartbeats(connection: Connection, _: datetime, keys: Sequence[Any]) -> int:
    return _delete(connection, _in_order_of_ids(connection), keys)


def _remove_strays(connection: Connection, _: datetime, keys: Sequence[Any]) -> int:
    _delete(connection, _STRAYS, keys)
    return _delete(connection, _HEARTBEATS, keys)


def _no_children() -> ColumnElement[bool]:
    child = _AGENTS.alias("child")
    return ~exists().where(child.c.parent_id == _AGENTS.c.session_id, child.c.session_id != _AGENTS.c.session_id)


def _due_sessions(_: Connection, before: datetime) -> Select[Any]:
    query = select(_AGENTS.c.session_id, _AGENTS.c.ended_at)
    return query.where(_AGENTS.c.ended_at < before, _no_children()).order_by(_AGENTS.c.ended_at)


def _remove_sessions(connection: Connection, before: datetime, keys: Sequence[Any]) -> int:
    """Remove ended sessions with their liveness, unless one was opened anew, or became a parent, meanwhile."""
    if connection.dialect.name == "postgresql":
        # As everybody does: liveness first, in the order of its keys. Whoever holds a row is about to change it.
        lock = select(_LIVENESS.c.session_id).where(_LIVENESS.c.session_id.in_(keys)).order_by(_LIVENESS.c.session_id)
        keys = connection.execute(lock.with_for_update(skip_locked=True)).scalars().all()
    statement = delete(_AGENTS).where(_AGENTS.c.session_id.in_(keys), _AGENTS.c.ended_at < before, _no_children())
    return connection.execute(statement).rowcount


def _due_outages(_: Connection, before: datetime) -> Select[Any]:
    """Select old outages, but none that began or ended after the last sign of a live agent: its deadline needs it."""
    sign = func.min(func.coalesce(_LIVENESS.c.last_seen_at, _AGENTS.c.registered_at))
    signs = select(sign).join_from(_AGENTS, _LIVENESS).where(_AGENTS.c.ended_at.is_(None)).scalar_subquery()
    query = select(_OUTAGES.c.id, _OUTAGES.c.ended_at)
    query = query.where(_OUTAGES.c.ended_at < before, _OUTAGES.c.ended_at < func.coalesce(signs, before))
    return query.order_by(_OUTAGES.c.ended_at)


STRAYS = Kind(
    "heartbeats",
    due=lambda _, before: (
        select(_STRAYS.c.id, _STRAYS.c.received_at)
        .where(_STRAYS.c.received_at < before)
        .order_by(_STRAYS.c.received_at)
    ),
    place=lambda _: _STRAYS.c.received_at,
    remove=_remove_strays,
)
HEARTBEATS = Kind(
    "heartbeats",
    due=_due_heartbeats,
    place=lambda connection: _in_order_of_ids(connection).c.id,
    remove=_remove_heartbeats,
)
EVENTS = _older(_EVENTS, "occurred_at")
REJECTED = _older(_REJECTED, "received_at")
OUTAGES = Kind(
    "outages",
    due=_due_outages,
    place=lambda _: _OUTAGES.c.ended_at,
    remove=lambda connection, _, keys: _delete(connection, _OUTAGES, keys),
)
SESSIONS = Kind("agents", due=_due_sessions, place=lambda _: _AGENTS.c.ended_at, remove=_remove_sessions)
