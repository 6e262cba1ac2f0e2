from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from redis import Redis
from rq import Queue, Worker
from rq.job import Job
from sqlalchemy import Engine, select, text

from fleetbeat_shared.redis_keys import GROUP, INBOX, QUEUE
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli import main
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.tables import Pipeline
from fleetbeat_worker.workers.pool import STOP_SECONDS, Pool
from helpers import (
    backlog,
    count_heartbeats,
    events,
    eventually,
    heartbeat,
    reasons,
    redis_time,
    register,
    rejected,
    send,
    state,
    stored_ids,
)
from processes import children, kill_family, running_pool


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Engine]:
    engine = open_engine(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def on_sqlite(sqlite_url: str, redis_url: str) -> Settings:
    from helpers import quick_settings

    return quick_settings(redis_url, sqlite_url)


def last_sweep(engine: Engine) -> datetime | None:
    with reading(engine) as connection:
        return connection.execute(select(Pipeline.last_sweep_at)).scalar()


def swept_since(engine: Engine, moment: datetime) -> bool:
    return (last_sweep(engine) or moment) > moment


def queue(redis: Redis) -> Queue:
    return Queue(QUEUE, connection=redis, serializer="json")


def test_a_pool_stores_and_sweeps(redis: Redis, database: Engine, quick: Settings) -> None:
    """From the inbox to SQL through RQ, on either database: stored, swept, flagged, and the workers are seen by RQ."""
    message = register("silent", interval_seconds=1.0, grace_seconds=0)
    database.dispose()
    with running_pool(quick, workers=2):
        send(redis, message, heartbeat(message.session_id, progress="once"))
        eventually(lambda: len(Worker.all(queue=queue(redis))) == 2)
        eventually(lambda: state(database, message.session_id) == "degraded")
        send(redis, heartbeat(message.session_id))
        eventually(lambda: events(database, "recovered"))  # the state may be another again on a busy machine
        database.dispose()
    kinds = [event.type for event in events(database)]
    assert kinds[:4] == ["registered", "heartbeat", "degraded", "recovered"]
    assert Worker.all(queue=queue(redis)) == []
    assert rejected(database) == []


def test_killed_workers_under_load_lose_nothing(redis: Redis, database: Engine, quick: Settings) -> None:
    """Workers and their jobs killed again and again while heartbeats stream in: all are stored, each once."""
    sessions = [register(f"agent {number}") for number in range(5)]
    send(redis, *sessions)
    beats = []
    database.dispose()
    settings = quick.model_copy(update={"batch_size": 20})
    with running_pool(settings, workers=2) as pool:
        for number in range(5):
            new = [heartbeat(sessions[n % 5].session_id) for n in range(100)]
            send(redis, *new)
            beats += new
            victims = eventually(lambda: children(pool, recursive=True))
            with suppress(psutil.NoSuchProcess):  # a job that has just ended
                victims[number % len(victims)].kill()
            eventually(lambda: len(children(pool)) == 4)
        eventually(lambda: backlog(redis) == 0, within_seconds=60)
    assert stored_ids(database) == sorted(beat.id for beat in beats)
    assert rejected(database) == []
    assert events(database, "degraded") == []


def test_children_that_die_are_started_again(redis: Redis, on_sqlite: Settings) -> None:
    """The dispatcher, the controller and every worker that is killed come back."""
    with running_pool(on_sqlite, workers=2) as pool:
        eventually(lambda: len(Worker.all(queue=queue(redis))) == 2)
        before = {child.pid for child in children(pool)}
        for child in children(pool):
            child.kill()
        eventually(lambda: len({child.pid for child in children(pool)} - before) == 4)
        eventually(lambda: sum(worker.get_state() == "idle" for worker in Worker.all(queue=queue(redis))) >= 2)


def test_children_end_with_their_parent(on_sqlite: Settings) -> None:
    """When the parent is killed with -9, no child continues without it."""
    with running_pool(on_sqlite, workers=2) as pool:
        left_behind = children(pool, recursive=True)
        assert len(left_behind) >= 3
        pool.kill()
        _, left = psutil.wait_procs(left_behind, timeout=15)
        assert left == []


def test_a_machine_that_goes_down_is_replaced(redis: Redis, sqlite: Engine, on_sqlite: Settings) -> None:
    """When the elected dispatcher and its workers are killed at once, another pool takes over within ten seconds."""
    sqlite.dispose()
    with running_pool(on_sqlite) as first:
        eventually(lambda: last_sweep(sqlite))
        sqlite.dispose()
        with running_pool(on_sqlite):
            eventually(lambda: len(Worker.all(queue=queue(redis))) == 2)
            message = register()
            kill_family(first)
            died_at = time.monotonic()
            moment = redis_time(redis)
            send(redis, message)
            eventually(lambda: state(sqlite, message.session_id) and swept_since(sqlite, moment), within_seconds=10)
            assert time.monotonic() - died_at < 10
            sqlite.dispose()


def test_a_failed_sweep_stops_no_later_one(redis: Redis, sqlite: Engine, on_sqlite: Settings) -> None:
    """Sweeps that fail are seen among RQ's failed jobs; the next one runs on time."""
    with writing(sqlite) as connection:
        connection.execute(text("DELETE FROM pipeline"))
    sqlite.dispose()
    with running_pool(on_sqlite):
        eventually(lambda: queue(redis).failed_job_registry.get_job_count() >= 2)
        with writing(sqlite) as connection:
            connection.execute(text("INSERT INTO pipeline (id) VALUES (1)"))
        eventually(lambda: last_sweep(sqlite), within_seconds=5)
        sqlite.dispose()


def plant(redis: Redis, job_id: str, **fields: Any) -> None:
    """Put a job into RQ's keys as somebody with bad intent would."""
    redis.hset(f"rq:job:{job_id}", mapping={"created_at": "2026-01-31T12:00:00.000000Z", "status": "queued"} | fields)
    redis.rpush("rq:queue:fleetbeat", job_id)


def test_foreign_jobs_are_refused_and_the_worker_goes_on(
    redis: Redis, sqlite: Engine, on_sqlite: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions, callbacks, pickles and malformed jobs of others run nothing, import nothing, and stop no worker."""
    trap = tmp_path / "trap"
    (tmp_path / "trapped.py").write_text(f"open({str(trap)!r}, 'a').write('imported')\ndef act(*_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    ours = json.dumps(["fleetbeat_worker.jobs.sweep", None, [], {}])
    Queue(QUEUE, connection=redis, serializer="json").enqueue("os.system", f"touch {trap}")
    Queue(QUEUE, connection=redis).enqueue("os.system", f"touch {trap}")  # pickled
    for name in ("success", "failure", "stopped"):
        plant(redis, f"callback-{name}", data=ours, **{f"{name}_callback_name": "trapped.act"})
    plant(redis, "import", data=json.dumps(["trapped.act", None, [], {}]))
    plant(redis, "method", data=json.dumps(["act", "trapped", [], {}]))
    plant(redis, "arguments", data=json.dumps(["fleetbeat_worker.jobs.sweep", None, ["trapped"], {}]))
    plant(redis, "pickle", data=zlib.compress(pickle.dumps(("trapped.act", None, (), {}))))
    plant(redis, "webhook", data=ours, webhooks='[{"url": "http://127.0.0.1:9/"}]')
    plant(redis, "garbage", data=b"\xff\x00")
    plant(redis, "bad-fields", data=ours, timeout=b"\xff", result_ttl="x")
    plant(redis, "no-data")
    sqlite.dispose()
    with running_pool(on_sqlite) as pool:
        workers = {child.pid for child in children(pool)}
        message = register()
        send(redis, message)
        eventually(lambda: state(sqlite, message.session_id), within_seconds=30)
        eventually(lambda: last_sweep(sqlite))
        eventually(lambda: queue(redis).count == 0)
        refused = eventually(lambda: [i for i in queue(redis).failed_job_registry.get_job_ids() if i == "import"])
        assert {child.pid for child in children(pool)} == workers
        job = Job.fetch(refused[0], connection=redis, serializer="json")
        assert "names a function that is not Fleetbeat's" in str(job.latest_result().exc_string)
        sqlite.dispose()
    assert not trap.exists()


@contextmanager
def stock_worker(settings: Settings, tmp_path: Path) -> Iterator[None]:
    """Run RQ's own worker, as its documentation starts it."""
    environment = {"PATH": "/usr/bin:/bin"}
    settings.export(environment)
    rq = Path(sys.executable).parent / "rq"
    command = [rq, "worker", "--url", settings.redis_url, "--serializer", "json", QUEUE]
    with (
        (tmp_path / "rq.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as it,
    ):
        try:
            yield it
        finally:
            for child in psutil.Process(it.pid).children(recursive=True) if it.poll() is None else []:
                child.kill()
            it.kill()


def test_a_surplus_worker_that_hangs_is_killed(
    redis: Redis, sqlite: Engine, on_sqlite: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled away while it stands still, it is killed when its time is up, and another one stores what it held."""
    monkeypatch.setattr("fleetbeat_worker.workers.pool.STOP_SECONDS", 1.0)  # the pool's processes are forked from here
    monkeypatch.setattr("fleetbeat_worker.database.engine.BUSY_SECONDS", 60.0)
    monkeypatch.setenv("FLEETBEAT_REDIS_URL", on_sqlite.redis_url)
    message = register()
    first, *beats = [heartbeat(message.session_id) for _ in range(21)]
    settings = on_sqlite.model_copy(update={"linger_seconds": 60.0, "sweep_seconds": 60.0})
    with running_pool(settings) as pool:
        send(redis, message, first)  # a sweep may apply the registration, but only an ingest job stores a heartbeat
        eventually(lambda: count_heartbeats(sqlite) == 1 and backlog(redis) == 0)
        (job,) = eventually(lambda: _jobs(pool))
        hanging = [job.parent(), job]
        try:
            with writing(sqlite):
                send(redis, *beats)
                eventually(lambda: redis.xpending(INBOX, GROUP)["pending"])
                (held_by,) = _consumers(redis)
                for process in hanging:
                    process.suspend()
                eventually(lambda: [process.status() for process in hanging] == ["stopped", "stopped"])
                _scale(0)
                hanging[0].wait(20)
                job.suspend()  # its worker's death has woken it: the kernel lets no orphaned group of processes stand
                eventually(lambda: job.status() == "stopped")
            assert count_heartbeats(sqlite) == 1
            _scale(1)
            eventually(lambda: count_heartbeats(sqlite) == 21 and backlog(redis) == 0)
            job.resume()  # and stores it once more, in vain
            job.terminate()
            eventually(lambda: held_by not in _consumers(redis))
        finally:
            for process in hanging:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    assert stored_ids(sqlite) == sorted(beat.id for beat in (first, *beats))
    assert reasons(sqlite) == []


def _jobs(pool: psutil.Process) -> list[psutil.Process]:
    """Return the processes of a pool that run a job now."""
    return [job for child in children(pool) for job in children(child)]


def _consumers(redis: Redis) -> list[Any]:
    return [consumer["name"] for consumer in redis.xinfo_consumers(INBOX, GROUP)]


def _scale(number: int) -> None:
    assert CliRunner().invoke(main, ["workers", "scale", str(number)]).exit_code == 0


def test_a_stock_rq_worker_takes_part(redis: Redis, sqlite: Engine, on_sqlite: Settings, tmp_path: Path) -> None:
    """Where there is none of our own workers, a stock `rq worker --serializer json fleetbeat` does all the work."""
    message = register()
    sqlite.dispose()
    with running_pool(on_sqlite, workers=0), stock_worker(on_sqlite, tmp_path):
        send(redis, message, *[heartbeat(message.session_id) for _ in range(120)])
        eventually(lambda: count_heartbeats(sqlite) == 120 and backlog(redis) == 0, within_seconds=40)
        moment = redis_time(redis)
        eventually(lambda: swept_since(sqlite, moment), within_seconds=40)
        sqlite.dispose()
    assert reasons(sqlite) == []


def test_rq_info_shows_the_pipeline(redis: Redis, redis_url: str, on_sqlite: Settings) -> None:
    """RQ's own tool shows the queue and its workers."""
    with running_pool(on_sqlite):
        eventually(lambda: Worker.all(queue=queue(redis)))
        rq = Path(sys.executable).parent / "rq"
        command = [rq, "info", "--url", redis_url, "--serializer", "json"]
        output = eventually(lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert "fleetbeat" in output
    assert "1 workers" in output


def test_a_pool_that_is_stopped_at_once_ends_at_once(on_sqlite: Settings) -> None:
    """No signal is lost between the start of a process and the moment that it is ready to end in order."""
    for _ in range(5):
        pool = Pool(on_sqlite, workers=2)
        pool.start()
        began = time.monotonic()
        pool.stop()
        assert time.monotonic() - began < STOP_SECONDS / 2


def test_a_database_that_is_away_costs_little(redis: Redis, on_sqlite: Settings) -> None:
    """While the database is away jobs wait in it, instead of following each other in haste."""
    settings = on_sqlite.model_copy(update={"database_url": "postgresql://127.0.0.1:9/nobody", "sweep_seconds": 2.0})
    send(redis, heartbeat(register().session_id))
    with running_pool(settings, workers=2):
        begun = eventually(lambda: _jobs_done(redis))
        ends_at = time.monotonic() + 4
        eventually(lambda: time.monotonic() > ends_at)
        assert _jobs_done(redis) - begun < 20


def _jobs_done(redis: Redis) -> int:
    workers = Worker.all(queue=queue(redis))
    return sum(worker.successful_job_count + worker.failed_job_count for worker in workers)
