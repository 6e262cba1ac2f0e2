"""Storing entries of the inbox in SQL: one transaction for a batch, and nothing of it if anything fails."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError
from rq.timeouts import BaseTimeoutException
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InternalError, NotSupportedError, ProgrammingError

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.messages import Reason, Reply
from fleetbeat_shared.redis_keys import REPLY_SECONDS, reply_key
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Entry
from fleetbeat_worker.broker.wire import Understood, own_ids, understand
from fleetbeat_worker.database.engine import reading, rolled_back_by_conflict, writing
from fleetbeat_worker.ingest.batch import Batch
from fleetbeat_worker.ingest.queries import (
    find_overtaken,
    give_up,
    is_stored,
    open_batch,
    rejected_among,
    take_rejected,
    write_batch,
)
from fleetbeat_worker.ingest.session_state import Facts
from fleetbeat_worker.notifications.due import announce_due
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.store.events import find_flapping
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import DATABASE_RETRIES, INGESTED, RECOVERED, REJECTED, count

CONFLICT_TRIES = 10
"""How often a batch that lost against another transaction is tried again at once."""

OVERTAKING_SECONDS = 60
"""For how long, at least, a message waits for the registration that it overtook."""

_OUR_FAULT = (ProgrammingError, InternalError, NotSupportedError, BaseTimeoutException)
"""What no message can cause: a missing table, a broken database, the end of the job's time."""


def _nothing() -> None: ...


def store_entries(  # noqa: PLR0913, PLR0917 - what is stored, where, and two to save time
    engine: Engine,
    entries: Sequence[Entry],
    now: datetime,
    settings: Settings,
    understood: Understood | None = None,
    meanwhile: Callable[[], None] = _nothing,
) -> list[Batch]:
    """Store entries; return what was changed: one batch, or one for each entry if they had to be tried alone.

    When something in a batch can't be stored, each entry is tried alone, and the one that fails again is set aside.
    What the entries hold need not be looked up again if it is known: `understood`. `meanwhile` is called when the
    transaction begins, if this thread mostly waits for a server then.

    Raises DatabaseUnavailable; then nothing of the failing transaction is stored.
    """
    found = understood or understand(entries)  # before the transaction, which keeps others waiting
    try:
        return [_store(engine, lambda _: found, now, settings, meanwhile)]
    except (DatabaseUnavailable, *_OUR_FAULT):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the neighbours shall not suffer for it
        if len(entries) > 1:
            return [batch for entry in entries for batch in store_entries(engine, [entry], now, settings)]
        logger.warning("A message can't be stored and is set aside", extra={"entry_id": entries[0].id}, exc_info=error)
        return [set_aside(engine, entries[0], now, Reason.FAILED, _what_failed(error))]


def set_aside(engine: Engine, entry: Entry, now: datetime, reason: Reason, detail: str) -> Batch:
    """Store an entry as rejected, without parsing it; one that is stored as a message already is left at that.

    Its workers may have died after they stored it, each time before they could acknowledge it. That a stored message's
    id is in its bytes proves nothing, as its sender may have written any: session and time of arrival must be the same,
    too. When in doubt (its place in the stream was made up, say) it is kept.

    Raises DatabaseUnavailable.
    """
    batch = Batch(Facts(now=to_milliseconds(now), watermark=None, outages=[], missed_limit=1, tasks={}), agents={})
    ids = own_ids(entry.wire)
    received_at = from_milliseconds(entry.arrival(batch.facts.now)[0])
    with writing(engine) as connection:
        if ids is not None and is_stored(connection, *ids, received_at):
            logger.warning("A message was stored before its workers died, and stays so", extra={"entry_id": entry.id})
        else:
            batch.reject(entry, reason, detail)
            write_batch(connection, batch)
    _count(batch)
    return batch


def put_right(engine: Engine, client: Redis, now: datetime, settings: Settings) -> int:
    """Apply the messages that overtook the registration which they needed; return how many.

    Raises DatabaseUnavailable.
    """
    count = 0
    # A delegate's registration that is put right may be what its heartbeats waited for: look again until all is done.
    while True:
        with reading(engine) as connection:
            ids = _overtaken(connection, now, settings)
        if not ids:
            return count
        for batch in _apply_overtaken(engine, ids, now, settings):
            count += len(batch.heartbeats) + sum(agent.is_new for agent in batch.agents.values())
            follow_up(client, batch)


def put_right_within(connection: Connection, now: datetime, settings: Settings) -> None:
    """Apply the same in a transaction that is rolled back: to see what comes of it."""
    while ids := _overtaken(connection, now, settings):
        write_batch(connection, _apply(connection, understand(take_rejected(connection, ids)), now, settings))


def _overtaken(connection: Connection, now: datetime, settings: Settings) -> list[int]:
    # A registration in a dead worker's hands takes a lease, or a few, until another has it; and sweeps look for it.
    waits = max(OVERTAKING_SECONDS, 3 * settings.lease_seconds, 3 * settings.sweep_seconds)
    return find_overtaken(connection, now - timedelta(seconds=waits), settings.batch_size)


def _apply_overtaken(engine: Engine, ids: Sequence[int], now: datetime, settings: Settings) -> list[Batch]:
    try:
        return [_store(engine, lambda connection: understand(take_rejected(connection, ids)), now, settings)]
    except (DatabaseUnavailable, *_OUR_FAULT):
        raise
    except Exception as error:  # noqa: BLE001 - as in store_entries
        if len(ids) > 1:
            return [batch for one in ids for batch in _apply_overtaken(engine, [one], now, settings)]
        with writing(engine) as connection:
            give_up(connection, ids[0], Reason.FAILED.value, _what_failed(error))
        return []


def apply_rejected(engine: Engine, client: Redis, now: datetime, settings: Settings, rejected_id: int) -> Batch:
    """Apply a rejected message again, as of the time at which it was received.

    If it is rejected again, its row stays as it was; the batch has the reason.

    Raises DatabaseUnavailable.
    """
    with writing(engine) as connection:
        batch = _apply(connection, understand(take_rejected(connection, [rejected_id])), now, settings)
        if batch.rejected:
            connection.rollback()
        else:
            write_batch(connection, batch)
    follow_up(client, batch)
    return batch


def _store(
    engine: Engine,
    take: Callable[[Connection], Understood],
    now: datetime,
    settings: Settings,
    meanwhile: Callable[[], None] = _nothing,
) -> Batch:
    for attempt in range(1, CONFLICT_TRIES + 1):
        try:
            with writing(engine) as connection:
                if connection.dialect.name == "postgresql":  # SQLite works in this thread, and others wait for it
                    meanwhile()
                batch = _apply(connection, take(connection), now, settings)
                write_batch(connection, batch)
        except DatabaseUnavailable as error:
            if attempt == CONFLICT_TRIES or not rolled_back_by_conflict(error):
                raise
            count(DATABASE_RETRIES)
            time.sleep(random.uniform(0, 0.05))  # noqa: S311 - only to step out of each other's way
        else:
            _count(batch)
            return batch
    raise AssertionError  # the last attempt returned or raised


def _apply(connection: Connection, understood: Understood, now: datetime, settings: Settings) -> Batch:
    batch = open_batch(connection, understood.messages, now, settings)
    # Judged anew they might be accepted, if their session has been opened since, and be in SQL twice.
    decided = rejected_among(connection, [entry for entry, _ in understood.messages])
    for entry, message in understood.messages:
        if entry.id not in decided:
            batch.apply(entry, message)
    for entry, error in understood.failures:
        batch.reject(entry, Reason(error.reason), error.detail)
    settle_recoveries(connection, batch, settings)
    return batch


def _count(batch: Batch) -> None:
    """Count what a transaction stored, once it is committed: whatever was there before was counted then."""
    kinds = Counter(event["type"] for event in batch.events)
    count(INGESTED, batch.new_heartbeats, "heartbeat")
    count(INGESTED, kinds[EventType.REGISTERED], "register")
    if kinds[EventType.DEREGISTERED]:
        ends = [event for event in batch.events if event["type"] == EventType.DEREGISTERED]
        # Others were ended by a newer registration of their name.
        count(INGESTED, sum(event["message_id"] is not None for event in ends), "deregister")
    count(RECOVERED, kinds[EventType.RECOVERED])
    # What a dead worker had stored comes first in the stream, so the new ones are the last.
    for row in batch.rejected[len(batch.rejected) - batch.new_rejected :]:
        count(REJECTED, 1, row["reason"])


def _what_failed(error: Exception) -> str:
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return clean(f"{type(error).__name__}: {lines[0] if lines else ''}")[:500]


def follow_up(client: Redis, batch: Batch) -> None:
    """Tell in Redis what a committed batch is to others: answers to senders that wait, and notices to be sent."""
    send_replies(client, batch.replies)
    if batch.notices:
        announce_due(client, batch.facts.now)


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


def settle_recoveries(connection: Connection, batch: Batch, settings: Settings) -> None:
    """Let a batch tell of agents that begin to flap, instead of their recoveries.

    Those that come back from an incident are left out: it was one change for all of them, and is told as one.
    """
    ids = {notice.session_id for notice in batch.notices if notice.kind is NoticeKind.RECOVERED}
    if not ids:
        return
    recovered = [agent for agent in batch.agents.values() if agent.session_id in ids and agent.ended_at is None]
    now = from_milliseconds(batch.facts.now)
    for session_id in find_flapping(connection, recovered, now, settings.flapping_changes, coming=1):
        batch.flap(batch.agents[session_id])
