from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from fakeredis import FakeRedis, FakeServer
from redis.exceptions import OutOfMemoryError
from rq import Queue
from rq.executions import Execution

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.redis_keys import DISPATCHER_LOCK, GROUP, INBOX, OLD_ROWS, QUEUE
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.workers import dispatcher as module
from fleetbeat_worker.workers.dispatcher import Dispatcher, prune_is_due
from helpers import heartbeat, send

SETTINGS = Settings(redis_url="redis://user:secret@example:6390/0", sweep_seconds=3600.0, batch_size=10)


def rounds(number: int) -> Callable[[], bool]:
    """Return a condition that stops a dispatcher after so many rounds."""
    left = iter(range(number))
    return lambda: next(left, None) is None


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no round wait."""
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.002)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.001)


def dispatch(redis: FakeRedis, number: int = 1, settings: Settings = SETTINGS) -> None:
    Dispatcher(redis, settings, rounds(number)).run()


def queued(redis: FakeRedis) -> list[str]:
    """Return the kinds of the jobs that wait."""
    return [job_id.partition("-")[0] for job_id in Queue(QUEUE, connection=redis, serializer="json").get_job_ids()]


def test_an_idle_pipeline_gets_sweeps_only(redis: FakeRedis) -> None:
    """With an empty inbox one sweep is enqueued, and none again before its time."""
    dispatch(redis, 5)
    assert queued(redis) == ["sweep"]


def test_jobs_are_what_a_stock_worker_runs(redis: FakeRedis) -> None:
    """A job names one of our functions, carries nothing, leaves no result, and its id carries its tick."""
    dispatch(redis)
    queue = Queue(QUEUE, connection=redis, serializer="json")
    (job,) = queue.get_jobs()
    assert (job.func_name, list(job.args), job.kwargs) == ("fleetbeat_worker.jobs.sweep", [], {})
    assert (job.result_ttl, job.failure_ttl) == (0, module.FAILED_JOB_SECONDS)
    assert job.id.partition("-")[2].isdigit()


def test_old_rows_are_searched_for_each_minute(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prune job is enqueued when it is due, and none is added while one waits or runs."""
    dispatch(redis, 3)
    assert queued(redis) == ["sweep"]
    monkeypatch.setattr(module, "PRUNE_SECONDS", -1.0)
    dispatch(redis, 5)
    assert queued(redis) == ["sweep", "prune"]
    queue = Queue(QUEUE, connection=redis, serializer="json")
    job = queue.get_jobs()[-1]
    queue.remove(job.id)
    job.prepare_for_execution("worker", redis)
    queue.started_job_registry.add_execution(Execution.create(job, 60, redis), redis, 60)
    dispatch(redis, 5)
    assert queued(redis) == ["sweep"]


@pytest.mark.parametrize(
    ("since_seconds", "old_rows_left", "behind", "due"),
    [
        (59.9, False, False, False),
        (60.0, False, True, True),
        (1.9, True, False, False),
        (2.0, True, False, True),
        (59.9, True, True, False),
        (60.0, True, True, True),
    ],
)
def test_when_to_prune(since_seconds: float, old_rows_left: bool, behind: bool, due: bool) -> None:  # noqa: FBT001 - a table
    """Each minute whatever happens; soon again while old rows are left and messages don't wait."""
    assert prune_is_due(since_seconds, old_rows_left=old_rows_left, behind=behind) is due


def test_a_prune_job_that_left_old_rows_is_followed_by_another(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a job reports that old rows are left, another follows before the minute is over, unless a batch waits."""
    monkeypatch.setattr(module, "PRUNE_AGAIN_SECONDS", 0.0)
    dispatch(redis, 3)
    assert queued(redis) == ["sweep"]
    redis.set(OLD_ROWS, 1)
    send(redis, *[b"x"] * 10)
    dispatch(redis, 3)
    assert "prune" not in queued(redis)
    redis.delete(INBOX)
    dispatch(redis, 3)
    assert queued(redis).count("prune") == 1


def test_a_sweep_that_waits_is_enough(redis: FakeRedis) -> None:
    """However many ticks pass while no worker is there, one sweep waits."""
    quick = SETTINGS.model_copy(update={"sweep_seconds": 0.001})
    dispatch(redis, 20, quick)
    assert queued(redis) == ["sweep"]


def test_an_arrival_is_ingested_by_one_job(redis: FakeRedis) -> None:
    """While no job reads, one message asks for one job, however many rounds the dispatcher makes."""
    send(redis, b"x")
    dispatch(redis, 10)
    assert sorted(queued(redis)) == ["ingest", "sweep"]


def test_a_lingering_job_takes_small_arrivals(redis: FakeRedis) -> None:
    """While a job lingers at the inbox no further one is needed for a few messages."""
    inbox = Inbox(redis)
    inbox.create_group()
    inbox.read("worker", 1, 0.001)
    send(redis, b"x", b"y")
    dispatch(redis, 3)
    assert queued(redis) == ["sweep"]


@pytest.mark.parametrize(("idle", "expected"), [(0, 1), (1, 1), (3, 3), (100, 5)])
def test_a_backlog_is_spread_over_count_idle_workers(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, idle: int, expected: int
) -> None:
    """As many jobs as there are idle workers and full batches, and one at least."""
    monkeypatch.setattr(Dispatcher, "_count_idle_workers", lambda _self: idle)
    send(redis, *[heartbeat(new_message_id()) for _ in range(55)])
    dispatch(redis, 3)
    assert queued(redis).count("ingest") == expected


def test_two_dispatchers_elect_one(redis_server: FakeServer) -> None:
    """The second one enqueues nothing while the first one is elected, and takes over when that has resigned."""
    first_client, second_client = FakeRedis(server=redis_server), FakeRedis(server=redis_server)
    seen: list[int] = []

    def second_tries() -> bool:
        dispatch(second_client, 2)
        seen.append(len(queued(second_client)))
        return len(seen) > 2

    Dispatcher(first_client, SETTINGS, second_tries).run()
    assert seen == [1, 1, 1]  # the second one was elected first, and resigned
    assert not first_client.exists(DISPATCHER_LOCK)
    first_client.close()
    second_client.close()


def test_a_dispatcher_that_lost_its_lock_gives_way(redis: FakeRedis) -> None:
    """A dispatcher whose lock expired and was acquired by another enqueues no more, and leaves that lock alone."""
    lost = False

    def stop() -> bool:
        nonlocal lost
        if redis.exists(DISPATCHER_LOCK) and not lost:
            redis.set(DISPATCHER_LOCK, "another")
            redis.delete(f"rq:queue:{QUEUE}")
            lost = True
            return False
        return lost and next(more, None) is None

    more = iter(range(5))
    quick = SETTINGS.model_copy(update={"sweep_seconds": 0.1})
    Dispatcher(redis, quick, stop).run()
    assert redis.get(DISPATCHER_LOCK) == b"another"
    assert queued(redis) == []


def test_redis_away_is_logged_once_and_waited_for(
    redis: FakeRedis, redis_server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With Redis away the dispatcher logs it once, without the password, and continues when it is back."""
    caplog.set_level(logging.INFO, "fleetbeat")
    rounds_left = iter(range(6))

    def stop() -> bool:
        number = next(rounds_left, None)
        redis_server.connected = number not in {0, 1, 2}
        return number is None

    Dispatcher(redis, SETTINGS, stop).run()
    logged = [record.getMessage() for record in caplog.records]
    assert logged[0].startswith("Redis at redis://example:6390/0 can't be used")
    assert logged[1:] == ["Redis is available again; work continues."]
    assert "secret" not in caplog.text
    assert queued(redis) == ["sweep"]


def test_a_full_redis_is_drained_directly(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """When RQ can't enqueue, each dispatcher does the work itself."""
    done: list[str] = []
    monkeypatch.setattr(Dispatcher, "_work_directly", lambda _self: done.append("work"))

    def full(*_arguments: object) -> None:
        raise OutOfMemoryError

    monkeypatch.setattr(Dispatcher, "_enqueue_sweep", full)
    dispatch(redis, 3)
    assert done == ["work"] * 3


def test_a_dead_workers_entries_ask_for_a_job(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries whose holder died call for a job as soon as the lease is over, although nothing new arrived."""
    send(redis, b"x")
    inbox = Inbox(redis)
    inbox.create_group()
    inbox.read("dead", 1, 0.001)
    monkeypatch.setattr("fleetbeat_worker.broker.inbox.READER_SECONDS", -1.0)
    dispatch(redis, 2)
    assert queued(redis) == ["sweep"]
    impatient = SETTINGS.model_copy(update={"lease_seconds": 0.0})
    dispatch(redis, 2, impatient)
    assert queued(redis).count("ingest") == 1
    assert redis.xpending(INBOX, GROUP)["pending"] == 1
