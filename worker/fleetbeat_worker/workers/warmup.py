"""Warm-up: a pool stores a heartbeat and sweeps once, in a database in memory, before it forks.

Each job runs in a process of its own, which ends with it. What Python and SQLAlchemy compile and cache at the first use
of a class, a column or a statement, each job would compile again: that takes longer than to store a heartbeat. All
children inherit what the parent has cached.
"""

from __future__ import annotations

import gc
from contextvars import Context
from datetime import UTC, datetime

from sqlalchemy import insert

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import Heartbeat, Register
from fleetbeat_shared.redis_keys import INBOX, SESSIONS
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Account
from fleetbeat_worker.broker.entries import RawEntry, decode
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.database.engine import open_engine, writing
from fleetbeat_worker.database.tables import Base, Pipeline
from fleetbeat_worker.ingest.lane import apply_entries
from fleetbeat_worker.ingest.transaction import store_heartbeats
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.sweep.transaction import judge_fleet
from fleetbeat_worker.telemetry.log import logger


def warm_up() -> None:
    """Store a heartbeat and sweep, without a trace; then exempt what is in memory from garbage collection.

    It only saves time: where it fails, for example because SQLite is too old beside a PostgreSQL, work goes on.
    """
    try:
        Context().run(_work_in_memory)  # an empty one: nothing of this is counted
    except Exception as error:  # noqa: BLE001 - whatever fails, jobs work without it
        logger.debug("The warm-up failed: %s", type(error).__name__)
    gc.collect()
    gc.freeze()


def _work_in_memory() -> None:
    settings, now = Settings(), datetime.now(UTC)
    engine = open_engine("sqlite://")
    with writing(engine) as connection:
        Base.metadata.create_all(connection)
        connection.execute(insert(Pipeline), {"id": 1})
    session_id = new_message_id()
    registration = Register(
        id=new_message_id(), session_id=session_id, sent_at=now, agent_name="warm-up", interval_seconds=60
    )
    heartbeat = Heartbeat(id=new_message_id(), session_id=session_id, sent_at=now, progress="warm-up")
    at = to_milliseconds(now)
    registered = decode([RawEntry(f"{at}-0", registration.to_wire())], at, SESSIONS)
    sent = decode([RawEntry(f"{at}-0", heartbeat.to_wire())], at, INBOX)
    with writing(engine) as connection:
        apply_entries(connection, registered, at, settings)
    store_heartbeats(engine, sent, at, settings)
    with writing(engine) as connection:
        judge_fleet(connection, Horizon(now, now, 0), Account(now, None, 0), settings, periodic=True)
    engine.dispose()
