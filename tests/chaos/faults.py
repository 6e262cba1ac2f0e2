"""The faults that chaos.py lets strike: each is a function of the place, and returns when the worst is over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psutil
from sqlalchemy import func, select
from support import TIMEOUT_SECONDS, registration

from chaos.database import (
    UNSTORABLE,
    fill_disk,
    keep_database_away,
    lock_database,
    locked,
    refuse_unstorable,
    restart_postgresql,
)
from chaos.place import BATCH_SIZE, HOLD_SECONDS, LOAD_SECONDS, Place, insist, wait_until
from chaos.worker import DEADLY
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import Deregister, Heartbeat, Reason
from fleetbeat_shared.redis_keys import DISPATCHER_LOCK, GROUP, INBOX
from fleetbeat_worker.database.tables import StoredHeartbeat

STRIKES = 6
"""How often a fault that kills one process after another strikes in a round."""
ELECTION_SECONDS = 10.0
"""Within which another dispatcher must have taken over."""


def kill_workers(here: Place) -> None:
    """Kill workers and their jobs, one after the other."""
    for number in range(STRIKES):
        family = here.family(here.pools[0])[1:]
        if family:
            here.kill(family[-1 - number % len(family)])
        time.sleep(0.25)


def kill_and_stop_half(here: Place) -> None:
    """Half-way, kill half of the workers and end the others in order; the pool starts them again."""
    time.sleep(LOAD_SECONDS / 2)
    for number, victim in enumerate(here.family(here.pools[0], recursive=False)[2:]):
        if number % 2:
            with suppress(psutil.NoSuchProcess):
                victim.terminate()
        else:
            here.kill(victim)


def kill_after_commit(here: Place) -> None:
    """Kill all that work when SQL has what they hold, while Valkey keeps whoever writes waiting, to acknowledge too."""
    with _session(here) as session_id:
        for _ in range(STRIKES // 2):
            insist(lambda: _struck_after_commit(here, session_id), "no worker could be caught after its commit")


def _struck_after_commit(here: Place, session_id: UUID) -> bool:
    """Strike, if a worker takes messages while a lock holds up its commit; return whether one did."""
    (first,) = _beats(session_id, 1)
    here.send(first)
    wait_until(lambda: _has(here, [first]), 3)  # so that a job waits for more: a new one would wait for the lock first
    with closing(here.client()) as client:
        try:
            with locked(here):
                beats = _beats(session_id, 5)
                entries = set(here.send(*beats))
                if not wait_until(lambda: entries <= _pending(client), 0.5):
                    return False
                client.client_pause(int(TIMEOUT_SECONDS * 1000), all=False)
            if not wait_until(lambda: _has(here, beats), 3):
                return False  # fetched ahead: whoever has them first acknowledges what it stored before
            victims = here.family(here.pools[0])[1:]
            for victim in victims:
                here.kill(victim)
            insist(lambda: not any(map(_runs, victims)), "a process that was killed runs on")
            client.ping()  # by then Valkey has seen that they are gone: what a dead client waited for is never done
        finally:
            client.client_unpause()
    return True


def _pending(client: Any) -> set[str]:
    return {item["message_id"].decode() for item in client.xpending_range(INBOX, GROUP, "-", "+", 1000)}


def _has(here: Place, beats: list[Heartbeat]) -> bool:
    """Return whether SQL has all of some heartbeats."""
    query = select(func.count()).where(StoredHeartbeat.id.in_([beat.id for beat in beats]))
    with here.engine.connect() as connection:
        return int(connection.execute(query).scalar_one()) == len(beats)


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def scale(here: Place) -> None:
    """Start more workers, and end them again."""
    here.start_pool(4)
    time.sleep(1.5)
    here.one_pool()


def kill_dispatcher(here: Place) -> None:
    """Kill the elected dispatcher; another must take over in time."""
    with closing(here.client()) as client:
        insist(lambda: client.get(DISPATCHER_LOCK), "no dispatcher was elected")
        before = client.get(DISPATCHER_LOCK)
        for victim in here.dispatchers():
            here.kill(victim)
        insist(
            lambda: client.get(DISPATCHER_LOCK) not in {None, before},
            "the elected dispatcher was killed, and no other was elected",
            ELECTION_SECONDS,
        )


def kill_redis(here: Place) -> None:
    """Kill Valkey, and start it again."""
    time.sleep(0.3)
    here.kill_valkey()
    here.valkey.start()


def stop_redis(here: Place) -> None:
    """Let Valkey stand still."""
    with closing(here.client()) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(HOLD_SECONDS)
    os.kill(pid, signal.SIGCONT)


def fill_redis(here: Place) -> None:
    """Let Valkey have no room for more."""
    with closing(here.client()) as client:
        client.config_set("maxmemory", "1")
        time.sleep(HOLD_SECONDS)
        client.config_set("maxmemory", "0")


def start_without_redis(here: Place) -> None:
    """Start workers while Valkey is away."""
    here.kill_valkey()
    for victim in [here.pools[0], *here.family(here.pools[0])]:
        here.kill(victim)
    here.start_pool()
    time.sleep(HOLD_SECONDS)
    here.valkey.start()


def send_deadly(here: Place) -> None:
    """Send messages that kill whoever reads them."""
    with _session(here) as session_id:
        for _ in range(STRIKES // 2):
            deadly = registration(0).model_copy(update={"agent_name": DEADLY})
            entries = here.send(*_beats(session_id, 3), _beat(session_id, DEADLY), deadly, *_beats(session_id, 3))
            here.harmful |= dict.fromkeys(entries[3:5], Reason.POISON)
            time.sleep(0.25)


def send_unstorable(here: Place) -> None:
    """Send full batches, each with one message that the database refuses."""
    refuse_unstorable(here)
    with _session(here) as session_id:
        for number in range(STRIKES // 2):
            beats = _beats(session_id, BATCH_SIZE)
            place = (17 * number) % BATCH_SIZE
            beats[place] = _beat(session_id, UNSTORABLE)
            unstorable = registration(0).model_copy(update={"agent_name": UNSTORABLE})
            entries = here.send(*beats, unstorable)
            here.harmful |= dict.fromkeys((entries[place], entries[-1]), Reason.FAILED)
            time.sleep(0.25)


@contextmanager
def _session(here: Place) -> Iterator[UUID]:
    """Open a session of the fault's own, and end it."""
    message = registration(10**6)
    here.send(message)
    yield message.session_id
    here.send(Deregister(id=new_message_id(), session_id=message.session_id, sent_at=message.sent_at))


def _beat(session_id: UUID, progress: str) -> Heartbeat:
    return Heartbeat(id=new_message_id(), session_id=session_id, sent_at=datetime.now(UTC), progress=progress)


def _beats(session_id: UUID, count: int) -> list[Heartbeat]:
    return [_beat(session_id, "good") for _ in range(count)]


def nothing(_here: Place) -> None:
    """Only the bad messages that are in every load."""


FAULTS: dict[str, Callable[[Place], None]] = {
    "workers-killed": kill_workers,
    "half-killed-half-ended": kill_and_stop_half,
    "killed-after-commit": kill_after_commit,
    "deadly-messages": send_deadly,
    "scaled": scale,
    "dispatcher-killed": kill_dispatcher,
    "redis-killed": kill_redis,
    "redis-stopped": stop_redis,
    "redis-full": fill_redis,
    "redis-down-at-start": start_without_redis,
    "postgresql-restarted": restart_postgresql,
    "database-locked": lock_database,
    "database-away": keep_database_away,
    "disk-full": fill_disk,
    "row-refused": send_unstorable,
    "bad-messages": nothing,
}

ONLY_ON = {"postgresql-restarted": "postgresql", "disk-full": "sqlite"}
"""Faults of one kind of database. Only root can make a small disk for PostgreSQL; SQLite can be told to see one."""

BUILT_IN = {send_deadly, keep_database_away, fill_disk}
"""Faults that need workers which have them built in (worker.py)."""
