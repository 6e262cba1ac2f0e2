"""Requeueing: rejected messages are applied again, as of the time at which they were received."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.errors import InvalidMessage
from fleetbeat_shared.messages import Heartbeat, Reason
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.entries import entry_again
from fleetbeat_worker.broker.server import redis_now
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.lane import apply_entries, record_overtaken
from fleetbeat_worker.ingest.queries import lock_lane, take_rejected, was_overtaken
from fleetbeat_worker.ingest.rejected import STORED
from fleetbeat_worker.ingest.session_state import Facts
from fleetbeat_worker.ingest.transaction import apply_heartbeats, follow_up
from fleetbeat_worker.rules.spans import to_milliseconds


def apply_again(settings: Settings, engine: Engine, client: Redis, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Apply rejected messages again, each in a transaction of its own, as of the time at which it was received.

    Not through the streams: there it would be received anew, and an old heartbeat would make its agent look alive.

    Yields each id with `stored`, or with the reason for which it stays rejected.

    Raises RedisUnavailable, DatabaseUnavailable.
    """
    with redis_errors(settings.redis_url):
        now = to_milliseconds(redis_now(client))
    for rejected_id in ids:
        try:
            changes = _apply_rejected(engine, rejected_id, now, settings)
        except InvalidMessage as error:
            yield rejected_id, error.reason
        except SQLAlchemyError:
            yield rejected_id, Reason.FAILED.value
        else:
            if not changes.rejected:
                follow_up(client, changes)
            yield rejected_id, changes.rejected[0]["reason"] if changes.rejected else STORED


def _apply_rejected(engine: Engine, rejected_id: int, now: int, settings: Settings) -> Changeset:
    """Apply a rejected message; if it is rejected again, its row stays as it was.

    Raises InvalidMessage, DatabaseUnavailable.
    """
    with writing(engine) as connection:
        lock_lane(connection)
        row = take_rejected(connection, rejected_id)
        if row is None:  # another process applied it, or deleted it
            return Changeset(Facts(now, watermark=None, outages=[], missed_limit=1))
        entry = entry_again(row.entry_id, row.raw, to_milliseconds(row.received_at))
        if isinstance(entry.message, Heartbeat):
            changes = apply_heartbeats(connection, [entry], now, settings)
        elif entry.message is not None and was_overtaken(connection, entry, entry.message):
            changes = record_overtaken(connection, entry, entry.message, now, settings)
        else:
            changes = apply_entries(connection, [entry], now, settings)
        if changes.rejected:
            connection.rollback()
        return changes
