from __future__ import annotations

import os
import signal
from contextvars import ContextVar
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.redis_keys import FIELD, INBOX, QUEUE, SESSIONS, stream_of
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.fleet.gauges import Sources
from fleetbeat_worker.ingest import transaction as transactions
from fleetbeat_worker.sweep.job import sweep
from fleetbeat_worker.telemetry import metrics
from fleetbeat_worker.telemetry.metrics import PLACES, Counter, Histogram
from fleetbeat_worker.telemetry.shared_counters import Counters
from helpers import count_heartbeats, deregister, drain, enrol, heartbeat, let_pass, register, send
from processes import ingest_once


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    """Count during this test."""
    monkeypatch.setattr(metrics, "_counters", ContextVar("counters", default=None))
    return metrics.keep_counters()


def counted(counters: Counters, metric: Counter) -> dict[str, float]:
    """Return what was counted, by the values of the label, without zeros."""
    totals = counters.totals()[PLACES[metric.name] :]
    return {value: number for value, number in zip(metric.values, totals, strict=False) if number}


def observed(counters: Counters, metric: Histogram) -> tuple[float, float]:
    """Return how many measures there were, and their sum."""
    *buckets, total = counters.totals()[PLACES[metric.name] :][: metric.width]
    return sum(buckets), total


def test_what_is_stored_is_counted_once(redis: Redis, database: Engine, quick: Settings, counters: Counters) -> None:
    """By kind and by reason; a message that is delivered or sent twice adds nothing."""
    message = register()
    beats = [heartbeat(message.session_id) for _ in range(70)]
    wires = [message, *beats, beats[0], b"hello", heartbeat(new_message_id()), deregister(message.session_id)]
    ids = send(redis, *wires)
    drain(redis, database, quick)
    assert count_heartbeats(database) == 70
    expected = {"heartbeat": 70, "register": 1, "deregister": 1}, {"not_json": 1, "unknown_session": 1}
    assert (counted(counters, metrics.INGESTED), counted(counters, metrics.REJECTED)) == expected
    of_heartbeats = len(wires) - 2
    assert observed(counters, metrics.BATCH_MESSAGES) == (2, of_heartbeats)
    assert observed(counters, metrics.BATCH_SECONDS)[0] == 2
    redis.delete(INBOX, SESSIONS)
    for entry_id, wire in zip(ids, wires, strict=True):
        if isinstance(wire, bytes):
            redis.xadd(INBOX, {FIELD: wire}, id=entry_id)
        else:
            redis.xadd(stream_of(wire.kind), {FIELD: wire.to_wire()}, id=entry_id)
    drain(redis, database, quick)
    assert (counted(counters, metrics.INGESTED), counted(counters, metrics.REJECTED)) == expected
    assert observed(counters, metrics.BATCH_MESSAGES)[0] == 4


def test_a_batch_whose_worker_died_after_the_commit(
    redis: Redis, database: Engine, quick: Settings, counters: Counters
) -> None:
    """The dead worker counted its messages; the next one counts that it took them over, and no message twice."""
    (session_id,) = enrol(redis, database, quick, "torv")
    send(redis, *[heartbeat(session_id) for _ in range(20)])
    database.dispose()

    def die_before_acknowledging() -> None:
        Inbox.acknowledge = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]

    assert ingest_once(quick, "dead", die_before_acknowledging) == -signal.SIGKILL
    assert counted(counters, metrics.INGESTED)["heartbeat"] == 20
    assert ingest_once(quick, "dead") == 0
    assert counted(counters, metrics.INGESTED)["heartbeat"] == count_heartbeats(database) == 20
    assert counted(counters, metrics.TAKEN_OVER) == {"": 20}


def test_sweeps_and_verdicts_are_counted(
    redis: Redis, database: Engine, quick: Settings, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Degraded agents, recovered ones, and the results of sweeps are counted; a dry run isn't."""
    (session_id, _) = enrol(redis, database, quick, "kami", "rams", interval_seconds=1.0, grace_seconds=0)
    sweep(redis, database, quick)
    let_pass(database, 20)
    sweep(redis, database, quick, dry_run=True)
    assert counted(counters, metrics.DEGRADED) == {}
    sweep(redis, database, quick)
    send(redis, heartbeat(session_id))
    drain(redis, database, quick)
    assert (counted(counters, metrics.DEGRADED), counted(counters, metrics.RECOVERED)) == ({"": 2}, {"": 1})
    assert observed(counters, metrics.SWEEP_SECONDS)[0] == 2
    monkeypatch.setattr("fleetbeat_worker.sweep.transaction.read_pipeline_state", failing)
    with pytest.raises(DatabaseUnavailable):
        sweep(redis, database, quick)
    assert counted(counters, metrics.SWEEPS) == {"done": 2, "failed": 1}


def failing(*_arguments: object, **_options: object) -> None:
    raise OperationalError("a statement", {}, Exception("as the driver says"))  # noqa: EM101, TRY003 - SQLAlchemy's own


def test_what_redis_and_sql_hold(redis: Redis, database: Engine, quick: Settings) -> None:
    """The gauges show both; with one of them away, those of the other are still there."""
    enrol(redis, database, quick, "torv", "hint")
    sweep(redis, database, quick)
    send(redis, b"x", b"y", b"z")
    readings = Sources(quick).read()
    assert readings["fleetbeat_up"] == {"redis": 1, "sql": 1}
    assert readings["fleetbeat_backlog"] == {"": 3}
    assert readings["fleetbeat_lag_seconds"][""] >= 0
    assert readings["fleetbeat_agents"] == {"pending": 2}
    assert (
        readings["fleetbeat_last_sweep_timestamp_seconds"][""] >= readings["fleetbeat_watermark_timestamp_seconds"][""]
    )
    away = quick.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    readings = Sources(away).read()
    assert (readings["fleetbeat_up"], "fleetbeat_backlog" in readings) == ({"redis": 0, "sql": 1}, False)
    assert readings["fleetbeat_agents"] == {"pending": 2}
    away = quick.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    readings = Sources(away).read()
    assert (readings["fleetbeat_up"], readings["fleetbeat_backlog"]) == ({"redis": 1, "sql": 0}, {"": 3})


def test_rq_keys_that_are_broken(redis: Redis, database: Engine, quick: Settings) -> None:
    """With other data in RQ's keys, the scrape still has the gauges of SQL."""
    enrol(redis, database, quick, "torv")
    redis.set(f"rq:workers:{QUEUE}", "nonsense")
    readings = Sources(quick).read()
    assert (readings["fleetbeat_up"], readings["fleetbeat_agents"]) == ({"redis": 0, "sql": 1}, {"pending": 1})


def test_a_lost_race_is_counted(
    redis: Redis, database: Engine, quick: Settings, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that lost against another is counted, and its messages once it has succeeded."""
    races = iter([True, True])
    write = transactions.write_changes

    def lose_twice(*arguments: Any) -> None:
        if next(races, False):
            failing()
        write(*arguments)

    monkeypatch.setattr(transactions, "write_changes", lose_twice)
    monkeypatch.setattr(transactions, "rolled_back_by_conflict", lambda _error: True)
    (session_id,) = enrol(redis, database, quick, "torv")
    send(redis, heartbeat(session_id))
    drain(redis, database, quick)
    assert counted(counters, metrics.DATABASE_RETRIES) == {"": 2}
    assert counted(counters, metrics.INGESTED) == {"heartbeat": 1, "register": 1}
