from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, delete, insert, update

from fleetbeat_shared.errors import FleetbeatError, UnknownSession
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.tables import Event, Liveness, StoredHeartbeat
from fleetbeat_worker.downtime import maintenance, pauses
from fleetbeat_worker.explain import verdict as explaining
from fleetbeat_worker.explain.explanation import Explanation
from fleetbeat_worker.explain.verdict import explain
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from fleetbeat_worker.workers.registry import WorkerHealth
from simulated import Simulation, at

SETTINGS = Settings()


@pytest.fixture
def ask(memory: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Explanation]:
    """Return what explains an agent, at `now` seconds after noon; `when` is a moment before that."""

    def ask(asked: str | UUID, now: float, when: float | None = None, **horizon: Any) -> Explanation:
        behind = Horizon(at(now), at(horizon.get("watermark", now)), horizon.get("backlog", 0))
        monkeypatch.setattr(explaining, "read_redis", lambda *_: (behind, WorkerHealth(1), None))
        client: Any = None
        return explain(SETTINGS, memory, client, asked, None if when is None else at(when))

    return ask


@pytest.fixture
def fleet(memory: Engine) -> tuple[Simulation, UUID]:
    """Return a fleet whose agent beats each 10 s until 50, is silent until 150, beats once, and dies.

    Nobody watched from 52 to 120.
    """
    fleet = Simulation(memory)
    session_id = fleet.register("torv", 0)
    for second in range(1, 60, 10):
        fleet.beat(session_id, second)
        fleet.sweep(second + 1)
    fleet.beat(session_id, 51.5, waited=30, clock_off=-86_400)
    for second in range(120, 200, 5):
        if second == 150:
            fleet.beat(session_id, second)
        fleet.sweep(second + 0.25, backlog=7)
    return fleet, session_id


def test_the_sum_behind_a_deadline_is_written_out(fleet: Any, ask: Callable[..., Explanation]) -> None:
    """A verdict of before has the last sign, the promise, the outage that moved the deadline, and who flagged it."""
    del fleet
    found = ask("torv", 200, 147)
    assert (found.state, found.held, found.missed) == ("degraded", False, 2)
    assert found.arithmetic.lines() == [
        "last heartbeat 2026-01-31 12:00:51 + 2 x 10s + 1s grace = 2026-01-31 12:01:12",
        "+ 68.25s for the outage from 2026-01-31 12:00:52 to 2026-01-31 12:02:00.250",
        "= 2026-01-31 12:02:20.250",
    ]
    assert found.flag is not None
    assert found.flag.flagged_at == at(145.25)
    assert found.flag.detail["backlog"] == 7


def test_now_is_explained_by_what_sql_has(fleet: Any, ask: Callable[..., Explanation]) -> None:
    """The verdict of now has the row's deadline, the pipeline, the last heartbeats in the order of their receipt."""
    _, session_id = fleet
    found = ask(session_id, 200, watermark=199, backlog=3)
    assert (found.state, found.as_of, found.held) == ("degraded", at(199), False)
    assert found.arithmetic.lines() == ["last heartbeat 2026-01-31 12:02:30 + 2 x 10s + 1s grace = 2026-01-31 12:02:51"]
    assert found.pipeline is not None
    assert found.pipeline.backlog == 3
    assert [beat.received_at for beat in found.heartbeats[-3:]] == [at(51), at(51.5), at(150)]
    assert [beat.counted for beat in found.heartbeats[-3:]] == [True, False, True]
    assert found.heartbeats[-2].waited_seconds == 30
    assert found.outages == ((1769860852000, 1769860920250),)
    assert (found.next_at, found.notes) == (None, ())
    assert ask("torv", 200).session_id == session_id


@pytest.mark.parametrize(
    ("when", "state", "says"),
    [
        (0.5, "pending", "degraded at 2026-01-31 12:00:21 unless a heartbeat comes"),
        (5, "ok", "late at 2026-01-31 12:00:12, degraded at 2026-01-31 12:00:22 unless a heartbeat comes"),
        (125, "ok", "late at 2026-01-31 12:02:10.250, degraded at 2026-01-31 12:02:20.250 unless a heartbeat comes"),
        (135, "late", "degraded at 2026-01-31 12:02:20.250 unless a heartbeat comes"),
        (140.27, "late", "degraded at the next sweep: its deadline was 2026-01-31 12:02:20.250"),
        (150.1, "ok", "late at 2026-01-31 12:02:41, degraded at 2026-01-31 12:02:51 unless a heartbeat comes"),
        (199, "degraded", "ok again with the next heartbeat that is recent enough"),
    ],
)
def test_each_moment_has_its_verdict_and_what_comes_next(
    fleet: Any, ask: Callable[..., Explanation], when: float, state: str, says: str
) -> None:
    """A moment of before is explained by what had been received by then, with what would have changed it next."""
    del fleet
    found = ask("torv", 200, when)
    assert (found.state, found.next) == (state, says)
    assert all(beat.received_at <= at(when) for beat in found.heartbeats)
    assert bool(found.notes) == (when == 140.27)


def test_in_an_outage_a_verdict_stands_still(fleet: Any, ask: Callable[..., Explanation]) -> None:
    """A moment at which nobody watched has the verdict of before it, held, and says so."""
    del fleet
    found = ask("torv", 200, 100)
    assert (found.state, found.held, found.as_of) == ("ok", True, at(52))
    assert found.notes == (
        "Nobody watched from 2026-01-31 12:00:52 to 2026-01-31 12:02:00.250, so nothing was judged at that time.",
    )


def test_what_the_pipeline_does_not_know_is_not_explained(fleet: Any, ask: Callable[..., Explanation]) -> None:
    """A moment after the watermark is explained as of it, and held; one that lies ahead is refused."""
    del fleet
    found = ask("torv", 205, 202, watermark=196)
    assert (found.held, found.as_of) == (True, at(196))
    assert found.notes == ("Nothing is known of after 2026-01-31 12:03:16: the pipeline is behind.",)
    with pytest.raises(FleetbeatError, match="lies ahead"):
        ask("torv", 200, 201)


def test_who_was_not_there_cannot_be_explained(fleet: Any, ask: Callable[..., Explanation]) -> None:
    """An unknown name, an unknown session and a moment before the registration have each their sentence."""
    del fleet
    for nobody in ("nobody", new_message_id()):
        with pytest.raises(UnknownSession, match="was ever registered"):
            ask(nobody, 200)
    with pytest.raises(FleetbeatError, match="torv was not registered yet at 2026-01-31 11:59:59 UTC"):
        ask("torv", 200, -1)


def test_a_schedule_has_its_slots(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """Of a cron schedule the slots that may be missed are named."""
    fleet = Simulation(memory)
    session_id = fleet.register("nightly", 0, schedule="15 8 * * *", time_zone="Europe/Berlin", grace_seconds=60)
    fleet.beat(session_id, 10)
    found = ask("nightly", 20)
    assert found.arithmetic.lines() == [
        (
            "last heartbeat 2026-01-31 12:00:10; slots after it: 2026-02-01 07:15, 2026-02-02 07:15; "
            "+ 1m grace = 2026-02-02 07:16:00"
        )
    ]
    assert found.arithmetic.late_at.isoformat() == "2026-02-01T07:16:00+00:00"


def test_a_promise_that_cannot_be_worked_out_is_said(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """Of an agent whose time zone this machine lacks there is a sentence instead of a sum."""
    Simulation(memory).register("lost", 0, schedule="* * * * *", time_zone="UTC")
    with writing(memory) as connection:
        connection.execute(update(Liveness).values(time_zone="Mars/Olympus"))
    with pytest.raises(FleetbeatError, match=r"The promise of lost can't be worked out here: .*Mars/Olympus"):
        ask("lost", 10)


def put(engine: Engine, kind: str, when: float, session_id: UUID | None = None) -> None:
    with writing(engine) as connection:
        values = {"type": kind, "occurred_at": at(when), "session_id": session_id}
        connection.execute(insert(Event).values(values))


def test_pauses_and_maintenance_start_the_clock_anew(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """While paused, or in a window, nothing is judged; afterwards the sum begins at its end."""
    fleet = Simulation(memory)
    session_id = fleet.register("torv", 0)
    fleet.beat(session_id, 1)
    for kind, when, whose in (
        ("paused", 10, session_id),
        ("resumed", 30, session_id),
        ("maintenance", 40, None),
        ("maintenance_over", 60, None),
    ):
        put(memory, kind, when, whose)
    paused = ask("torv", 100, 20)
    assert (paused.state, paused.state_since) == ("paused", at(10))
    assert ask("torv", 100, 35).arithmetic.lines()[0].startswith("end of the pause 2026-01-31 12:00:30 + 2 x 10s")
    assert ask("torv", 100, 50).next == "nothing until maintenance ends; its clock starts anew then"
    after = ask("torv", 100, 70)
    assert after.arithmetic.lines()[0].startswith("end of maintenance 2026-01-31 12:01:00 + 2 x 10s")
    assert [len(after.pauses), len(after.maintenance)] == [1, 1]
    with writing(memory) as connection:
        connection.execute(update(Liveness).values(resumed_at=at(30), deadline_at=at(51)))
    assert ask("torv", 65).arithmetic.deadline_at == at(81)


def test_later_windows_move_a_deadline(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """Without a sign between, only the first window starts the clock anew; what the others moved is a line each."""
    fleet = Simulation(memory)
    fleet.register("torv", 0, interval_seconds=30.0, grace_seconds=1.0)
    with writing(memory) as connection:
        for start in (20, 60, 100):
            maintenance.add_rule(connection, WindowRule(at(start), at(start + 10)), at(0))
    flagged = [second for second in range(5, 160, 5) if fleet.sweep(second).degraded]
    assert flagged == [115]
    assert ask("torv", 160, 65).next == "nothing until maintenance ends; its deadline moves by the time that it took"
    for found in (ask("torv", 160), ask("torv", 160, 140)):
        assert found.arithmetic.lines() == [
            "end of maintenance 2026-01-31 12:00:30 + 2 x 30s + 1s grace = 2026-01-31 12:01:31",
            "+ 10s for maintenance from 2026-01-31 12:01:00 to 2026-01-31 12:01:10",
            "+ 10s for maintenance from 2026-01-31 12:01:40 to 2026-01-31 12:01:50",
            "= 2026-01-31 12:01:51",
        ]
        assert found.flag is not None
        assert found.flag.detail["deadline_at"] == at(111).isoformat()
        assert [one["moved_seconds"] for one in found.arithmetic.to_json()["maintenance"]] == [10, 10]


def test_a_return_that_nobody_knew_of_is_none(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """A heartbeat that waited brings its agent back as of before the flag, and changes nothing of what held then."""
    fleet = Simulation(memory)
    session_id = fleet.register("torv", 0)
    fleet.beat(session_id, 1)
    for second in range(1, 30, 4):
        fleet.sweep(second)
    then = ask("torv", 27)
    fleet.beat(session_id, 30, waited=10)
    fleet.sweep(31)
    found = ask("torv", 31, 27)
    assert (found.state, found.state_since, found.flag) == (then.state, then.state_since, then.flag)
    assert (found.state, found.state_since) == ("degraded", at(25))
    assert found.notes == (
        "The heartbeat of 2026-01-31 12:00:20 that brought it back was stored at 2026-01-31 12:00:30.",
    )
    later = ask("torv", 31, 30.5)
    assert (later.state, later.state_since) == ("ok", at(20))


def test_an_agent_is_ok_since_what_came_last(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """It is ok since its return or the end of its pause, whichever came last, and since neither of an earlier life."""
    fleet = Simulation(memory)
    session_id = fleet.register("torv", 0)
    for second in range(1, 211, 4):
        if second in {1, 49, 105, 201}:
            fleet.beat(session_id, second)
        elif second == 61:
            with writing(memory) as connection:
                pauses.pause(connection, session_id, at(61), None, None)
        elif second == 101:
            with writing(memory) as connection:
                pauses.resume(connection, session_id, at(101), 2)
        elif second == 109:
            fleet.end(session_id, 109)
        elif second == 197:
            fleet.register("torv", 197, session_id)
        fleet.sweep(second)
    found = [ask("torv", 210, when) for when in (52, 103, 106, 205)]
    assert [one.state for one in found] == ["ok"] * 4
    assert [one.state_since for one in found] == [at(49), at(101), at(101), None]


def test_clocks_stand_still_in_maintenance(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """Whoever falls silent in a window is neither late nor overdue, now and in hindsight; who was late before stays so.

    The dashboard shows it so, and two commands that contradict each other are worth nothing.
    """
    fleet = Simulation(memory)
    gone, late, well = (fleet.register(name, -50) for name in ("gone", "late", "well"))
    with writing(memory) as connection:
        maintenance.add_rule(connection, WindowRule(at(20), at(80), reason="new switch"), at(-50))
    heard = {-30: gone, 5: late, 19: well}
    for second in range(-49, 61):
        if second in heard:
            fleet.beat(heard[second], second)
        fleet.sweep(second)
    for when in (None, 60):
        found = {name: ask(name, 61, when) for name in ("late", "well", "gone")}
        assert {name: one.state for name, one in found.items()} == {"late": "late", "well": "ok", "gone": "degraded"}
        assert (found["late"].missed, found["well"].missed, found["gone"].missed > 1) == (1, 0, True)
        assert found["well"].next == "nothing until maintenance ends; its clock starts anew then"
        assert not any("no sweep had flagged it" in note for one in found.values() for note in one.notes)


def test_maintenance_counts_before_a_sweep_tells_of_it(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """In the seconds until the next sweep a window that began or ended is known all the same, as on the dashboard."""
    fleet = Simulation(memory)
    session_id = fleet.register("torv", 0)
    fleet.beat(session_id, 1)
    with writing(memory) as connection:
        maintenance.add_rule(connection, WindowRule(at(5), at(40)), at(0))
    fleet.sweep(4)
    begun = ask("torv", 17)
    assert (begun.state, begun.missed, len(begun.maintenance)) == ("ok", 0, 1)
    assert begun.next == "nothing until maintenance ends; its clock starts anew then"
    fleet.sweep(18)
    for when in (None, 42):
        over = ask("torv", 43, when)
        assert (over.state, over.missed) == ("ok", 0)
        assert over.arithmetic.lines()[0].startswith("end of maintenance 2026-01-31 12:00:40 + 2 x 10s")
        assert [one.ended_at for one in over.maintenance] == [at(40)]


def test_who_was_not_heard_yet_is_pending_after_a_pause_and_maintenance(
    memory: Engine, ask: Callable[..., Explanation]
) -> None:
    """What starts a clock anew is no heartbeat, and neither is one of an earlier life."""
    fleet = Simulation(memory)
    fleet.sweep(0)
    promise = {"interval_seconds": 100.0, "grace_seconds": 1.0}
    torv, moor = (fleet.register(name, 0, **promise) for name in ("torv", "moor"))
    with writing(memory) as connection:
        pauses.pause(connection, torv, at(1), None, None)
        pauses.resume(connection, torv, at(5), 2)
    maintenance_at = WindowRule(at(12), at(20))
    with writing(memory) as connection:
        maintenance.add_rule(connection, maintenance_at, at(11))
    for second in (13, 21):
        fleet.sweep(second)
    for when, of_torv in ((7, at(5)), (23, at(5))):
        found = [ask(name, 25, when) for name in ("torv", "moor")]
        assert [(one.state, one.state_since) for one in found] == [("pending", of_torv), ("pending", at(0))]
    fleet.beat(moor, 30)
    fleet.end(moor, 31)
    fleet.register("moor", 40, moor, **promise)
    found = [ask("moor", 45, when) for when in (30.5, 42)]
    assert [(one.state, one.state_since) for one in found] == [("ok", None), ("pending", at(40))]


def test_an_ended_session_is_explained_and_an_earlier_one_at_its_time(
    memory: Engine, ask: Callable[..., Explanation]
) -> None:
    """Of a name the session is explained that was live at the moment, or else the last one before it."""
    fleet = Simulation(memory)
    first = fleet.register("torv", 0)
    fleet.end(first, 10)
    second = fleet.register("torv", 20)
    put(memory, "paused", 27, second)
    fleet.end(second, 30)
    found = [ask("torv", 100, when) for when in (5, 15, 25, 40)]
    assert [one.session_id for one in found] == [first, first, second, second]
    assert [one.state for one in found] == ["pending", "ended", "pending", "ended"]
    assert found[1].state_since == at(10)
    assert ask("torv", 100, 28).state == "paused"
    fleet.register("torv", 50, second)  # nobody resumed it, but its goodbye ended the pause
    assert ask("torv", 100, 60).state == "pending"
    fleet.end(second, 90)
    assert ask("torv", 100).state == "ended"


def test_other_sessions_of_a_name_are_mentioned(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """Of several live sessions the newest is explained, and the others are counted."""
    fleet = Simulation(memory)
    sessions = [fleet.register("torv", when, interval_seconds=10.0, parallel=True) for when in (0, 1, 2)]
    found = ask("torv", 10)
    assert found.session_id == sessions[2]
    assert found.notes == ("2 other sessions of this name were live too: --session ID explains one.",)
    assert ask("torv", 10, 1.5).notes == ("Another session of this name was live too: --session ID explains one.",)
    assert ask(sessions[0], 10).notes == ()


def test_what_is_no_longer_stored_is_said(fleet: Any, ask: Callable[..., Explanation], memory: Engine) -> None:
    """Without old events and heartbeats there are notes in place of certainty, and a deadline that nothing explains."""
    _, session_id = fleet
    with writing(memory) as connection:
        connection.execute(delete(Event).where(Event.type == "registered"))
        connection.execute(delete(StoredHeartbeat))
        connection.execute(update(Liveness).values(deadline_at=at(181)))
    found = ask("torv", 200)
    assert found.notes == (
        (
            "The event of its registration isn't stored (events are kept for 30 days), "
            "so its promise is taken to be the one of now."
        ),
        "No heartbeat of that time is stored (they are kept for 30 days).",
    )
    assert found.arithmetic.lines()[1:] == ["+ 10s for what isn't stored any more", "= 2026-01-31 12:03:01"]
    assert found.session_id == session_id


def test_the_keys_that_programs_rely_on(fleet: Any, ask: Callable[..., Explanation]) -> None:
    """The answer for programs has the documented keys, and aware moments."""
    del fleet
    answer = ask("torv", 200, 147).to_json()
    assert set(answer) == {
        *("agent_name", "session_id", "asked_at", "as_of", "verdict", "deadline", "flagged_by", "next", "heartbeats"),
        *("pauses", "maintenance", "outages", "pipeline", "notes", "stuck", "flapping", "ended"),
    }
    assert set(answer["verdict"]) == {"state", "since", "confidence", "missed_intervals"}
    assert isinstance(answer["deadline"]["deadline_at"], datetime)
    assert answer["flagged_by"]["swept_at"] == at(145.25).isoformat()
