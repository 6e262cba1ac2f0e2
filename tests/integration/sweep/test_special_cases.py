"""Combinations of incidents, flapping, maintenance and pauses, on a simulated clock."""

from __future__ import annotations

from sqlalchemy import Engine

from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.downtime.maintenance import add_rule
from fleetbeat_worker.downtime.pauses import pause, resume
from fleetbeat_worker.notifications.messages import compose
from fleetbeat_worker.notifications.wording import Facts
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from helpers import events, notices, state
from simulated import NOON, Simulation, at


def sweep_until(fleet: Simulation, start: int, end: int) -> None:
    for second in range(start, end, 5):
        fleet.sweep(second)


def titles(engine: Engine, *kinds: str) -> list[str]:
    """Return the titles of the notifications."""
    found = []
    for row in notices(engine, *kinds):
        facts = Facts(NoticeKind(row.kind), row.key, row.agent_name, row.project, row.created_at, row.detail)
        found.append(compose(facts, row.created_at).title)
    return found


def times(engine: Engine, *kinds: str) -> list[float]:
    """Return the times of notifications, in seconds after noon."""
    return [(row.created_at - NOON).total_seconds() for row in notices(engine, *kinds)]


def test_an_agent_that_dies_while_it_flaps(database: Engine) -> None:
    """Its silence has no notice of its own, so the notice that it is calm says that it is degraded, and since when."""
    fleet = Simulation(database, flapping_changes=3)
    session_id = fleet.register("torv", 0)
    for second in (1, 27, 53):
        fleet.beat(session_id, second, progress=f"page {second}")
        fleet.sweep(second + 25)
    sweep_until(fleet, 80, 600)
    assert titles(database, "flapping", "calm") == ["torv is flapping, now ok", "torv is calm again, but degraded"]
    (calm,) = notices(database, "calm")
    assert (calm.detail["since"], calm.detail["progress"]) == (at(53).isoformat(), "page 53")


def test_reminders_due_in_maintenance_are_sent_after_it(database: Engine) -> None:
    """They are delayed until the end of the window, each is written once, and so is one due just before the window.

    Flagged at 60, with a reminder each hour: those of 3660 and 14460 are due in windows. That of 10860 is due just
    before one, without a sweep in between.
    """
    fleet = Simulation(database, notify_reminder_hours=1, sweep_seconds=60)
    fleet.sweep(0)
    fleet.register("torv", 0)
    with writing(database) as connection:
        for start, end in ((3600, 3720), (8000, 8100), (10_861, 10_980), (14_400, 14_520)):
            add_rule(connection, WindowRule(at(start), at(end)), at(0))
    for second in range(60, 15_000, 60):
        if second != 10_860:
            fleet.sweep(second)
    assert times(database, "degraded") == [60]
    assert times(database, "reminder") == [3720, 7260, 10_980, 14_520]
    assert [row.detail["number"] for row in notices(database, "reminder")] == [1, 2, 3, 4]


def test_a_silent_agent_is_not_stuck(database: Engine) -> None:
    """Even if its limit of missed intervals is higher than the one for stuck."""
    fleet = Simulation(database, stuck_after=3)
    promise = {"interval_seconds": 10.0, "grace_seconds": 1.0, "missed_intervals": 10}
    silent, circling = (fleet.register(name, 0, **promise) for name in ("silent", "circling"))
    fleet.beat(silent, 1, progress="page 7")
    for second in range(1, 120, 5):
        fleet.beat(circling, second, progress="page 7")
        fleet.sweep(second)
    found = [(row.kind, row.agent_name) for row in notices(database)]
    assert found == [("stuck", "circling"), ("degraded", "silent")]


def test_a_member_of_an_incident_that_was_paused_counts_once(database: Engine) -> None:
    """Members that are resumed and fall silent again don't count as more agents."""
    fleet = Simulation(database)
    names = [f"agent {number}" for number in range(5)]
    sessions = [fleet.register(name, 0) for name in names]
    sweep_until(fleet, 0, 30)
    for name in names[:2]:
        with writing(database) as connection:
            pause(connection, name, at(26), None, None)
            resume(connection, name, at(27), 2)
    sweep_until(fleet, 30, 60)
    first, again = notices(database, "incident")
    assert (first.detail["agents"], first.detail["live_agents"]) == (5, 5)
    assert (again.detail["agents"], again.detail["agents_before"], again.detail["live_agents"]) == (2, 5, 5)
    for session_id in sessions[:3]:
        fleet.beat(session_id, 60)
    fleet.sweep(61)
    (over,) = notices(database, "incident_over")
    assert (over.detail["agents"], over.detail["back"], over.detail["silent"]) == (5, 3, 2)


def test_a_member_that_recovered_and_fell_silent_alone_leaves_the_incident(database: Engine) -> None:
    """It gets notices of its own, and no longer counts in the incident."""
    fleet = Simulation(database)
    names = [f"agent {number}" for number in range(5)]
    sessions = [fleet.register(name, 0) for name in names]
    sweep_until(fleet, 0, 150)
    fleet.beat(sessions[0], 150)
    sweep_until(fleet, 150, 200)
    assert [row.agent_name for row in notices(database, "degraded")] == ["agent 0"]
    for session_id in sessions[1:3]:
        fleet.beat(session_id, 200)
    fleet.sweep(201)
    (over,) = notices(database, "incident_over")
    assert (over.detail["agents"], over.detail["back"], over.detail["names"]) == (4, 2, names[3:])
    fleet.beat(sessions[0], 202)
    sweep_until(fleet, 205, 300)
    assert [row.agent_name for row in notices(database, "recovered")] == ["agent 0"]


def test_an_overtaken_sweep_records_maintenance_once(database: Engine) -> None:
    """A sweep that read Redis before another one and commits after it records no window again."""
    fleet = Simulation(database)
    with writing(database) as connection:
        add_rule(connection, WindowRule(at(10), at(20)), at(0))
    running = [fleet.sweep(second).maintenance_since for second in (5, 10.1, 9.9, 12, 20.1, 19.9, 25)]
    assert running == [None, at(10), at(10), at(10), None, None, None]
    found = events(database, "maintenance", "maintenance_over")
    assert [(row.type, row.occurred_at) for row in found] == [("maintenance", at(10)), ("maintenance_over", at(20))]


def test_maintenance_after_the_clock_was_set_back(database: Engine) -> None:
    """A last sweep further in the future than a sweep can be late was before the change, and is ignored."""
    fleet = Simulation(database)
    fleet.sweep(7200)
    with writing(database) as connection:
        add_rule(connection, WindowRule(at(3600), at(3610)), at(3590))
    assert [fleet.sweep(second).maintenance_since for second in (3595, 3605, 3615)] == [None, at(3600), None]


def test_an_agent_registered_again_is_pending_after_a_pause(database: Engine) -> None:
    """After a pause only an agent with a heartbeat since its registration is ok."""
    fleet = Simulation(database)
    session_id = fleet.register("torv", 0)
    fleet.beat(session_id, 1)
    fleet.end(session_id, 2)
    fleet.register("torv", 5, session_id)
    with writing(database) as connection:
        pause(connection, "torv", at(6), None, None)
        assert [one.state for one in resume(connection, "torv", at(7), 2)] == ["pending"]
    assert state(database, session_id) == "pending"
    fleet.beat(session_id, 8)
    with writing(database) as connection:
        pause(connection, "torv", at(9), None, None)
        resume(connection, "torv", at(10), 2)
    assert state(database, session_id) == "ok"
