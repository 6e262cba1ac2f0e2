"""Taking rejected messages up again, and throwing them away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.messages import Reason
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.ingest.rejected_rows import delete_rejected
from fleetbeat_worker.ingest.transaction import apply_rejected

STORED = "stored"

PURGED_AT_ONCE = 500
"""How many rows one transaction deletes: SQLite's other writers wait for it."""


def apply_again(settings: Settings, engine: Engine, client: Redis, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Apply rejected messages again, each in a transaction of its own, as of the time at which it was received.

    Not through the inbox: there it would be received anew, and an old heartbeat would make its agent look alive.

    Yields each id with `stored`, or with the reason for which it stays rejected.

    Raises RedisUnavailable, DatabaseUnavailable.
    """
    with redis_errors(settings.redis_url):
        now = Inbox(client).horizon().now
    for rejected_id in ids:
        try:
            batch = apply_rejected(engine, client, now, settings, rejected_id)
        except SQLAlchemyError:
            yield rejected_id, Reason.FAILED.value
        else:
            yield rejected_id, batch.rejected[0]["reason"] if batch.rejected else STORED


def purge(engine: Engine, ids: Sequence[int]) -> Iterator[int]:
    """Delete rejected messages, a slice in a transaction of its own; yield how many each slice deleted.

    Raises DatabaseUnavailable.
    """
    for first in range(0, len(ids), PURGED_AT_ONCE):
        with writing(engine) as connection:
            deleted = delete_rejected(connection, ids[first : first + PURGED_AT_ONCE])
        yield deleted
