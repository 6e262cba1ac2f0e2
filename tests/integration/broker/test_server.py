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
    SESSIONS,
    SESSIONS_IN_HAND,
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
from fleetbeat_worker.workers.controller import PoolController, new_pool_spec
from fleetbeat_worker.workers.dispatcher import Dispatcher
from fleetbeat_worker.workers.status import read_queue
from helpers import count_heartbeats, drain, enrol, heartbeat, quick_settings, send

WORKER = "worker"


@pytest.fixture
def settings(redis_url: str, sqlite_url: str) -> Settings:
    return quick_settings(redis_url, sqlite_url)


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    made = open_engine(sqlite_url)
    yield made
    made.dispose()


@pytest.mark.parametrize(
    "key",
    [
        PULSE,
        PULSE_GAPS,
        ACCOUNT,
        STORED,
        NOTICES_DUE,
        INBOX,
        SESSIONS,
        SESSIONS_IN_HAND,
        POOLS,
        WANTED,
        DISPATCHER_LOCK,
    ],
)
def test_a_key_of_a_wrong_type_fails_nothing(
    redis: Redis, engine: Engine, settings: Settings, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """The first sweep removes it and warns once, with its name; from then on all work continues."""
    (session,) = enrol(redis, engine, settings, "torv")
    send(redis, heartbeat(session))
    drain(redis, engine, settings)
    writer = PulseWriter(redis)
    writer.write()
    sweep(redis, engine, settings)
    redis.delete(key)
    redis.sadd(key, "x")
    report = sweep(redis, engine, settings)
    assert report.watermark == report.swept_at
    assert [record.keys for record in caplog.records if "removed" in record.message] == [[key]]
    assert ("Redis came back without the inbox" in caplog.text) is (key in {INBOX, SESSIONS})
    caplog.clear()
    writer.write()
    send(redis, heartbeat(session))
    assert drain(redis, engine, settings, consumer=WORKER) == 1
    assert count_heartbeats(engine) == 2
    assert are_due(redis) is False
    assert read_queue(redis).horizon.backlog == 0
    Dispatcher(redis, settings, lambda: False)._step()  # noqa: SLF001 - one of those that `run` repeats
    assert redis.get(DISPATCHER_LOCK) is not None
    sweep(redis, engine, settings)
    warned = [record.message for record in caplog.records if record.levelname != "INFO"]
    # Without the account it is not known what became of the inbox.
    assert [message[:34] for message in warned] == ["Redis came back without the inbox,"] * (key == ACCOUNT)


def test_keys_that_fleetbeat_wrote_stay(
    redis: Redis, engine: Engine, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is removed of what Fleetbeat wrote itself."""
    (session,) = enrol(redis, engine, settings, "torv")
    writer = PulseWriter(redis)
    writer.write()
    redis.decrby(PULSE, 5000)
    writer.write()
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


@pytest.mark.parametrize("key", [PULSE_GAPS, INBOX, SESSIONS])
def test_a_repair_that_may_hide_an_outage_is_a_gap(redis: Redis, engine: Engine, settings: Settings, key: str) -> None:
    """Since the last sweep Redis may have stood still, or accepted nothing: that time is excluded from deadlines."""
    PulseWriter(redis).write()
    before = sweep(redis, engine, settings).swept_at
    redis.delete(PULSE_GAPS)
    redis.set(key, "x")
    now = sweep(redis, engine, settings).swept_at
    ((_, end),) = read_pulse(redis).gaps
    assert to_milliseconds(before) <= end <= to_milliseconds(now)
    with engine.connect() as connection:
        assert read_outages(connection)[-1][1] == end


def test_a_lock_that_never_expires_is_removed_without_a_sweep(redis: Redis, settings: Settings) -> None:
    """While no dispatcher can be elected there is no sweep; each pool's controller repairs the keys, too."""
    redis.set(DISPATCHER_LOCK, "x")
    ours, theirs = Pipe()
    theirs.close()
    with closing(ours):
        PoolController(redis, settings, new_pool_spec(Bounds(1, 1), 1), ours)._step()  # noqa: SLF001 - as above
    assert redis.exists(DISPATCHER_LOCK) == 0
