"""The outbox: what people are told is written in the transaction of the change that it tells of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, func, or_, select, update

from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.tables import Notification
from fleetbeat_worker.notifications.notice import Notice
from fleetbeat_worker.rules.enums import NoticeState
from fleetbeat_worker.store.sessions import work_of

_NOTIFICATIONS: Table = Notification.__table__  # type: ignore[assignment] # a mapped class has a Table

TRIED_FOR = timedelta(days=1)
"""For how long a notification is tried."""


def put(connection: Connection, notices: Sequence[Notice], now: int) -> int:
    """Lay notices down to be sent from now on (milliseconds since 1970); return how many weren't there already.

    What each agent last said of its work is laid down with them, so that it is what the change found.
    """
    wordless = {notice.session_id for notice in notices if notice.session_id and "current_work" not in notice.detail}
    work = work_of(connection, wordless)
    rows = [
        {
            "key": notice.key,
            "kind": notice.kind.value,
            "created_at": now,
            "expires_at": now + TRIED_FOR // timedelta(milliseconds=1),
            "session_id": notice.session_id,
            "agent_name": notice.agent_name,
            "project": notice.project,
            "detail": (work.get(notice.session_id, {}) if notice.session_id else {}) | notice.detail,
            "state": NoticeState.WAITING.value,
            "due_at": now,
            "attempts": 0,
        }
        for notice in notices
    ]
    return bulk.insert_rows(connection, _NOTIFICATIONS, rows)


def take_due(connection: Connection, now: datetime, lease: timedelta, limit: int) -> Sequence[Row[Any]]:
    """Return the notifications that are due, the longest due first; no other job takes them before the lease ends.

    Each counts as tried once more. A job that dies leaves its own to the next one, after the lease.
    """
    due = select(_NOTIFICATIONS).where(*_due(now)).order_by(Notification.due_at, Notification.id).limit(limit)
    # SQLite has one writer at a time, and knows no such lock.
    found = connection.execute(due.with_for_update(skip_locked=True)).all()
    ids = [row.id for row in found]
    taken = {"due_at": now + lease, "attempts": Notification.attempts + 1}
    connection.execute(update(Notification).where(Notification.id.in_(ids)).values(taken))
    return found


def leave_unrouted(connection: Connection, now: datetime, ids: Collection[int] | None = None) -> dict[str, int]:
    """Say of notifications that they are for nobody (None: of all that are due); return how many, by kind."""
    if ids is not None:
        chosen = [Notification.id.in_(list(ids)), Notification.state == NoticeState.WAITING.value]
    else:
        chosen = _due(now)
    statement = update(Notification).where(*chosen).values(state=NoticeState.UNROUTED.value)
    kinds = connection.execute(statement.returning(Notification.kind)).scalars().all()
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def record_delivery(
    connection: Connection, notice_id: int, targets: Collection[str], receiver: str | None, now: datetime
) -> bool:
    """Write down that one more target has a notification; return whether now all that it is for have it."""
    row = connection.execute(
        select(Notification.delivered).where(Notification.id == notice_id).with_for_update()
    ).one_or_none()
    if row is None:
        return False  # pruned meanwhile
    # Added to what is there: another job may have been at it, if this one took longer than its lease.
    delivered = dict(row.delivered or {})
    if receiver is not None:
        delivered.setdefault(receiver, now.isoformat(timespec="milliseconds"))
    changes: dict[str, Any] = {"delivered": delivered}
    done = all(target in delivered for target in targets)
    if done:
        changes |= {"state": NoticeState.SENT.value, "sent_at": now, "failure": None}
    connection.execute(update(Notification).where(Notification.id == notice_id).values(changes))
    return done


def put_off(connection: Connection, taken: Row[Any], due_at: datetime, failure: str, *, dead: bool) -> bool:
    """Write down that a try failed, and when the next one is, or that it was the last one.

    `taken`: the row as `take_due` returned it. Returns False if it isn't ours any more: another job has tried it since,
    or it was sent or asked for again, which moves the moment until which it is tried.
    """
    state = NoticeState.DEAD if dead else NoticeState.WAITING
    statement = update(Notification).values(due_at=due_at, failure=failure, state=state.value)
    unasked = Notification.expires_at == taken.expires_at
    return connection.execute(statement.where(*_ours(taken.id, taken.attempts + 1), unasked)).rowcount == 1


def give_back(connection: Connection, notice_id: int, attempts: int, now: datetime) -> None:
    """Take back the try of this number, which wasn't made: the next job makes it."""
    statement = update(Notification).values(due_at=now, attempts=Notification.attempts - 1)
    connection.execute(statement.where(*_ours(notice_id, attempts)))


def next_due(connection: Connection) -> datetime | None:
    """Return when the next notification is due; None if none waits."""
    due: datetime | None = connection.execute(select(func.min(Notification.due_at)).where(_waiting())).scalar()
    return due


def ask_again(connection: Connection, ids: Collection[int], now: datetime) -> int:
    """Let notifications be tried at once, and for a day from now; return how many there were to be tried.

    One that was sent stays so, as its receivers have it.
    """
    changes = {"state": NoticeState.WAITING.value, "due_at": now, "expires_at": now + TRIED_FOR}
    statement = update(Notification).where(Notification.id.in_(list(ids)), Notification.state != NoticeState.SENT.value)
    return connection.execute(statement.values(changes)).rowcount


@dataclass(frozen=True, slots=True)
class Selection:
    """Which notifications are meant; what is left out excludes none."""

    state: NoticeState | None = None
    agent_name: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return what a row must fulfil."""
        conditions = [] if self.state is None else [Notification.state == self.state.value]
        return conditions if self.agent_name is None else [*conditions, Notification.agent_name == self.agent_name]


def latest(connection: Connection, limit: int, chosen: Selection) -> Sequence[Row[Any]]:
    """Return the latest notifications, the newest last."""
    query = select(_NOTIFICATIONS).where(*chosen.conditions()).order_by(Notification.id.desc()).limit(limit)
    return connection.execute(query).all()[::-1]


def states_of(connection: Connection, ids: Collection[int]) -> dict[int, NoticeState]:
    """Return the states of those notifications that are there."""
    query = select(Notification.id, Notification.state).where(Notification.id.in_(list(ids)))
    return {row.id: NoticeState(row.state) for row in connection.execute(query)}


def ids_of_dead(connection: Connection) -> list[int]:
    """Return the ids of the notifications that couldn't be sent."""
    query = select(Notification.id).where(Notification.state == NoticeState.DEAD.value).order_by(Notification.id)
    return list(connection.execute(query).scalars())


@dataclass(frozen=True, slots=True)
class Outbox:
    """How full the outbox is."""

    waiting: int
    dead: int
    oldest_at: datetime | None
    """When the oldest one was written that waits."""


def read_outbox(connection: Connection) -> Outbox:
    """Return how full the outbox is."""
    of_state = func.count().filter
    waits = _waiting()
    dead = Notification.state == NoticeState.DEAD.value
    oldest = func.min(Notification.created_at).filter(waits)
    query = select(of_state(waits), of_state(dead), oldest).where(or_(waits, dead))
    return Outbox(*connection.execute(query).one())


def _waiting() -> ColumnElement[bool]:
    return Notification.state == NoticeState.WAITING.value


def _due(now: datetime) -> list[ColumnElement[bool]]:
    return [_waiting(), Notification.due_at <= now]


def _ours(notice_id: int, attempts: int) -> list[ColumnElement[bool]]:
    """Tell a row that no other job has taken since the try of this number."""
    return [and_(Notification.id == notice_id, Notification.attempts == attempts), _waiting()]
