"""Transactions of ingest: a batch of heartbeats is stored in one, or nothing of it if anything fails."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError
from rq.timeouts import BaseTimeoutException
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InternalError, NotSupportedError, ProgrammingError

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.messages import Heartbeat, Reason, Reply
from fleetbeat_shared.redis_keys import REPLY_SECONDS, reply_key
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.entries import Entry, own_ids
from fleetbeat_worker.database.engine import rolled_back_by_conflict, writing
from fleetbeat_worker.ingest.batch import Batch
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.queries import is_stored, open_batch, rejected_among, write_changes
from fleetbeat_worker.ingest.session_state import Facts
from fleetbeat_worker.notifications.due import announce_due
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.spans import from_milliseconds
from fleetbeat_worker.store.events import find_flapping
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import DATABASE_RETRIES, INGESTED, RECOVERED, REJECTED, count

CONFLICT_TRIES = 10
"""How often a transaction that lost against another is tried again at once."""

POISON = "three times running, a process died while it worked on this message alone"

ENVIRONMENT_FAULTS = (
    DatabaseUnavailable,
    ProgrammingError,
    InternalError,
    NotSupportedError,
    BaseTimeoutException,
    RedisError,
)
"""What no message can cause: a database that is away or broken, a missing table, the end of the job's time."""

_Result = TypeVar("_Result")


def store_heartbeats(
    engine: Engine, entries: Sequence[Entry], now: int, settings: Settings, meanwhile: Callable[[], None] | None = None
) -> list[Changeset]:
    """Store a batch of heartbeats; return what was changed: at once, or by each entry if they had to be tried alone.

    When something in a batch can't be stored, each entry is tried alone, and the one that fails again is set aside.
    `now` is Redis's time in milliseconds. `meanwhile` is called when the transaction begins, if this thread mostly
    waits for a server then.

    Raises DatabaseUnavailable; then nothing of the failing transaction is stored.
    """

    def store() -> Changeset:
        with writing(engine) as connection:
            # SQLite works in this thread, and others wait for it.
            if meanwhile is not None and connection.dialect.name == "postgresql":
                meanwhile()
            return apply_heartbeats(connection, entries, now, settings)

    try:
        changes = retried(store)
    except ENVIRONMENT_FAULTS:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the neighbours shall not suffer for it
        if len(entries) > 1:
            return [changes for entry in entries for changes in store_heartbeats(engine, [entry], now, settings)]
        return [set_aside(engine, entries[0], now, Reason.FAILED, what_failed(entries[0], error))]
    count_stored(changes)
    return [changes]


def apply_heartbeats(connection: Connection, entries: Sequence[Entry], now: int, settings: Settings) -> Changeset:
    """Work out and write what heartbeats change that were not set aside before."""
    beats = [(entry, entry.message) for entry in entries if isinstance(entry.message, Heartbeat)]
    changes = open_batch(connection, beats, now, settings)
    # Judged once more they might be accepted, if their session has been opened since, and be in SQL twice.
    decided = rejected_among(connection, [entry for entry, _ in beats])
    batch = Batch(changes)
    for entry, message in beats:
        if entry.key not in decided:
            batch.apply(entry, message)
    for entry in entries:
        changes.reject_undecoded(entry)
    _settle_recoveries(connection, batch, settings)
    write_changes(connection, changes)
    return changes


def retried(transaction: Callable[[], _Result]) -> _Result:
    """Do a transaction again, some times, if it loses against another one. Raises DatabaseUnavailable."""
    for _ in range(CONFLICT_TRIES - 1):
        try:
            return transaction()
        except DatabaseUnavailable as error:
            if not rolled_back_by_conflict(error):
                raise
            count(DATABASE_RETRIES)
            time.sleep(random.uniform(0, 0.05))  # noqa: S311 - only to step out of each other's way
    return transaction()


def set_aside(engine: Engine, entry: Entry, now: int, reason: Reason, detail: str) -> Changeset:
    """Store an entry as rejected, in a transaction of its own. Raises DatabaseUnavailable."""
    with writing(engine) as connection:
        changes = set_aside_within(connection, entry, now, reason, detail)
    count_stored(changes)
    return changes


def set_aside_within(connection: Connection, entry: Entry, now: int, reason: Reason, detail: str) -> Changeset:
    """Store an entry as rejected, without parsing it; one that is stored as a message already is left at that.

    Its workers may have died after they stored it, each time before they could acknowledge it. That a stored message's
    id is in its bytes proves nothing, as its sender may have written any: session and time of arrival must be the same,
    too. When in doubt (its id was made up, say) it is kept.
    """
    changes = Changeset(Facts(now, watermark=None, outages=[], missed_limit=1))
    ids = own_ids(entry.wire)
    if ids is not None and is_stored(connection, *ids, from_milliseconds(entry.received_at)):
        logger.warning("A message was stored before its workers died, and stays so", extra={"entry_id": entry.id})
    else:
        changes.reject(entry, reason, detail)
        write_changes(connection, changes)
    return changes


def what_failed(entry: Entry, error: Exception) -> str:
    """Log that an entry can't be stored; return why, in one line."""
    logger.warning("A message can't be stored and is set aside", extra={"entry_id": entry.id}, exc_info=error)
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return clean(f"{type(error).__name__}: {lines[0] if lines else ''}")[:500]


def count_stored(changes: Changeset) -> None:
    """Count what a transaction stored, once it is committed: whatever was there before was counted then."""
    kinds = Counter(event["type"] for event in changes.events)
    count(INGESTED, changes.new_heartbeats, "heartbeat")
    count(INGESTED, kinds[EventType.REGISTERED], "register")
    if kinds[EventType.DEREGISTERED]:
        ends = [event for event in changes.events if event["type"] == EventType.DEREGISTERED]
        # Others were ended by a newer registration of their name.
        count(INGESTED, sum(event["message_id"] is not None for event in ends), "deregister")
    count(RECOVERED, kinds[EventType.RECOVERED])
    # What a dead worker had stored comes first in the stream, so the new ones are the last.
    for row in changes.rejected[len(changes.rejected) - changes.new_rejected :]:
        count(REJECTED, 1, row["reason"])


def follow_up(client: Redis, changes: Changeset) -> None:
    """Tell in Redis what committed changes are to others: answers to senders that wait, and notices to be sent."""
    send_replies(client, changes.replies)
    if changes.notices:
        announce_due(client, changes.facts.now)


def send_replies(client: Redis, replies: Collection[tuple[UUID, Reply]]) -> None:
    """Answer the senders that wait. They give up by themselves, so Redis's trouble is no reason to stop."""
    if not replies:
        return
    try:
        with client.pipeline(transaction=False) as pipe:
            for message_id, reply in replies:
                key = reply_key(message_id)
                pipe.rpush(key, reply.model_dump_json())
                pipe.expire(key, REPLY_SECONDS)
            pipe.execute()
    except RedisError as error:
        logger.warning("Answers can't be sent: %s", type(error).__name__, extra={"count": len(replies)})


def _settle_recoveries(connection: Connection, batch: Batch, settings: Settings) -> None:
    """Let a batch tell of agents that begin to flap, instead of their recoveries.

    Those that come back from an incident are left out: it was one change for all of them, and is told as one.
    """
    changes = batch.changes
    ids = {notice.session_id for notice in changes.notices if notice.kind is NoticeKind.RECOVERED}
    if not ids:
        return
    recovered = [agent for agent in changes.agents.values() if agent.session_id in ids]
    now = from_milliseconds(changes.facts.now)
    for session_id in find_flapping(connection, recovered, now, settings.flapping_changes, coming=1):
        batch.flap(changes.agents[session_id])
