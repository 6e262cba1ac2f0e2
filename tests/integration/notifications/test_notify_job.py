"""The notify job where it runs: enqueued by the dispatcher, in a pool of real workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from sqlalchemy import Engine, select, update

from fleetbeat_shared.redis_keys import NOTICES_DUE, QUEUE
from fleetbeat_shared.settings import Settings
from fleetbeat_worker import jobs
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.tables import Liveness, Notification
from fleetbeat_worker.notifications import apprise_sender, job
from fleetbeat_worker.notifications.due import announce_next_due, are_due
from fleetbeat_worker.notifications.notice import Notice
from fleetbeat_worker.notifications.outbox import add_notices
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.store.pipeline import read_pipeline_state
from fleetbeat_worker.workers.dispatcher import Dispatcher
from helpers import drain, enrol, eventually, heartbeat, quick_settings, redis_time, register, send
from processes import children, running_pool
from receivers import HttpReceiver, http_receiver


@pytest.fixture
def webhook() -> Iterator[HttpReceiver]:
    """Return a real webhook."""
    with http_receiver() as receiver:
        yield receiver


def add(settings: Settings, client: Redis, *names: str) -> None:
    """Add notices about changes of just now."""
    now = to_milliseconds(redis_time(client))
    notices = [Notice(NoticeKind.DEGRADED, f"degraded:{name}:{now}", {}, agent_name=name) for name in names]
    engine = open_engine(settings.sql_url)
    with writing(engine) as connection:
        add_notices(connection, notices, now)
    engine.dispose()


def read(settings: Settings, query: Any) -> list[Any]:
    engine = open_engine(settings.sql_url)
    with reading(engine) as connection:
        found = list(connection.execute(query).all())
    engine.dispose()
    return found


def states(settings: Settings) -> set[str]:
    return {row.state for row in read(settings, select(Notification.state))}


def last_sweep(settings: Settings) -> datetime:
    engine = open_engine(settings.sql_url)
    with reading(engine) as connection:
        found = read_pipeline_state(connection).last_sweep_at
    engine.dispose()
    return found or datetime.min.replace(tzinfo=UTC)


def test_a_pool_sends_notifications(redis_url: str, redis: Redis, database_url: str, webhook: HttpReceiver) -> None:
    """A pool sends what is in the outbox, once."""
    settings = quick_settings(redis_url, database_url, notify_urls=webhook.url())
    with running_pool(settings):
        add(settings, redis, "torv", "sindri")
        eventually(lambda: states(settings) == {"sent"})
        assert sorted(payload["agent"] for payload in webhook.taken) == ["sindri", "torv"]
        eventually(lambda: redis.get(NOTICES_DUE) is None)


def test_a_recovery_is_notified_without_a_sweep(
    redis_url: str, redis: Redis, database_url: str, webhook: HttpReceiver
) -> None:
    """A change by a heartbeat is notified at once, however late the next sweep is."""
    settings = quick_settings(redis_url, database_url, notify_urls=webhook.url(), sweep_seconds=600)
    engine = open_engine(database_url)
    with running_pool(settings):
        eventually(lambda: last_sweep(settings).year > 1)
        registration = register("torv")
        send(redis, registration)
        eventually(lambda: read(settings, select(Liveness.state)))
        with writing(engine) as connection:
            connection.execute(update(Liveness).values(state="degraded"))
        send(redis, heartbeat(registration.session_id))
        eventually(lambda: webhook.taken)
        assert [payload["kind"] for payload in webhook.taken] == ["recovered"]
    engine.dispose()


def test_a_batch_without_notices_announces_nothing(redis: Redis, memory: Engine, quick: Settings) -> None:
    """Only batches that write to the outbox announce due notifications to the dispatcher."""
    (session,) = enrol(redis, memory, quick, "torv")
    send(redis, heartbeat(session))
    drain(redis, memory, quick)
    assert redis.get(NOTICES_DUE) is None


def test_a_receiver_that_hangs_stops_no_sweep(
    redis_url: str, redis: Redis, sqlite_url: str, webhook: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single worker continues to sweep: the job ends after the current message when other jobs wait."""
    monkeypatch.setattr(apprise_sender, "SEND_SECONDS", 0.5)
    monkeypatch.setattr(jobs, "NOTIFY_UNDISTURBED_SECONDS", 0.1)
    settings = quick_settings(redis_url, sqlite_url, notify_urls=webhook.url())
    webhook.hang()
    with running_pool(settings):
        add(settings, redis, *(f"agent-{number}" for number in range(30)))
        eventually(lambda: webhook.tries)
        for _ in range(3):
            before = last_sweep(settings)
            eventually(lambda before=before: last_sweep(settings) > before)  # type: ignore[misc] # bound at once
        assert states(settings) == {"waiting"}


def test_a_job_that_is_killed_while_it_sends(
    redis_url: str, redis: Redis, sqlite_url: str, webhook: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 of the job's process while the receiver handles the message, the pool sends it again."""
    monkeypatch.setattr(job, "LEASE", timedelta(seconds=1))
    settings = quick_settings(redis_url, sqlite_url, notify_urls=webhook.url())
    webhook.hang()
    with running_pool(settings) as pool:
        add(settings, redis, "torv")
        eventually(lambda: webhook.tries)
        before = children(pool)
        for worker in before:
            for horse in worker.children():
                horse.kill()
        webhook.go_on()
        eventually(lambda: states(settings) == {"sent"})
    assert len({payload["key"] for payload in webhook.taken}) == 1
    assert len(webhook.taken) == 2


def test_a_job_is_enqueued_when_a_notification_is_due(redis: Redis, memory: Engine, quick: Settings) -> None:
    """The dispatcher enqueues one notify job at the announced time."""
    announce_next_due(redis, memory)
    assert not are_due(redis)
    with writing(memory) as connection:
        add_notices(
            connection, [Notice(NoticeKind.OUTAGE, "later", {})], to_milliseconds(redis_time(redis)) + 3_600_000
        )
    announce_next_due(redis, memory)
    assert redis.get(NOTICES_DUE) is not None
    assert not are_due(redis)
    with writing(memory) as connection:
        add_notices(connection, [Notice(NoticeKind.OUTAGE, "now", {})], to_milliseconds(redis_time(redis)))
    announce_next_due(redis, memory)
    assert are_due(redis)
    dispatcher = Dispatcher(redis, quick, lambda: True)
    for _ in range(2):
        dispatcher._notify_at = 0.0  # noqa: SLF001 - as if time had passed
        dispatcher._enqueue_notify()  # noqa: SLF001 - the step under test
    queued = Queue(QUEUE, connection=redis, serializer="json").job_ids
    assert [job_id.partition("-")[0] for job_id in queued] == ["notify"]


def test_announcing_without_redis_is_no_failure(memory: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A sweep whose notifications can't be announced is complete: the next one announces them."""
    from fleetbeat_shared.connection import connect

    caplog.set_level(logging.DEBUG, "fleetbeat")
    announce_next_due(connect("redis://127.0.0.1:1/0", timeout_seconds=0.1), memory)
    assert "can't be announced" in caplog.text
