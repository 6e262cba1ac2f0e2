from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, insert, select, text, update

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.messages import MAX_MESSAGE_BYTES
from fleetbeat_shared.redis_keys import GROUP, INBOX, reply_key
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Entry, Inbox
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.tables import RejectedMessage, StoredHeartbeat, Task
from fleetbeat_worker.ingest.batch import Batch
from fleetbeat_worker.ingest.transaction import put_right, store_entries
from fleetbeat_worker.rules.enums import TaskState
from fleetbeat_worker.rules.spans import from_milliseconds
from fleetbeat_worker.sweep.job import sweep
from helpers import (
    agent,
    backlog,
    count_heartbeats,
    deregister,
    drain,
    enrol,
    events,
    heartbeat,
    reasons,
    redis_time,
    register,
    rejected,
    seconds,
    send,
    send_spread,
    state,
    stored_ids,
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
    send(redis, b"hello")
    inbox = Inbox(redis)
    inbox.create_group()
    entries = inbox.read("worker", 10, 0.1)
    for _ in range(2):
        store_entries(database, entries, redis_time(redis), SETTINGS)
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


def test_a_heartbeat_before_its_registration_in_one_batch(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat that overtook its registration in the same batch is stored, and the agent is ok."""
    message = register()
    send(redis, heartbeat(message.session_id, progress="early"), message)
    drain(redis, database, quick)
    assert (count_heartbeats(database), reasons(database)) == (1, [])
    assert state(database, message.session_id) == "ok"
    assert [event.type for event in events(database)] == ["registered", "heartbeat"]


def test_a_heartbeat_before_its_registration_in_the_next_batch(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat that was rejected is stored as soon as a later batch brings its registration; its sender is told."""
    message = register()
    beat = heartbeat(message.session_id, reply=True)
    send(redis, beat)
    drain(redis, database, quick)
    assert reasons(database) == ["unknown_session"]
    send(redis, message)
    drain(redis, database, quick)
    assert (stored_ids(database), reasons(database)) == ([beat.id], [])
    assert state(database, message.session_id) == "ok"
    codes = [json.loads(answer)["code"] for answer in redis.lrange(reply_key(beat.id), 0, -1)]
    assert codes == ["unknown_session", None]


def test_a_registration_that_another_worker_committed_in_between(
    redis: Redis, database: Engine, quick: Settings
) -> None:
    """The heartbeat is judged before the registration is there and stored as rejected after: the sweep finds it."""
    message = register()
    beat = heartbeat(message.session_id)
    inbox = Inbox(redis)
    inbox.create_group()
    send(redis, beat, message)
    first, second = inbox.read("one", 1, 0.1), inbox.read("two", 1, 0.1)
    store_entries(database, first, redis_time(redis), SETTINGS)
    store_entries(database, second, redis_time(redis), SETTINGS)
    inbox.acknowledge([entry.id for entry in first + second], "worker")
    assert reasons(database) == ["unknown_session"]
    sweep(redis, database, quick)
    assert (stored_ids(database), reasons(database)) == ([beat.id], [])
    assert state(database, message.session_id) == "ok"


def test_a_family_in_the_wrong_order(redis: Redis, database: Engine, quick: Settings) -> None:
    """A delegate's heartbeat, then the delegate, then its parent, each in a batch of its own: all are stored."""
    parent = register("parent")
    child = register("child", parent_id=parent.session_id)
    for message in (heartbeat(child.session_id), child, parent):
        send(redis, message)
        drain(redis, database, quick)
    assert reasons(database) == []
    assert state(database, child.session_id) == "ok"
    assert agent(database, child.session_id).parent_id == parent.session_id


def test_an_old_rejected_message_is_not_dug_up(redis: Redis, database: Engine, quick: Settings) -> None:
    """A registration puts right what was set aside a minute ago at most."""
    message = register()
    send(redis, heartbeat(message.session_id))
    drain(redis, database, quick)
    with writing(database) as connection:
        connection.execute(update(RejectedMessage).values(rejected_at=redis_time(redis) - seconds(90)))
    send(redis, message)
    drain(redis, database, quick)
    put_right(database, redis, redis_time(redis), quick)
    assert (count_heartbeats(database), reasons(database)) == (0, ["unknown_session"])


def test_a_heartbeat_that_overtakes_the_registration_that_reopens(
    redis: Redis, database: Engine, quick: Settings
) -> None:
    """A heartbeat that is read before the registration that opens its ended session anew is stored once that is."""
    (session,) = enrol(redis, database, quick, "torv")
    send_spread(redis, deregister(session), heartbeat(session))
    drain(redis, database, quick)
    too_late = rejected(database)[0]
    inbox = Inbox(redis)
    send_spread(redis, register("torv", session), heartbeat(session))
    (again,) = inbox.read("slow", 1, 0.1)
    drain(redis, database, quick)
    assert reasons(database) == ["session_ended", "session_ended"]
    assert count_heartbeats(database) == 0
    store_entries(database, [again], redis_time(redis), quick)
    assert sweep(redis, database, quick).degraded == []
    assert [row.entry_id for row in rejected(database)] == [too_late.entry_id]
    assert count_heartbeats(database) == 1
    assert state(database, session) == "ok"


def test_silence_counts_from_the_first_registration_after_the_last_end(
    redis: Redis, database: Engine, quick: Settings
) -> None:
    """An end and a registration that are stored after the next registration, each in a batch, and delivered twice."""
    (session,) = enrol(redis, database, quick, "torv")
    inbox = Inbox(redis)
    send_spread(redis, deregister(session, error="gone"), register("torv", session), register("torv", session))
    overtaken = inbox.read("slow", 2, 0.1)
    drain(redis, database, quick)
    opened_at = from_milliseconds(overtaken[1].milliseconds)
    for entry in [*overtaken, *reversed(overtaken)]:
        store_entries(database, [entry], redis_time(redis), quick)
    found = agent(database, session)
    assert (found.state, found.registered_at, found.error) == ("pending", opened_at, None)
    stored = events(database)
    assert [event.type for event in stored] == ["registered", "registered", "deregistered", "registered"]
    assert stored[-1].occurred_at == opened_at
    assert stored[-2].detail["error"] == "gone"


def test_a_replayed_registration_reopens_nothing(redis: Redis, database: Engine, quick: Settings) -> None:
    """A registration delivered again after its session ended leaves it ended, also in a batch of its own."""
    inbox = Inbox(redis)
    inbox.create_group()
    message = register()
    send(redis, message)
    entries = inbox.read("worker", 1, 0.1)
    store_entries(database, entries, redis_time(redis), SETTINGS)
    send(redis, heartbeat(message.session_id), deregister(message.session_id, exit_status=0))
    drain(redis, database, quick)
    store_entries(database, entries, redis_time(redis), SETTINGS)
    found = agent(database, message.session_id)
    assert (found.state, found.exit_status) == ("ended", 0)
    assert found.ended_at is not None
    assert [event.type for event in events(database)] == ["registered", "deregistered"]


def test_a_clock_that_was_set_back_loses_no_goodbye(redis: Redis, database: Engine, quick: Settings) -> None:
    """What was registered an hour ahead of the present can end, beat no more, and come back; replays change nothing."""
    ahead = redis_time(redis) + seconds(3600)
    first = register("torv")
    (opened,) = (Entry(entry_id, first.to_wire()) for entry_id in send(redis, first, at=ahead))
    session_id = first.session_id
    store_entries(database, [opened], ahead, quick)  # as a worker did before Redis's clock was set back
    redis.delete(INBOX)
    goodbye = deregister(session_id)
    (ended,) = (Entry(entry_id, goodbye.to_wire()) for entry_id in send(redis, goodbye))
    for entries in ([ended], [opened], [ended, opened]):
        store_entries(database, entries, redis_time(redis), quick)
        assert state(database, session_id) == "ended"
    send(redis, heartbeat(session_id))
    drain(redis, database, quick)
    assert reasons(database) == ["session_ended"]
    send(redis, register("torv", session_id))
    drain(redis, database, quick)
    store_entries(database, [opened, ended], redis_time(redis), quick)
    assert state(database, session_id) == "pending"
    assert len(events(database, "registered", "deregistered")) == 3


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


def test_an_old_backlog_is_put_right_as_well(redis: Redis, database: Engine, quick: Settings) -> None:
    """After an outage, heartbeats may be stored before the batch with their registration is, however old both are."""
    Inbox(redis).create_group()
    message = register()
    old = redis_time(redis) - seconds(600)
    send(redis, message, at=old)
    (registration,) = Inbox(redis).read("slow", 1, 0.1)
    send(redis, heartbeat(message.session_id), heartbeat(message.session_id), at=old + seconds(5))
    drain(redis, database, quick, "fast")
    assert reasons(database) == ["unknown_session"] * 2
    store_entries(database, [registration], redis_time(redis), SETTINGS)
    sweep(redis, database, quick)
    assert (count_heartbeats(database), reasons(database)) == (2, [])


def test_one_that_cannot_be_put_right_stands_in_nobodys_way(
    redis: Redis, database: Engine, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two overtaken heartbeats the one that can't be stored is left with a reason, and sweeps go on."""
    message = register()
    good, bad = heartbeat(message.session_id), heartbeat(message.session_id, progress="bad")
    send(redis, bad, good)
    drain(redis, database, quick)
    send(redis, message)
    beat = Batch.apply

    def apply(self: Batch, entry: Entry, found: Any) -> None:
        if found.id == bad.id:
            raise ValueError
        beat(self, entry, found)

    monkeypatch.setattr(Batch, "apply", apply)
    drain(redis, database, quick)
    sweep(redis, database, quick)
    assert (stored_ids(database), reasons(database)) == ([good.id], ["failed"])


def test_what_an_old_run_said_is_not_put_back(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat of before the session was opened anew is stored, and says nothing of the new run."""
    message = register(work="old")
    send(redis, message)
    drain(redis, database, quick)
    send(redis, heartbeat(message.session_id, error="old trouble", progress="old"))
    (late,) = Inbox(redis).read("slow", 1, 0.1)
    send(redis, deregister(message.session_id))
    drain(redis, database, quick)
    send(redis, register(session_id=message.session_id, work="new"))
    drain(redis, database, quick)
    store_entries(database, [late], redis_time(redis), SETTINGS)
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
    inbox = Inbox(redis)
    send(redis, heartbeat(session, open_tasks=7, stale_tasks=7, status="busy"))
    entries = inbox.read("slow", 10, 0.1)
    store_entries(database, entries, redis_time(redis), quick)
    assert counts(agent(database, session)) == (7, 7)
    send(redis, heartbeat(session), at=redis_time(redis) + seconds(0.005))
    newer = inbox.read("quick", 10, 0.1)
    for replayed in (newer, entries, newer):
        store_entries(database, replayed, redis_time(redis) + seconds(1), quick)
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
        changed.append(bool(batch.agents[session].reports))

    monkeypatch.setattr(Batch, "apply", watch)
    for _ in range(3):
        send(redis, heartbeat(session))
        drain(redis, database, quick)
    assert changed == [True, False, False]
