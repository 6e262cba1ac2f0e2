from __future__ import annotations

import dataclasses
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import Engine, event, text

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.redis_keys import GROUP, INBOX, SESSIONS_IN_HAND
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker import entries
from fleetbeat_worker.broker.consumer import Consumer
from fleetbeat_worker.broker.inbox import Inbox, Pending
from fleetbeat_worker.broker.lane import Lane
from fleetbeat_worker.database import engine as database_module
from fleetbeat_worker.database.engine import open_engine, writing
from fleetbeat_worker.ingest import job as ingest, lane, transaction as transactions
from fleetbeat_worker.rules.spans import from_milliseconds
from helpers import (
    agent,
    backlog,
    count_heartbeats,
    deregister,
    drain,
    enrol,
    events,
    eventually,
    heartbeat,
    quick_settings,
    reasons,
    register,
    rejected,
    send,
    send_spread,
    state,
    stored_ids,
)
from processes import die, ingest_once

KILLED = -9


def _die_instead(place: Any, name: str) -> Callable[[], None]:
    return lambda: setattr(place, name, lambda *_arguments: die())


def _die_after(place: Any, name: str) -> Callable[[], None]:
    def arm() -> None:
        whole = getattr(place, name)

        def do_and_die(*arguments: Any) -> None:
            whole(*arguments)
            die()

        setattr(place, name, do_and_die)

    return arm


STEPS = {
    "after reading": _die_instead(ingest, "store_heartbeats"),
    "after opening the batch": _die_after(transactions, "open_batch"),
    "after writing, before the commit": _die_after(transactions, "write_changes"),
    "after the commit, before the answers": _die_instead(ingest, "follow_up"),
    "after the commit, before the acknowledgement": _die_instead(Inbox, "acknowledge"),
    "after the acknowledgement": _die_after(Inbox, "acknowledge"),
}


@pytest.mark.parametrize("arm", STEPS.values(), ids=STEPS.keys())
def test_a_worker_killed_at_any_step_loses_and_doubles_nothing(
    redis: Redis, database: Engine, quick: Settings, arm: Callable[[], None]
) -> None:
    """Killed with a batch in hand, a worker leaves it to another, who stores what isn't stored and no more."""
    (session,) = enrol(redis, database, quick, "torv")
    beats = [heartbeat(session, progress=str(number)) for number in range(70)]
    send_spread(redis, *beats[:40], b"hello", *beats[40:])
    database.dispose()
    # Of two full batches: while it stores one it has the next in its hands already.
    assert ingest_once(quick.model_copy(update={"batch_size": 30}), "victim", arm) == KILLED
    eventually(lambda: drain(redis, database, quick, "rescuer", within=1.0) == 0 and backlog(redis) == 0)
    assert stored_ids(database) == sorted(beat.id for beat in beats)
    assert len(events(database, "heartbeat")) == 70
    assert reasons(database) == ["not_json"]
    assert (state(database, session), agent(database, session).current_work) == ("ok", "69")


def test_a_horse_that_died_is_followed_by_its_worker_at_once(redis: Redis, database: Engine, quick: Settings) -> None:
    """A worker whose job was killed reads its own pending entries first, without waiting for the lease."""
    patient = quick.model_copy(update={"lease_seconds": 3600.0})
    (session,) = enrol(redis, database, quick, "torv")
    send(redis, *[heartbeat(session) for _ in range(5)])
    database.dispose()
    assert ingest_once(patient, "worker", STEPS["after reading"]) == KILLED
    assert drain(redis, database, patient, "other") == 0
    assert drain(redis, database, patient, "worker") == 5
    assert count_heartbeats(database) == 5


def _die_of_poison() -> None:
    whole = entries.parse_message

    def parse_or_die(wire: bytes) -> Any:
        if b"poison" in wire:
            die()
        return whole(wire)

    entries.parse_message = parse_or_die


def test_poison_is_set_aside_and_its_neighbours_are_stored(redis: Redis, database: Engine, quick: Settings) -> None:
    """A message that kills its process is blamed after three deaths alone; all others are stored, none is blamed."""
    (session,) = enrol(redis, database, quick, "torv")
    beats = [heartbeat(session, progress="poison" if number == 44 else "fine") for number in range(49)]
    send(redis, *beats)
    database.dispose()
    deaths = 0
    while ingest_once(quick, "worker", _die_of_poison) == KILLED:
        deaths += 1
        assert deaths <= 5
    assert deaths == 5  # with its batch, with a few, and three times alone
    (row,) = rejected(database)
    assert (row.reason, row.raw) == ("poison", beats[44].to_wire())
    assert stored_ids(database) == sorted(beat.id for beat in beats if beat.progress == "fine")
    assert backlog(redis) == 0


def test_two_poisons_among_others(redis: Redis, database: Engine, quick: Settings) -> None:
    """Two poisonous messages in one batch are both found, and nobody else is blamed."""
    (session,) = enrol(redis, database, quick, "torv")
    beats = [heartbeat(session, progress="poison" if number in {3, 7} else "fine") for number in range(10)]
    send(redis, *beats)
    database.dispose()
    deaths = 0
    while ingest_once(quick, "worker", _die_of_poison) == KILLED:
        deaths += 1
        assert deaths <= 10
    assert sorted(row.raw for row in rejected(database)) == sorted(beats[number].to_wire() for number in (3, 7))
    assert count_heartbeats(database) == 8


def test_what_was_stored_is_never_poison_as_well(redis: Redis, database: Engine, quick: Settings) -> None:
    """Messages whose workers die between the commit and the acknowledgement, each time, are stored and not blamed."""
    (session,) = enrol(redis, database, quick, "torv")
    beat = heartbeat(session, metadata={"id": str(session)})
    steps = ((register("sana"), LANE_STEPS), (beat, STEPS), (deregister(session), LANE_STEPS))
    database.dispose()
    for message, arms in steps:
        send(redis, message)
        for _ in range(5):
            assert ingest_once(quick, "worker", arms["after the commit, before the acknowledgement"]) == KILLED
        assert ingest_once(quick, "worker") == 0
    assert (backlog(redis), rejected(database), stored_ids(database)) == (0, [], [beat.id])
    assert [event.type for event in events(database)] == ["registered", "registered", "deregistered"]


LANE_STEPS = {
    "after taking it": _die_after(Lane, "take"),
    "after opening the sessions": _die_after(lane, "open_sessions"),
    "after writing, before the commit": _die_after(lane, "write_changes"),
    "after the commit, before the disk": _die_instead(lane, "flush"),
    "after the commit, before the acknowledgement": _die_instead(lane, "follow_up"),
    "after the acknowledgement": _die_after(Lane, "remove"),
}


@pytest.mark.parametrize("arm", LANE_STEPS.values(), ids=LANE_STEPS.keys())
def test_a_worker_killed_at_any_step_of_the_lane_loses_and_doubles_nothing(
    redis: Redis, database: Engine, quick: Settings, arm: Callable[[], None]
) -> None:
    """Killed with a piece of the lane in hand, it leaves it to the next; what is applied stands, once, in its order."""
    (session,) = enrol(redis, database, quick, "torv")
    ends = [deregister(session), register("torv", session), deregister(session, exit_status=3)]
    names = [register("of many") for _ in range(9)]
    beat = heartbeat(names[-1].session_id)
    send(redis, *ends, *names, register("orphan", parent_id=new_message_id()), beat)
    database.dispose()
    assert ingest_once(quick, "victim", arm) == KILLED
    eventually(lambda: drain(redis, database, quick, "rescuer", within=1.0) == 0 and backlog(redis) == 0)
    told = [event.message_id for event in events(database, "registered", "deregistered") if event.message_id]
    assert told[1:] == [message.id for message in (*ends, *names)]
    assert [state(database, message.session_id) for message in names] == [*["ended"] * 8, "ok"]
    assert (agent(database, session).exit_status, reasons(database)) == (3, ["unknown_parent"])
    assert (stored_ids(database), redis.exists(SESSIONS_IN_HAND)) == ([beat.id], 0)


def test_poison_of_the_lane_is_set_aside_and_blames_no_other(redis: Redis, database: Engine, quick: Settings) -> None:
    """Its neighbours are applied, and heartbeats that workers had in hand when they died of it are stored."""
    (session,) = enrol(redis, database, quick, "torv")
    messages = [register("poison" if number in {3, 17} else f"agent {number}") for number in range(20)]
    beats = [heartbeat(session) for _ in range(40)]
    send(redis, *messages, *beats)
    database.dispose()
    deaths = 0
    while ingest_once(quick, "worker", _die_of_poison) == KILLED:
        deaths += 1
        assert deaths <= 7
    assert deaths == 7  # with all of them, then three times alone with each
    blamed = [message.to_wire() for number, message in enumerate(messages) if number in {3, 17}]
    assert [(row.reason, row.raw) for row in rejected(database)] == [("poison", wire) for wire in blamed]
    assert len(events(database, "registered")) == 1 + 18
    assert (count_heartbeats(database), backlog(redis)) == (40, 0)


def test_a_worker_that_dies_of_the_lane_with_heartbeats_in_hand(
    redis: Redis, database: Engine, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came into the lane after the batch was read kills at most one worker that holds the batch."""
    (session,) = enrol(redis, database, quick, "torv")
    beats = [heartbeat(session) for _ in range(3)]
    send(redis, *beats)
    database.dispose()
    whole = Consumer.take

    def take_and_send(self: Consumer, *arguments: Any) -> Any:
        unit = whole(self, *arguments)
        if unit is not None and not events_of_poison:
            events_of_poison.append(send(redis, register("poison")))
            unit = dataclasses.replace(unit, lane_backlog=1)
        return unit

    events_of_poison: list[Any] = []
    monkeypatch.setattr(Consumer, "take", take_and_send)
    assert ingest_once(quick, "worker", _die_of_poison) == KILLED
    monkeypatch.undo()
    deaths = 1
    while ingest_once(quick, "worker", _die_of_poison) == KILLED:
        assert {item.deliveries for item in pending(redis)} == {1}
        deaths += 1
    assert (deaths, reasons(database), count_heartbeats(database)) == (3, ["poison"], 3)


FORGED = {
    "a heartbeat of the same session, later": lambda stored, _started, _other: (stored, {}),
    "a heartbeat of another session, in the same millisecond": lambda stored, _started, other: (
        stored,
        {"session_id": other},
    ),
    "a registration, later": lambda _stored, started, _other: (started, {}),
}
"""Which stored message's id a deadly one has, and in what else it differs: made of both messages and a session."""


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_poison_with_the_id_of_a_stored_message_is_kept(
    redis: Redis, database: Engine, quick: Settings, forge: Callable[..., Any]
) -> None:
    """A deadly message that has the id of a stored one doesn't vanish: it is set aside, and the stored one stays."""
    started, other = register("torv"), register("sana")
    stored = heartbeat(started.session_id)
    send(redis, started, other)
    (place,) = send(redis, stored)
    drain(redis, database, quick)
    twin, changes = forge(stored, started, other.session_id)
    deadly = twin.model_copy(update=changes).to_wire().replace(b"}", b',"error":"poison"}')
    arrival = from_milliseconds(int(place.partition("-")[0]))
    send(redis, deadly, at=arrival if changes else None)
    database.dispose()
    while ingest_once(quick, "worker", _die_of_poison) == KILLED:
        assert not rejected(database)
        database.dispose()
    assert [(row.reason, row.raw) for row in rejected(database)] == [("poison", deadly)]
    assert stored_ids(database) == [stored.id]
    assert [event.type for event in events(database)] == ["registered", "registered"]
    assert backlog(redis) == 0


def test_a_verdict_stands_when_it_is_delivered_again(redis: Redis, database: Engine, quick: Settings) -> None:
    """A message that was set aside before its worker died isn't stored, too, because its session was opened since."""
    (session,) = enrol(redis, database, quick, "torv")
    send(redis, deregister(session))
    drain(redis, database, quick)
    send(redis, heartbeat(session))
    database.dispose()
    assert ingest_once(quick, "worker", STEPS["after the commit, before the acknowledgement"]) == KILLED
    send(redis, register("torv", session))
    assert drain(redis, database, quick.model_copy(update={"lease_seconds": 3600.0}), "other") == 1
    eventually(lambda: drain(redis, database, quick, "rescuer", within=1.0) == 0 and backlog(redis) == 0)
    assert (reasons(database), count_heartbeats(database)) == (["session_ended"], 0)


def pending(redis: Redis) -> list[Pending]:
    found = redis.xpending_range(INBOX, GROUP, "-", "+", 1000)
    return [Pending(item["message_id"].decode(), item["times_delivered"]) for item in found]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let statements wait for another's lock for a short time only."""
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.2)


def lock_out(engine: Engine) -> Any:
    """Take a lock in which no batch gets through; closing what is returned gives it back."""
    connection = engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").connect()
    connection.begin()
    if engine.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE liveness, heartbeats"))
    return connection


@pytest.mark.usefixtures("impatient")
def test_waiting_for_a_locked_database_is_no_crash(
    redis: Redis, database: Engine, quick: Settings, database_url: str
) -> None:
    """While another holds the database nothing is blamed: the entries wait with the delivery counts that they had."""
    (session,) = enrol(redis, database, quick, "torv")
    send(redis, *[heartbeat(session) for _ in range(60)])
    holder = lock_out(database)
    engine = open_engine(database_url)
    for _ in range(3):
        assert drain(redis, engine, quick, "waiting", within=0.5) == 0
        assert {item.deliveries for item in pending(redis)} <= {0}
        assert backlog(redis) == 60
    holder.close()
    eventually(lambda: drain(redis, engine, quick, "other", within=2.0) == 0 and backlog(redis) == 0)
    engine.dispose()
    assert (count_heartbeats(database), rejected(database)) == (60, [])


@pytest.mark.usefixtures("impatient")
def test_a_worker_goes_on_when_the_lock_is_gone(
    redis: Redis, database: Engine, quick: Settings, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One and the same run waits out another's lock and then stores what it has."""
    (session,) = enrol(redis, database, quick, "torv")
    send(redis, *[heartbeat(session) for _ in range(60)])
    holder = lock_out(database)
    engine = open_engine(database_url)
    worker = threading.Thread(target=drain, args=(redis, engine, quick, "waiting"))
    worker.start()
    eventually(lambda: "Messages wait in the inbox" in caplog.text)
    assert backlog(redis) == 60
    holder.close()
    worker.join()
    engine.dispose()
    assert (count_heartbeats(database), rejected(database), backlog(redis)) == (60, [], 0)


@pytest.mark.parametrize("url", ["sqlite:////proc/1/fleetbeat.db", "postgresql://nobody@/x?host=/nonexistent"])
def test_a_database_that_is_away_is_no_crash(redis: Redis, redis_url: str, url: str, sqlite_url: str) -> None:
    """Without a database nothing is held, lost or blamed; when there is one, anybody stores all at once."""
    settings = quick_settings(redis_url, url, lease_seconds=3600.0)
    send(redis, b"hello", b"there")
    away = open_engine(url)
    assert drain(redis, away, settings, within=0.5) == 0
    away.dispose()
    there = open_engine(sqlite_url)
    assert drain(redis, there, settings, "other") == 2
    assert reasons(there) == ["not_json", "not_json"]
    there.dispose()


def test_a_full_disk_keeps_messages_in_the_inbox(redis: Redis, sqlite_url: str, quick: Settings) -> None:
    """When SQLite has no room the batch is rolled back and waits; with room it is stored, and nothing is blamed."""
    full = open_engine(sqlite_url)
    (session,) = enrol(redis, full, quick, "torv")
    full.dispose()

    def limit(connection: Any, _record: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    event.listen(full, "connect", limit)
    send(redis, *[heartbeat(session, summary="x" * 500, error="y" * 2000) for _ in range(50)])
    assert drain(redis, full, quick, within=0.5) == 0
    assert (backlog(redis), {item.deliveries for item in pending(redis)}) == (50, {0})
    event.remove(full, "connect", limit)
    full.dispose()
    assert drain(redis, full, quick, "other") == 50
    assert (count_heartbeats(full), rejected(full)) == (50, [])
    full.dispose()


def test_a_slow_worker_keeps_its_batch(redis: Redis, database: Engine, quick: Settings, database_url: str) -> None:
    """A batch that takes several leases isn't taken by another, because its holder shows that it lives."""
    (session,) = enrol(redis, database, quick, "torv")
    send(redis, *[heartbeat(session) for _ in range(10)])
    slow = open_engine(database_url)
    in_hand = threading.Event()

    def linger(_connection: object) -> None:
        if pending(redis) and not in_hand.is_set():
            in_hand.set()
            time.sleep(3 * quick.lease_seconds)  # what is tested is that nobody comes in this time

    event.listen(slow, "commit", linger)
    worker = threading.Thread(target=drain, args=(redis, slow, quick, "slow"))
    worker.start()
    assert in_hand.wait(10)
    patient = quick.model_copy(update={"linger_seconds": 2 * quick.lease_seconds})
    assert drain(redis, database, patient, "other") == 0
    assert {item.deliveries for item in pending(redis)} <= {1}
    worker.join()
    slow.dispose()
    assert (count_heartbeats(database), backlog(redis)) == (10, 0)


def test_postgresql_restarted_in_the_middle(
    redis: Redis, postgres: Any, postgres_url: str, quick: Settings, tmp_path: Path
) -> None:
    """While PostgreSQL goes down at once and comes back, a stream of heartbeats is stored in full, each once."""
    engine = open_engine(postgres_url)
    (session,) = enrol(redis, engine, quick, "torv")
    beats = [heartbeat(session) for _ in range(1500)]
    send(redis, *beats)
    settings = quick.model_copy(update={"batch_size": 10})
    worker = threading.Thread(target=drain, args=(redis, engine, settings))
    worker.start()
    eventually(lambda: backlog(redis) < 1400)
    command = [
        postgres.bin_path / "pg_ctl",
        "-D",
        postgres.pgdata,
        "-m",
        "immediate",
        "-w",
        "-l",
        postgres.log,
        "restart",
    ]
    with (tmp_path / "output").open("w") as output:
        subprocess.run(command, check=True, user=postgres.system_user, stdout=output, stderr=output)
    postgres.ensure_postgres_running()
    worker.join()
    eventually(lambda: drain(redis, engine, quick, "other", within=2.0) == 0 and backlog(redis) == 0)
    assert stored_ids(engine) == sorted(beat.id for beat in beats)
    assert rejected(engine) == []
    engine.dispose()


def test_redis_flushed_under_a_worker(redis: Redis, database: Engine, quick: Settings) -> None:
    """A worker that finds its group gone makes it anew and goes on."""
    (session,) = enrol(redis, database, quick, "torv")
    patient = quick.model_copy(update={"linger_seconds": 1.0})
    worker = threading.Thread(target=drain, args=(redis, database, patient))
    worker.start()
    send(redis, heartbeat(session))
    eventually(lambda: backlog(redis) == 0)
    redis.flushall()
    send(redis, heartbeat(session))
    eventually(lambda: backlog(redis) == 0)
    worker.join()
    assert count_heartbeats(database) == 2


def test_a_broken_database_blames_nobody(redis: Redis, database: Engine, quick: Settings) -> None:
    """A missing table is no message's fault: the job fails, and everything stays in the inbox."""
    (session,) = enrol(redis, database, quick, "torv")
    with writing(database) as connection:
        connection.execute(text("ALTER TABLE events RENAME TO elsewhere"))
    send(redis, *[heartbeat(session, progress="x") for _ in range(5)])
    failures = 0
    for _ in range(6):
        try:
            drain(redis, database, quick, within=0.3)
        except Exception:  # noqa: BLE001 - which one is the database's own affair
            failures += 1
    with writing(database) as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO events"))
    eventually(lambda: drain(redis, database, quick, "other", within=2.0) == 0 and backlog(redis) == 0)
    assert (count_heartbeats(database), rejected(database)) == (5, [])


@pytest.mark.parametrize(
    "failing", ["fleetbeat_worker.broker.consumer._unit", "fleetbeat_worker.broker.lane.Lane.remove"]
)
def test_redis_failing_a_worker_is_no_death(
    redis: Redis, database: Engine, quick: Settings, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """However often Redis fails between reading and storing, or after a commit, no message is blamed for it."""
    (session,) = enrol(redis, database, quick, "torv")
    send(redis, heartbeat(session), register("torv", session))
    with monkeypatch.context() as patched:
        patched.setattr(failing, _fail)
        for _ in range(8):
            with pytest.raises(RedisConnectionError):
                drain(redis, database, quick)
    drain(redis, database, quick)
    assert (count_heartbeats(database), reasons(database), backlog(redis)) == (1, [], 0)
    assert len(events(database, "registered")) == 2


def _fail(*_arguments: object) -> None:
    raise RedisConnectionError
