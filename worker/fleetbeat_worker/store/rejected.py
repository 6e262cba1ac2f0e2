"""Reading the messages that were set aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from fleetbeat_worker.tables import RejectedMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row, Select

    from fleetbeat_shared.messages import Reason


def latest_rejected(connection: Connection, limit: int, reason: Reason | None = None) -> Sequence[Row[Any]]:
    """Return the latest rejected messages, the newest last; instead of `raw` they have its length, `size`."""
    columns = [column for column in RejectedMessage.__table__.columns if column.name != "raw"]
    query: Select[Any] = select(*columns, func.length(RejectedMessage.raw).label("size"))
    query = query.order_by(RejectedMessage.id.desc()).limit(limit)
    if reason is not None:
        query = query.where(RejectedMessage.reason == reason)
    return connection.execute(query).all()[::-1]


def rejected_message(connection: Connection, rejected_id: int) -> Row[Any] | None:
    """Return one rejected message with its bytes, or None."""
    query = select(RejectedMessage.__table__).where(RejectedMessage.id == rejected_id)
    return connection.execute(query).one_or_none()


def rejected_ids(connection: Connection, reason: Reason | None = None) -> list[int]:
    """Return the ids of all rejected messages, or of those with one reason, the oldest first."""
    query = select(RejectedMessage.id).order_by(RejectedMessage.id)
    if reason is not None:
        query = query.where(RejectedMessage.reason == reason)
    return list(connection.execute(query).scalars())


def count_rejected(connection: Connection) -> dict[str, int]:
    """Return how many messages are set aside, by reason, the most frequent reason first."""
    number = func.count()
    query = select(RejectedMessage.reason, number).group_by(RejectedMessage.reason)
    query = query.order_by(number.desc(), RejectedMessage.reason)
    return dict(iter(connection.execute(query)))
