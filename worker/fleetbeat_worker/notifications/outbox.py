"""Outbox: notifications in SQL, written in the same transaction as the change that they are about."""

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
from fleetbeat_worker.store.sessions import read_work

TRIED_FOR = timedelta(days=1)
"""For how long a notification is tried."""

_NOTIFICATIONS: Table = Notification.__table__  # type: ignore[assignment] # a mapped class has a Table


def add_notices(connection: Connection, notices: Sequence[Notice], now: int) -> int:
    """Write notices, due at once (milliseconds since 1970); return how many weren't there already.

    The work that each agent last reported is added to the facts, as it was when the change was found.
    """
    work = read_work(connection, {notice.session_id for notice in notices if notice.session_id})
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


def claim_due(connection: Connection, now: datetime, lease: timedelta, limit: int) -> Sequence[Row[Any]]:
    """Claim the notifications that are due, the longest due first; no other job claims them before the lease ends.

    The claim counts as an attempt. If the job dies, the next one claims them after the lease.
    """
    due = select(_NOTIFICATIONS).where(*_due(now)).order_by(Notification.due_at, Notification.id).limit(limit)
    # SQLite has one writer at a time, and no such lock.
    found = connection.execute(due.with_for_update(skip_locked=True)).all()
    ids = [row.id for row in found]
    claimed = {"due_at": now + lease, "attempts": Notification.attempts + 1}
    connection.execute(update(Notification).where(Notification.id.in_(ids)).values(claimed))
    return found


def mark_unrouted(connection: Connection, now: datetime, ids: Collection[int] | None = None) -> dict[str, int]:
    """Mark notifications (None: all that are due) as without a matching target; return how many, by kind."""
    if ids is not None:
        chosen = [Notification.id.in_(list(ids)), Notification.state == NoticeState.WAITING.value]
    else:
        chosen = _due(now)
    statement = update(Notification).where(*chosen).values(state=NoticeState.UNROUTED.value)
    kinds = connection.execute(statement.returning(Notification.kind)).scalars().all()
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def record_delivery(
    connection: Connection, notice_id: int, targets: Collection[str], target: str | None, now: datetime
) -> bool:
    """Record that one more target has received a notification; return whether now all of `targets` have.

    Targets are given by their fingerprints.
    """
    row = connection.execute(
        select(Notification.delivered).where(Notification.id == notice_id).with_for_update()
    ).one_or_none()
    if row is None:
        return False  # pruned in the meantime
    # Added to the recorded ones: another job may have sent it, too, if this one took longer than its lease.
    delivered = dict(row.delivered or {})
    if target is not None:
        delivered.setdefault(target, now.isoformat(timespec="milliseconds"))
    changes: dict[str, Any] = {"delivered": delivered}
    done = all(fingerprint in delivered for fingerprint in targets)
    if done:
        changes |= {"state": NoticeState.SENT.value, "sent_at": now, "failure": None}
    connection.execute(update(Notification).where(Notification.id == notice_id).values(changes))
    return done


def record_failure(connection: Connection, claimed: Row[Any], due_at: datetime, failure: str, *, dead: bool) -> bool:
    """Record that an attempt failed, and when the next one is, or that it was the last one.

    `claimed`: the row as `claim_due` returned it. Returns False, and records nothing, if the claim is lost: another job
    has tried it since, it was sent, or a retry was requested, which moves the time until which it is tried.
    """
    state = NoticeState.DEAD if dead else NoticeState.WAITING
    statement = update(Notification).values(due_at=due_at, failure=failure, state=state.value)
    unrequested = Notification.expires_at == claimed.expires_at
    return connection.execute(statement.where(_is_ours(claimed.id, claimed.attempts + 1), unrequested)).rowcount == 1


def release(connection: Connection, notice_id: int, attempts: int, now: datetime) -> None:
    """Release a claim without an attempt: the next job makes it. `attempts` is the number of the claim."""
    statement = update(Notification).values(due_at=now, attempts=Notification.attempts - 1)
    connection.execute(statement.where(_is_ours(notice_id, attempts)))


def read_next_due(connection: Connection) -> datetime | None:
    """Read when the next notification is due; None if none is waiting."""
    due: datetime | None = connection.execute(select(func.min(Notification.due_at)).where(_waiting())).scalar()
    return due


def request_retry(connection: Connection, ids: Collection[int], now: datetime) -> int:
    """Make notifications due at once, and tried for a day from now; return how many. Sent ones stay sent."""
    changes = {"state": NoticeState.WAITING.value, "due_at": now, "expires_at": now + TRIED_FOR}
    statement = update(Notification).where(Notification.id.in_(list(ids)), Notification.state != NoticeState.SENT.value)
    return connection.execute(statement.values(changes)).rowcount


def read_latest(
    connection: Connection, limit: int, *, state: NoticeState | None = None, agent_name: str | None = None
) -> Sequence[Row[Any]]:
    """Read the latest notifications, the newest last; with `state` and `agent_name` only those that match."""
    query = select(_NOTIFICATIONS).order_by(Notification.id.desc()).limit(limit)
    if state is not None:
        query = query.where(Notification.state == state.value)
    if agent_name is not None:
        query = query.where(Notification.agent_name == agent_name)
    return connection.execute(query).all()[::-1]


def read_states(connection: Connection, ids: Collection[int]) -> dict[int, NoticeState]:
    """Read the states of notifications; ids that don't exist are missing."""
    query = select(Notification.id, Notification.state).where(Notification.id.in_(list(ids)))
    return {row.id: NoticeState(row.state) for row in connection.execute(query)}


def find_dead(connection: Connection) -> list[int]:
    """Find the notifications that could not be sent, and return their ids."""
    query = select(Notification.id).where(Notification.state == NoticeState.DEAD.value).order_by(Notification.id)
    return list(connection.execute(query).scalars())


@dataclass(frozen=True, slots=True)
class Outbox:
    """How full the outbox is."""

    waiting: int
    dead: int
    oldest_at: datetime | None
    """When the oldest waiting notification was written."""


def read_outbox(connection: Connection) -> Outbox:
    """Count the waiting and dead notifications."""
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


def _is_ours(notice_id: int, attempts: int) -> ColumnElement[bool]:
    """Match a row that no other job has claimed since the claim of this number."""
    return and_(Notification.id == notice_id, Notification.attempts == attempts, _waiting())
