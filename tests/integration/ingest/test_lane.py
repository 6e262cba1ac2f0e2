from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError
from sqlalchemy import Engine, text

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.redis_keys import FIELD, INBOX, SESSIONS, SESSIONS_IN_HAND, reply_key
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker import lane as broker_lane
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.broker.lane import Lane
from fleetbeat_worker.database.engine import open_engine, writing
from fleetbeat_worker.ingest import lane
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.ingest.requeue import apply_again
from fleetbeat_worker.retention.job import Cutoffs, prune
from fleetbeat_worker.sweep.job import sweep
from helpers import (
    agent,
    backlog,
    count_heartbeats,
    deregister,
    drain,
    drain_lane,
    enrol,
    events,
    eventually,
    heartbeat,
    let_pass,
    reasons,
    redis_time,
    register,
    rejected,
    seconds,
    send,
    state,
    stored_ids,
)

HOUR = seconds(3600)


def test_redis_that_comes_back_empty_with_an_earlier_clock_loses_nothing(
    redis: Redis, database: Engine, quick: Settings
) -> None:
    """Ids that are lower than all that was applied before are applied, in their order, and copies change nothing."""
    opened = register("torv")
    send(redis, opened, at=redis_time(redis) + HOUR)
    drain(redis, database, quick)
    redis.flushall()
    goodbye = deregister(opened.session_id)
    send(redis, goodbye, opened, goodbye)
    drain(redis, database, quick)
    assert state(database, opened.session_id) == "ended"
    send(redis, register("torv", opened.session_id), heartbeat(opened.session_id))
    drain(redis, database, quick)
    assert len(events(database, "registered", "deregistered")) == 3
    assert agent(database, opened.session_id).ended_at is None
    assert (reasons(database), backlog(redis)) == ([], 0)


@pytest.mark.parametrize("entry_id", [f"{2**42}-0", f"{2**64 - 1}-{2**64 - 1}"], ids=["tomorrow", "the largest"])
def test_an_id_of_the_future_hides_nothing_that_comes_later(
    redis: Redis, database: Engine, quick: Settings, entry_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What an agent put there counts as of now; with the next sweep ids begin at the present, and nothing is lost."""
    enrol(redis, database, quick, "torv")
    sweep(redis, database, quick)
    early, late = register("early"), register("late")
    redis.xadd(SESSIONS, {FIELD: early.to_wire()}, id=entry_id)
    with suppress(ResponseError):  # of the largest id there is nothing beyond
        send(redis, late)
    drain(redis, database, quick)
    report = sweep(redis, database, quick)
    assert "A stream was rebuilt" in caplog.text
    assert (report.trimmed, report.lost_backlog) == (0, None)
    send(redis, late, deregister(early.session_id))
    drain(redis, database, quick)
    assert (state(database, early.session_id), state(database, late.session_id)) == ("ended", "pending")
    assert agent(database, early.session_id).registered_at <= redis_time(redis)
    assert (backlog(redis), Inbox(redis).account().lost) == (0, 0)


def test_what_an_agent_trims_is_counted(redis: Redis, database: Engine, quick: Settings) -> None:
    """Registrations that were removed before they were applied are an event with their number, as heartbeats are."""
    enrol(redis, database, quick, "torv")
    sweep(redis, database, quick)
    send(redis, *[register(f"agent {number}") for number in range(5)])
    redis.xadd(SESSIONS, {FIELD: register("torv").to_wire()}, maxlen=1, approximate=False)
    assert sweep(redis, database, quick).trimmed == 5
    assert [event.detail for event in events(database, "inbox_trimmed")] == [{"messages_lost": 5}]
    assert sweep(redis, database, quick).trimmed == 0


def test_a_full_redis_is_drained(redis: Redis, database: Engine, quick: Settings) -> None:
    """What waits is applied and removed, though Redis refuses to note what is in hand."""
    Inbox(redis).create_group()
    message = register("torv")
    send(redis, message, heartbeat(message.session_id))
    redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(OutOfMemoryError):
            redis.hset(SESSIONS_IN_HAND, "in_hand", 1)
        Ingest(redis, database, quick, "worker").run(10)
    finally:
        redis.config_set("maxmemory", "0")
    assert (state(database, message.session_id), backlog(redis), Inbox(redis).account().lost) == ("ok", 0, 0)


def test_one_that_cannot_be_stored_is_set_aside_alone(redis: Redis, database: Engine, quick: Settings) -> None:
    """Of a piece with registrations that the database refuses, the others are applied in the same transaction."""
    forbid_agent(database, "bad")
    messages = [register("bad" if number in {3, 4} else f"agent {number}") for number in range(10)]
    child = register("child", parent_id=messages[3].session_id)
    send(redis, *messages, child, *[heartbeat(message.session_id) for message in messages])
    drain(redis, database, quick)
    assert sorted(reasons(database)) == ["failed", "failed", "unknown_parent", "unknown_session", "unknown_session"]
    assert [row.raw for row in rejected(database)[:2]] == [messages[3].to_wire(), messages[4].to_wire()]
    assert (len(events(database, "registered")), count_heartbeats(database), backlog(redis)) == (8, 8, 0)


def forbid_agent(database: Engine, name: str) -> None:
    """Let the database refuse an agent of this name."""
    with writing(database) as connection:
        if database.dialect.name == "postgresql":
            connection.execute(text(f"ALTER TABLE agents ADD CHECK (agent_name <> '{name}')"))
        else:
            refuse = "BEGIN SELECT RAISE(ABORT, 'forbidden'); END"
            when = f"BEFORE INSERT ON agents WHEN NEW.agent_name = '{name}'"
            connection.execute(text(f"CREATE TRIGGER forbid {when} {refuse}"))


@pytest.mark.parametrize("failure", [DatabaseUnavailable("away"), ResponseError("as Redis says it"), MemoryError()])
def test_trouble_that_a_worker_survives_is_no_death(
    redis: Redis, database: Engine, quick: Settings, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """However often the database, Redis or the machine fails a worker, no message is blamed, and none is lost."""
    message = register("torv")
    send(redis, message)

    def fail(*_arguments: Any) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(lane, "flush", fail)
        for _ in range(6):
            with suppress(Exception):
                drain(redis, database, quick, within=0.05)
            assert not redis.hexists(SESSIONS_IN_HAND, "in_hand")
    drain(redis, database, quick)
    assert (state(database, message.session_id), reasons(database), backlog(redis)) == ("pending", [], 0)
    assert len(events(database, "registered")) == 1


def test_a_worker_that_has_not_removed_what_it_stored_is_not_dead(
    redis: Redis, database: Engine, quick: Settings
) -> None:
    """Others get the lock between a worker's commit and its removal of the entries, and count no death."""
    send(redis, register("torv"))
    for number in range(broker_lane.DEATHS_ALONE + 2):
        worker = Lane(redis, f"worker-{number}")
        piece, _ = lane._apply_piece(worker, database, quick)  # noqa: SLF001 - up to the removal
        assert (len(piece.entries), piece.is_poison) == (1, False)
    assert (len(events(database, "registered")), reasons(database)) == (1, [])
    assert redis.exists(SESSIONS_IN_HAND) == 0


def test_what_belongs_to_the_other_stream_is_set_aside(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat in the lane and a registration in the inbox are refused; ops may apply them all the same."""
    message = register("torv")
    beat = heartbeat(message.session_id, reply=True)
    for stream, each in ((INBOX, message), (SESSIONS, beat)):
        redis.xadd(stream, {FIELD: each.to_wire()}, id="1796000000000-0")
    drain(redis, database, quick)
    found = {row.entry_id: (row.reason, row.id) for row in rejected(database)}
    assert {key: reason for key, (reason, _) in found.items()} == {
        "1796000000000-0": "invalid",
        "1796000000000-0:sessions": "invalid",
    }
    ids = [found["1796000000000-0"][1], found["1796000000000-0:sessions"][1]]
    assert [outcome for _, outcome in apply_again(quick, database, redis, ids)] == ["stored", "stored"]
    assert (state(database, message.session_id), stored_ids(database)) == ("ok", [beat.id])
    assert json.loads(redis.lpop(reply_key(beat.id)))["ok"]


def test_an_end_that_is_requeued_ends_no_newer_run(redis: Redis, database: Engine, quick: Settings) -> None:
    """What was set aside and is applied later is history, if its session was registered meanwhile."""
    message = register("torv")
    send(redis, deregister(message.session_id))
    drain(redis, database, quick)
    (row,) = rejected(database)
    eventually(lambda: redis_time(redis) > row.received_at)
    send(redis, message)
    drain(redis, database, quick)
    assert list(apply_again(quick, database, redis, [row.id])) == [(row.id, "stored")]
    assert state(database, message.session_id) == "pending"
    assert [event.type for event in events(database)] == ["registered", "deregistered"]


def test_what_may_be_applied_twice_is_still_known(redis: Redis, database: Engine, quick: Settings) -> None:
    """A worker died after its commit, and nobody removed what it applied: no pruning forgets that it was."""
    (session,) = enrol(redis, database, quick, "torv")
    goodbye = deregister(session)
    opened = register("torv", session)
    send(redis, opened, goodbye)
    Lane.remove, remove = lambda *_: None, Lane.remove  # type: ignore[method-assign] # as if it had died
    try:
        drain_once(redis, database, quick)
        sweep(redis, database, quick)
        waiting = backlog(redis)
        let_pass(database, 40 * 86_400)
        cutoffs = Cutoffs.of(database, quick, redis_time(redis))
        assert cutoffs is not None
        prune(database, cutoffs)
    finally:
        Lane.remove = remove  # type: ignore[method-assign]
    assert waiting == 2
    drain(redis, database, quick)
    assert [event.type for event in events(database, "registered", "deregistered")].count("registered") == 2
    assert (state(database, session), backlog(redis)) == ("ended", 0)


def drain_once(redis: Redis, database: Engine, settings: Settings) -> None:
    lane.apply_lane(Lane(redis, "worker"), redis, database, settings, 1)


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


def test_a_flood_is_applied_in_its_order_by_many_at_once(
    redis: Redis, database: Engine, quick: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers and two sweeps apply a flood of parents and delegates piece by piece: in order, each once."""
    monkeypatch.setattr(broker_lane, "PIECE", 7)
    enrol(redis, database, quick, "torv")
    parents = [register("of many") for _ in range(100)]
    family = [[parent, register("delegate", parent_id=parent.session_id)] for parent in parents]
    ends = [deregister(parent.session_id, exit_status=number) for number, parent in enumerate(parents)]
    enough = threading.Event()

    def work(engine: Engine, name: str) -> None:
        while not enough.is_set():
            drain(redis, engine, quick, name, within=0.5)

    def feed(_: Engine) -> None:
        for members, end in zip(family, ends, strict=True):
            send(redis, *members, heartbeat(members[1].session_id), end)
        eventually(lambda: backlog(redis) == 0, within_seconds=120)
        enough.set()

    def sweep_on(engine: Engine) -> None:
        while not enough.is_set():
            with suppress(DatabaseUnavailable):  # SQLite lets four wait for each other's locks for longer than they may
                sweep(redis, engine, quick)

    at_once(database_url, feed, lambda engine: work(engine, "a"), lambda engine: work(engine, "b"), sweep_on, sweep_on)
    told = [event.message_id for event in events(database, "registered", "deregistered") if event.message_id]
    sent = [each.id for members, end in zip(family, ends, strict=True) for each in (*members, end)]
    assert told[1:] == sent
    assert (rejected(database), count_heartbeats(database)) == ([], 100)
    assert [agent(database, parent.session_id).exit_status for parent in parents] == list(range(100))


def test_an_agent_that_only_registers_is_known_soon(redis: Redis, database: Engine, quick: Settings) -> None:
    """A job that waits for heartbeats sees what comes into the lane."""
    patient = quick.model_copy(update={"linger_seconds": 30.0})
    stop = threading.Event()
    Inbox(redis).create_group()
    worker = threading.Thread(target=Ingest(redis, database, patient, "worker", stop=stop.is_set).run, args=(30.0,))
    worker.start()
    message = register("torv")
    send(redis, message)
    eventually(lambda: state(database, message.session_id) == "pending")
    stop.set()
    worker.join()


def test_heartbeats_around_an_end_that_is_applied_first(redis: Redis, database: Engine, quick: Settings) -> None:
    """What arrived before the end is stored with what it says, after it nothing; an error of the end stays."""
    (session,) = enrol(redis, database, quick, "torv", work="sorting")
    last = heartbeat(session, progress="page 9", error="slow disk", status="busy")
    now = redis_time(redis)
    send(redis, last, at=now)
    send(redis, deregister(session, error="full disk"), at=now + seconds(0.002))
    send(redis, heartbeat(session, reply=True), at=now + seconds(0.004))
    eventually(lambda: redis_time(redis) > now + seconds(0.005))
    drain_lane(redis, database, quick)
    drain(redis, database, quick)
    found = agent(database, session)
    assert (found.state, found.error, found.current_work, found.status) == ("ended", "full disk", "page 9", "busy")
    assert (stored_ids(database), reasons(database)) == ([last.id], ["session_ended"])


def test_a_process_that_hands_its_session_on_flushes_first(redis: Redis, database: Engine, quick: Settings) -> None:
    """A heartbeat of another process that comes before the registration is refused, and the agent's own are not."""
    session = new_message_id()
    send(redis, heartbeat(session))
    drain(redis, database, quick)
    send(redis, register("torv", session), heartbeat(session))
    drain(redis, database, quick)
    assert (reasons(database), count_heartbeats(database), state(database, session)) == (["unknown_session"], 1, "ok")
