from __future__ import annotations

from ops_fixtures import NOON, put_agent, put_event, put_rejected, put_sweep, seconds
from sqlalchemy import Engine

from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.ingest.rejected import count_rejected, latest_rejected, rejected_ids, rejected_message
from fleetbeat_worker.rules.enums import TaskState
from fleetbeat_worker.store.events import read_latest_events
from fleetbeat_worker.store.pipeline import PipelineState, read_pipeline_state
from fleetbeat_worker.store.sessions import agent_is_known, read_newest_session, read_session, read_sessions
from fleetbeat_worker.store.tasks import TaskCounts, add_task, count_tasks, read_tasks, update_task


def test_sessions_are_live_or_ended(engine: Engine) -> None:
    """Live sessions, ended ones, both, and those of a name can be read."""
    live, ended = put_agent(engine, "hint"), put_agent(engine, "hint", state="ended", ended_at=NOON)
    other = put_agent(engine, "torv", metadata={"a": 1})
    with reading(engine) as connection:
        assert {row.session_id for row in read_sessions(connection)} == {live, other}
        assert {row.session_id for row in read_sessions(connection, live=False, ended=True)} == {ended}
        assert len(read_sessions(connection, ended=True)) == 3
        assert [row.session_id for row in read_sessions(connection, agent_name="torv")] == [other]
        found = read_session(connection, other)
        assert found is not None
        assert (found.metadata, found.state, found.last_seen_at) == ({"a": 1}, "ok", NOON)


def test_the_newest_session_is_a_live_one_if_there_is_any(engine: Engine) -> None:
    """A parallel, later registered session is newest; an ended one only when none lives."""
    put_agent(engine, "hint", parallel=True)
    later = put_agent(engine, "hint", at=NOON + seconds(5), parallel=True)
    put_agent(engine, "hint", at=NOON + seconds(9), state="ended", ended_at=NOON)
    ended = put_agent(engine, "gone", state="ended", ended_at=NOON)
    with reading(engine) as connection:
        found = [read_newest_session(connection, name) for name in ("hint", "gone", "nobody")]
        assert [row and row.session_id for row in found] == [later, ended, None]
        assert agent_is_known(connection, "gone")
        assert not agent_is_known(connection, "nobody")


def test_events_are_the_latest_in_their_order(engine: Engine) -> None:
    """A limit keeps the newest; filters by session and type combine."""
    session_id = put_agent(engine, "hint")
    for number in range(5):
        put_event(engine, "heartbeat", "hint", text=str(number), session_id=session_id if number % 2 else None)
    with reading(engine) as connection:
        assert [row.text for row in read_latest_events(connection, 3)] == ["2", "3", "4"]
        assert [row.text for row in read_latest_events(connection, 9, session_id=session_id)] == ["1", "3"]
        assert read_latest_events(connection, 9, session_id=session_id, types=["degraded"]) == []
        assert read_latest_events(connection, 0) == []


def test_rejected_messages_are_listed_without_their_bytes(engine: Engine) -> None:
    """A list has each message's size, one message has its bytes, counts are by reason."""
    ids = [put_rejected(engine, f"1-{n}", b"x" * n, "invalid" if n % 2 else "poison") for n in range(1, 4)]
    with reading(engine) as connection:
        listed = latest_rejected(connection, 2)
        assert [(row.id, row.size) for row in listed] == [(ids[1], 2), (ids[2], 3)]
        assert not hasattr(listed[0], "raw")
        found = rejected_message(connection, ids[2])
        assert found is not None
        assert found.raw == b"xxx"
        assert rejected_message(connection, 99) is None
        assert rejected_ids(connection) == ids
        assert count_rejected(connection) == {"invalid": 2, "poison": 1}


def test_done_tasks_are_not_counted(engine: Engine) -> None:
    """Open tasks are those that aren't done; stale ones of them were updated before the given time, not at it."""
    with writing(engine) as connection:
        at_it = add_task(connection, "hint", "at", NOON)
        before = add_task(connection, "hint", "before", NOON - seconds(1))
        done = add_task(connection, "hint", "done", NOON - seconds(1))
        update_task(connection, done.id, NOON - seconds(1), state=TaskState.DONE)
        add_task(connection, "torv", "x", NOON)
        assert count_tasks(connection, NOON) == {"hint": TaskCounts(2, 1), "torv": TaskCounts(1, 0)}
        assert count_tasks(connection, NOON, "torv") == {"torv": TaskCounts(1, 0)}
        assert count_tasks(connection, NOON, "nobody") == {}
        assert [row.id for row in read_tasks(connection, "hint", TaskState.OPEN)] == [at_it.id, before.id]
        assert update_task(connection, 99, NOON, title="x") is None


def test_before_the_first_sweep_the_state_is_empty(engine: Engine) -> None:
    """Without a row there is neither a watermark nor a sweep; with one there are both."""
    with reading(engine) as connection:
        assert read_pipeline_state(connection) == PipelineState()
    put_sweep(engine, NOON, NOON + seconds(1))
    with reading(engine) as connection:
        assert read_pipeline_state(connection) == PipelineState(NOON, NOON + seconds(1))
