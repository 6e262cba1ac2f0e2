"""What sweeps find, and people are told of it, on a simulated clock."""

from __future__ import annotations

from sqlalchemy import Engine

from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.downtime.maintenance import add_rule
from fleetbeat_worker.downtime.pauses import pause, resume
from fleetbeat_worker.notifications.messages import Facts, compose
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from helpers import events, notices, state
from simulated import NOON, Simulation, at


def sweep_until(fleet: Simulation, start: int, end: int) -> None:
    for second in range(start, end, 5):
        fleet.sweep(second)


def titles(engine: Engine, *kinds: str) -> list[str]:
    """Return the titles of what was told."""
    told = []
    for row in notices(engine, *kinds):
        facts = Facts(NoticeKind(row.kind), row.key, row.agent_name, row.project, row.created_at, row.detail)
        told.append(compose(facts, row.created_at).title)
    return told


def moments(engine: Engine, *kinds: str) -> list[float]:
    """Return when something was told, in seconds after noon."""
    return [(row.created_at - NOON).total_seconds() for row in notices(engine, *kinds)]


def test_an_agent_that_dies_while_it_flaps_is_told_of_as_degraded(database: Engine) -> None:
    """Its single changes are no longer told by then, so what says that it is calm says that it is silent, and since."""
    fleet = Simulation(database, flapping_changes=3)
    session_id = fleet.register("torv", 0)
    for second in (1, 27, 53):
        fleet.beat(session_id, second, progress=f"page {second}")
        fleet.sweep(second + 25)
    sweep_until(fleet, 80, 600)
    assert titles(database, "flapping", "calm") == ["torv is flapping, now ok", "torv is calm again, but degraded"]
    (calm,) = notices(database, "calm")
    assert (calm.detail["since"], calm.detail["progress"]) == (at(53).isoformat(), "page 53")


def test_a_reminder_that_comes_due_in_maintenance_comes_after_it(database: Engine) -> None:
    """Nobody is woken in the window; afterwards each reminder comes once, also one of just before it, and none again.

    Flagged at 60, with a reminder each hour: those of 3660 and 14460 lie in windows. That of 10860 lies just before
    one, and no sweep came in between.
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
    assert moments(database, "degraded") == [60]
    assert moments(database, "reminder") == [3720, 7260, 10_980, 14_520]
    assert [row.detail["number"] for row in notices(database, "reminder")] == [1, 2, 3, 4]


def test_who_beats_no_more_is_not_stuck(database: Engine) -> None:
    """An agent that may miss more intervals than it may do the same for is never stuck when it is silent."""
    fleet = Simulation(database, stuck_after=3)
    promise = {"interval_seconds": 10.0, "grace_seconds": 1.0, "missed_intervals": 10}
    silent, circling = (fleet.register(name, 0, **promise) for name in ("silent", "circling"))
    fleet.beat(silent, 1, progress="page 7")
    for second in range(1, 120, 5):
        fleet.beat(circling, second, progress="page 7")
        fleet.sweep(second)
    told = [(row.kind, row.agent_name) for row in notices(database)]
    assert told == [("stuck", "circling"), ("degraded", "silent")]


def test_who_was_paused_in_an_incident_is_counted_once(database: Engine) -> None:
    """Members that are resumed and fall silent anew are members as before: never more agents than there are."""
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


def test_who_left_an_incident_is_not_told_as_back(database: Engine) -> None:
    """A member that came back and fell silent by itself is told of by its name, and no longer counts in it."""
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


def test_an_overtaken_sweep_tells_maintenance_no_second_time(database: Engine) -> None:
    """A sweep that looked before another and decides after it begins and ends no window once more."""
    fleet = Simulation(database)
    with writing(database) as connection:
        add_rule(connection, WindowRule(at(10), at(20)), at(0))
    running = [fleet.sweep(second).maintenance_since for second in (5, 10.1, 9.9, 12, 20.1, 19.9, 25)]
    assert running == [None, at(10), at(10), at(10), None, None, None]
    told = events(database, "maintenance", "maintenance_over")
    assert [(row.type, row.occurred_at) for row in told] == [("maintenance", at(10)), ("maintenance_over", at(20))]


def test_maintenance_goes_by_a_clock_that_was_turned_back(database: Engine) -> None:
    """A look that lies further in the future than a sweep can be late was one of before: its time counts no longer."""
    fleet = Simulation(database)
    fleet.sweep(7200)
    with writing(database) as connection:
        add_rule(connection, WindowRule(at(3600), at(3610)), at(3590))
    assert [fleet.sweep(second).maintenance_since for second in (3595, 3605, 3615)] == [None, at(3600), None]


def test_who_was_heard_only_in_an_earlier_life_is_pending_after_a_pause(database: Engine) -> None:
    """The end of a pause makes nobody ok who wasn't heard since the session was opened anew."""
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
