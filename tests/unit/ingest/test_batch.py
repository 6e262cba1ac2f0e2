from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import permutations
from operator import itemgetter
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from fleetbeat_shared.identifiers import new_message_id, stable_session_id
from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_worker.broker.inbox import Entry
from fleetbeat_worker.broker.wire import understand
from fleetbeat_worker.ingest.batch import Batch
from fleetbeat_worker.ingest.session_state import HEARTBEAT_COLUMNS, AgentRecord, Facts, LifecycleEvent
from fleetbeat_worker.rules.enums import LIFECYCLE
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
) -> Batch:
    """Begin a batch an hour after noon, with agents as an earlier batch left them."""
    since = NOON + seconds(watermark) if watermark is not None else None
    facts = Facts(NOON + seconds(3600), since, list(outages), missed_limit=2, tasks=tasks or {})
    stored = {
        a.session_id: replace(a, settings={}, reports={}, is_new=False, seen=False, promised=False) for a in agents
    }
    return Batch(facts, stored)


def following(batch: Batch) -> Batch:
    """Begin a batch after another one, with what that stored; for this it is known which messages come."""
    lifecycles = {session_id: list(events) for session_id, events in batch.facts.lifecycles.items()}
    for event in batch.events:
        if event["type"] in LIFECYCLE:
            told = LifecycleEvent(event["type"], event["occurred_at"], event["message_id"], event["detail"])
            lifecycles.setdefault(event["session_id"], []).append(told)
    found = new_batch(*batch.agents.values())
    return replace(found, facts=replace(found.facts, lifecycles=lifecycles))


def apply(batch: Batch, message: Register | Heartbeat | Deregister, after: float, sequence: int = 0) -> Entry:
    """Apply a message that arrived some seconds after noon."""
    entry = Entry(f"{NOON + seconds(after)}-{sequence}", message.to_wire())
    batch.apply(entry, message)
    return entry


def registered(name: str = "torv", **fields: Any) -> AgentRecord:
    """Return an agent that was registered at noon in an earlier batch; 30 s, grace 1.5 s unless told otherwise."""
    batch = new_batch()
    message = register(name, **fields)
    apply(batch, message, 0)
    return batch.agents[message.session_id]


def kinds(batch: Batch) -> list[str]:
    return [event["type"] for event in batch.events]


def heartbeats(batch: Batch) -> list[dict[str, Any]]:
    return [dict(zip(HEARTBEAT_COLUMNS, row, strict=True)) for row in batch.heartbeats]


def refused(batch: Batch) -> list[str]:
    return [row["reason"] for row in batch.rejected]


def only(batch: Batch) -> AgentRecord:
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
    batch.apply(Entry("18446744073709551615-18446744073709551615", message.to_wire()), message)
    assert only(batch).last_seen_at == batch.facts.now
    assert 0 < Entry("18446744073709551615-18446744073709551615", b"").arrival(batch.facts.now)[1] < 2**63


def test_a_heartbeat_of_an_unknown_session_is_rejected() -> None:
    """Without a registration a heartbeat is set aside, waits for it, and the sender that waits is told."""
    batch = new_batch()
    session_id = new_message_id()
    message = heartbeat(session_id, reply=True)
    apply(batch, message, 1)
    (row,) = batch.rejected
    assert (row["reason"], row["session_id"], row["awaits_session_id"]) == ("unknown_session", session_id, session_id)
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


def test_what_a_registration_says_overrules_earlier_reports_only() -> None:
    """Of a report and a registration in one batch the later one wins, column by column."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, heartbeat(agent.session_id, progress="old", status="busy"), 1)
    apply(batch, register("torv", agent.session_id, work="new"), 2)
    assert only(batch).settings["current_work"] == "new"
    assert "current_work" not in only(batch).reports
    assert only(batch).reports["status"] == "busy"
    apply(batch, heartbeat(agent.session_id, progress="newest"), 3)
    assert only(batch).reports["current_work"] == "newest"


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


def test_an_end_is_idempotent() -> None:
    """A second end, or the same delivered again, is no fault, and changes nothing but what counts as after it."""
    agent = registered()
    batch = new_batch(agent)
    message = deregister(agent.session_id)
    apply(batch, message, 90)
    later = following(batch)
    apply(later, message, 90)
    apply(later, deregister(agent.session_id, error="again"), 95)
    assert later.rejected == []
    assert [(event["type"], event["detail"]) for event in later.events] == [("deregistered", {"error": "again"})]
    assert only(later).settings.keys() == {"lifecycle_entry"}
    assert only(later).ended_at == NOON + seconds(90)
    again = following(later)
    apply(again, message, 90)
    assert (again.events, only(again).settings) == ([], {})


def test_an_end_of_an_unknown_session_waits_for_it() -> None:
    """A deregistration may overtake its registration as well; it is kept with the session that it awaits."""
    batch = new_batch()
    message = deregister(new_message_id())
    apply(batch, message, 1)
    assert refused(batch) == ["unknown_session"]
    assert batch.rejected[0]["awaits_session_id"] == message.session_id


def test_heartbeats_around_an_end() -> None:
    """A heartbeat sent before the end is stored though it comes later; one sent after it is rejected."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, deregister(agent.session_id), 90)
    apply(batch, heartbeat(agent.session_id), 89)
    apply(batch, heartbeat(agent.session_id), 90, sequence=1)
    assert len(batch.heartbeats) == 1
    assert refused(batch) == ["session_ended"]
    assert batch.rejected[0]["awaits_session_id"] == agent.session_id
    assert (only(batch).state, only(batch).last_seen_at) == (State.ENDED, NOON + seconds(89))


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


def test_a_replayed_registration_reopens_nothing() -> None:
    """The same registration delivered again after the end leaves the session ended."""
    batch = new_batch()
    message = register()
    apply(batch, message, 0)
    apply(batch, deregister(message.session_id), 90)
    later = following(batch)
    apply(later, message, 0)
    assert (only(later).state, later.events, only(later).settings) == (State.ENDED, [], {})


def test_an_overtaken_registration_opens_the_session_earlier() -> None:
    """Of two registrations the later one by stream says what is promised, the earlier one since when silence counts."""
    session_id = new_message_id()
    batch = new_batch()
    apply(batch, register("torv", session_id, interval_seconds=100.0), 10)
    apply(batch, register("torv", session_id, interval_seconds=20.0), 5)
    found = only(batch)
    assert (found.promise.interval_seconds, found.registered_at) == (100, NOON + seconds(5))
    assert found.deadline_at == NOON + seconds(5 + 200 + 5)


def test_a_registration_that_was_sent_twice_counts_from_its_first_copy() -> None:
    """The first copy may be stored last, and is told by no second event."""
    batch = new_batch()
    message = register()
    apply(batch, message, 18)
    later = following(batch)
    apply(later, message, 0)
    assert (only(later).registered_at, later.events) == (NOON, [])
    assert only(later).deadline_at == NOON + seconds(61.5)


def test_what_was_said_between_two_overtaken_messages_counts() -> None:
    """After an end and a registration, both overtaken by the next registration, a heartbeat says how the agent is."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, register("torv", agent.session_id), 100)
    apply(batch, deregister(agent.session_id, error="gone"), 40)
    batch = following(batch)
    apply(batch, register("torv", agent.session_id), 60)
    apply(batch, heartbeat(agent.session_id, progress="page 3"), 65)
    found = only(batch)
    assert (found.registered_at, found.last_seen_at, found.state) == (
        NOON + seconds(60),
        NOON + seconds(65),
        State.OK,
    )
    assert found.deadline_at == NOON + seconds(65 + 61.5)
    assert found.reports["current_work"] == "page 3"
    assert "error" not in found.settings


STEPS = st.lists(st.tuples(st.sampled_from("rde"), st.sampled_from([None, "a", "b"])), min_size=1, max_size=7)


@given(steps=STEPS, data=st.data())
def test_what_opens_and_ends_sessions_leads_to_the_same_in_any_order(
    steps: list[tuple[str, str | None]], data: st.DataObject
) -> None:
    """Registrations, ends and heartbeats, in any order and any batches, delivered any times."""
    session_id = new_message_id()
    make = {"r": register_again, "d": end_of, "e": heartbeat_of}
    messages = [(register("torv", session_id), 0)]
    messages += [(make[kind](session_id, text), 10 * (1 + place)) for place, (kind, text) in enumerate(steps)]
    shuffled = [*data.draw(st.permutations(messages[1:] + messages)), *messages[:1]]
    first = next(place for place, (message, _) in enumerate(shuffled) if message.kind == "register")
    shuffled.insert(0, shuffled.pop(first))
    expected, found = play(messages, [0] * len(messages)), play(shuffled, data.draw(cuts(len(shuffled))))
    assert (found.ended_at is None) == (expected.ended_at is None)
    if expected.ended_at is None:
        assert (found.promise, found.registered_at) == (expected.promise, expected.registered_at)
        assert (found.deadline_at, found.state) == (expected.deadline_at, expected.state)


def register_again(session_id: UUID, text: str | None) -> Register:
    return register("torv", session_id, interval_seconds=30.0 if text is None else 60.0)


def end_of(session_id: UUID, _: str | None) -> Deregister:
    return deregister(session_id)


def heartbeat_of(session_id: UUID, text: str | None) -> Heartbeat:
    return heartbeat(session_id, progress=text)


def cuts(count: int) -> st.SearchStrategy[list[int]]:
    """Return strategies of how many messages each of some batches has."""
    return st.lists(st.integers(0, 3), min_size=count, max_size=count)


def play(messages: Sequence[tuple[Register | Heartbeat | Deregister, int]], sizes: list[int]) -> AgentRecord:
    """Apply messages in batches, and those that waited for a registration after them, as a controller does."""
    batch, left, waiting = new_batch(), 0, []
    for (message, after), size in zip(messages, sizes, strict=True):
        if left == 0:
            batch, left = following(batch), size
        else:
            left -= 1
        refused_before = len(batch.rejected)
        apply(batch, message, after)
        if len(batch.rejected) > refused_before:
            waiting.append((message, after))
    batch = following(batch)
    for message, after in sorted(waiting, key=itemgetter(1)):
        if only(batch).ended_at is None and NOON + seconds(after) >= only(batch).registered_at:
            apply(batch, message, after)
    return only(batch)


def test_an_end_that_was_overtaken_by_a_registration_is_ignored() -> None:
    """An end older than the newest registration doesn't end the session that it reopened."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, register("torv", agent.session_id), 100)
    apply(batch, deregister(agent.session_id), 90)
    assert only(batch).state is not State.ENDED


@pytest.mark.parametrize("in_order", [True, False])
def test_an_end_that_was_overtaken_takes_the_old_silence_with_it(in_order: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A session that ended and was opened anew is pending from there, whichever of the two messages is read first."""
    agent = registered()
    agent.state, agent.last_seen_at = State.DEGRADED, NOON + seconds(1)
    batch = new_batch(agent)
    end, again = deregister(agent.session_id), register("torv", agent.session_id)
    steps = [(end, 90), (again, 100)]
    for message, after in steps if in_order else steps[::-1]:
        apply(batch, message, after)
    found = only(batch)
    assert (found.state, found.ended_at, found.registered_at) == (State.PENDING, None, NOON + seconds(100))
    assert (found.last_seen_at, found.deadline_at) == (NOON + seconds(1), NOON + seconds(161.5))
    assert sorted(kinds(batch)) == ["deregistered", "registered"]
    replay = following(batch)
    apply(replay, end, 90)
    assert (replay.events, only(replay).seen) == ([], False)


def test_an_end_that_was_overtaken_revokes_no_newer_heartbeat() -> None:
    """A heartbeat of after the registration counts, also when the end of before comes last."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, register("torv", agent.session_id), 100)
    apply(batch, heartbeat(agent.session_id), 105)
    apply(batch, deregister(agent.session_id), 90)
    found = only(batch)
    assert (found.state, found.registered_at, found.deadline_at) == (
        State.OK,
        NOON + seconds(100),
        NOON + seconds(166.5),
    )


@pytest.mark.parametrize(("paused_after", "expected"), [(50, State.PENDING), (101, State.PAUSED)])
def test_an_end_that_was_overtaken_takes_the_old_pause_with_it(paused_after: float, expected: State) -> None:
    """A pause of the session that ended, ends with it; one of after the registration stays."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, register("torv", agent.session_id), 100)
    only(batch).state, only(batch).state_changed_at = State.PAUSED, NOON + seconds(paused_after)
    apply(batch, deregister(agent.session_id), 90)
    assert only(batch).state is expected
    assert ("paused_at" in only(batch).settings) is (expected is State.PENDING)


def live_sessions(batch: Batch, name: str) -> set[UUID]:
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


def test_the_newer_registration_keeps_the_name_in_any_order() -> None:
    """Two registrations under one name leave the later one by stream alive, also if it was read first."""
    first, second = register("rams"), register("rams")
    for messages in permutations([(first, 10), (second, 20)]):
        batch = new_batch()
        for message, after in messages:
            apply(batch, message, after)
        assert live_sessions(batch, "rams") == {second.session_id}


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
    """A delegate with a known parent is registered; one with an unknown parent is rejected, and waits for it."""
    parent = registered("parent")
    batch = new_batch(parent)
    child, orphan = register("child", parent_id=parent.session_id), register("orphan", parent_id=new_message_id())
    apply(batch, child, 1)
    apply(batch, orphan, 2)
    assert batch.agents[child.session_id].settings["parent_id"] == parent.session_id
    assert refused(batch) == ["unknown_parent"]
    assert batch.rejected[0]["awaits_session_id"] == orphan.parent_id
    assert orphan.session_id not in batch.agents


def test_a_rejected_message_keeps_its_first_bytes_only() -> None:
    """What is set aside takes no more room than a message may."""
    batch = new_batch()
    entry = Entry("1-0", b"x" * 100_000)
    messages, failures = understand([entry])
    assert messages == []
    batch.reject(entry, failures[0][1].reason, failures[0][1].detail)
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
    entries = [Entry("1-0", good.to_wire()), Entry("1-1", wire), Entry("1-2", good.to_wire())]
    messages, failures = understand(entries)
    assert [entry.id for entry, _ in messages] == ["1-0", "1-2"]
    ((entry, error),) = failures
    assert (entry.id, error.reason) == ("1-1", reason)
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


def test_a_second_goodbye_counts_against_an_earlier_registration() -> None:
    """A session that ended twice stays ended when the registration between the two ends comes last, by the second."""
    agent = registered()
    batch = new_batch(agent)
    apply(batch, deregister(agent.session_id), 1)
    apply(batch, deregister(agent.session_id, error="full", exit_status=3), 3)
    apply(batch, register("torv", agent.session_id), 2)
    found = only(batch)
    assert (found.state, found.registered_at, found.ended_at) == (State.ENDED, NOON + seconds(2), NOON + seconds(3))
    assert {"error": "full", "exit_status": 3}.items() <= found.settings.items()
    assert kinds(batch) == ["deregistered", "deregistered", "registered"]


def test_an_end_of_an_ended_session_is_known_to_what_comes_late() -> None:
    """The session that is open now was opened after it, whatever was opened before it."""
    agent = registered()
    batch = new_batch(agent)
    for message, after in (
        (deregister(agent.session_id), 10),
        (deregister(agent.session_id), 30),
        (register("torv", agent.session_id), 38),
        (register("torv", agent.session_id), 20),
    ):
        apply(batch, message, after)
        batch = following(batch)
    assert (only(batch).registered_at, only(batch).deadline_at) == (NOON + seconds(38), NOON + seconds(99.5))


def test_messages_of_one_millisecond_are_in_the_order_in_which_they_were_made() -> None:
    """All that an agent kept while Redis was away may arrive at once; delivered again, it changes nothing."""
    agent = registered()
    steps = [deregister(agent.session_id), register("torv", agent.session_id)]
    made = [message.model_copy(update={"id": UUID(int=number << 80 | 7 << 76)}) for number, message in enumerate(steps)]
    batch = new_batch(agent)
    for sequence, message in enumerate(made):
        apply(batch, message, 10, sequence)
    apply(batch, heartbeat(agent.session_id), 15)
    apply(batch, register("torv", agent.session_id), 20)
    batch = following(batch)
    apply(batch, made[0], 10)
    found = only(batch)
    assert (found.registered_at, found.state, batch.events) == (NOON + seconds(10), State.OK, [])
    late = new_batch(agent)
    apply(late, register("torv", agent.session_id), 20)
    for sequence, message in reversed(list(enumerate(made))):
        apply(late, message, 10, sequence)
    assert only(late).registered_at == NOON + seconds(10)


def test_an_older_registration_leaves_a_degraded_agent_degraded() -> None:
    """It says since when the agent is silent, and nothing that would end its silence."""
    agent = replace(registered(), registered_at=NOON + seconds(30), state=State.DEGRADED)
    agent.lifecycle_entry = (NOON + seconds(30)) << 20
    batch = new_batch(agent)
    apply(batch, register("torv", agent.session_id), 20)
    assert (only(batch).registered_at, only(batch).state) == (NOON + seconds(20), State.DEGRADED)


def test_an_overtaken_end_ends_what_marked_the_session() -> None:
    """Opened anew, it neither is stuck with what it said before, nor does it flap."""
    agent = stuck(flapping_at=NOON + seconds(95))
    batch = new_batch(agent)
    apply(batch, register("torv", agent.session_id), 210)
    apply(batch, deregister(agent.session_id), 200)
    found = only(batch)
    assert (found.stuck_at, found.changed_at, found.flapping_at) == (None, None, None)
    assert {"stuck_at": None, "changed_at": None, "flapping_at": None}.items() <= found.settings.items()


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


def test_a_session_that_comes_after_the_newer_one_of_its_name_ended_when_that_began() -> None:
    """Not when it was registered, which is when it began to live."""
    older, newer = register("torv"), register("torv")
    batch = new_batch()
    apply(batch, newer, 20)
    apply(batch, older, 10)
    found = batch.agents[older.session_id]
    assert (found.registered_at, found.ended_at) == (NOON + seconds(10), NOON + seconds(20))


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
    for arrival, place in enumerate(places):
        batch = new_batch(agent)
        buffered = 100 + arrival - place
        apply(batch, heartbeat(agent.session_id, buffered_seconds=buffered, **said[place]), 200 + arrival)
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
