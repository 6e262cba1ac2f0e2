"""The limit: a loop by hand, without any queue library, that writes what ingest writes into the same tables.

It takes 1,000 heartbeats at a time from a Valkey list with LPOP, validates them with the same models, and stores them in
one transaction: the heartbeat, `liveness`, and for those with progress the event and the agent's current work. Raw
sqlite3 with executemany, or psycopg with UNNEST; durability as ingest has it. It leaves out what makes ingest worth
having: LPOP forgets a batch that isn't stored yet, and the loop knows no agent: it sets deadlines without reading what
was promised, stores heartbeats of sessions that ended, tells no recovery, and keeps no order between messages.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from support import redis_client

from fleetbeat_shared.messages import Heartbeat, parse_message
from fleetbeat_worker.column_types import to_milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LIST = "benchmark:limit"
BATCH = 1000
ALLOWED_MILLISECONDS = 90_000
"""Two intervals of the benchmark's agents and their grace."""

_HEARTBEAT_COLUMNS = "id, session_id, received_at, seen_at, sent_at, progress, work_item_id"
_EVENT_COLUMNS = "type, occurred_at, session_id, message_id, text"


def drain(url: str, redis_url: str, count: int) -> float:
    """Store `count` heartbeats of the list; return the seconds that it took."""
    store, close = _sqlite(url) if url.startswith("sqlite") else _postgresql(url)
    started = time.perf_counter()
    stored = 0
    with closing(redis_client(redis_url)) as client:
        while stored < count:
            wires = client.lpop(LIST, BATCH)
            now = time.time_ns() // 1_000_000
            store([message for wire in wires if isinstance(message := parse_message(wire), Heartbeat)], now)
            stored += len(wires)
    seconds = time.perf_counter() - started
    close()
    return seconds


def _sqlite(url: str) -> tuple[Callable[[Sequence[Heartbeat], int], None], Callable[[], None]]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")

    def store(messages: Sequence[Heartbeat], now: int) -> None:
        rows = [
            (m.id.bytes, m.session_id.bytes, now, now, to_milliseconds(m.sent_at), m.progress, m.work_item_id)
            for m in messages
        ]
        spoken = [row for row in rows if row[5]]
        seen = [(now, now + ALLOWED_MILLISECONDS, session_id) for session_id in {row[1] for row in rows}]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            f"INSERT INTO heartbeats ({_HEARTBEAT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows
        )
        connection.executemany(
            "UPDATE liveness SET state = 'ok', last_seen_at = ?, deadline_at = ? WHERE session_id = ?", seen
        )
        connection.executemany(
            f"INSERT INTO events ({_EVENT_COLUMNS}) VALUES ('heartbeat', ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [(now, row[1], row[0], row[5]) for row in spoken],
        )
        connection.executemany(
            "UPDATE agents SET progress = ?, current_work = ?, work_item_id = ?, reported_at = ? WHERE session_id = ?",
            [(row[5], row[5], row[6], now, row[1]) for row in spoken],
        )
        connection.execute("COMMIT")

    return store, connection.close


def _postgresql(url: str) -> tuple[Callable[[Sequence[Heartbeat], int], None], Callable[[], None]]:
    import psycopg

    connection: Any = psycopg.connect(url)

    def store(messages: Sequence[Heartbeat], now: int) -> None:
        columns = {
            "ids": [m.id for m in messages],
            "sessions": [m.session_id for m in messages],
            "sent": [m.sent_at for m in messages],
            "progress": [m.progress for m in messages],
            "items": [m.work_item_id for m in messages],
            "now": now / 1000,
        }
        spoken = [m for m in messages if m.progress]
        said = {
            "ids": [m.id for m in spoken],
            "sessions": [m.session_id for m in spoken],
            "progress": [m.progress for m in spoken],
            "items": [m.work_item_id for m in spoken],
            "now": now / 1000,
        }
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO heartbeats ({_HEARTBEAT_COLUMNS}) SELECT id, session_id, to_timestamp(%(now)s), "
                "to_timestamp(%(now)s), sent_at, progress, item FROM unnest(%(ids)s::uuid[], %(sessions)s::uuid[], "
                "%(sent)s::timestamptz[], %(progress)s::text[], %(items)s::text[]) "
                "AS v (id, session_id, sent_at, progress, item) ON CONFLICT DO NOTHING",
                columns,
            )
            cursor.execute(
                "UPDATE liveness AS t SET state = 'ok', last_seen_at = to_timestamp(%(now)s), "
                "deadline_at = to_timestamp(%(now)s) + interval '90 s' "
                "FROM unnest(%(sessions)s::uuid[]) AS v (session_id) WHERE t.session_id = v.session_id",
                columns,
            )
            cursor.execute(
                f"INSERT INTO events ({_EVENT_COLUMNS}) SELECT 'heartbeat', to_timestamp(%(now)s), session_id, id, "
                "progress FROM unnest(%(ids)s::uuid[], %(sessions)s::uuid[], %(progress)s::text[]) "
                "AS v (id, session_id, progress) ON CONFLICT DO NOTHING",
                said,
            )
            cursor.execute(
                "UPDATE agents AS t SET progress = v.progress, current_work = v.progress, work_item_id = v.item, "
                "reported_at = to_timestamp(%(now)s) FROM unnest(%(sessions)s::uuid[], %(progress)s::text[], "
                "%(items)s::text[]) AS v (session_id, progress, item) WHERE t.session_id = v.session_id",
                said,
            )
        connection.commit()

    return store, connection.close
