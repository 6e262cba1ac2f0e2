from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, insert, select, text

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import MAX_MESSAGE_BYTES
from fleetbeat_shared.redis_keys import GROUP, INBOX, reply_key
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.tables import StoredHeartbeat, Task
from fleetbeat_worker.ingest.batch import Batch
from fleetbeat_worker.ingest.requeue import apply_again
from fleetbeat_worker.rules.enums import TaskState
from fleetbeat_worker.sweep.job import sweep
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
    reasons,
    redis_time,
    register,
    rejected,
    seconds,
    send,
    send_spread,
    state,
    store,
    stored_ids,
    take,
)

SETTINGS = Settings()


def test_batches_are_stored_and_acknowledged(redis: Redis, database: Engine, quick: Settings) -> None:
    """Many batches from several agents end up in SQL in full, and nothing stays in Redis: no entry, no consumer."""
    sessions = enrol(redis, database, quick, "hint", "torv", "rams")
    beats = [heartbeat(sessions[number % 3], progress=f"step {number}") for number in range(170)]
    send(redis, *beats)
    assert drain(redis, database, quick) == 170
    assert stored_ids(database) == sorted(beat.id for beat in beats)
    assert len(events(database, "heartbeat")) == 170
    assert backlog(redis) == 0
    assert redis.xpending(INBOX, GROUP)["pending"] == 0
    assert redis.xinfo_consumers(INBOX, GROUP) == []
    assert {state(database, session) for session in sessions} == {"ok"}
    assert agent(database, sessions[0]).current_work == "step 168"


def test_all_that_is_said_is_kept_as_it_was(redis: Redis, database: Engine, quick: Settings) -> None:
    """Text and JSON come back from the database as they were sent, quotes, emoji and nesting included."""
    metadata = {"a": [1, 2.5, None, True, {"ü": '"\\{}'}], "🚀": "x'; DROP TABLE agents; --"}
    (session,) = enrol(
        redis, database, quick, "Ωmega 🚀", project="{braces}", metadata={"old": 1}, interval_seconds=1.5
    )
    said = {
        "progress": "5 % of {all} 'quoted', :named and \\x",
        "work_item_id": "W-1",
        "status": "busy",
        "summary": "ü",
        "error": "e" * 2000,
        "open_tasks": 0,
        "stale_tasks": 2**31 - 1,
        "metadata": metadata,
    }
    beat = heartbeat(session, **said)
    send(redis, beat)
    drain(redis, database, quick)
    found = agent(database, session)
    assert {name: getattr(found, name) for name in said} == said
    assert (found.agent_name, found.project, found.current_work) == ("Ωmega 🚀", "{braces}", said["progress"])
    with reading(database) as connection:
        row = connection.execute(select(StoredHeartbeat.__table__)).one()
    assert {name: getattr(row, name) for name in said} == said
    assert row.sent_at == beat.sent_at.replace(microsecond=beat.sent_at.microsecond // 1000 * 1000)
    assert found.last_seen_at == row.seen_at == row.received_at


def test_what_a_later_batch_leaves_out_stays(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat without metadata, progress or counts clears nothing that an earlier batch stored."""
    (session,) = enrol(redis, database, quick, "torv", metadata={"a": 1}, work="sorting")
    send(redis, heartbeat(session, open_tasks=3, status="busy"))
    drain(redis, database, quick)
    send(redis, heartbeat(session, status="ok"))
    drain(redis, database, quick)
    found = agent(database, session)
    assert (found.metadata, found.current_work, found.open_tasks, found.status) == ({"a": 1}, "sorting", 3, "ok")


def test_the_same_message_twice_is_stored_once(redis: Redis, database: Engine, quick: Settings) -> None:
    """A message that its sender sent twice, in one batch or in two, makes one row and one event."""
    (session,) = enrol(redis, database, quick, "torv")
    beat = heartbeat(session, progress="once")
    send(redis, beat, beat)
    drain(redis, database, quick)
    send(redis, beat)
    drain(redis, database, quick)
    assert stored_ids(database) == [beat.id]
    assert len(events(database, "heartbeat")) == 1
    assert rejected(database) == []


def wire(**changes: Any) -> bytes:
    """Return a heartbeat's JSON with changes that no model would let through."""
    return json.dumps(json.loads(heartbeat(new_message_id()).to_wire()) | changes).encode()


BAD = [
    (b"", "not_json"),
    (b"hello", "not_json"),
    (b"\x00\xff\xfe", "not_json"),
    (b"[" * 30_000 + b"]" * 2_000, "not_json"),
    (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "not_json"),
    (wire(progress="\ud800"), "not_json"),
    (b"x" * 10_000_000, "too_large"),
    (wire(progress="x" * MAX_MESSAGE_BYTES), "too_large"),
    (wire(progress="x" * 501), "invalid"),
    (wire(buffered_seconds=float("nan")), "invalid"),
    (wire(open_tasks=10**400), "invalid"),
    (wire(buffered_seconds=1e300), "invalid"),
    (wire(surprise=1), "invalid"),
    (wire(version=2), "invalid"),
    (wire(kind="import"), "invalid"),
    (wire(id="b9c7d9d0-0000-4000-8000-000000000000"), "invalid"),
    (wire(session_id="torv"), "invalid"),
    (wire(sent_at="2026-01-31T12:00:00"), "invalid"),
    (wire(metadata={"a": "x" * 5000}), "invalid"),
    (wire(metadata=[1]), "invalid"),
    (wire(progress=["x"]), "invalid"),
    (b"null", "invalid"),
    (wire(), "unknown_session"),
]


def test_every_bad_message_is_set_aside_alone(redis: Redis, database: Engine, quick: Settings) -> None:
    """Bad messages of every kind are rejected with their reasons, in the batch in which their neighbours are stored."""
    (session,) = enrol(redis, database, quick, "torv")
    beats = []
    for bad, _ in BAD:
        beats.append(heartbeat(session))
        send(redis, beats[-1], bad)
    redis.xadd(INBOX, {b"\xff": b"\x00"})
    assert drain(redis, database, quick) == 2 * len(BAD) + 1
    assert stored_ids(database) == sorted(beat.id for beat in beats)
    expected = sorted([*(reason for _, reason in BAD), "not_json"])
    assert sorted(reasons(database)) == expected
    for row in rejected(database):
        assert len(row.raw) <= MAX_MESSAGE_BYTES
        assert row.detail.isprintable()
        assert "\n" not in row.detail
    assert backlog(redis) == 0


def test_a_replay_is_rejected_once(redis: Redis, database: Engine) -> None:
    """A bad entry that is delivered a second time stays one row."""
    Inbox(redis).create_group()
    send(redis, b"hello")
    entries = take(redis, "worker")
    for _ in range(2):
        store(redis, database, entries, SETTINGS)
    assert reasons(database) == ["not_json"]


@pytest.mark.parametrize(
    "clock",
    [
        "0001-01-01T00:00:00+00:00",
        "0001-01-01T00:00:00+14:00",
        "1969-12-31T23:59:59+00:00",
        "9999-12-31T23:59:59.999999+00:00",
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_no_clock_of_an_agent_does_harm(redis: Redis, database: Engine, quick: Settings, clock: str) -> None:
    """Whatever an agent's clock says, its neighbours are stored, and what is stored can be read."""
    (session,) = enrol(redis, database, quick, "torv")
    odd = json.loads(heartbeat(session).to_wire()) | {"sent_at": clock}
    send(redis, heartbeat(session), json.dumps(odd).encode(), heartbeat(session))
    drain(redis, database, quick)
    with reading(database) as connection:
        rows = connection.execute(select(StoredHeartbeat.__table__)).all()
    assert len(rows) + len(rejected(database)) == 3
    assert len(rows) >= 2
    assert abs(agent(database, session).last_seen_at - redis_time(redis)) < seconds(20)


def forbid(database: Engine, progress: str) -> None:
    """Let the database refuse heartbeats with a certain progress."""
    with writing(database) as connection:
        if database.dialect.name == "postgresql":
            connection.execute(text(f"ALTER TABLE heartbeats ADD CHECK (progress <> '{progress}')"))
        else:
            connection.execute(
                text(
                    f"CREATE TRIGGER forbid BEFORE INSERT ON heartbeats WHEN NEW.progress = '{progress}' "
                    "BEGIN SELECT RAISE(ABORT, 'forbidden'); END"
                )
            )


def test_one_bad_row_is_set_aside_at_once(redis: Redis, database: Engine, quick: Settings) -> None:
    """Of a batch with a row that the database refuses, the others are stored at once, and that one is rejected."""
    (session,) = enrol(redis, database, quick, "torv")
    forbid(database, "bad")
    beats = [heartbeat(session, progress="bad" if number == 17 else "good") for number in range(40)]
    send(redis, *beats)
    assert drain(redis, database, quick) == 40
    assert stored_ids(database) == sorted(beat.id for number, beat in enumerate(beats) if number != 17)
    (row,) = rejected(database)
    assert (row.reason, row.raw) == ("failed", beats[17].to_wire())
    assert "IntegrityError" in row.detail
    assert len(events(database, "heartbeat")) == 39


def test_senders_that_wait_are_answered(redis: Redis, database: Engine, quick: Settings) -> None:
    """The answer arrives under the message's id, says what SQL says, and doesn't stay for ever."""
    (session,) = enrol(redis, database, quick, "torv")
    beat, lost = heartbeat(session, progress="3 of 5", reply=True), heartbeat(new_message_id(), reply=True)
    send(redis, beat, lost)
    drain(redis, database, quick)
    answer = json.loads(redis.lpop(reply_key(beat.id)))
    assert (answer["ok"], answer["agent_name"], answer["progress"]) == (True, "torv", "3 of 5")
    assert datetime.fromisoformat(answer["timestamp"]) == agent(database, session).last_seen_at
    assert 0 < redis.ttl(reply_key(lost.id)) <= 60
    assert json.loads(redis.lpop(reply_key(lost.id)))["code"] == "unknown_session"


def test_what_was_registered_is_known_to_what_came_after_it(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat that was added after its registration is stored, however it is read; a delegate finds its parent."""
    parent = register("parent")
    child = register("child", parent_id=parent.session_id)
    for number in range(10):
        message = register(f"agent {number}")
        send(redis, message, heartbeat(message.session_id, progress="early"))
    send(redis, parent, child, heartbeat(child.session_id))
    drain(redis, database, quick)
    assert (count_heartbeats(database), reasons(database), backlog(redis)) == (11, [], 0)
    assert state(database, child.session_id) == "ok"
    assert agent(database, child.session_id).parent_id == parent.session_id


def test_what_is_unknown_is_told_at_once(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat that came before its registration is set aside and its sender told; it can be applied later."""
    message = register()
    beat = heartbeat(message.session_id, reply=True)
    send(redis, beat)
    drain(redis, database, quick)
    send(redis, message)
    drain(redis, database, quick)
    (row,) = rejected(database)
    assert (row.reason, count_heartbeats(database)) == ("unknown_session", 0)
    assert list(apply_again(quick, database, redis, [row.id])) == [(row.id, "stored")]
    assert (stored_ids(database), reasons(database)) == ([beat.id], [])
    assert state(database, message.session_id) == "ok"
    codes = [json.loads(answer)["code"] for answer in redis.lrange(reply_key(beat.id), 0, -1)]
    assert codes == ["unknown_session", None]


def test_a_deregistration_gives_tasks_back(redis: Redis, database: Engine, quick: Settings) -> None:
    """The tasks that the agent was at are open again; those of others and finished ones are left alone."""
    (session,) = enrol(redis, database, quick, "torv")
    long_ago = datetime(2026, 1, 31, tzinfo=UTC)
    with writing(database) as connection:
        for name, at in (("torv", "in_progress"), ("torv", "done"), ("rams", "in_progress")):
            values = {"agent_name": name, "title": "x", "state": at, "created_at": long_ago, "updated_at": long_ago}
            connection.execute(Task.__table__.insert().values(values))
    send(redis, deregister(session))
    drain(redis, database, quick)
    with reading(database) as connection:
        tasks = connection.execute(select(Task.agent_name, Task.state, Task.updated_at).order_by(Task.id)).all()
    assert [task.state for task in tasks] == [TaskState.OPEN, TaskState.DONE, TaskState.IN_PROGRESS]
    assert tasks[0].updated_at > long_ago


def test_names_change_hands(redis: Redis, database: Engine, quick: Settings) -> None:
    """Sessions that take each other's names, in one batch or in several, leave one live session to each name."""
    one, other = enrol(redis, database, quick, "one", "other")
    send(redis, register("other", one), register("one", other))
    drain(redis, database, quick)
    assert (agent(database, one).agent_name, agent(database, other).agent_name) == ("other", "one")
    assert (state(database, one), state(database, other)) == ("pending", "pending")
    messages = [register("one") for _ in range(5)]
    send(redis, *messages)
    drain(redis, database, quick)
    assert [state(database, message.session_id) for message in messages] == [*["ended"] * 4, "pending"]
    assert state(database, other) == "ended"
    assert rejected(database) == []


def at_once(database_url: str, *acts: Callable[[Engine], object]) -> None:
    """Do things at the same time, each with an engine of its own, and raise what any of them raised."""

    def alone(act: Callable[[Engine], object]) -> None:
        engine = open_engine(database_url)
        try:
            act(engine)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(len(acts)) as pool:
        for future in [pool.submit(alone, act) for act in acts]:
            future.result()


def deadlocks(database: Engine) -> int:
    if database.dialect.name == "sqlite":
        return 0
    with reading(database) as connection:
        query = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return connection.execute(query).scalar_one()


def test_many_workers_at_once(redis: Redis, database: Engine, quick: Settings, database_url: str) -> None:
    """Four workers and two sweepers on the same agents store all, once, and never wait in a circle."""
    sessions = enrol(redis, database, quick, *[f"agent {number}" for number in range(10)])
    beats = [heartbeat(sessions[number * 7 % 10], progress=str(number)) for number in range(600)]
    for number in range(60):
        again = register(f"agent {number % 10}", sessions[number % 10])
        send_spread(redis, *beats[number * 10 : number * 10 + 10], again)
    settings = quick.model_copy(update={"batch_size": 20})

    def sweep_on(engine: Engine) -> None:
        while backlog(redis):
            sweep(redis, engine, settings)

    workers = [partial(drain, redis, settings=settings, consumer=name) for name in "abcd"]
    at_once(database_url, *[lambda engine, work=work: work(engine=engine) for work in workers], sweep_on, sweep_on)
    assert stored_ids(database) == sorted(beat.id for beat in beats)
    assert len(events(database, "heartbeat")) == 600
    assert events(database, "degraded") == []
    for number, session in enumerate(sessions):
        last = max(n for n in range(600) if n * 7 % 10 == number)
        assert agent(database, session).current_work == str(last)
    assert (backlog(redis), rejected(database), deadlocks(database)) == (0, [], 0)


def test_registrations_of_one_name_at_once(redis: Redis, database: Engine, quick: Settings, database_url: str) -> None:
    """However registrations under one name are spread over workers, one session lives at the end: the newest."""
    messages = [register("rams") for _ in range(40)]
    send(redis, *messages)
    settings = quick.model_copy(update={"batch_size": 1})
    workers = [partial(drain, redis, settings=settings, consumer=name) for name in "abc"]
    at_once(database_url, *[lambda engine, work=work: work(engine=engine) for work in workers])
    states = [state(database, message.session_id) for message in messages]
    assert states == [*["ended"] * 39, "pending"]
    assert (rejected(database), deadlocks(database)) == ([], 0)


def test_a_far_off_id_is_stored_too(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat whose id was made by a clock far off is stored once and counts by receipt."""
    (session,) = enrol(redis, database, quick, "torv")
    random = new_message_id().int & ((1 << 80) - 1)
    odd = [type(session)(int=milliseconds << 80 | random) for milliseconds in (0, 1 << 40, (1 << 48) - 1)]
    beats = [heartbeat(session, id=message_id) for message_id in odd]
    for _ in range(2):
        send(redis, *beats)
        drain(redis, database, quick)
    assert stored_ids(database) == sorted(odd)
    assert datetime.now(UTC) - agent(database, session).last_seen_at < timedelta(seconds=20)


def test_what_an_old_run_said_is_not_put_back(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat of before the session was opened anew is stored, and says nothing of the new run."""
    message = register(work="old")
    send(redis, message)
    drain(redis, database, quick)
    send(redis, heartbeat(message.session_id, error="old trouble", progress="old"))
    (late,) = take(redis, "slow")
    send(redis, deregister(message.session_id))
    drain(redis, database, quick)
    send(redis, register(session_id=message.session_id, work="new"))
    drain(redis, database, quick)
    store(redis, database, [late], SETTINGS)
    found = agent(database, message.session_id)
    assert (count_heartbeats(database), found.error, found.current_work) == (1, None, "new")
    assert state(database, message.session_id) == "pending"


def test_tasks_stay_with_a_live_sibling(redis: Redis, database: Engine, quick: Settings) -> None:
    """When one of two parallel sessions ends, what is in progress stays so; when the last ends, it is open again."""
    first, second = register(parallel=True), register(parallel=True)
    send(redis, first, second)
    drain(redis, database, quick)
    now = redis_time(redis)
    values = {
        "agent_name": "torv",
        "title": "t",
        "state": TaskState.IN_PROGRESS.value,
        "created_at": now,
        "updated_at": now,
    }
    with writing(database) as connection:
        connection.execute(insert(Task).values(values))

    def task_state() -> str:
        with reading(database) as connection:
            return str(connection.execute(select(Task.state)).scalar_one())

    send(redis, deregister(first.session_id))
    drain(redis, database, quick)
    assert task_state() == "in_progress"
    send(redis, deregister(second.session_id))
    drain(redis, database, quick)
    assert task_state() == "open"


def add_tasks(database: Engine, name: str, *tasks: tuple[TaskState, float]) -> None:
    """Give an agent tasks, each touched so many seconds ago."""
    now = datetime.now(UTC)
    with writing(database) as connection:
        for task_state, ago in tasks:
            touched = now - seconds(ago)
            values = {"agent_name": name, "title": "x", "created_at": touched, "updated_at": touched}
            connection.execute(insert(Task).values(state=task_state.value, **values))


def counts(row: Any) -> tuple[int | None, int | None]:
    return row.open_tasks, row.stale_tasks


def stored_counts(database: Engine) -> set[tuple[int | None, int | None]]:
    with reading(database) as connection:
        return {counts(row) for row in connection.execute(select(StoredHeartbeat.__table__))}


OPEN, BUSY, DONE = TaskState.OPEN, TaskState.IN_PROGRESS, TaskState.DONE


def test_counts_that_are_left_out_are_counted(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat without task counts gets them from the tasks of its agent; who never had any gets none."""
    worked, idle, without = enrol(redis, database, quick, 'Ωmega "1"', "idle", "without")
    add_tasks(database, 'Ωmega "1"', (OPEN, 0), (BUSY, 200_000), (OPEN, 200_000), (DONE, 200_000))
    add_tasks(database, "idle", (DONE, 200_000))
    send(redis, *[heartbeat(session) for session in (worked, idle, without)])
    drain(redis, database, quick)
    assert [counts(agent(database, session)) for session in (worked, idle, without)] == [(3, 2), (0, 0), (None, None)]
    assert stored_counts(database) == {(3, 2), (0, 0), (None, None)}
    newcomer = register("idle", parallel=True)
    send(redis, newcomer, heartbeat(newcomer.session_id))
    drain(redis, database, quick)
    assert counts(agent(database, newcomer.session_id)) == (0, 0)


def test_counts_that_are_given_stay(redis: Redis, database: Engine, quick: Settings) -> None:
    """Each of the two counts is taken as given, or else counted; the newest heartbeat's are the agent's."""
    (session,) = enrol(redis, database, quick, "torv")
    add_tasks(database, "torv", (OPEN, 200_000))
    send(redis, heartbeat(session, open_tasks=7), heartbeat(session, stale_tasks=5))
    drain(redis, database, quick)
    assert stored_counts(database) == {(7, 1), (1, 5)}
    assert counts(agent(database, session)) == (1, 5)
    add_tasks(database, "torv", (OPEN, 0))
    send(redis, heartbeat(session))
    drain(redis, database, quick)
    assert counts(agent(database, session)) == (2, 1)


def test_older_counts_overwrite_no_newer_ones(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat that was given counts, replayed or late, changes nothing of what a newer one had counted."""
    (session,) = enrol(redis, database, quick, "torv")
    add_tasks(database, "torv", (OPEN, 0))
    send(redis, heartbeat(session, open_tasks=7, stale_tasks=7, status="busy"))
    entries = take(redis, "slow")
    store(redis, database, entries, quick)
    assert counts(agent(database, session)) == (7, 7)
    now = redis_time(redis)
    send(redis, heartbeat(session), at=now + seconds(0.005))
    eventually(lambda: redis_time(redis) > now + seconds(0.005))
    newer = take(redis, "quick")
    for replayed in (newer, entries, newer):
        store(redis, database, replayed, quick)
        assert counts(agent(database, session)) == (1, 0)
    assert stored_counts(database) == {(7, 7), (1, 0)}


def test_a_silent_heartbeat_writes_no_counts_that_are_there(
    redis: Redis, database: Engine, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as an agent's counts are what they were, its heartbeats leave the wide row of the agent alone."""
    (session,) = enrol(redis, database, quick, "torv")
    add_tasks(database, "torv", (OPEN, 0))
    changed: list[bool] = []
    whole = Batch.apply

    def watch(batch: Batch, *arguments: Any) -> None:
        whole(batch, *arguments)
        changed.append(bool(batch.changes.agents[session].reports))

    monkeypatch.setattr(Batch, "apply", watch)
    for _ in range(3):
        send(redis, heartbeat(session))
        drain(redis, database, quick)
    assert changed == [True, False, False]
