"""What the tests of the pipeline build on: waiting, messages, and looks into SQL."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from redis import Redis
from sqlalchemy import Engine, func, select, text

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import Deregister, Heartbeat, Message, Register, parse_message
from fleetbeat_shared.redis_keys import FIELD, INBOX, SESSIONS, stream_of
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.entries import Entry, decode
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.broker.lane import Lane
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.database.tables import (
    Agent,
    Base,
    Event,
    Incident,
    Liveness,
    Maintenance,
    Notification,
    OutageRow,
    Pipeline,
    RejectedMessage,
    StoredHeartbeat,
)
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.ingest.lane import apply_lane
from fleetbeat_worker.ingest.transaction import store_heartbeats
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds

Answer = TypeVar("Answer")

FLOOD_BACKLOG = 1000
LONG_AGO = 20.0
"""A time in seconds that is no outage yet: thirty would be one."""


def eventually(look: Callable[[], Answer], *, within_seconds: float = 20.0, every_seconds: float = 0.02) -> Answer:
    """Return what `look` answers as soon as that is true; fail if it isn't in time."""
    ends_at = (began_at := time.monotonic()) + within_seconds
    while not (answer := look()):
        looked_at = time.monotonic()
        if looked_at > ends_at:
            message = f"not within {within_seconds:g} s; the last answer was {answer!r}"
            raise AssertionError(message)
        time.sleep(
            max(every_seconds, looked_at - began_at)
        )  # a costly look leaves half of the time to what it waits for
        began_at = time.monotonic()
    return answer


@contextmanager
def beating(client: Redis, session: UUID) -> Iterator[None]:
    """Let an agent beat as long as the block lasts."""
    enough = threading.Event()

    def beat() -> None:
        while not enough.wait(0.1):
            send(client, heartbeat(session))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def free_port() -> int:
    """Return a port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fake_crontab(folder: Path) -> Path:
    """Put a `crontab` that keeps a file named `kept` beside it into a new folder; return that, for PATH."""
    program = folder / "bin" / "crontab"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'kept="$(dirname "$0")/kept"\n'
        'if [ "$1" = - ]; then exec cat > "$kept"; fi\n'
        '[ -e "$kept" ] || { echo "no crontab for somebody" >&2; exit 1; }\n'
        'exec cat "$kept"\n'
    )
    program.chmod(0o755)
    return program.parent


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def register(name: str = "torv", session_id: UUID | None = None, **fields: Any) -> Register:
    """Make a registration, every 30 s unless `fields` say otherwise."""
    if "schedule" not in fields:
        fields.setdefault("interval_seconds", 30.0)
    return Register(
        id=new_message_id(),
        session_id=session_id or new_message_id(),
        sent_at=datetime.now(UTC),
        agent_name=name,
        **fields,
    )


def heartbeat(session_id: UUID, **fields: Any) -> Heartbeat:
    fields = {"id": new_message_id(), "sent_at": datetime.now(UTC)} | fields
    return Heartbeat(session_id=session_id, **fields)


def deregister(session_id: UUID, **fields: Any) -> Deregister:
    return Deregister(id=new_message_id(), session_id=session_id, sent_at=datetime.now(UTC), **fields)


def redis_time(client: Redis) -> datetime:
    whole, micro = client.time()
    return datetime.fromtimestamp(whole, UTC) + timedelta(microseconds=micro)


def send(
    client: Redis,
    *messages: Register | Heartbeat | Deregister | bytes,
    at: datetime | None = None,
    stream: str = INBOX,
) -> list[str]:
    """Add messages to their streams, and bytes to `stream`; with `at`, as if they had arrived then. Return the ids."""
    entry_id = "*" if at is None else f"{to_milliseconds(at)}-*"
    with client.pipeline(transaction=False) as pipe:
        for message in messages:
            if isinstance(message, bytes):
                pipe.xadd(stream, {FIELD: message}, id=entry_id)
            else:
                pipe.xadd(stream_of(message.kind), {FIELD: message.to_wire()}, id=entry_id)
        return [found.decode() for found in pipe.execute()]


def sent_messages(client: Redis) -> list[Message]:
    """Return what is in both streams, in the order in which it was sent."""
    found = [entry for stream in (INBOX, SESSIONS) for entry in client.xrange(stream)]
    messages = [(int(entry_id.partition(b"-")[0]), parse_message(fields[FIELD.encode()])) for entry_id, fields in found]
    return [message for _, message in sorted(messages, key=lambda sent: (sent[0], sent[1].sent_at))]


@contextmanager
def flood(redis: Redis, session_id: UUID) -> Iterator[list[str]]:
    """Send heartbeats as long as the block lasts, no faster than they are stored; yield what was sent so far."""
    sent: list[str] = []
    enough = threading.Event()

    def send_all() -> None:
        while not enough.wait(0.01):
            if redis.xlen(INBOX) >= FLOOD_BACKLOG:  # on a busy machine it would take long to drain
                continue
            texts = [f"page {len(sent) + number}" for number in range(10)]
            send(redis, *(heartbeat(session_id, progress=progress) for progress in texts))
            sent.extend(texts)

    thread = threading.Thread(target=send_all)
    thread.start()
    try:
        yield sent
    finally:
        enough.set()
        thread.join()


def send_spread(client: Redis, *messages: Register | Heartbeat | Deregister | bytes) -> None:
    """Add messages to the inbox a millisecond apart: those of one millisecond have no order among batches."""
    streams = [client.xinfo_stream(stream) for stream in (INBOX, SESSIONS) if client.exists(stream)]
    start = from_milliseconds(max(int(stream["last-generated-id"].partition(b"-")[0]) for stream in streams))
    eventually(lambda: redis_time(client) > start + timedelta(milliseconds=len(messages)), every_seconds=0.002)
    for number, message in enumerate(messages, 1):
        send(client, message, at=start + timedelta(milliseconds=number))


def agent(engine: Engine, session_id: UUID) -> Any:
    """Return a session with its liveness as one row, or None."""
    query = select(Agent.__table__, *[c for c in Liveness.__table__.c if c.name != "session_id"])
    query = query.join(Liveness.__table__, Liveness.session_id == Agent.session_id)
    with reading(engine) as connection:
        return connection.execute(query.where(Agent.session_id == session_id)).one_or_none()


def state(engine: Engine, session_id: UUID) -> str | None:
    found = agent(engine, session_id)
    return found.state if found else None


def events(engine: Engine, *kinds: str) -> list[Any]:
    """Return the events of some kinds, or all, in the order in which they were stored."""
    query = select(Event.__table__).order_by(Event.id)
    with reading(engine) as connection:
        found = connection.execute(query.where(Event.type.in_(kinds)) if kinds else query)
        return list(found.all())


def notices(engine: Engine, *kinds: str) -> list[Any]:
    """Return the notifications of some kinds, or all, in the order in which they were stored."""
    query = select(Notification.__table__).order_by(Notification.id)
    with reading(engine) as connection:
        found = connection.execute(query.where(Notification.kind.in_(kinds)) if kinds else query)
        return list(found.all())


def rejected(engine: Engine) -> list[Any]:
    with reading(engine) as connection:
        return list(connection.execute(select(RejectedMessage.__table__).order_by(RejectedMessage.id)).all())


def reasons(engine: Engine) -> list[str]:
    return [row.reason for row in rejected(engine)]


def stored_ids(engine: Engine) -> list[UUID]:
    """Return the ids of all stored heartbeats, in their order."""
    with reading(engine) as connection:
        return list(connection.execute(select(StoredHeartbeat.id).order_by(StoredHeartbeat.id)).scalars())


def count_heartbeats(engine: Engine) -> int:
    with reading(engine) as connection:
        return connection.execute(select(func.count()).select_from(StoredHeartbeat)).scalar_one()


def backlog(client: Redis) -> int:
    return int(client.xlen(INBOX)) + int(client.xlen(SESSIONS))


def quick_settings(redis_url: str, database_url: str, **changes: Any) -> Settings:
    values = {
        "redis_url": redis_url,
        "database_url": database_url,
        "sweep_seconds": 0.5,
        "lease_seconds": 0.6,
        "linger_seconds": 0.03,
        "batch_size": 50,
    }
    return Settings.model_validate(values | changes)


def schema_differences(engine: Engine) -> list[Any]:
    """Return what Alembic would change to bring a migrated database to what the code's tables say."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def ours(_object: object, name: str | None, kind: str, _reflected: object, _compared: object) -> bool:
        return not (kind == "table" and (name or "").startswith("heartbeats_"))  # the partitions

    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "include_object": ours}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


def drain(client: Redis, engine: Engine, settings: Settings, consumer: str = "worker", within: float = 20.0) -> int:
    """Run one ingest job in this process until the inbox stays empty; return how many entries it stored."""
    Inbox(client).create_group()
    return Ingest(client, engine, settings, consumer).run(within)


def take(client: Redis, consumer: str, number: int = 50) -> list[Entry]:
    """Take entries out of the inbox as a worker does, to store them later."""
    Inbox(client).create_group()
    return decode(Inbox(client).read(consumer, number, 0.1), to_milliseconds(redis_time(client)), INBOX)


def store(client: Redis, engine: Engine, entries: list[Entry], settings: Settings) -> None:
    """Store entries that were taken, and leave them unacknowledged."""
    store_heartbeats(engine, entries, to_milliseconds(redis_time(client)), settings)


def drain_lane(client: Redis, engine: Engine, settings: Settings) -> int:
    """Apply all that waits in the lane; return how much that was."""
    return apply_lane(Lane(client, "worker"), client, engine, settings, 1_000_000)


def enrol(client: Redis, engine: Engine, settings: Settings, *names: str, **fields: Any) -> list[UUID]:
    """Register agents and store that; return their sessions."""
    messages = [register(name, **fields) for name in names]
    send(client, *messages)
    drain(client, engine, settings)
    return [message.session_id for message in messages]


_TIMES = (
    (Liveness, ("registered_at", "last_seen_at", "deadline_at", "state_changed_at", "resumed_at")),
    (
        Agent,
        (
            "ended_at",
            "reported_at",
            "changed_at",
            "stuck_at",
            "flapping_at",
            "unjudged_at",
            "paused_at",
            "paused_until",
        ),
    ),
    (Maintenance, ("starts_at", "ends_at", "ended_at", "cut_at")),
    (Event, ("occurred_at",)),
    (Incident, ("started_at", "ended_at", "first_silent_at", "last_silent_at")),
    (Notification, ("created_at", "due_at", "expires_at")),
    (OutageRow, ("started_at", "ended_at")),
    (Pipeline, ("watermark", "last_sweep_at", "maintenance_since", "cleared_at")),
)


def let_pass(engine: Engine, number: float) -> None:
    """Move all that SQL knows into the past, as if so many seconds had gone by."""
    milliseconds = int(number * 1000)
    shift = f"interval '{milliseconds} milliseconds'" if engine.dialect.name == "postgresql" else str(milliseconds)
    with writing(engine) as connection:
        for table, columns in _TIMES:
            changes = ", ".join(f"{column} = {column} - {shift}" for column in columns)
            connection.execute(text(f"UPDATE {table.__tablename__} SET {changes}"))  # noqa: S608 - our own names


def wait_sweeping(engine: Engine, look: Callable[[], list[str]], number: float) -> list[str]:
    """Let seconds pass while sweeps go on; return whom they flagged."""
    flagged = []
    while number > 0:
        let_pass(engine, min(number, LONG_AGO))
        flagged += look()
        number -= LONG_AGO
    return flagged
