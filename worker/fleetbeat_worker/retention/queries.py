"""Queries of retention: find the old rows of each table, and remove them.

A slice of rows is found without locks, and removed in a short transaction of its own. So the number of rows that are
locked is limited, however many young rows there are between the old ones.
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
"""The advisory lock of pruning on PostgreSQL: two jobs at once could deadlock on each other's rows."""

_MAINTENANCE = [EventType.MAINTENANCE.value, EventType.MAINTENANCE_OVER.value]

_HEARTBEATS: Table = StoredHeartbeat.__table__  # type: ignore[assignment] # a mapped class has a Table
_STRAYS: Table = StrayHeartbeat.__table__  # type: ignore[assignment] # as above
_EVENTS: Table = Event.__table__  # type: ignore[assignment] # as above
_REJECTED: Table = RejectedMessage.__table__  # type: ignore[assignment] # as above
_OUTAGES: Table = OutageRow.__table__  # type: ignore[assignment] # as above
_NOTIFICATIONS: Table = Notification.__table__  # type: ignore[assignment] # as above
_AGENTS: Table = Agent.__table__  # type: ignore[assignment] # as above
_LIVENESS: Table = Liveness.__table__  # type: ignore[assignment] # as above

# On PostgreSQL the partitions of days are dropped; only the default partition is pruned row by row.
_DEFAULT = _HEARTBEATS.to_metadata(MetaData(), name="heartbeats_default")


class Slice(NamedTuple):
    """Old rows that are removed together."""

    keys: Sequence[Any]
    """Their keys; of heartbeats the first and the last one, with young ones between them."""
    position: Any
    """The position of the last one in the order of the search."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Rows with one retention age, and how they are found and removed."""

    table: str
    """The table that they are counted for."""
    select_old: Callable[[Connection, datetime], Select[Any]]
    """Build the query for the key and the position of each row before a given time, in the order of the positions."""
    find: Callable[[Connection, datetime, Any, int], Slice | None]
    """Find some rows before a given time, from a position on (None: from the start); None if there are none."""
    remove: Callable[[Connection, datetime, Sequence[Any]], int]
    """Remove rows if they are still before the given time; return how many."""


def count_old(connection: Connection, kind: Kind, before: datetime) -> int:
    """Count the rows of a kind before a given time."""
    old = kind.select_old(connection, before).order_by(None).subquery()
    return int(connection.execute(select(func.count()).select_from(old)).scalar_one())


def remove(connection: Connection, kind: Kind, before: datetime, found: Slice) -> int:
    """Remove the rows of a slice that are still there and still old; return how many."""
    lock_pruning(connection)
    return kind.remove(connection, before, found.keys)


def lock_pruning(connection: Connection) -> None:
    """Let no other job prune until the end of this transaction. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PRUNING_LOCK})


def _by_time(
    moment: Column[Any],
    *conditions: Callable[[datetime], ColumnElement[bool]],
    table: str | None = None,
    remove: Callable[[Connection, datetime, Sequence[Any]], int] | None = None,
) -> Kind:
    """Make a kind of the rows of a table, found by a time that has an index and further conditions."""
    key = _key(moment.table)

    def select_old(_: Connection, before: datetime) -> Select[Any]:
        further = (condition(before) for condition in conditions)
        return select(key, moment).where(moment < before, *further).order_by(moment)

    def find(connection: Connection, before: datetime, after: Any, limit: int) -> Slice | None:  # noqa: ANN401 - a position
        query = select_old(connection, before).limit(limit)
        rows = connection.execute(query if after is None else query.where(moment >= after)).all()
        return Slice([row[0] for row in rows], rows[-1][1]) if rows else None

    return Kind(
        table or moment.table.name,
        select_old,
        find,
        remove or (lambda connection, _, keys: _delete(connection, moment.table, keys)),
    )


def _key(table: Any) -> Column[Any]:  # noqa: ANN401 - SQLAlchemy calls a column's table a FromClause
    key: Column[Any] = next(iter(table.primary_key))
    return key


def _delete(connection: Connection, table: Any, keys: Sequence[Any]) -> int:  # noqa: ANN401 - as above
    return connection.execute(delete(table).where(_key(table).in_(keys))).rowcount


def _old_heartbeats(connection: Connection, before: datetime) -> tuple[Table, list[ColumnElement[bool]]]:
    """Return the table of heartbeats that is pruned row by row, and the conditions of old ones.

    Ids grow with time, so the old ones are at the start; strays are a kind of their own. The heartbeat of a clock that
    is fast, by less than a day, is kept that much longer.
    """
    table = _DEFAULT if connection.dialect.name == "postgresql" else _HEARTBEATS
    is_stray = exists().where(_STRAYS.c.id == table.c.id)
    return table, [table.c.id < id_at(before), table.c.received_at < before, ~is_stray]


def _select_old_heartbeats(connection: Connection, before: datetime) -> Select[Any]:
    table, old = _old_heartbeats(connection, before)
    return select(table.c.id, table.c.id.label("place")).where(*old).order_by(table.c.id)


def _find_heartbeats(connection: Connection, before: datetime, after: Any, limit: int) -> Slice | None:  # noqa: ANN401
    """Find a range of ids that starts with an old heartbeat and has at most `limit` of them, old and young."""
    table, old = _old_heartbeats(connection, before)
    query = select(table.c.id).where(*old).order_by(table.c.id).limit(1)
    first = connection.execute(query if after is None else query.where(table.c.id >= after)).scalar()
    if first is None:
        return None
    span = select(table.c.id).where(table.c.id >= first, table.c.id < id_at(before)).order_by(table.c.id).limit(limit)
    last = connection.execute(select(span.subquery().c.id).order_by(text("1 DESC")).limit(1)).scalar_one()
    return Slice((first, last), last)


def _remove_heartbeats(connection: Connection, before: datetime, keys: Sequence[Any]) -> int:
    """Remove the old heartbeats in a range of ids: many times faster than by a list of ids."""
    table, old = _old_heartbeats(connection, before)
    first, last = keys
    return connection.execute(delete(table).where(table.c.id >= first, table.c.id <= last, *old)).rowcount


def _remove_strays(connection: Connection, _: datetime, keys: Sequence[Any]) -> int:
    _delete(connection, _STRAYS, keys)
    return _delete(connection, _HEARTBEATS, keys)


def _has_no_young_delegate(before: datetime) -> ColumnElement[bool]:
    """Match sessions that aren't the parent of one that is live or ended since a given time.

    Old children don't count: two sessions that name each other as parent would stay forever, and so would a chain of
    predecessors of a live one.
    """
    child = _AGENTS.alias("child")
    is_young = or_(child.c.ended_at.is_(None), child.c.ended_at >= before)
    return ~exists().where(child.c.parent_id == _AGENTS.c.session_id, is_young)


def _remove_sessions(connection: Connection, before: datetime, keys: Sequence[Any]) -> int:
    """Remove ended sessions with their liveness, except those registered again, or used as a parent, in between."""
    if connection.dialect.name == "postgresql":
        # As all transactions do: liveness first, in the order of its keys. A locked row is about to change.
        lock = select(_LIVENESS.c.session_id).where(_LIVENESS.c.session_id.in_(keys)).order_by(_LIVENESS.c.session_id)
        keys = connection.execute(lock.with_for_update(skip_locked=True)).scalars().all()
    statement = delete(_AGENTS).where(_AGENTS.c.session_id.in_(keys), _AGENTS.c.ended_at < before)
    return connection.execute(statement.where(_has_no_young_delegate(before))).rowcount


def _oldest_heartbeat(before: datetime) -> ColumnElement[Any]:
    """Select the last heartbeat of the live agent that is silent longest: no deadline depends on an earlier time."""
    last = func.min(func.coalesce(_LIVENESS.c.last_seen_at, _LIVENESS.c.registered_at))
    return func.coalesce(select(last).where(_LIVENESS.c.state != State.ENDED.value).scalar_subquery(), before)


def _is_not_needed(before: datetime) -> ColumnElement[bool]:
    """Match all events except those of maintenance that deadlines may depend on.

    These start with the last window that began before the oldest heartbeat, as it may have ended after it.
    """
    begun = select(func.max(_EVENTS.c.occurred_at)).where(
        _EVENTS.c.session_id.is_(None),
        _EVENTS.c.type == EventType.MAINTENANCE.value,
        _EVENTS.c.occurred_at <= _oldest_heartbeat(before),
    )
    return _EVENTS.c.type.not_in(_MAINTENANCE) | (_EVENTS.c.occurred_at < begun.scalar_subquery())


STRAYS = _by_time(_STRAYS.c.received_at, table="heartbeats", remove=_remove_strays)
HEARTBEATS = Kind("heartbeats", _select_old_heartbeats, _find_heartbeats, _remove_heartbeats)
EVENTS = _by_time(_EVENTS.c.occurred_at, _is_not_needed)
REJECTED = _by_time(_REJECTED.c.received_at)
OUTAGES = _by_time(_OUTAGES.c.ended_at, lambda before: _OUTAGES.c.ended_at < _oldest_heartbeat(before))
NOTIFICATIONS = _by_time(_NOTIFICATIONS.c.created_at, lambda _: _NOTIFICATIONS.c.state != NoticeState.WAITING.value)
SESSIONS = _by_time(_AGENTS.c.ended_at, _has_no_young_delegate, remove=_remove_sessions)
