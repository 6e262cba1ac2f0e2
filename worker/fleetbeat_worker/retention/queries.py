"""Finding what is older than its age, and removing it.

A slice of rows is found while nothing is locked, and removed in a short transaction of its own: how many rows a lock
covers is known beforehand, whatever lies between the old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Select,
    Table,
    delete,
    exists,
    func,
    or_,
    select,
    text,
)

from fleetbeat_worker.database.partitions import id_at
from fleetbeat_worker.database.tables import (
    Agent,
    Event,
    Liveness,
    Notification,
    OutageRow,
    RejectedMessage,
    StoredHeartbeat,
    StrayHeartbeat,
)
from fleetbeat_worker.rules.enums import EventType, NoticeState
from fleetbeat_worker.rules.liveness import State

_PRUNING_LOCK = 0x626561740002
"""One number for all that remove on PostgreSQL: two of them would wait for each other's rows in a circle."""

_MAINTENANCE = [EventType.MAINTENANCE.value, EventType.MAINTENANCE_OVER.value]

_HEARTBEATS: Table = StoredHeartbeat.__table__  # type: ignore[assignment] # a mapped class has a Table
_STRAYS: Table = StrayHeartbeat.__table__  # type: ignore[assignment] # as above
_EVENTS: Table = Event.__table__  # type: ignore[assignment] # as above
_REJECTED: Table = RejectedMessage.__table__  # type: ignore[assignment] # as above
_OUTAGES: Table = OutageRow.__table__  # type: ignore[assignment] # as above
_NOTIFICATIONS: Table = Notification.__table__  # type: ignore[assignment] # as above
_AGENTS: Table = Agent.__table__  # type: ignore[assignment] # as above
_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # as above

# On PostgreSQL the days' own partitions go whole; row by row goes what lies in none of them.
_DEFAULT = _HEARTBEATS.to_metadata(MetaData(), name="heartbeats_default")


class Slice(NamedTuple):
    """Some rows whose time is over, to be removed together."""

    keys: Sequence[Any]
    """Their keys; of heartbeats the first and the last one, between which young ones may lie."""
    place: Any
    """Where the last one stands in the order in which they are looked through."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Rows that go by one age, and how they are found and removed."""

    table: str
    """The table that they count for."""
    due: Callable[[Connection, datetime], Select[Any]]
    """Return what selects the key and the place of each row that is older than a moment, in the order of the places."""
    find: Callable[[Connection, datetime, Any, int], Slice | None]
    """Return some rows that are older than a moment, from a place on (None: from the start)."""
    remove: Callable[[Connection, datetime, Sequence[Any]], int]
    """Remove a slice, if it is still older than the moment; return how many rows there were."""


def count_due(connection: Connection, kind: Kind, before: datetime) -> int:
    """Return how many rows are older than a moment."""
    due = kind.due(connection, before).order_by(None).subquery()
    return int(connection.execute(select(func.count()).select_from(due)).scalar_one())


def find_due(connection: Connection, kind: Kind, before: datetime, after: object, limit: int) -> Slice | None:
    """Return the first rows that are older than a moment, from the place `after` on (None: from the start).

    They are `limit` at most; None if there are none.
    """
    return kind.find(connection, before, after, limit)


def remove(connection: Connection, kind: Kind, before: datetime, found: Slice) -> int:
    """Remove rows that were found; return how many were still there, and still old."""
    take_turn(connection)
    return kind.remove(connection, before, found.keys)


def take_turn(connection: Connection) -> None:
    """Wait until nobody else removes anything, until the end of this transaction. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PRUNING_LOCK})


def _by_time(
    moment: Column[Any],
    *conditions: Callable[[datetime], ColumnElement[bool]],
    table: str | None = None,
    remove: Callable[[Connection, datetime, Sequence[Any]], int] | None = None,
) -> Kind:
    """Return the rows of a table by a time that has an index, and by further conditions."""
    key = _key(moment.table)

    def due(_: Connection, before: datetime) -> Select[Any]:
        told = (condition(before) for condition in conditions)
        return select(key, moment).where(moment < before, *told).order_by(moment)

    def find(connection: Connection, before: datetime, after: Any, limit: int) -> Slice | None:  # noqa: ANN401 - a place
        query = due(connection, before).limit(limit)
        rows = connection.execute(query if after is None else query.where(moment >= after)).all()
        return Slice([row[0] for row in rows], rows[-1][1]) if rows else None

    return Kind(
        table or moment.table.name,
        due,
        find,
        remove or (lambda connection, _, keys: _delete(connection, moment.table, keys)),
    )


def _key(table: Any) -> Column[Any]:  # noqa: ANN401 - SQLAlchemy calls a column's table a FromClause
    key: Column[Any] = next(iter(table.primary_key))
    return key


def _delete(connection: Connection, table: Any, keys: Sequence[Any]) -> int:  # noqa: ANN401 - as above
    return connection.execute(delete(table).where(_key(table).in_(keys))).rowcount


def _old_heartbeats(connection: Connection, before: datetime) -> tuple[Table, list[ColumnElement[bool]]]:
    """Return where the heartbeats lie that go row by row, and which of them are old: in the order of their ids.

    Ids grow with time, so the old ones are at the start; strays are another kind. A clock that is fast by less than a
    day makes a heartbeat stay that much longer.
    """
    table = _DEFAULT if connection.dialect.name == "postgresql" else _HEARTBEATS
    is_stray = exists().where(_STRAYS.c.id == table.c.id)
    return table, [table.c.id < id_at(before), table.c.received_at < before, ~is_stray]


def _due_heartbeats(connection: Connection, before: datetime) -> Select[Any]:
    table, old = _old_heartbeats(connection, before)
    return select(table.c.id, table.c.id.label("place")).where(*old).order_by(table.c.id)


def _find_heartbeats(connection: Connection, before: datetime, after: Any, limit: int) -> Slice | None:  # noqa: ANN401
    """Return a span of ids that begins with an old heartbeat, and has `limit` ones at most, old and young."""
    table, old = _old_heartbeats(connection, before)
    query = select(table.c.id).where(*old).order_by(table.c.id).limit(1)
    first = connection.execute(query if after is None else query.where(table.c.id >= after)).scalar()
    if first is None:
        return None
    span = select(table.c.id).where(table.c.id >= first, table.c.id < id_at(before)).order_by(table.c.id).limit(limit)
    last = connection.execute(select(span.subquery().c.id).order_by(text("1 DESC")).limit(1)).scalar_one()
    return Slice((first, last), last)


def _remove_heartbeats(connection: Connection, before: datetime, keys: Sequence[Any]) -> int:
    """Remove the old ones of a span: many times faster than by a list of their keys."""
    table, old = _old_heartbeats(connection, before)
    first, last = keys
    return connection.execute(delete(table).where(table.c.id >= first, table.c.id <= last, *old)).rowcount


def _remove_strays(connection: Connection, _: datetime, keys: Sequence[Any]) -> int:
    _delete(connection, _STRAYS, keys)
    return _delete(connection, _HEARTBEATS, keys)


def _has_no_young_delegate(before: datetime) -> ColumnElement[bool]:
    """Tell sessions that nobody names as parent who is live, or ended since.

    Those that are old themselves don't count: two that name each other would stay forever, and so would all
    predecessors of a live one if each had named the one before it.
    """
    child = _AGENTS.alias("child")
    is_young = or_(child.c.ended_at.is_(None), child.c.ended_at >= before)
    return ~exists().where(child.c.parent_id == _AGENTS.c.session_id, is_young)


def _remove_sessions(connection: Connection, before: datetime, keys: Sequence[Any]) -> int:
    """Remove ended sessions with their liveness, unless one was opened anew, or became a parent, meanwhile."""
    if connection.dialect.name == "postgresql":
        # As everybody does: liveness first, in the order of its keys. Whoever holds a row is about to change it.
        lock = select(_LIVENESS.c.session_id).where(_LIVENESS.c.session_id.in_(keys)).order_by(_LIVENESS.c.session_id)
        keys = connection.execute(lock.with_for_update(skip_locked=True)).scalars().all()
    statement = delete(_AGENTS).where(_AGENTS.c.session_id.in_(keys), _AGENTS.c.ended_at < before)
    return connection.execute(statement.where(_has_no_young_delegate(before))).rowcount


def _oldest_sign(before: datetime) -> ColumnElement[Any]:
    """Return the last sign of that live agent which has been silent longest: no deadline counts time before it."""
    sign = func.min(func.coalesce(_LIVENESS.c.last_seen_at, _LIVENESS.c.registered_at))
    return func.coalesce(select(sign).where(_LIVENESS.c.state != State.ENDED.value).scalar_subquery(), before)


def _moves_no_deadline(before: datetime) -> ColumnElement[bool]:
    """Tell events other than the beginnings and ends of such maintenance as a deadline may count.

    That is all since the last window that began before the oldest sign: it may have ended after it.
    """
    begun = select(func.max(_EVENTS.c.occurred_at)).where(
        _EVENTS.c.session_id.is_(None),
        _EVENTS.c.type == EventType.MAINTENANCE.value,
        _EVENTS.c.occurred_at <= _oldest_sign(before),
    )
    return _EVENTS.c.type.not_in(_MAINTENANCE) | (_EVENTS.c.occurred_at < begun.scalar_subquery())


STRAYS = _by_time(_STRAYS.c.received_at, table="heartbeats", remove=_remove_strays)
HEARTBEATS = Kind("heartbeats", _due_heartbeats, _find_heartbeats, _remove_heartbeats)
EVENTS = _by_time(_EVENTS.c.occurred_at, _moves_no_deadline)
REJECTED = _by_time(_REJECTED.c.received_at)
OUTAGES = _by_time(_OUTAGES.c.ended_at, lambda before: _OUTAGES.c.ended_at < _oldest_sign(before))
NOTIFICATIONS = _by_time(_NOTIFICATIONS.c.created_at, lambda _: _NOTIFICATIONS.c.state != NoticeState.WAITING.value)
SESSIONS = _by_time(_AGENTS.c.ended_at, _has_no_young_delegate, remove=_remove_sessions)
