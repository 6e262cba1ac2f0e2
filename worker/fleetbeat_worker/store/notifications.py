"""The outbox: what people are told is written in the transaction of the change that it tells of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetbeat_worker.store import bulk
from fleetbeat_worker.tables import NoticeKind, NoticeState, Notification

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Table

_NOTIFICATIONS: Table = Notification.__table__  # type: ignore[assignment] # a mapped class has a Table


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell."""

    kind: NoticeKind
    key: str
    """The same for the same change: found twice it is told once."""
    detail: dict[str, Any]
    """The facts that its text is made of."""
    session_id: UUID | None = None
    agent_name: str | None = None
    project: str | None = None


def put(connection: Connection, notices: Sequence[Notice], now: int) -> int:
    """Lay notices down to be sent from now on (milliseconds since 1970); return how many weren't there already."""
    rows = [
        {
            "key": notice.key,
            "kind": notice.kind.value,
            "created_at": now,
            "session_id": notice.session_id,
            "agent_name": notice.agent_name,
            "project": notice.project,
            "detail": notice.detail,
            "state": NoticeState.WAITING.value,
            "due_at": now,
            "attempts": 0,
        }
        for notice in notices
    ]
    return bulk.insert_rows(connection, _NOTIFICATIONS, rows)
