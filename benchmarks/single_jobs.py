"""What ingest.py compares with: an RQ job that stores one heartbeat.

The job does to one message what the pipeline does to a batch: the same validation, the same transaction.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.column_types import to_milliseconds
from fleetbeat_worker.database import open_engine
from fleetbeat_worker.inbox import Entry
from fleetbeat_worker.transactions import store_entries

if TYPE_CHECKING:
    from sqlalchemy import Engine


@cache
def _tools() -> tuple[Settings, Engine]:
    """Return the settings and the engine that all jobs of a process share; a forked work-horse makes its own."""
    settings = Settings.from_environment(os.environ)
    return settings, open_engine(settings.sql_url)


def store_heartbeat(wire: str) -> None:
    """Store one heartbeat. Raises ValueError when it was set aside, so that the job fails."""
    settings, engine = _tools()
    now = datetime.now(UTC)
    entry = Entry(f"{to_milliseconds(now)}-0", wire.encode())
    (batch,) = store_entries(engine, [entry], now, settings)
    if not batch.heartbeats:
        message = f"the heartbeat was set aside: {batch.rejected}"
        raise ValueError(message)
