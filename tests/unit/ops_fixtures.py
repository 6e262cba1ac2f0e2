"""Rows for the tests of what ops see."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, delete, insert

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.tables import Agent, Event, Liveness, Pipeline, RejectedMessage

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def put_agent(engine: Engine, name: str, *, at: datetime = NOON, state: str = "ok", **columns: Any) -> UUID:
    """Store a session: last seen at `at`, every 30 s with 2 s grace, unless `columns` says otherwise."""
    session_id = columns.pop("session_id", None) or new_message_id()
    seen = columns.pop("last_seen_at", None if state == "pending" else at)
    interval = columns.pop("interval_seconds", 30.0)
    deadline = columns.pop("deadline_at", (seen or at) + seconds(2 * (interval or 30.0) + 2))
    agent = {
        "session_id": session_id,
        "agent_name": name,
        "parallel": False,
    }
    if "metadata" in columns:
        columns["metadata_"] = columns.pop("metadata")
    liveness = {
        "session_id": session_id,
        "state": state,
        "state_changed_at": at,
        "last_seen_at": seen,
        "deadline_at": deadline,
        "interval_seconds": interval,
        "grace_seconds": 2.0,
        "registered_at": at - seconds(3600) if state != "pending" else at,
    }
    promised = ("registered_at", "schedule", "time_zone", "grace_seconds")
    liveness |= {name: columns.pop(name) for name in promised if name in columns}
    with writing(engine) as connection:
        connection.execute(insert(Agent).values(agent | columns))
        connection.execute(insert(Liveness).values(liveness))
    return session_id


def put_sweep(engine: Engine, watermark: datetime, last_sweep_at: datetime | None = None) -> None:
    """Store what a sweep at `watermark` writes down of the pipeline."""
    with writing(engine) as connection:
        connection.execute(delete(Pipeline))
        values = {"id": 1, "watermark": watermark, "last_sweep_at": last_sweep_at or watermark}
        connection.execute(insert(Pipeline).values(values))


def put_event(engine: Engine, kind: str, name: str, at: datetime = NOON, **columns: Any) -> None:
    with writing(engine) as connection:
        values = {"type": kind, "agent_name": name, "occurred_at": at}
        connection.execute(insert(Event).values(values | columns))


def put_rejected(engine: Engine, entry_id: str, raw: bytes, reason: str = "not_json", detail: str = "no JSON") -> int:
    with writing(engine) as connection:
        values = {
            "entry_id": entry_id,
            "received_at": NOON,
            "reason": reason,
            "rejected_at": NOON,
            "detail": detail,
            "raw": raw,
        }
        key = connection.execute(insert(RejectedMessage).values(values)).inserted_primary_key
    return int(key[0])
