"""Applying the lane: its registrations and deregistrations are stored in their order, a piece in each transaction."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine

from fleetbeat_shared.messages import Deregister, Reason, Register
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.entries import Entry
from fleetbeat_worker.broker.lane import Lane, Piece
from fleetbeat_worker.database.engine import database_errors, flush, writing
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.lifecycle import Lifecycle
from fleetbeat_worker.ingest.queries import lock_lane, open_sessions, rejected_among, write_changes
from fleetbeat_worker.ingest.transaction import (
    ENVIRONMENT_FAULTS,
    POISON,
    count_stored,
    follow_up,
    retried,
    set_aside_within,
    what_failed,
)


def apply_lane(lane: Lane, client: Redis, engine: Engine, settings: Settings, backlog: int) -> int:
    """Apply the oldest `backlog` entries of the lane, and up to a piece more; return how many this process applied.

    What others apply meanwhile counts, too: afterwards all are in SQL that waited when the backlog was read.

    Raises DatabaseUnavailable, and redis-py's errors; what isn't applied then stays in the lane.
    """
    applied = 0
    while applied < backlog and lane.backlog():
        piece, changesets = retried(lambda: _apply_piece(lane, engine, settings))
        for changes in changesets:
            count_stored(changes)
            follow_up(client, changes)
        if piece.entries:
            lane.remove(piece.entries)
        applied += len(piece.entries)
    return applied


def _apply_piece(lane: Lane, engine: Engine, settings: Settings) -> tuple[Piece, list[Changeset]]:
    piece = None
    try:
        with writing(engine) as connection:
            lock_lane(connection)
            piece = lane.take()
            changesets = store_piece(connection, piece, settings)
            # Under the lock: another worker that gets it before the entries are removed must not count a death.
            lane.release()
        flush(engine)
    except Exception:
        if piece is not None:  # without it another worker has the lane
            with suppress(RedisError):
                lane.release()
        raise
    return piece, changesets


def store_piece(connection: Connection, piece: Piece, settings: Settings) -> list[Changeset]:
    """Store a piece of the lane. What a worker stored that died before it removed it changes nothing."""
    if piece.is_poison:
        return [set_aside_within(connection, entry, piece.now, Reason.POISON, POISON) for entry in piece.entries]
    return _store(connection, piece.entries, piece.now, settings) if piece.entries else []


def _store(connection: Connection, entries: Sequence[Entry], now: int, settings: Settings) -> list[Changeset]:
    try:
        with database_errors(connection.engine), connection.begin_nested():
            return [apply_entries(connection, entries, now, settings)]
    except ENVIRONMENT_FAULTS:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the neighbours shall not suffer for it
        if len(entries) > 1:
            return [changes for entry in entries for changes in _store(connection, [entry], now, settings)]
        return [set_aside_within(connection, entries[0], now, Reason.FAILED, what_failed(entries[0], error))]


def apply_entries(connection: Connection, entries: Sequence[Entry], now: int, settings: Settings) -> Changeset:
    """Work out and write what entries change that were neither applied nor set aside before."""
    decided = rejected_among(connection, entries)
    messages = [
        (entry, entry.message)
        for entry in entries
        if isinstance(entry.message, Register | Deregister) and entry.key not in decided
    ]
    changes = open_sessions(connection, messages, now, settings)
    lifecycle = Lifecycle(changes)
    for entry, message in messages:
        lifecycle.apply(entry, message)
    for entry in entries:
        changes.reject_undecoded(entry)
    write_changes(connection, changes)
    return changes


def record_overtaken(
    connection: Connection, entry: Entry, message: Register | Deregister, now: int, settings: Settings
) -> Changeset:
    """Write the event of a message that newer ones overtook while it was set aside: what it said is history."""
    changes = open_sessions(connection, [(entry, message)], now, settings)
    Lifecycle(changes).record_overtaken(entry, message)
    write_changes(connection, changes)
    return changes
