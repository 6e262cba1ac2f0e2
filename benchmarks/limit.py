"""The limit: a loop by hand, without any queue library, that writes what ingest writes into the same tables.

It takes 1,000 heartbeats at a time from a Valkey list with LPOP, validates them with the same models, and stores them
in one transaction: it looks up the agents' names and promises, then writes the heartbeats, `liveness`, and for those
with progress the events and the agents' current work. Raw sqlite3 with executemany, or psycopg with UNNEST; durability
as ingest has it. It leaves out what makes ingest worth having: LPOP forgets a batch that isn't stored yet, no row is
locked, and nothing is right but the plain case: not replays, messages out of order, recoveries, outages, tasks and bad
input.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any
from uuid import UUID

from support import redis_client

from fleetbeat_shared.messages import Heartbeat, parse_message
from fleetbeat_worker.rules.spans import to_milliseconds

Store = Callable[[Sequence[Heartbeat], int], None]

LIST = "benchmark:limit"
BATCH = 1000
MISSED = 2


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


def _sqlite(url: str) -> tuple[Store, Callable[[], None]]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")

    def store(messages: Sequence[Heartbeat], now: int) -> None:
        heartbeats = [
            (m.id.bytes, m.session_id.bytes, now, now, to_milliseconds(m.sent_at), m.progress, m.work_item_id)
            for m in messages
        ]
        sessions = list({row[1] for row in heartbeats})
        connection.execute("BEGIN IMMEDIATE")
        query = f"""SELECT session_id, interval_seconds, grace_seconds FROM liveness
                    WHERE state != 'ended' AND session_id IN ({_places(sessions)})"""  # noqa: S608 - question marks
        agents = {row[0]: row for row in connection.execute(query, sessions)}
        heartbeats = [row for row in heartbeats if row[1] in agents]
        spoken = [row for row in heartbeats if row[5]]
        speakers = list({row[1] for row in spoken})
        query = f"SELECT session_id, agent_name FROM agents WHERE session_id IN ({_places(speakers)})"  # noqa: S608 - as above
        names = dict(connection.execute(query, speakers))
        connection.executemany(
            """INSERT INTO heartbeats (id, session_id, received_at, seen_at, sent_at, progress, work_item_id)
               VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING""",
            heartbeats,
        )
        connection.executemany(
            "UPDATE liveness SET state = 'ok', last_seen_at = ?, deadline_at = ? WHERE session_id = ?",
            [(now, now + round(1000 * (row[1] * MISSED + row[2])), row[0]) for row in agents.values()],
        )
        connection.executemany(
            """INSERT INTO events (type, occurred_at, session_id, agent_name, message_id, text)
               VALUES ('heartbeat', ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING""",
            [(now, row[1], names[row[1]], row[0], row[5]) for row in spoken],
        )
        connection.executemany(
            "UPDATE agents SET progress = ?, current_work = ?, work_item_id = ?, reported_at = ? WHERE session_id = ?",
            [(row[5], row[5], row[6], now, row[1]) for row in spoken],
        )
        connection.execute("COMMIT")

    return store, connection.close


def _places(values: Sequence[bytes]) -> str:
    return ", ".join("?" * len(values))


def _postgresql(url: str) -> tuple[Store, Callable[[], None]]:
    import psycopg

    connection: Any = psycopg.connect(url)

    def store(messages: Sequence[Heartbeat], now: int) -> None:
        sessions = list({m.session_id for m in messages})
        with connection.cursor() as cursor:
            cursor.execute(
                """SELECT session_id, interval_seconds, grace_seconds FROM liveness
                   WHERE state != 'ended' AND session_id = ANY (%s)""",
                (sessions,),
            )
            agents: dict[UUID, tuple[Any, ...]] = {row[0]: row for row in cursor.fetchall()}
            known = [m for m in messages if m.session_id in agents]
            spoken = [m for m in known if m.progress]
            cursor.execute(
                "SELECT session_id, agent_name FROM agents WHERE session_id = ANY (%s)",
                (list({m.session_id for m in spoken}),),
            )
            names = dict(cursor.fetchall())
            seconds = now / 1000
            cursor.execute(
                """INSERT INTO heartbeats (id, session_id, received_at, seen_at, sent_at, progress, work_item_id)
                   SELECT id, session_id, to_timestamp(%s), to_timestamp(%s), sent_at, progress, item
                   FROM unnest(%s::uuid[], %s::uuid[], %s::timestamptz[], %s::text[], %s::text[])
                        AS v (id, session_id, sent_at, progress, item) ON CONFLICT DO NOTHING""",
                (
                    seconds,
                    seconds,
                    [m.id for m in known],
                    [m.session_id for m in known],
                    [m.sent_at for m in known],
                    [m.progress for m in known],
                    [m.work_item_id for m in known],
                ),
            )
            cursor.execute(
                """UPDATE liveness AS t
                   SET state = 'ok', last_seen_at = to_timestamp(%s), deadline_at = to_timestamp(due)
                   FROM unnest(%s::uuid[], %s::float8[]) AS v (session_id, due) WHERE t.session_id = v.session_id""",
                (seconds, list(agents), [seconds + row[1] * MISSED + row[2] for row in agents.values()]),
            )
            said = (
                [m.session_id for m in spoken],
                [m.progress for m in spoken],
            )
            cursor.execute(
                """INSERT INTO events (type, occurred_at, session_id, agent_name, message_id, text)
                   SELECT 'heartbeat', to_timestamp(%s), session_id, agent_name, id, progress
                   FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::uuid[])
                        AS v (session_id, progress, agent_name, id) ON CONFLICT DO NOTHING""",
                (seconds, *said, [names[m.session_id] for m in spoken], [m.id for m in spoken]),
            )
            cursor.execute(
                """UPDATE agents AS t SET progress = v.progress, current_work = v.progress, work_item_id = v.item,
                          reported_at = to_timestamp(%s)
                   FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS v (session_id, progress, item)
                   WHERE t.session_id = v.session_id""",
                (seconds, *said, [m.work_item_id for m in spoken]),
            )
        connection.commit()

    return store, connection.close
