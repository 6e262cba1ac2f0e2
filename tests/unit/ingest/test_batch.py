from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from fleetbeat_shared.identifiers import new_message_id, stable_session_id
from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_shared.redis_keys import INBOX, SESSIONS
from fleetbeat_worker.broker.entries import RawEntry, arrival, decode
from fleetbeat_worker.ingest.batch import Batch
from fleetbeat_worker.ingest.changeset import Changeset
from fleetbeat_worker.ingest.lifecycle import Lifecycle
from fleetbeat_worker.ingest.session_state import HEARTBEAT_COLUMNS, AgentRecord, Facts
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from fleetbeat_worker.store.tasks import TaskCounts
from helpers import deregister, heartbeat, register

NOON = to_milliseconds(datetime(2026, 1, 31, 12, 0, tzinfo=UTC))


def seconds(number: float) -> int:
    """Return a time in a batch's unit."""
    return round(number * 1000)


def new_batch(
    *agents: AgentRecord,
    watermark: float | None = None,
    outages: tuple[tuple[int, int], ...] = (),
    tasks: dict[str, TaskCounts] | None = None,
) -> Changeset:
    """Begin a batch an hour after noon, with agents as an earlier batch left them."""
    since = NOON + seconds(watermark) if watermark is not None else None
    facts = Facts(NOON + seconds(3600), since, list(outages), missed_limit=2, tasks=tasks or {})
    stored = {
        a.session_id: replace(a, settings={}, reports={}, is_new=False, seen=False, promised=False) for a in agents
    }
    return Changeset(facts, stored)


def apply(batch: Changeset, message: Register | Heartbeat | Deregister, after: float, sequence: int = 0) -> None:
    """Apply a message that arrived some seconds after noon."""
    apply_wire(batch, message.to_wire(), f"{NOON + seconds(after)}-{sequence}")


def apply_wire(batch: Changeset, wire: bytes, entry_id: str) -> None:
    entry, of_lane = (decode([RawEntry(entry_id, wire)], batch.facts.now, stream)[0] for stream in (INBOX, SESSIONS))
    entry = of_lane if isinstance(of_lane.message, Register | Deregister) else entry
    if isinstance(entry.message, Heartbeat):
        Batch(batch).apply(entry, entry.message)
    elif entry.message is not None:
        Lifecycle(batch).apply(entry, entry.message)
    batch.reject_undecoded(entry)


def registered(name: str = "torv", **fields: Any) -> AgentRecord:
    """Return an agent that was registered at noon in an earlier batch; 30 s, grace 1.5 s unless told otherwise."""
    batch = new_batch()
    message = register(name, **fields)
    apply(batch, message, 0)
    return batch.agents[message.session_id]


def kinds(batch: Changeset) -> list[str]:
    return [event["type"] for event in batch.events]


def heartbeats(batch: Changeset) -> list[dict[str, Any]]:
    return [dict(zip(HEARTBEAT_COLUMNS, row, strict=True)) for row in batch.heartbeats]


def refused(batch: Changeset) -> list[str]:
    return [row["reason"] for row in batch.rejected]


def only(batch: Changeset) -> AgentRecord:
    (found,) = batch.agents.values()
    return found


def test_a_registration_makes_a_pending_agent() -> None:
    """A registered agent is pending, has never been seen, and its silence counts from the registration."""
    batch = new_batch()
    apply(batch, register("torv", project="p", work="sorting", metadata={"a": 1}), 0)
    agent = only(batch)
    assert (agent.state, agent.last_seen_at, agent.is_new) == (State.PENDING, None, True)
    assert agent.deadline_at == NOON + seconds(61.5)
    expected = {"project": "p", "current_work": "sorting", "metadata": {"a": 1}}
    assert expected.items() <= agent.settings.items()
    assert (agent.promised, agent.promise.grace_seconds) == (True, 1.5)
    assert kinds(batch) == ["registered"]


def test_a_heartbeat_is_stored_and_moves_the_agent_forward() -> None:
    """A heartbeat becomes one row, makes a pending agent ok, and moves last_seen_at and the deadline."""
    batch = new_batch(registered())
    message = heartbeat(next(iter(batch.agents)), open_tasks=3)
    apply(batch, message, 10)
    agent = only(batch)
    assert (agent.state, agent.last_seen_at) == (State.OK, NOON + seconds(10))
    assert agent.deadline_at == NOON + seconds(71.5)
    assert agent.state_changed_at == NOON + seconds(10)
    (row,) = heartbeats(batch)
    assert (row["id"], row["received_at"], row["seen_at"]) == (message.id, agent.last_seen_at, agent.last_seen_at)
    assert (row["open_tasks"], row["progress"]) == (3, None)


def test_an_event_only_with_progress() -> None:
    """A heartbeat becomes an event only when it brings progress text, however much else it says."""
    batch = new_batch(registered())
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id, status="busy", summary="much", metadata={"a": 1}), 1)
    apply(batch, heartbeat(session_id, progress=""), 2)
    assert kinds(batch) == []
    message = heartbeat(session_id, progress="3 of 5")
    apply(batch, message, 3)
    (event,) = batch.events
    assert (event["type"], event["text"], event["message_id"]) == ("heartbeat", "3 of 5", message.id)


def test_progress_is_the_current_work() -> None:
    """Progress sets current_work, a work item id its own column, and an empty progress leaves the work as it was."""
    batch = new_batch(registered(work="sorting"))
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id, progress="3 of 5", work_item_id="W-1"), 1)
    apply(batch, heartbeat(session_id, progress=""), 2)
    assert only(batch).reports["current_work"] == only(batch).reports["progress"] == "3 of 5"
    assert only(batch).reports["work_item_id"] == "W-1"


def test_what_a_heartbeat_leaves_out_stays() -> None:
    """Absent fields change nothing; an empty error or a count of zero is not absent."""
    batch = new_batch(registered())
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id, metadata={"a": 1}, error="disk full", open_tasks=4, status="busy"), 1)
    apply(batch, heartbeat(session_id, error="", open_tasks=0), 2)
    apply(batch, heartbeat(session_id), 3)
    reports = only(batch).reports
    assert (reports["metadata"], reports["status"]) == ({"a": 1}, "busy")
    assert (reports["error"], reports["open_tasks"]) == ("", 0)
    assert reports["reported_at"] == NOON + seconds(2)


def test_a_heartbeat_without_words_changes_no_report() -> None:
    """A bare sign of life writes liveness only: the wide row of the agent isn't touched."""
    batch = new_batch(registered())
    apply(batch, heartbeat(next(iter(batch.agents))), 1)
    assert (only(batch).reports, only(batch).settings, only(batch).seen) == ({}, {}, True)


def test_waiting_before_sending_counts_as_seen_earlier() -> None:
    """A heartbeat that waited was true when it was made: seen_at is the receipt less the time that it waited."""
    batch = new_batch(registered())
    apply(batch, heartbeat(next(iter(batch.agents)), buffered_seconds=7.5), 10)
    (row,) = heartbeats(batch)
    assert row["received_at"] == NOON + seconds(10)
    assert row["seen_at"] == only(batch).last_seen_at == NOON + seconds(2.5)


def test_an_older_heartbeat_fills_history_only() -> None:
    """A heartbeat older than the newest is stored, but moves nothing back and overrules no report."""
    batch = new_batch(registered())
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id, progress="new"), 20)
    apply(batch, heartbeat(session_id, progress="old", buffered_seconds=15), 21)
    assert only(batch).last_seen_at == NOON + seconds(20)
    assert only(batch).reports["current_work"] == "new"
    assert len(batch.heartbeats) == 2


def test_the_agents_own_clock_counts_for_nothing() -> None:
    """A sender whose clock is in the year 9999 or in 1970 is seen when its heartbeat was received."""
    batch = new_batch(registered())
    session_id = next(iter(batch.agents))
    for number, year in enumerate((9999, 1970)):
        apply(batch, heartbeat(session_id, sent_at=datetime(year, 1, 1, tzinfo=UTC)), 10 + number)
    assert only(batch).last_seen_at == NOON + seconds(11)


def test_a_made_up_entry_id_is_clamped() -> None:
    """An explicit stream id of far in the future counts as received when it was read."""
    batch = new_batch(registered())
    message = heartbeat(next(iter(batch.agents)))
    apply_wire(batch, message.to_wire(), f"{2**64 - 1}-{2**64 - 1}")
    assert only(batch).last_seen_at == batch.facts.now
    assert 0 < arrival(f"{2**64 - 1}-{2**64 - 1}", batch.facts.now)[1] < 2**63


def test_a_heartbeat_of_an_unknown_session_is_rejected() -> None:
    """Without a registration a heartbeat is set aside, and the sender that waits is told."""
    batch = new_batch()
    session_id = new_message_id()
    message = heartbeat(session_id, reply=True)
    apply(batch, message, 1)
    (row,) = batch.rejected
    assert (row["reason"], row["session_id"]) == ("unknown_session", session_id)
    assert row["raw"] == message.to_wire()
    ((message_id, reply),) = batch.replies
    assert (message_id, reply.ok, reply.code) == (message.id, False, "unknown_session")


def test_the_answer_says_what_sql_says() -> None:
    """A sender that waits gets the session, the agent's name, when it counts as seen, and its progress."""
    batch = new_batch(registered("hint"))
    message = heartbeat(next(iter(batch.agents)), progress="3 of 5", buffered_seconds=1.0, reply=True)
    apply(batch, message, 5)
    ((message_id, reply),) = batch.replies
    assert (message_id, reply.ok, reply.agent_name) == (message.id, True, "hint")
    assert (reply.timestamp, reply.progress) == (from_milliseconds(NOON + seconds(4)), "3 of 5")


def degraded(**fields: Any) -> AgentRecord:
    """Return an agent that was seen 10 s after noon and then flagged."""
    batch = new_batch(registered(**fields))
    apply(batch, heartbeat(next(iter(batch.agents))), 10)
    return replace(only(batch), state=State.DEGRADED)


def test_a_degraded_agent_recovers() -> None:
    """A heartbeat whose deadline lies after the watermark makes the agent ok again, with one event."""
    batch = new_batch(degraded(), watermark=100)
    apply(batch, heartbeat(next(iter(batch.agents))), 110)
    assert only(batch).state is State.OK
    (event,) = batch.events
    assert (event["type"], event["occurred_at"]) == ("recovered", NOON + seconds(110))
    stored_at = from_milliseconds(batch.facts.now).isoformat()
    assert event["detail"] == {"silent_seconds": 100.0, "stored_at": stored_at}


def test_a_spooled_heartbeat_revives_nobody() -> None:
    """A heartbeat so old that its own deadline has passed fills history and leaves the agent degraded."""
    batch = new_batch(degraded(), watermark=200)
    apply(batch, heartbeat(next(iter(batch.agents)), buffered_seconds=180), 210)
    assert (only(batch).state, only(batch).last_seen_at) == (State.DEGRADED, NOON + seconds(30))
    assert (kinds(batch), len(batch.heartbeats)) == ([], 1)


def test_an_agent_that_was_never_seen_recovers_too() -> None:
    """An agent flagged while pending recovers with its first heartbeat."""
    silent = replace(registered(), state=State.DEGRADED)
    batch = new_batch(silent, watermark=100)
    apply(batch, heartbeat(silent.session_id), 110)
    assert (only(batch).state, kinds(batch)) == (State.OK, ["recovered"])


def paused(**fields: Any) -> AgentRecord:
    """Return an agent that was registered at noon and paused since."""
    return replace(registered(**fields), state=State.PAUSED)


def test_a_paused_agent_stays_so() -> None:
    """Heartbeats move its last sign and its deadline, are stored with what they say, and change no state."""
    batch = new_batch(paused(), watermark=100)
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id, progress="on"), 110)
    apply(batch, register("torv", session_id, interval_seconds=60.0), 120)
    agent = only(batch)
    assert (agent.state, agent.last_seen_at) == (State.PAUSED, NOON + seconds(110))
    assert agent.deadline_at == NOON + seconds(110 + 123)
    assert (agent.reports["progress"], kinds(batch)) == ("on", ["heartbeat", "registered"])


def test_a_pause_ends_with_its_session() -> None:
    """A goodbye, or a namesake, takes the pause along; a session that is opened anew isn't paused."""
    nothing = {"paused_at": None, "paused_until": None, "pause_reason": None}
    batch = new_batch(paused())
    session_id = next(iter(batch.agents))
    apply(batch, deregister(session_id), 10)
    assert nothing.items() <= only(batch).settings.items()
    apply(batch, register("torv", session_id), 20)
    assert only(batch).state is State.PENDING
    batch = new_batch(paused())
    apply(batch, register("torv"), 10)
    old = batch.agents[next(iter(batch.agents))]
    assert old.state is State.ENDED
    assert nothing.items() <= old.settings.items()


def test_silence_counts_from_the_end_of_a_pause() -> None:
    """A registration after a pause counts the deadline from its end; an older heartbeat that comes late, too."""
    batch = new_batch(replace(registered(), state=State.OK, resumed_at=NOON + seconds(1000)), watermark=1000)
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id, buffered_seconds=500), 1010)
    assert only(batch).last_seen_at == NOON + seconds(510)
    assert only(batch).deadline_at == NOON + seconds(1061.5)
    apply(batch, register("torv", session_id, interval_seconds=60.0), 1020)
    assert only(batch).deadline_at == NOON + seconds(1123)
    apply(batch, heartbeat(session_id), 1030)
    assert only(batch).deadline_at == NOON + seconds(1153)


def test_a_promise_is_told_whole() -> None:
    """The numbers of a registration are kept with the promise, judge from then on, and go with one that lacks them."""
    agent = registered(interval_seconds=10.0, missed_intervals=5, stuck_after=0)
    assert (agent.deadline_at, agent.settings["stuck_after"]) == (NOON + seconds(51), 0)
    batch = new_batch(agent)
    apply(batch, register("torv", agent.session_id, interval_seconds=10.0), 1)
    assert (only(batch).deadline_at, only(batch).settings["stuck_after"]) == (NOON + seconds(21), None)


def test_a_deadline_counts_no_outage() -> None:
    """Time after the heartbeat in which nobody watched moves the deadline that the heartbeat gives."""
    outage = (NOON + seconds(20), NOON + seconds(620))
    batch = new_batch(registered(), outages=(outage,))
    apply(batch, heartbeat(next(iter(batch.agents))), 10)
    assert only(batch).deadline_at == NOON + seconds(10 + 61.5 + 600)


def test_a_second_registration_updates() -> None:
    """A repeated registration changes promise and deadline, and moves neither registered_at nor last_seen_at."""
    agent = registered(project="p", metadata={"a": 1})
    batch = new_batch(agent)
    apply(batch, heartbeat(agent.session_id), 10)
    apply(batch, register("torv", agent.session_id, interval_seconds=100.0), 20)
    again = only(batch)
    assert (again.last_seen_at, again.registered_at) == (NOON + seconds(10), NOON)
    assert again.deadline_at == NOON + seconds(10 + 205)
    assert again.state is State.OK
    assert "project" not in again.settings  # what the second left out is kept
    assert "metadata" not in again.settings
    assert kinds(batch) == ["registered"]


def test_a_registration_may_change_to_a_schedule() -> None:
    """From an interval to cron and back: the promise that is left is gone from the row."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, register("torv", agent.session_id, schedule="15 * * * *", time_zone="Europe/Berlin"), 20)
    promise = only(batch).promise
    assert (promise.interval_seconds, promise.schedule, promise.time_zone) == (None, "15 * * * *", "Europe/Berlin")
    assert only(batch).promised
    assert only(batch).deadline_at == NOON + seconds(75 * 60 + 60)
    apply(batch, register("torv", agent.session_id), 30)
    assert (only(batch).promise.schedule, only(batch).promise.time_zone) == (None, None)


def test_a_deregistration_ends_the_session() -> None:
    """An end keeps what was said, tells how long the session lived, and gives its tasks back."""
    agent = registered("kami")
    batch = new_batch(agent)
    message = deregister(agent.session_id, error="out of work", exit_status=3)
    apply(batch, message, 90)
    ended = only(batch)
    assert (ended.state, ended.ended_at) == (State.ENDED, NOON + seconds(90))
    assert {"error": "out of work", "exit_status": 3}.items() <= ended.settings.items()
    (event,) = batch.events
    assert (event["type"], event["message_id"]) == ("deregistered", message.id)
    assert event["detail"] == {"lived_seconds": 90.0, "error": "out of work", "exit_status": 3}
    assert batch.idle_tasks_of == {"kami"}


def test_heartbeats_around_an_end() -> None:
    """A heartbeat that arrived before the end, or with it, is stored though it is read later; a later one is not."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, deregister(agent.session_id), 90)
    for after in (89, 90, 90.001):
        apply(batch, heartbeat(agent.session_id), after)
    assert len(batch.heartbeats) == 2
    assert refused(batch) == ["session_ended"]
    assert (only(batch).state, only(batch).last_seen_at) == (State.ENDED, NOON + seconds(90))


def test_a_message_that_was_sent_twice_changes_nothing_more() -> None:
    """The second copy of a registration doesn't open the session that ended in between; a second goodbye is told."""
    message, goodbye, again = register(), *(deregister(new_message_id(), error=text) for text in ("full", "late"))
    ends = [end.model_copy(update={"session_id": message.session_id}) for end in (goodbye, again)]
    batch = new_batch()
    for after, each in enumerate((message, ends[0], message, ends[0], ends[1], ends[1])):
        apply(batch, each, after)
    found = only(batch)
    assert (found.state, found.ended_at, found.settings["error"]) == (State.ENDED, NOON + seconds(1), "full")
    assert kinds(batch) == ["registered", "deregistered", "deregistered"]
    assert batch.events[-1]["detail"] == {"error": "late"}
    assert refused(batch) == []


STEPS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"kind": st.just("beat")},
            optional={"progress": st.sampled_from("ab"), "error": st.sampled_from(["", "e"]), "metadata": st.just({})},
        ),
        st.fixed_dictionaries(
            {"kind": st.just("register")},
            optional={"work": st.sampled_from("xy"), "metadata": st.just({"of": "it"})},
        ),
        st.fixed_dictionaries({"kind": st.just("end")}, optional={"error": st.just("of the end")}),
    ),
    max_size=8,
)


@given(steps=STEPS, data=st.data())
def test_the_lane_may_be_ahead_of_heartbeats(steps: list[dict[str, Any]], data: st.DataObject) -> None:
    """A registration or an end leaves the same whether it is applied in its time, or before heartbeats of before it."""
    session_id = new_message_id()
    make = {"beat": heartbeat, "register": lambda key, **said: register("torv", key, **said), "end": deregister}
    messages: list[Any] = [register("torv", session_id)]
    for step in steps:
        messages.append(make[step["kind"]](session_id, **{name: said for name, said in step.items() if name != "kind"}))
        if step["kind"] == "end":
            break
    lane = [place for place, message in enumerate(messages) if not isinstance(message, Heartbeat)]
    beats = [place for place, message in enumerate(messages) if isinstance(message, Heartbeat)]
    ahead = []
    while lane or beats:
        is_due = lane and (not beats or lane[0] < beats[0] or data.draw(st.booleans()))
        ahead.append((lane if is_due else beats).pop(0))

    def left_by(order: Sequence[int]) -> tuple[Any, ...]:
        batch, row = new_batch(), {}
        for place in order:
            apply(batch, messages[place], 10 * place)
            row |= {**only(batch).settings, **only(batch).reports}
            batch = new_batch(only(batch))
        words = [row.get(name) for name in ("progress", "current_work", "metadata", "error", "ended_at")]
        found = only(batch)
        return words, found.state, found.last_seen_at, found.promise, found.deadline_at * (found.ended_at is None)

    assert left_by(ahead) == left_by(range(len(messages)))


def test_a_newer_registration_reopens() -> None:
    """A registration after the end opens the session anew, pending, measured from there, with the old error gone."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, heartbeat(agent.session_id), 10)
    apply(batch, deregister(agent.session_id, error="x", exit_status=1), 90)
    apply(batch, register("torv", agent.session_id), 100)
    again = only(batch)
    assert (again.state, again.ended_at, again.registered_at) == (State.PENDING, None, NOON + seconds(100))
    assert again.deadline_at == NOON + seconds(161.5)
    assert (again.settings["error"], again.settings["exit_status"]) == (None, None)
    apply(batch, heartbeat(agent.session_id), 105)
    assert again.state is State.OK


def live_sessions(batch: Changeset, name: str) -> set[UUID]:
    return {a.session_id for a in batch.agents.values() if a.agent_name == name and a.ended_at is None}


def test_a_name_has_one_live_session() -> None:
    """A registration under the name of a live session ends that one, and says by whom it was superseded."""
    older = registered("rams")
    batch = new_batch(older)
    newer = register("rams")
    apply(batch, newer, 60)
    assert live_sessions(batch, "rams") == {newer.session_id}
    assert kinds(batch) == ["registered", "deregistered"]
    assert batch.events[1]["detail"] == {"lived_seconds": 60.0, "superseded_by": str(newer.session_id)}
    assert batch.idle_tasks_of == {"rams"}


def test_a_superseded_session_ends_where_the_newer_begins() -> None:
    """What the superseded session sent before the newer registration is stored, what it sent later is rejected."""
    older = registered("rams")
    batch = new_batch(older)
    apply(batch, register("rams"), 60)
    apply(batch, heartbeat(older.session_id), 59)
    apply(batch, heartbeat(older.session_id), 61)
    assert (len(batch.heartbeats), refused(batch)) == (1, ["session_ended"])


def test_parallel_sessions_leave_each_other_alone() -> None:
    """A parallel registration ends nobody, and nobody who isn't parallel ends it."""
    plain = registered("rams")
    batch = new_batch(plain)
    company, newer = register("rams", parallel=True), register("rams")
    apply(batch, company, 10)
    assert live_sessions(batch, "rams") == {plain.session_id, company.session_id}
    apply(batch, newer, 20)
    assert live_sessions(batch, "rams") == {company.session_id, newer.session_id}


def test_a_repeated_stable_registration_ends_nothing() -> None:
    """The session that is derived from a name may be registered again and again, as a cron line does."""
    session_id = stable_session_id("hint")
    batch = new_batch(registered("hint", session_id=session_id))
    apply(batch, register("hint", session_id), 60)
    assert (live_sessions(batch, "hint"), kinds(batch)) == ({session_id}, ["registered"])


def test_a_renamed_session_takes_the_name() -> None:
    """A session that registers again under another name ends the live session of that name."""
    one, other = registered("one"), registered("other")
    batch = new_batch(one, other)
    apply(batch, register("other", one.session_id), 10)
    assert live_sessions(batch, "other") == {one.session_id}
    assert live_sessions(batch, "one") == set()


def test_a_delegate_names_its_parent() -> None:
    """A delegate with a known parent is registered, also in one go with it; one with an unknown parent is rejected."""
    parent = registered("parent")
    batch = new_batch(parent)
    child, orphan = register("child", parent_id=parent.session_id), register("orphan", parent_id=new_message_id())
    apply(batch, child, 1)
    apply(batch, orphan, 2)
    assert batch.agents[child.session_id].settings["parent_id"] == parent.session_id
    assert refused(batch) == ["unknown_parent"]
    assert orphan.session_id not in batch.agents


def test_a_rejected_message_keeps_its_first_bytes_only() -> None:
    """What is set aside takes no more room than a message may."""
    batch = new_batch()
    apply_wire(batch, b"x" * 100_000, "1-0")
    assert (refused(batch), len(batch.rejected[0]["raw"])) == (["too_large"], 32 * 1024)


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[" * 20_000, "not_json"),
        (b'{"kind": "heartbeat", "open_tasks": NaN}', "invalid"),
        (b"null", "invalid"),
        (b"[]", "invalid"),
        (b"{}", "invalid"),
        (b'{"kind": "import"}', "invalid"),
        (b"x" * 40_000, "too_large"),
    ],
)
def test_what_is_no_message_is_told_apart(wire: bytes, reason: str) -> None:
    """Each kind of bytes that is no message gets its own reason, and its neighbours are understood."""
    good = register()
    raw = [RawEntry(f"1-{number}", each) for number, each in enumerate((good.to_wire(), wire, good.to_wire()))]
    entries = decode(raw, 1, SESSIONS)
    assert [entry.message for entry in entries] == [good, None, good]
    error = entries[1].error
    assert error is not None
    assert error.reason == reason
    assert len(error.detail) <= 500
    assert error.detail.isprintable()


@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 3000), st.integers(0, 600), st.sampled_from([None, "a", "b"])), min_size=1
    ),
    data=st.data(),
)
def test_order_and_repetition_change_nothing(arrivals: list[tuple[int, int, str | None]], data: st.DataObject) -> None:
    """Heartbeats lead to the same last_seen_at and deadline in any order, in any batches, delivered any times."""
    agent = registered()
    messages = [
        (heartbeat(agent.session_id, buffered_seconds=waited, progress=text), after) for after, waited, text in arrivals
    ]
    shuffled = data.draw(st.permutations(messages + messages))
    cut = data.draw(st.integers(0, len(shuffled)))
    before = new_batch(agent)
    seen = []
    for message, after in shuffled[:cut]:
        apply(before, message, after)
        seen.append(only(before).last_seen_at)
    batch = new_batch(only(before))
    for message, after in shuffled[cut:]:
        apply(batch, message, after)
        seen.append(only(batch).last_seen_at)
    assert seen == sorted(seen)
    newest = max(NOON + seconds(after - waited) for after, waited, _ in arrivals)
    assert only(batch).last_seen_at == newest
    assert only(batch).deadline_at == max(newest, NOON) + seconds(61.5)


def test_a_late_heartbeat_keeps_its_text_and_loses_its_counts() -> None:
    """An older heartbeat says what no newer one has said, but with a newer one the tasks were counted."""
    batch = new_batch(registered("torv"), tasks={"torv": TaskCounts(open=2, stale=1)})
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id), 20)
    apply(batch, heartbeat(session_id, open_tasks=9, stale_tasks=9, status="busy"), 10)
    reports = only(batch).reports
    assert (reports["open_tasks"], reports["stale_tasks"], reports["status"]) == (2, 1, "busy")
    assert [(row["open_tasks"], row["stale_tasks"]) for row in heartbeats(batch)] == [(2, 1), (9, 9)]


def test_without_tasks_of_its_own_an_agent_keeps_the_counts_it_gave() -> None:
    """Other agents' tasks say nothing of an agent that counts its work itself, now and then."""
    batch = new_batch(registered("torv"), tasks={"hint": TaskCounts(open=2)})
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id), 20)
    apply(batch, heartbeat(session_id, open_tasks=9), 10)
    assert only(batch).reports["open_tasks"] == 9
    assert [row["open_tasks"] for row in heartbeats(batch)] == [None, 9]


def test_what_waited_in_a_spool_belongs_to_the_session_that_was_opened_before_it_arrived() -> None:
    """A run whose messages all arrive at once, after Redis was away, shows what it said."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, heartbeat(agent.session_id, summary="first run"), 1)
    apply(batch, deregister(agent.session_id), 2)
    apply(batch, register("torv", agent.session_id), 100)
    apply(batch, heartbeat(agent.session_id, summary="second run", buffered_seconds=5), 100, 1)
    found = only(batch)
    assert (found.reports["summary"], found.state, found.since) == ("second run", State.OK, NOON + seconds(100))


def stuck(**columns: Any) -> AgentRecord:
    """Return an agent that said `page 1` at noon, has said nothing else since, and was found stuck."""
    batch = new_batch(registered())
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id, progress="page 1", status="busy"), 0, 1)
    apply(batch, heartbeat(session_id, progress="page 1"), 100)
    return replace(only(batch), stuck_at=NOON + seconds(90), **columns)


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ({"progress": "page 2"}, True),
        ({"work_item_id": "W-1"}, True),
        ({"status": ""}, True),
        ({"progress": "page 1", "status": "busy"}, False),
        ({"progress": ""}, False),
        ({"summary": "new", "error": "new", "open_tasks": 7}, False),
        ({}, False),
    ],
)
def test_what_counts_as_doing_something_else(said: dict[str, Any], changes: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Another progress, work item or status does, and ends being stuck with one event and one notice."""
    batch = new_batch(stuck())
    apply(batch, heartbeat(next(iter(batch.agents)), **said), 200)
    agent = only(batch)
    assert agent.changed_at == NOON + seconds(200 if changes else 0)
    assert (agent.stuck_at is None) is changes
    assert kinds(batch).count("unstuck") == changes
    assert [notice.kind for notice in batch.notices] == ["unstuck"] * changes
    if changes:
        assert batch.notices[0].detail["unchanged_seconds"] == 200
        assert agent.settings == {"stuck_at": None}


def test_an_agent_that_says_nothing_has_not_changed() -> None:
    """Without progress, work item or status there is no moment from which on it could be stuck."""
    batch = new_batch(registered())
    apply(batch, heartbeat(next(iter(batch.agents)), summary="all well"), 1)
    assert only(batch).changed_at is None
    assert "changed_at" not in only(batch).reports


def test_a_late_heartbeat_with_other_words_is_a_change_in_between() -> None:
    """It came back to what it does now at the newest heartbeat at the latest; before the last change it is no news."""
    agent = stuck()
    batch = new_batch(agent)
    apply(batch, heartbeat(agent.session_id, progress="page 0", buffered_seconds=250), 200)
    assert (only(batch).changed_at, kinds(batch)) == (NOON, ["heartbeat"])
    apply(batch, heartbeat(agent.session_id, progress="page 3", buffered_seconds=150), 201)
    assert (only(batch).changed_at, only(batch).stuck_at) == (NOON + seconds(100), None)
    apply(batch, heartbeat(agent.session_id, progress="page 3", buffered_seconds=150), 201)
    assert kinds(batch).count("unstuck") == 1


def test_a_session_that_is_opened_anew_begins_anew() -> None:
    """What it said before its end is no reason to call it stuck."""
    agent = stuck()
    batch = new_batch(agent)
    apply(batch, deregister(agent.session_id), 200)
    apply(batch, register("torv", agent.session_id), 201)
    assert (only(batch).stuck_at, only(batch).changed_at) == (None, None)
    apply(batch, heartbeat(agent.session_id, progress="page 1"), 202)
    assert only(batch).changed_at == NOON + seconds(202)
    assert [(notice.kind, notice.detail["end"]) for notice in batch.notices] == [("unstuck", "deregistered")]


@pytest.mark.parametrize(
    ("columns", "told"), [({}, ["recovered"]), ({"flapping_at": NOON}, []), ({"incident_id": 3}, [])]
)
def test_whose_return_is_told(columns: dict[str, int], told: list[str]) -> None:
    """Everybody's but of those that flap or went silent in an open incident; the event is there each time."""
    batch = new_batch(replace(registered(), state=State.DEGRADED, last_seen_at=NOON, project="mail", **columns))
    session_id = next(iter(batch.agents))
    apply(batch, heartbeat(session_id), 500)
    assert (kinds(batch), [notice.kind for notice in batch.notices]) == (["recovered"], told)
    if told:
        (notice,) = batch.notices
        assert notice.key == f"recovered:{session_id}:{NOON + seconds(500)}"
        assert (notice.project, notice.detail["silent_seconds"]) == ("mail", 500)
        assert notice.detail["since"] == "2026-01-31T12:00:00+00:00"


def test_a_promise_that_is_gone_loses_no_heartbeat() -> None:
    """With a time zone that the machine lost the heartbeat counts as a sign, and moves neither deadline nor state."""
    agent = registered(interval_seconds=None, schedule="0 * * * *")
    batch = new_batch(replace(agent, promise=replace(agent.promise, time_zone="Mars/Olympus")))
    apply(batch, heartbeat(agent.session_id), 10)
    found = only(batch)
    assert (found.last_seen_at, found.deadline_at, found.state) == (
        NOON + seconds(10),
        agent.deadline_at,
        State.PENDING,
    )
    assert (len(batch.heartbeats), batch.rejected) == (1, [])


WORDS = st.fixed_dictionaries(
    {}, optional={"progress": st.sampled_from(["A", "B", ""]), "status": st.sampled_from(["x", "y", ""])}
)


def last_change(said: list[dict[str, str]]) -> int | None:
    """Return the place of the last heartbeat that said something new of what its agent does, by a plain count."""
    known: dict[str, str] = {}
    found = None
    for place, words in enumerate(said):
        given = {name: word for name, word in words.items() if name == "status" or word}
        if any(known.get(name) != word for name, word in given.items()):
            found = place
        known |= given
    return found


def found_change(said: list[dict[str, str]], places: list[int]) -> int | None:
    """Return the place of the last change as batches find it that get one heartbeat each, in the order of `places`."""
    agent = registered()
    for number, place in enumerate(places):
        batch = new_batch(agent)
        buffered = 100 + number - place
        apply(batch, heartbeat(agent.session_id, buffered_seconds=buffered, **said[place]), 200 + number)
        agent = only(batch)
    return None if agent.changed_at is None else (agent.changed_at - NOON - seconds(100)) // 1000


@given(st.lists(WORDS, max_size=8))
def test_the_last_change_is_that_of_a_plain_count(said: list[dict[str, str]]) -> None:
    """Whatever heartbeats say or leave out, in their order they give the moment of the last change."""
    assert found_change(said, list(range(len(said)))) == last_change(said)


@given(
    st.lists(st.sampled_from("AB"), min_size=1, max_size=8).flatmap(
        lambda said: st.tuples(st.just(said), st.permutations(range(len(said))))
    )
)
def test_out_of_order_a_change_is_never_taken_for_an_older_one(drawn: tuple[list[str], list[int]]) -> None:
    """In any order heartbeats give the last change, or a later moment: stuck too late, and never too early."""
    said = [{"progress": word} for word in drawn[0]]
    found, expected = found_change(said, drawn[1]), last_change(said)
    assert found is not None
    assert expected is not None
    assert found >= expected
