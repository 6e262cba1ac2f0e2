from __future__ import annotations

import json
import logging
from dataclasses import asdict
from datetime import UTC, datetime
from uuid import UUID

import pytest
from fakeredis import FakeRedis
from sqlalchemy import Engine, select

from fleetbeat_shared.redis_keys import GROUP, INBOX
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Account
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.database.tables import Pipeline
from fleetbeat_worker.rules.sweep_gaps import outage_between
from fleetbeat_worker.store.pipeline import PipelineState
from fleetbeat_worker.sweep.job import sweep
from fleetbeat_worker.sweep.transaction import count_losses
from helpers import drain_lane, events, heartbeat, let_pass, redis_time, register, seconds, send, state

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
SETTINGS = Settings(sweep_seconds=5.0)


def enrol(redis: FakeRedis, memory: Engine, *names: str, interval: float = 5.0) -> list[UUID]:
    """Register agents."""
    Inbox(redis).create_group()
    messages = [register(name, interval_seconds=interval) for name in names]
    send(redis, *messages)
    drain_lane(redis, memory, SETTINGS)
    return [message.session_id for message in messages]


@pytest.mark.parametrize(
    ("gap", "sweep_seconds", "counts"),
    [
        (5.0, 5.0, False),
        (30.0, 5.0, False),
        (30.1, 5.0, True),
        (31.0, 0.1, True),
        (179.0, 60.0, False),
        (180.1, 60.0, True),
        (-100.0, 5.0, False),
    ],
)
def test_when_a_gap_is_an_outage(gap: float, sweep_seconds: float, counts: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A gap is an outage when it is longer than thirty seconds and three sweeps; a clock that went back is none."""
    found = outage_between(NOON, NOON + seconds(gap), sweep_seconds)
    assert found == (seconds(gap) if counts else None)


def test_the_first_sweep_finds_no_outage() -> None:
    """There is no outage before the first sweep."""
    assert outage_between(None, NOON, 5.0) is None


def test_a_sweep_stores_its_watermark(redis: FakeRedis, memory: Engine) -> None:
    """The watermark is the time of the oldest unread entry, the time of the sweep is Redis's."""
    sent_at = redis_time(redis) - seconds(50)
    send(redis, b"x", at=sent_at)
    report = sweep(redis, memory, SETTINGS)
    with reading(memory) as connection:
        row = connection.execute(select(Pipeline.watermark, Pipeline.last_sweep_at)).one()
    assert (report.watermark, report.swept_at) == (row.watermark, row.last_sweep_at)
    assert abs(row.watermark - sent_at) < seconds(0.01)
    assert abs(row.last_sweep_at - redis_time(redis)) < seconds(10)


def test_the_report_is_json(redis: FakeRedis, memory: Engine) -> None:
    """The report as JSON has the names of the flagged agents."""
    enrol(redis, memory, "torv")
    sweep(redis, memory, SETTINGS)
    let_pass(memory, 20)
    report = json.loads(json.dumps(asdict(sweep(redis, memory, SETTINGS)), default=datetime.isoformat))
    assert report["degraded"] == ["torv"]
    assert datetime.fromisoformat(report["watermark"]).tzinfo is not None


def test_a_dry_run_leaves_no_trace(redis: FakeRedis, memory: Engine) -> None:
    """A dry run reports which agents it would flag, and changes neither SQL nor Redis."""
    (session,) = enrol(redis, memory, "torv")
    redis.flushall()
    let_pass(memory, 20)
    assert sweep(redis, memory, SETTINGS, dry_run=True).degraded == ["torv"]
    assert (state(memory, session), events(memory, "degraded"), redis.keys()) == ("pending", [], [])


def test_a_sweep_logs_what_it_found(redis: FakeRedis, memory: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Outages and flagged agents are logged, with at most twenty names as a field."""
    caplog.set_level(logging.WARNING, "fleetbeat")
    enrol(redis, memory, *[f"agent {number}" for number in range(30)])
    sweep(redis, memory, SETTINGS)
    let_pass(memory, 600)
    sweep(redis, memory, SETTINGS)
    let_pass(memory, 20)
    sweep(redis, memory, SETTINGS)
    outage, flagged = caplog.records
    assert outage.seconds == pytest.approx(600, abs=20)
    assert (flagged.count, len(flagged.agents)) == (30, 20)


def test_a_waiting_heartbeat_delays_the_verdict_after_the_clock_was_set_back(redis: FakeRedis, memory: Engine) -> None:
    """Ids don't advance until the clock reaches them again: what waits may have arrived before the deadline."""
    (agent,) = enrol(redis, memory, "a")
    sweep(redis, memory, SETTINGS)
    let_pass(memory, 12)  # its deadline passed a second ago
    ids = send(redis, heartbeat(agent), at=redis_time(redis) + seconds(10))  # which came five seconds ago, say
    assert sweep(redis, memory, SETTINGS).degraded == []
    Inbox(redis).acknowledge(ids, "worker")
    assert sweep(redis, memory, SETTINGS).degraded == ["a"]


def test_a_sweep_removes_idle_consumers(redis: FakeRedis, memory: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers that dead workers left behind are removed, except those with claimed entries."""
    monkeypatch.setattr("fleetbeat_worker.sweep.job.IDLE_CONSUMER_SECONDS", -1.0)
    inbox = Inbox(redis)
    inbox.create_group()
    send(redis, b"x")
    inbox.read("holds", 1, 0.001)
    inbox.read("gone", 1, 0.001)
    sweep(redis, memory, SETTINGS)
    assert [consumer["name"] for consumer in redis.xinfo_consumers(INBOX, GROUP)] == [b"holds"]


def test_the_limit_is_a_setting(redis: FakeRedis, memory: Engine) -> None:
    """How many intervals may be missed is what the registration's batch was judged by."""
    Inbox(redis).create_group()
    send(redis, register(interval_seconds=5.0))
    drain_lane(redis, memory, Settings(missed_intervals=4))
    sweep(redis, memory, SETTINGS)
    let_pass(memory, 19)
    assert sweep(redis, memory, SETTINGS).degraded == []
    let_pass(memory, 3)
    assert sweep(redis, memory, SETTINGS).degraded == ["torv"]


BEFORE = PipelineState(inbox_life="one", inbox_lost=3, inbox_backlog=7)


@pytest.mark.parametrize(
    ("last", "life", "lost", "found"),
    [
        (PipelineState(), "one", 5, (0, None)),
        (BEFORE, "one", 3, (0, None)),
        (BEFORE, "one", 5, (2, None)),
        (BEFORE, "two", 0, (0, 7)),
        (BEFORE, "two", 5, (5, 7)),
        (BEFORE, "one", -40, (0, 7)),
    ],
    ids=["first sweep", "nothing", "trimmed", "lost", "lost and trimmed", "deleted"],
)
def test_counting_losses(last: PipelineState, life: str, lost: int, found: tuple[int, int | None]) -> None:
    """More losses than before were trimmed; another inbox, or fewer losses, means that everything was lost."""
    assert count_losses(last, Account(NOON, life, lost)) == found


def test_losses_are_reported_once(redis: FakeRedis, memory: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Trimmed messages, and a Redis that came back empty, are each one event and one log line."""
    caplog.set_level(logging.WARNING, "fleetbeat")
    enrol(redis, memory, "torv")
    sweep(redis, memory, SETTINGS)
    send(redis, b"one", b"two", b"three")
    redis.xadd(INBOX, {"m": b"x"}, maxlen=1, approximate=False)
    assert [sweep(redis, memory, SETTINGS).trimmed for _ in range(2)] == [3, 0]
    redis.flushall()
    found = [sweep(redis, memory, SETTINGS).lost_backlog for _ in range(3)]
    assert found == [None, 1, None]  # the first makes the account
    assert [event.detail for event in events(memory, "inbox_trimmed", "inbox_lost")] == [
        {"messages_lost": 3},
        {"messages_waited": 1},
    ]
    trimmed, lost = caplog.records
    assert (trimmed.count, lost.waited_at_last_sweep) == (3, 1)


def test_an_overtaken_account_is_ignored(redis: FakeRedis, memory: Engine) -> None:
    """A sweep that waited for another one with a later account neither reports nor stores its own."""
    enrol(redis, memory, "torv")
    sweep(redis, memory, SETTINGS)
    send(redis, b"one", b"two")
    redis.xadd(INBOX, {"m": b"x"}, maxlen=1, approximate=False)
    let_pass(memory, -5)
    assert sweep(redis, memory, SETTINGS).trimmed == 0
    let_pass(memory, 5)
    assert sweep(redis, memory, SETTINGS).trimmed == 2
