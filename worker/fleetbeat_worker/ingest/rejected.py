"""Rejected messages: choosing, reading, counting and deleting them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, delete, func, select

from fleetbeat_shared.messages import Reason
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.tables import Agent, RejectedMessage

STORED = "stored"
"""What became of a rejected message that was applied again."""

PURGED_AT_ONCE = 500
"""How many rows one transaction deletes: SQLite's other writers wait for it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rejected messages are meant; what is left out excludes none."""

    reason: Reason | None = None
    agent_name: str | None = None
    """Of any session that ever had this name; a message that named no session is nobody's."""
    before: datetime | None = None
    """Received before this moment."""
    after: datetime | None = None
    """Received at this moment or later."""

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """Yield what a row must fulfil."""
        if self.reason is not None:
            yield RejectedMessage.reason == self.reason.value
        if self.agent_name is not None:
            sessions = select(Agent.session_id).where(Agent.agent_name == self.agent_name)
            yield RejectedMessage.session_id.in_(sessions)
        if self.before is not None:
            yield RejectedMessage.received_at < self.before
        if self.after is not None:
            yield RejectedMessage.received_at >= self.after


ALL = Choice()


def latest_rejected(connection: Connection, limit: int, choice: Choice = ALL) -> Sequence[Row[Any]]:
    """Return the latest rejected messages, the newest last; instead of `raw` they have its length, `size`."""
    columns = [column for column in RejectedMessage.__table__.columns if column.name != "raw"]
    query: Select[Any] = select(*columns, func.length(RejectedMessage.raw).label("size"))
    query = query.where(*choice.conditions()).order_by(RejectedMessage.id.desc()).limit(limit)
    return connection.execute(query).all()[::-1]


def rejected_message(connection: Connection, rejected_id: int) -> Row[Any] | None:
    """Return one rejected message with its bytes, or None."""
    query = select(RejectedMessage.__table__).where(RejectedMessage.id == rejected_id)
    return connection.execute(query).one_or_none()


def rejected_ids(connection: Connection, choice: Choice = ALL) -> list[int]:
    """Return the ids of the rejected messages that are meant, the oldest first."""
    query = select(RejectedMessage.id).where(*choice.conditions()).order_by(RejectedMessage.id)
    return list(connection.execute(query).scalars())


def delete_rejected(connection: Connection, ids: Collection[int]) -> int:
    """Delete rejected messages by their ids; return how many were there."""
    return connection.execute(delete(RejectedMessage).where(RejectedMessage.id.in_(list(ids)))).rowcount


def count_rejected(connection: Connection) -> dict[str, int]:
    """Return how many messages are set aside, by reason, the most frequent reason first."""
    number = func.count()
    query = select(RejectedMessage.reason, number).group_by(RejectedMessage.reason)
    query = query.order_by(number.desc(), RejectedMessage.reason)
    return dict(iter(connection.execute(query)))


def purge(engine: Engine, ids: Sequence[int]) -> Iterator[int]:
    """Delete rejected messages, a slice in a transaction of its own; yield how many each slice deleted.

    Raises DatabaseUnavailable.
    """
    for first in range(0, len(ids), PURGED_AT_ONCE):
        with writing(engine) as connection:
            deleted = delete_rejected(connection, ids[first : first + PURGED_AT_ONCE])
        yield deleted
