"""Faults of workers, Redis and messages, and the table of all faults; each is a function of the rig."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from uuid import UUID

import psutil
from sqlalchemy import func, select

from chaos.database_faults import (
    UNSTORABLE,
    fill_disk,
    keep_database_away,
    lock_database,
    locked,
    refuse_unstorable,
    restart_postgresql,
)
from chaos.faulty_worker import DEADLY
from chaos.load import LOAD_SECONDS, deregistration, heartbeat, registration
from chaos.rig import BATCH_SIZE, HOLD_SECONDS, TIMEOUT_SECONDS, Rig, require, wait_until
from fleetbeat_shared.messages import Heartbeat, Reason
from fleetbeat_shared.redis_keys import DISPATCHER_LOCK, GROUP, INBOX
from fleetbeat_worker.database.tables import StoredHeartbeat

STRIKES = 6
"""How many processes a repeated fault kills in a round."""
ELECTION_SECONDS = 10.0
"""How long the election of another dispatcher may take."""


def kill_workers(rig: Rig) -> None:
    """Kill workers and their jobs, one after the other."""
    for number in range(STRIKES):
        processes_of = rig.processes_of(rig.pools[0])[1:]
        if processes_of:
            rig.kill(processes_of[-1 - number % len(processes_of)])
        time.sleep(0.25)


def kill_and_stop_half(rig: Rig) -> None:
    """Half-way through the load, kill half of the workers and terminate the others; the pool restarts them."""
    time.sleep(LOAD_SECONDS / 2)
    for number, victim in enumerate(rig.processes_of(rig.pools[0], recursive=False)[2:]):
        if number % 2:
            with suppress(psutil.NoSuchProcess):
                victim.terminate()
        else:
            rig.kill(victim)


def kill_after_commit(rig: Rig) -> None:
    """Kill all workers after their commit and before their acknowledgement, which a paused Valkey delays."""
    with _session(rig) as session_id:
        for _ in range(STRIKES // 2):
            require(lambda: _struck_after_commit(rig, session_id), "no worker could be caught after its commit")


def _struck_after_commit(rig: Rig, session_id: UUID) -> bool:
    """Kill the workers if one claims messages while a lock delays its commit; return whether one did."""
    (first,) = _heartbeats(session_id, 1)
    rig.send(first)
    wait_until(
        lambda: _are_stored(rig, [first]), 3
    )  # so that a job is running: a new one would wait for the lock first
    with closing(rig.client()) as client:
        try:
            with locked(rig):
                beats = _heartbeats(session_id, 5)
                entries = set(rig.send(*beats))
                if not wait_until(lambda: entries <= _pending(client), 0.5):
                    return False
                client.client_pause(int(TIMEOUT_SECONDS * 1000), all=False)
            if not wait_until(lambda: _are_stored(rig, beats), 3):
                return False  # prefetched: the worker acknowledges its previous batch first
            victims = rig.processes_of(rig.pools[0])[1:]
            for victim in victims:
                rig.kill(victim)
            require(lambda: not any(map(_is_running, victims)), "a process that was killed runs on")
            client.ping()  # now Valkey has closed their connections, and drops their waiting commands
        finally:
            client.client_unpause()
    return True


def _pending(client: Any) -> set[str]:
    return {item["message_id"].decode() for item in client.xpending_range(INBOX, GROUP, "-", "+", 1000)}


def _are_stored(rig: Rig, beats: list[Heartbeat]) -> bool:
    """Return whether all of some heartbeats are stored."""
    query = select(func.count()).where(StoredHeartbeat.id.in_([beat.id for beat in beats]))
    with rig.engine.connect() as connection:
        return int(connection.execute(query).scalar_one()) == len(beats)


def _is_running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def scale(rig: Rig) -> None:
    """Start more workers, and stop them again."""
    rig.start_pool(4)
    time.sleep(1.5)
    rig.keep_one_pool()


def kill_dispatcher(rig: Rig) -> None:
    """Kill the elected dispatcher; another must take over in time."""
    with closing(rig.client()) as client:
        require(lambda: client.get(DISPATCHER_LOCK), "no dispatcher was elected")
        before = client.get(DISPATCHER_LOCK)
        for victim in rig.dispatchers():
            rig.kill(victim)
        require(
            lambda: client.get(DISPATCHER_LOCK) not in {None, before},
            "the elected dispatcher was killed, and no other was elected",
            ELECTION_SECONDS,
        )


def kill_redis(rig: Rig) -> None:
    """Kill Valkey, and start it again."""
    time.sleep(0.3)
    rig.kill_valkey()
    rig.valkey.start()


def stop_redis(rig: Rig) -> None:
    """Suspend Valkey for a while."""
    with closing(rig.client()) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(HOLD_SECONDS)
    os.kill(pid, signal.SIGCONT)


def fill_redis(rig: Rig) -> None:
    """Leave Valkey without free memory for a while."""
    with closing(rig.client()) as client:
        client.config_set("maxmemory", "1")
        time.sleep(HOLD_SECONDS)
        client.config_set("maxmemory", "0")


def start_without_redis(rig: Rig) -> None:
    """Start workers while Valkey is down."""
    rig.kill_valkey()
    for victim in [rig.pools[0], *rig.processes_of(rig.pools[0])]:
        rig.kill(victim)
    rig.start_pool()
    time.sleep(HOLD_SECONDS)
    rig.valkey.start()


def send_deadly(rig: Rig) -> None:
    """Send messages that kill the worker that reads them."""
    with _session(rig) as session_id:
        for _ in range(STRIKES // 2):
            deadly = (heartbeat(session_id, DEADLY), registration(DEADLY))
            entries = rig.send(*_heartbeats(session_id, 3), *deadly, *_heartbeats(session_id, 3))
            rig.harmful |= dict.fromkeys(entries[3:5], Reason.POISON)
            time.sleep(0.25)


def send_unstorable(rig: Rig) -> None:
    """Send full batches, each with one heartbeat that the database refuses, and such a registration."""
    refuse_unstorable(rig)
    with _session(rig) as session_id:
        for number in range(STRIKES // 2):
            beats = _heartbeats(session_id, BATCH_SIZE)
            place = (17 * number) % BATCH_SIZE
            beats[place] = heartbeat(session_id, UNSTORABLE)
            entries = rig.send(*beats, registration(UNSTORABLE))
            rig.harmful |= dict.fromkeys((entries[place], entries[-1]), Reason.FAILED)
            time.sleep(0.25)


@contextmanager
def _session(rig: Rig) -> Iterator[UUID]:
    """Open a session, and deregister it at the end."""
    opened = registration()
    rig.send(opened)
    yield opened.session_id
    rig.send(deregistration(opened.session_id))


def _heartbeats(session_id: UUID, count: int) -> list[Heartbeat]:
    return [heartbeat(session_id, "good") for _ in range(count)]


def no_fault(_rig: Rig) -> None:
    """Do nothing: every load contains bad messages."""


FAULTS: dict[str, Callable[[Rig], None]] = {
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
    "bad-messages": no_fault,
}

ONLY_ON = {"postgresql-restarted": "postgresql", "disk-full": "sqlite"}
"""Faults of one kind of database. Only root can create a small disk for PostgreSQL; SQLite has a setting for it."""

NEEDS_FAULTY_WORKER = {send_deadly, keep_database_away, fill_disk}
"""Faults that need the workers of faulty_worker.py."""
