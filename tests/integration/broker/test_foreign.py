from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from multiprocessing import Pipe

import pytest
from redis import Redis
from sqlalchemy import Engine

from fleetbeat_shared.redis_keys import (
    ACCOUNT,
    DISPATCHER_LOCK,
    INBOX,
    NOTICES_DUE,
    POOLS,
    PROBE,
    PULSE,
    PULSE_GAPS,
    STORED,
    WANTED,
)
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.pulse import PulseWriter, read_pulse
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.notifications.due import are_due
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.sweep.job import sweep
from fleetbeat_worker.workers.autoscale import Bounds
from fleetbeat_worker.workers.controller import Steward, new_mandate
from fleetbeat_worker.workers.dispatcher import Dispatcher
from fleetbeat_worker.workers.status import read_queue
from helpers import count_heartbeats, drain, enrol, heartbeat, quick_settings, send

LONG = "9" * 30
WORKER = "worker"


@pytest.fixture
def settings(redis_url: str, sqlite_url: str) -> Settings:
    """Return settings with short times, on a real Valkey and SQLite."""
    return quick_settings(redis_url, sqlite_url)


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    """Return an engine on an empty, migrated SQLite file."""
    made = open_engine(sqlite_url)
    yield made
    made.dispose()


@pytest.mark.parametrize(
    "command",
    [
        ("SET", PULSE, "abc"),
        ("SET", PULSE, LONG),
        ("SADD", PULSE, "x"),
        ("RPUSH", PULSE_GAPS, "x"),
        ("RPUSH", PULSE_GAPS, "1:2:3"),
        ("RPUSH", PULSE_GAPS, f"0:{LONG}"),
        ("SET", PULSE_GAPS, "x"),
        ("SET", ACCOUNT, "x"),
        ("HSET", ACCOUNT, "taken", "x"),
        ("HSET", ACCOUNT, "taken", "1e300"),
        ("HSET", ACCOUNT, "life", b"\xff\x00"),
        ("SET", STORED, "x"),
        ("HSET", STORED, WORKER, "x"),
        ("RPUSH", NOTICES_DUE, "x"),
        ("SET", INBOX, "x"),
        ("RPUSH", INBOX, "x"),
        ("SET", POOLS, "x"),
        ("SET", WANTED, "x"),
        ("SET", DISPATCHER_LOCK, "x"),
        ("RPUSH", DISPATCHER_LOCK, "x"),
    ],
    ids=lambda command: " ".join(map(str, command)).replace("fleetbeat:", "")[:40],
)
def test_what_others_write_to_our_keys_fails_nothing(
    redis: Redis, engine: Engine, settings: Settings, caplog: pytest.LogCaptureFixture, command: tuple[str, ...]
) -> None:
    """The first sweep removes it and says so once; from then on all goes its way."""
    (session,) = enrol(redis, engine, settings, "torv")
    writer = PulseWriter(redis)
    writer.beat()
    sweep(redis, engine, settings)
    if redis.type(command[1]) not in {b"none", b"hash" if command[0] == "HSET" else b"list"}:
        redis.delete(command[1])
    redis.execute_command(*command)
    report = sweep(redis, engine, settings)
    assert report.watermark == report.swept_at
    assert [record.keys for record in caplog.records if "removed" in record.message] == [[command[1]]]
    assert ("Redis came back without the inbox" in caplog.text) is (command[1] == INBOX)
    caplog.clear()
    writer.beat()
    send(redis, heartbeat(session))
    assert drain(redis, engine, settings, consumer=WORKER) == 1
    assert count_heartbeats(engine) == 1
    assert are_due(redis) is False
    assert read_queue(redis).horizon.backlog == 0
    Dispatcher(redis, settings, lambda: False)._step()  # noqa: SLF001 - one of those that `run` repeats
    assert redis.get(DISPATCHER_LOCK) is not None
    sweep(redis, engine, settings)
    warned = [record.message for record in caplog.records if record.levelname != "INFO"]
    # Without the account nobody knows what had become of the inbox.
    assert [message[:34] for message in warned] == ["Redis came back without the inbox,"] * (command[1] == ACCOUNT)


def test_what_is_ours_stays(redis: Redis, engine: Engine, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is removed of what Fleetbeat wrote itself."""
    (session,) = enrol(redis, engine, settings, "torv")
    writer = PulseWriter(redis)
    writer.beat()
    redis.decrby(PULSE, 5000)
    writer.beat()
    send(redis, heartbeat(session))
    drain(redis, engine, settings, consumer=WORKER)
    redis.hset(ACCOUNT, "taken", -3)  # of an inbox that was made anew
    Dispatcher(redis, settings, lambda: False)._step()  # noqa: SLF001 - as above
    keys = [PULSE, PULSE_GAPS, ACCOUNT, STORED, DISPATCHER_LOCK]
    before = [redis.dump(key) for key in keys]
    assert None not in before
    sweep(redis, engine, settings)
    assert [redis.dump(key) for key in keys] == before
    assert "removed" not in caplog.text
    assert redis.exists(PROBE) == 0


@pytest.mark.parametrize("key", [PULSE_GAPS, INBOX])
def test_a_time_in_which_nobody_could_be_heard_is_a_gap(
    redis: Redis, engine: Engine, settings: Settings, key: str
) -> None:
    """Since the last sweep Redis may have stood still, or taken nothing: who isn't known to be silent isn't flagged."""
    PulseWriter(redis).beat()
    before = sweep(redis, engine, settings).swept_at
    redis.delete(PULSE_GAPS)
    redis.set(key, "x")
    now = sweep(redis, engine, settings).swept_at
    ((_, end),) = read_pulse(redis).gaps
    assert to_milliseconds(before) <= end <= to_milliseconds(now)
    assert outages_of(engine)[-1][1] == end


def test_a_lock_that_never_runs_out_is_removed_without_a_sweep(redis: Redis, settings: Settings) -> None:
    """While nobody can be elected there is no sweep; each pool's steward looks."""
    redis.set(DISPATCHER_LOCK, "x")
    ours, theirs = Pipe()
    theirs.close()
    with closing(ours):
        Steward(redis, settings, new_mandate(Bounds(1, 1), 1), ours)._step()  # noqa: SLF001 - one of those that `run` repeats
    assert redis.exists(DISPATCHER_LOCK) == 0


def outages_of(engine: Engine) -> list[tuple[int, int]]:
    """Return what is stored of times in which nobody could be heard."""
    with engine.connect() as connection:
        return read_outages(connection)
