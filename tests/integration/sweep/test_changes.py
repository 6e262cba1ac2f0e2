"""Notices of changes: one for each change, and one for an incident."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Engine, select, update

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.database.tables import Agent, Liveness, Notification
from fleetbeat_worker.downtime.maintenance import add_rule
from fleetbeat_worker.downtime.pauses import pause
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from fleetbeat_worker.sweep.job import sweep
from helpers import (
    agent,
    deregister,
    drain,
    enrol,
    events,
    heartbeat,
    let_pass,
    notices,
    redis_time,
    register,
    rejected,
    seconds,
    send,
    send_spread,
    state,
)
from simulated import Simulation, at


class Fleet:
    """A fleet whose agents promise a heartbeat every 5 s, with 1 s of grace, and its sweeps."""

    def __init__(self, engine: Engine, redis: Redis, settings: Settings) -> None:
        self.engine = engine
        self.redis = redis
        self.settings = settings
        self.sweep()

    def enrol(self, *names: str, **fields: Any) -> list[UUID]:
        """Register agents."""
        return enrol(self.redis, self.engine, self.settings, *names, **{"interval_seconds": 5.0, **fields})

    def beat(self, *sessions: UUID, **fields: Any) -> None:
        """Send and store a heartbeat of each of some sessions."""
        send(self.redis, *[heartbeat(session, **fields) for session in sessions])
        drain(self.redis, self.engine, self.settings)

    def sweep(self) -> list[str]:
        """Sweep once; return the names of the flagged agents."""
        return sorted(sweep(self.redis, self.engine, self.settings).degraded)

    def fall_silent(self, *but: UUID) -> list[str]:
        """Let the deadline pass for all but some sessions; return the names of the flagged agents."""
        let_pass(self.engine, 12)
        if but:
            self.beat(*but)
        return self.sweep()

    def notices(self, *kinds: str) -> list[tuple[str, str | None]]:
        """Return the kinds and the agents of the notices."""
        return [(notice.kind, notice.agent_name) for notice in notices(self.engine, *kinds)]

    def set(self, **settings: Any) -> None:
        """Continue with other settings."""
        self.settings = self.settings.model_copy(update=settings)


@pytest.fixture
def fleet(database: Engine, redis: Redis, quick: Settings) -> Fleet:
    return Fleet(database, redis, quick)


def test_silence_and_recovery_have_one_notice_each(
    fleet: Fleet, sweep_at_once: Callable[[Settings], list[str]]
) -> None:
    """Four sweeps at once write one notice, with the work of the agent; two heartbeats write one."""
    (session,) = fleet.enrol("torv", project="mail")
    fleet.beat(session, progress="reads", summary="half")
    assert fleet.notices() == []
    let_pass(fleet.engine, 12)
    since = agent(fleet.engine, session).last_seen_at
    sweep_at_once(fleet.settings)
    (notice,) = notices(fleet.engine)
    flagged = agent(fleet.engine, session)
    assert (notice.kind, notice.session_id, notice.agent_name, notice.project) == (
        "degraded",
        session,
        "torv",
        "mail",
    )
    assert notice.key == f"degraded:{session}:{round(flagged.state_changed_at.timestamp() * 1000)}"
    assert notice.detail["since"] == since.isoformat()
    expected = {"interval_seconds": 5.0, "grace_seconds": 1.0, "missed_limit": 2, "progress": "reads"}
    assert expected.items() <= notice.detail.items()
    assert (notice.detail["summary"], notice.detail["error"], notice.state) == ("half", None, "waiting")
    fleet.beat(session)
    fleet.beat(session)
    assert fleet.notices() == [("degraded", "torv"), ("recovered", "torv")]
    back = notices(fleet.engine, "recovered")[0].detail
    assert (back["since"], back["silent_seconds"]) == (since.isoformat(), pytest.approx(12, abs=10))
    assert (back["current_work"], back["summary"], back["last_seen_at"]) == ("reads", "half", since.isoformat())


def test_the_end_of_a_degraded_or_stuck_session_has_a_notice(fleet: Fleet) -> None:
    """It says whether the session was replaced or deregistered; the end of other sessions has none."""
    fleet.set(stuck_after=1)
    restarts, leaves = fleet.enrol("restarts", "leaves")
    (loops,) = fleet.enrol("loops", interval_seconds=20.0)
    fleet.beat(restarts, leaves, loops, progress="page 1")
    for _ in range(2):
        let_pass(fleet.engine, 15)
        fleet.beat(loops, progress="page 1")
        fleet.sweep()
    assert sorted(fleet.notices()) == [("degraded", "leaves"), ("degraded", "restarts"), ("stuck", "loops")]
    (again,) = fleet.enrol("restarts")
    fleet.beat(again)
    ends = [deregister(session, error="no disk", exit_status=3) for session in (leaves, loops, again)]
    send(fleet.redis, *ends, *ends)
    drain(fleet.redis, fleet.engine, fleet.settings)
    fleet.sweep()
    assert fleet.notices()[3:] == [("recovered", "restarts"), ("recovered", "leaves"), ("unstuck", "loops")]
    restarted, deregistered = (row.detail for row in notices(fleet.engine, "recovered"))
    assert (restarted["end"], restarted["exit_status"], restarted["progress"]) == ("restarted", None, "page 1")
    assert (deregistered["end"], deregistered["exit_status"], deregistered["error"]) == ("deregistered", 3, "no disk")
    assert restarted["silent_seconds"] == pytest.approx(30, abs=10)
    assert notices(fleet.engine, "unstuck")[0].detail["end"] == "deregistered"


def test_an_outage_has_one_notice(fleet: Fleet) -> None:
    """After ten minutes without sweeps there is one notice, with the facts of the event."""
    fleet.enrol("torv")
    let_pass(fleet.engine, 600)
    fleet.sweep()
    fleet.sweep()
    (notice,) = notices(fleet.engine)
    (event,) = events(fleet.engine, "outage")
    assert (notice.kind, notice.session_id, notice.detail) == ("outage", None, event.detail)
    assert (notice.detail["deadlines_moved"], notice.detail["seconds"]) == (1, pytest.approx(600, abs=20))


@pytest.mark.parametrize(
    ("silent", "live", "incident"),
    [(5, 9, True), (5, 10, False), (4, 4, False)],
    ids=["5 of 9", "exactly half", "4 of 4"],
)
def test_more_than_half_of_a_fleet_is_one_incident(
    fleet: Fleet,
    sweep_at_once: Callable[[Settings], list[str]],
    silent: int,
    live: int,
    incident: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Each agent has its flag and event either way; four sweeps at once write one notice, or one for each agent."""
    sessions = fleet.enrol(*[f"agent {number}" for number in range(live)])
    let_pass(fleet.engine, 12)
    fleet.beat(*sessions[silent:])
    sweep_at_once(fleet.settings)
    names = [f"agent {number}" for number in range(silent)]
    assert sorted(event.agent_name for event in events(fleet.engine, "degraded")) == names
    assert len(events(fleet.engine, "incident")) == incident
    if not incident:
        assert sorted(fleet.notices()) == [("degraded", name) for name in names]
        return
    (notice,) = notices(fleet.engine)
    assert (notice.kind, notice.detail["agents"], notice.detail["live_agents"]) == ("incident", silent, live)
    assert notice.detail["names"] == names
    assert notice.detail["first_silent_at"] <= notice.detail["last_silent_at"]
    assert {agent(fleet.engine, session).incident_id for session in sessions[:silent]} != {None}


def test_paused_and_ended_agents_are_not_live(fleet: Fleet) -> None:
    """Of ten agents one is paused and one has ended: five of the others are more than half."""
    sessions = fleet.enrol(*[f"agent {number}" for number in range(10)])
    with writing(fleet.engine) as connection:
        for number, found in ((8, "paused"), (9, "ended")):
            connection.execute(update(Liveness).where(Liveness.session_id == sessions[number]).values(state=found))
    assert len(fleet.fall_silent(*sessions[5:8])) == 5
    assert fleet.notices() == [("incident", None)]


def test_an_incident_may_be_found_over_several_sweeps(database: Engine) -> None:
    """Agents that stop at the same time have different deadlines: the notice comes with the fifth of eight."""
    fleet = Simulation(database)
    sessions = [fleet.register(f"agent {number}", number) for number in range(8)]
    for when in (8, 18):
        for number, session in enumerate(sessions):
            fleet.beat(session, when + number / 2)
    found = {when: len(fleet.sweep(when).degraded) for when in range(22, 46)}
    assert {when: number for when, number in found.items() if number} == {40: 2, 41: 2, 42: 2, 43: 2}
    told = notices(database)
    assert [notice.kind for notice in told] == ["degraded"] * 4 + ["incident"] * 2
    incident = told[4].detail
    assert (incident["agents"], incident["live_agents"], incident["notified_before"]) == (6, 8, 4)
    assert (incident["first_silent_at"], incident["last_silent_at"]) == (at(18).isoformat(), at(20.5).isoformat())
    assert incident["names"] == [f"agent {number}" for number in range(6)]
    assert (told[5].detail["agents"], told[5].detail["agents_before"]) == (2, 6)
    for session in sessions:
        fleet.beat(session, 50)
    fleet.sweep(51)
    assert [notice.kind for notice in notices(database)[6:]] == ["incident_over"]
    assert notices(database)[6].detail["back"] == 8


def test_silence_at_different_times_is_no_incident(database: Engine) -> None:
    """Agents that were flagged more than two minutes ago, or have recovered, don't count."""
    fleet = Simulation(database)
    sessions = [fleet.register(f"agent {number}", 0) for number in range(8)]
    for when in range(10, 400, 10):
        for number, session in enumerate(sessions):
            if when < 40 * (number + 1) or (number == 2 and when > 150):
                fleet.beat(session, when)
        fleet.sweep(when + 5)
    assert {notice.kind for notice in notices(database)} == {"degraded", "recovered"}


def test_an_incident_ends_when_half_are_back(fleet: Fleet) -> None:
    """One notice stands for those that are back, and names those still silent, whose recovery has its own notice."""
    names = [f"agent {number}" for number in range(6)]
    sessions = fleet.enrol(*names)
    assert fleet.fall_silent() == names
    fleet.beat(*sessions[:2])
    fleet.sweep()
    assert fleet.notices() == [("incident", None)]
    fleet.beat(*sessions[:3])
    fleet.sweep()
    fleet.sweep()
    assert len(events(fleet.engine, "recovered")) == 3
    assert fleet.notices() == [("incident", None), ("incident_over", None)]
    over = notices(fleet.engine, "incident_over")[0].detail
    assert (over["agents"], over["back"], over["silent"], over["names"]) == (6, 3, 3, names[3:])
    assert len(events(fleet.engine, "incident_over")) == 1
    fleet.beat(sessions[5])
    assert fleet.notices()[2:] == [("recovered", "agent 5")]
    assert [agent(fleet.engine, session).incident_id for session in sessions] == [None] * 6


def test_replaced_members_of_an_incident_are_back(fleet: Fleet) -> None:
    """Members whose names were taken by new sessions count as back."""
    names = [f"agent {number}" for number in range(6)]
    fleet.enrol(*names)
    fleet.fall_silent()
    fleet.enrol(*names[:3], interval_seconds=3600.0)
    fleet.sweep()
    assert fleet.notices() == [("incident", None), ("incident_over", None)]


def test_an_incident_is_closed_after_a_day(fleet: Fleet) -> None:
    """A day after its last flag one notice names those still silent; later recoveries have their own notices."""
    names = [f"agent {number}" for number in range(6)]
    sessions = fleet.enrol(*names)
    fleet.fall_silent()
    fleet.beat(sessions[0])
    fleet.sweep()
    assert fleet.notices() == [("incident", None)]
    with writing(fleet.engine) as connection:
        flagged_at = redis_time(fleet.redis) - timedelta(days=1)
        connection.execute(update(Liveness).where(Liveness.state == "degraded").values(state_changed_at=flagged_at))
    fleet.sweep()
    fleet.sweep()
    assert fleet.notices() == [("incident", None), ("incident_over", None)]
    over = notices(fleet.engine, "incident_over")[0].detail
    assert (over["agents"], over["back"], over["silent"], over["names"]) == (6, 1, 5, names[1:])
    fleet.beat(sessions[5])
    assert fleet.notices()[2:] == [("recovered", "agent 5")]
    assert [agent(fleet.engine, session).incident_id for session in sessions] == [None] * 6


def test_paused_members_of_an_incident_are_away(fleet: Fleet) -> None:
    """Paused members are not waited for, and count as away."""
    names = [f"agent {number}" for number in range(6)]
    fleet.enrol(*names)
    fleet.fall_silent()
    with writing(fleet.engine) as connection:
        for name in names[:3]:
            pause(connection, name, redis_time(fleet.redis), None, None)
    fleet.sweep()
    assert fleet.notices() == [("incident", None), ("incident_over", None)]
    over = notices(fleet.engine, "incident_over")[0].detail
    assert (over["back"], over["away"], over["silent"]) == (3, 3, 3)


def test_ended_members_are_away_unless_replaced(fleet: Fleet) -> None:
    """A deregistered member counts as away; one with a new session of its name counts as back."""
    sessions = fleet.enrol(*[f"agent {number}" for number in range(6)])
    fleet.fall_silent()
    send(fleet.redis, *[deregister(session) for session in sessions[:2]])
    drain(fleet.redis, fleet.engine, fleet.settings)
    fleet.enrol("agent 2")
    fleet.sweep()
    assert fleet.notices() == [("incident", None), ("incident_over", None)]
    over = notices(fleet.engine, "incident_over")[0].detail
    assert (over["back"], over["away"], over["silent"]) == (3, 2, 3)


def test_a_second_wave_joins_a_young_incident(fleet: Fleet) -> None:
    """Agents with longer intervals that are flagged soon after become members; agents flagged later don't."""
    fast = fleet.enrol(*[f"fast {number}" for number in range(6)])
    slow, later = *fleet.enrol("slow", interval_seconds=8.0), *fleet.enrol("later", interval_seconds=3600.0)
    assert len(fleet.fall_silent()) == 6
    let_pass(fleet.engine, 12)
    assert fleet.sweep() == ["slow"]
    found = notices(fleet.engine)
    assert [(notice.kind, notice.detail["agents"]) for notice in found] == [("incident", 6), ("incident", 1)]
    assert (found[1].detail["agents_before"], found[1].detail["names"]) == (6, ["slow"])
    assert agent(fleet.engine, slow).incident_id == agent(fleet.engine, fast[0]).incident_id
    for _ in range(6):
        let_pass(fleet.engine, 25)
        fleet.sweep()
    let_pass_until_due(fleet.engine, later)
    assert fleet.sweep() == ["later"]
    assert fleet.notices("degraded") == [("degraded", "later")]
    assert agent(fleet.engine, later).incident_id is None


def let_pass_until_due(engine: Engine, session: UUID) -> None:
    with writing(engine) as connection:
        earlier = agent(engine, session).deadline_at - seconds(9000)
        connection.execute(update(Liveness).where(Liveness.session_id == session).values(deadline_at=earlier))


def test_a_flapping_agent_has_one_notice(fleet: Fleet) -> None:
    """With more changes than the limit in twenty intervals, single changes have no notice until it is calm."""
    fleet.set(flapping_changes=2)
    (session,) = fleet.enrol("torv")
    for _ in range(3):
        fleet.fall_silent()
        fleet.beat(session)
    assert fleet.notices() == [("degraded", "torv"), ("recovered", "torv"), ("flapping", "torv")]
    assert len(events(fleet.engine, "degraded", "recovered")) == 6
    assert len(events(fleet.engine, "flapping")) == 1
    assert agent(fleet.engine, session).flapping_at is not None
    for _ in range(5):
        let_pass(fleet.engine, 25)
        fleet.beat(session)
        assert fleet.sweep() == []
    assert fleet.notices()[3:] == [("calm", "torv")]
    (event,) = events(fleet.engine, "calm")
    assert event.detail["state"] == "ok"
    fleet.fall_silent()
    assert fleet.notices()[4:] == [("degraded", "torv")]


def test_a_recovery_can_start_flapping(fleet: Fleet) -> None:
    """If a recovery exceeds the limit, its batch writes a notice of flapping instead."""
    fleet.set(flapping_changes=3)
    (session,) = fleet.enrol("torv")
    for _ in range(2):
        fleet.fall_silent()
        fleet.beat(session)
    assert [kind for kind, _ in fleet.notices()] == ["degraded", "recovered", "degraded", "flapping"]
    assert len(events(fleet.engine, "flapping")) == 1


def test_old_changes_do_not_count_as_flapping(fleet: Fleet) -> None:
    """Changes that stay within the limit in twenty intervals each have a notice."""
    fleet.set(flapping_changes=2)
    (session,) = fleet.enrol("torv")
    for _ in range(3):
        fleet.fall_silent()
        fleet.beat(session)
        for _ in range(5):
            let_pass(fleet.engine, 21)
            fleet.beat(session)
            fleet.sweep()
    kinds = [kind for kind, _ in fleet.notices()]
    assert kinds == ["degraded", "recovered"] * 3
    assert agent(fleet.engine, session).flapping_at is None


def test_the_end_of_a_session_ends_flapping(fleet: Fleet) -> None:
    """A session that ends no longer flaps, without a notice."""
    fleet.set(flapping_changes=2)
    (session,) = fleet.enrol("torv")
    for _ in range(2):
        fleet.fall_silent()
        fleet.beat(session)
    fleet.enrol("torv")
    fleet.sweep()
    assert agent(fleet.engine, session).flapping_at is None
    assert fleet.notices("calm") == []


def pass_intervals(fleet: Fleet, number: int, *sessions: UUID, **fields: Any) -> None:
    """Send some unchanged heartbeats, 15 s apart, of agents with an interval of 20 s, with sweeps in between."""
    for _ in range(number):
        let_pass(fleet.engine, 15)
        fleet.beat(*sessions, **fields)
        assert fleet.sweep() == []


def test_an_agent_without_a_change_is_stuck(fleet: Fleet, sweep_at_once: Callable[[Settings], list[str]]) -> None:
    """Four sweeps at once write one notice; another status ends it, with one notice."""
    fleet.set(stuck_after=3)
    loops, works, silent = fleet.enrol("loops", "works", "mute", interval_seconds=20.0)
    fleet.beat(loops, works, progress="page 1", status="ok")
    for number in range(2, 5):
        let_pass(fleet.engine, 15)
        fleet.beat(loops, progress="page 1")
        fleet.beat(works, progress=f"page {number}")
        fleet.beat(silent)
        fleet.sweep()
    assert fleet.notices() == []
    let_pass(fleet.engine, 17)  # 62 s without a change; on a slow machine its heartbeat is not late yet
    fleet.beat(works, progress="page 5")
    sweep_at_once(fleet.settings)
    assert fleet.notices() == [("stuck", "loops")]
    (notice,) = notices(fleet.engine)
    assert (notice.detail["progress"], notice.detail["status"], notice.detail["stuck_after"]) == ("page 1", "ok", 3)
    assert notice.detail["changed_at"] == agent(fleet.engine, loops).changed_at.isoformat()
    assert agent(fleet.engine, loops).stuck_at is not None
    pass_intervals(fleet, 1, loops, works, silent, progress="page 1", summary="another summary")
    assert len(events(fleet.engine, "stuck")) == 1
    fleet.beat(loops, status="done")
    fleet.beat(loops, status="done")
    assert fleet.notices() == [("stuck", "loops"), ("unstuck", "loops")]
    assert agent(fleet.engine, loops).stuck_at is None
    assert len(events(fleet.engine, "unstuck")) == 1


def test_a_change_and_back_in_one_batch_is_a_change(fleet: Fleet) -> None:
    """An agent that did something else between two sweeps isn't stuck, although it reports the same at both."""
    fleet.set(stuck_after=3)
    (session,) = fleet.enrol("torv", interval_seconds=20.0)
    fleet.beat(session, progress="A")
    pass_intervals(fleet, 3, session, progress="A")
    let_pass(fleet.engine, 20)
    send_spread(fleet.redis, *[heartbeat(session, progress=progress) for progress in "ABA"])
    drain(fleet.redis, fleet.engine, fleet.settings)
    fleet.sweep()
    assert fleet.notices() == []
    found = agent(fleet.engine, session)
    assert found.changed_at == found.last_seen_at


def test_an_agents_own_limit_comes_first(fleet: Fleet) -> None:
    """An agent's own limit applies before the fleet's, also a limit of never."""
    never, own = fleet.enrol("never", "own", interval_seconds=20.0)
    fleet.beat(never, own, status="busy")
    set_stuck_after(fleet, never, 0)
    pass_intervals(fleet, 5, never, own, status="busy")
    assert fleet.notices() == []
    set_stuck_after(fleet, own, 3)
    fleet.sweep()
    assert fleet.notices() == [("stuck", "own")]
    fleet.set(stuck_after=2)
    fleet.sweep()
    assert fleet.notices() == [("stuck", "own")]


def set_stuck_after(fleet: Fleet, session: UUID, number: int) -> None:
    with writing(fleet.engine) as connection:
        connection.execute(update(Agent).where(Agent.session_id == session).values(stuck_after=number))


def test_silence_is_not_stuck(fleet: Fleet) -> None:
    """After a recovery the limit counts from there, even if the work is unchanged."""
    fleet.set(stuck_after=3)
    (session,) = fleet.enrol("torv", interval_seconds=20.0)
    fleet.beat(session, status="busy")
    for _ in range(4):
        let_pass(fleet.engine, 20)
        fleet.sweep()
    assert fleet.notices() == [("degraded", "torv")]
    fleet.beat(session, status="busy")
    pass_intervals(fleet, 3, session, status="busy")
    assert fleet.notices("stuck") == []
    pass_intervals(fleet, 2, session, status="busy")
    assert fleet.notices("stuck") == [("stuck", "torv")]


def test_maintenance_is_excluded_from_stuck(fleet: Fleet) -> None:
    """After a window the limit counts from its end."""
    fleet.set(stuck_after=3)
    (session,) = fleet.enrol("torv", interval_seconds=20.0)
    fleet.beat(session, status="busy")
    now = redis_time(fleet.redis)
    with writing(fleet.engine) as connection:
        add_rule(connection, WindowRule(now, now + seconds(80)), now)
    pass_intervals(fleet, 9, session, status="busy")
    assert fleet.notices() == []
    pass_intervals(fleet, 3, session, status="busy")
    assert fleet.notices() == [("stuck", "torv")]


def test_an_outage_is_excluded_from_stuck(fleet: Fleet) -> None:
    """Time without monitoring doesn't count as time without a change."""
    fleet.set(stuck_after=20)
    (session,) = fleet.enrol("torv")
    fleet.beat(session, status="busy")
    fleet.sweep()
    let_pass(fleet.engine, 600)
    fleet.sweep()
    fleet.beat(session, status="busy")
    fleet.sweep()
    assert fleet.notices("stuck") == []


def break_zone(fleet: Fleet, session: UUID, zone: str = "Mars/Olympus") -> None:
    with writing(fleet.engine) as connection:
        connection.execute(update(Liveness).where(Liveness.session_id == session).values(time_zone=zone))


def test_an_agent_that_cannot_be_judged_stops_no_other(
    fleet: Fleet, sweep_at_once: Callable[[Settings], list[str]]
) -> None:
    """An agent whose time zone is missing is marked as unjudged with one notice, and the others are flagged."""
    (bad,) = fleet.enrol("bad", interval_seconds=None, schedule="* * * * *")
    fleet.enrol("silent")
    break_zone(fleet, bad)
    let_pass_until_due(fleet.engine, bad)
    let_pass(fleet.engine, 12)
    sweep_at_once(fleet.settings)
    fleet.sweep()
    assert sorted(fleet.notices()) == [("degraded", "silent"), ("unjudged", "bad")]
    assert (state(fleet.engine, bad), agent(fleet.engine, bad).unjudged_at is not None) == ("pending", True)
    (event,) = events(fleet.engine, "unjudged")
    assert "'Mars/Olympus' is not a time zone" in event.detail["why"]


def test_agents_that_cannot_be_judged_for_one_reason_share_a_notice(fleet: Fleet) -> None:
    """Agents with the same missing time zone have one notice for each sweep; another reason has its own."""
    names = [f"bad {number:02}" for number in range(25)]
    sessions = fleet.enrol(*names, "other", interval_seconds=None, schedule="* * * * *")
    for session in sessions:
        break_zone(fleet, session, "Mars/Olympus" if session is not sessions[-1] else "Mars/Hellas")
        let_pass_until_due(fleet.engine, session)
    assert sorted(sweep(fleet.redis, fleet.engine, fleet.settings).unjudged) == [*names, "other"]
    fleet.sweep()
    assert sorted(fleet.notices(), key=str) == [("unjudged", "other"), ("unjudged", None)]
    assert len(events(fleet.engine, "unjudged")) == 26
    with reading(fleet.engine) as connection:
        (detail,) = connection.execute(select(Notification.detail).where(Notification.agent_name.is_(None))).scalars()
    assert (detail["agents"], detail["names"]) == (25, names[:20])
    assert "'Mars/Olympus' is not a time zone" in detail["why"]


def test_a_heartbeat_ends_unjudged(fleet: Fleet) -> None:
    """Heartbeats are stored while the agent can't be judged; once its zone is there again the next one counts."""
    (session,) = fleet.enrol("torv", interval_seconds=None, schedule="* * * * *")
    break_zone(fleet, session)
    fleet.beat(session)
    let_pass_until_due(fleet.engine, session)
    fleet.sweep()
    fleet.beat(session)
    found = agent(fleet.engine, session)
    assert (rejected(fleet.engine), found.state, found.unjudged_at is None) == ([], "pending", False)
    assert found.last_seen_at is not None
    break_zone(fleet, session, "UTC")
    fleet.beat(session)
    found = agent(fleet.engine, session)
    assert (found.state, found.unjudged_at) == ("ok", None)
    assert fleet.sweep() == []
    assert found.deadline_at > datetime.now(found.deadline_at.tzinfo)


def test_a_registration_ends_unjudged(fleet: Fleet) -> None:
    """Another promise of the same session can be judged."""
    (session,) = fleet.enrol("torv", interval_seconds=None, schedule="* * * * *")
    break_zone(fleet, session)
    let_pass_until_due(fleet.engine, session)
    fleet.sweep()
    send(fleet.redis, register("torv", session, interval_seconds=5.0))
    drain(fleet.redis, fleet.engine, fleet.settings)
    assert agent(fleet.engine, session).unjudged_at is None
    assert fleet.fall_silent() == ["torv"]


def test_a_row_that_cannot_be_read_stops_no_other(fleet: Fleet) -> None:
    """An agent with a deadline outside the calendar is marked as unjudged, and the others are flagged."""
    bad, _ = fleet.enrol("bad", "silent")
    raw = "-9000000000000000" if fleet.engine.dialect.name == "sqlite" else "'-infinity'"
    key = bad.bytes if fleet.engine.dialect.name == "sqlite" else bad
    with fleet.engine.begin() as connection:
        mark = "?" if fleet.engine.dialect.name == "sqlite" else "%s"
        connection.exec_driver_sql(f"UPDATE liveness SET deadline_at = {raw} WHERE session_id = {mark}", (key,))  # noqa: S608
    assert fleet.fall_silent() == ["silent"]
    assert sorted(fleet.notices()) == [("degraded", "silent"), ("unjudged", "bad")]


def test_reminders_while_an_agent_is_degraded(fleet: Fleet) -> None:
    """There is a numbered one after each period, and none after the recovery."""
    (session,) = fleet.enrol("torv")
    fleet.fall_silent()
    fleet.set(notify_reminder_hours=0.01)
    changed = []
    for _ in range(4):
        changed.append(agent(fleet.engine, session).state_changed_at)
        let_pass(fleet.engine, 20)
        fleet.sweep()
        fleet.sweep()
    found = notices(fleet.engine, "reminder")
    assert [notice.detail["number"] for notice in found] == [1, 2]
    assert found[0].key.startswith(f"reminder:{session}:")
    assert found[0].key.endswith(":1")
    fleet.beat(session)
    let_pass(fleet.engine, 6)
    fleet.beat(session)
    fleet.sweep()
    assert len(notices(fleet.engine, "reminder")) == 2


def test_incidents_and_flapping_have_no_reminders(fleet: Fleet) -> None:
    """Members of an open incident and flapping agents have no notices of their own, and no reminders."""
    fleet.set(notify_reminder_hours=0.002)
    fleet.enrol(*[f"agent {number}" for number in range(5)])
    fleet.fall_silent()
    (flaps,) = fleet.enrol("flaps", interval_seconds=3600.0)
    with writing(fleet.engine) as connection:
        now = agent(fleet.engine, flaps).registered_at
        connection.execute(update(Agent).where(Agent.session_id == flaps).values(flapping_at=now))
        connection.execute(update(Liveness).where(Liveness.session_id == flaps).values(state="degraded"))
    let_pass(fleet.engine, 20)
    fleet.sweep()
    assert fleet.notices("reminder") == []
