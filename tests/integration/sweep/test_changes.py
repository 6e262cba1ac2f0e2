"""What people are told of changes: each once, and a storm as one."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Engine, select, update

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database.engine import open_engine, reading, writing
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
    """A fleet whose agents beat each 5 s, 1 s grace, and one who sweeps."""

    def __init__(self, engine: Engine, redis: Redis, settings: Settings) -> None:
        self.engine = engine
        self.redis = redis
        self.settings = settings
        self.sweep()

    def enrol(self, *names: str, **fields: Any) -> list[UUID]:
        """Register agents."""
        return enrol(self.redis, self.engine, self.settings, *names, **{"interval_seconds": 5.0, **fields})

    def beat(self, *sessions: UUID, **fields: Any) -> None:
        """Store a heartbeat of each of some sessions."""
        send(self.redis, *[heartbeat(session, **fields) for session in sessions])
        drain(self.redis, self.engine, self.settings)

    def sweep(self) -> list[str]:
        """Sweep once; return whom it flagged."""
        return sorted(sweep(self.redis, self.engine, self.settings).degraded)

    def fall_silent(self, *but: UUID) -> list[str]:
        """Let the time pass in which whoever doesn't beat is missed; return who is."""
        let_pass(self.engine, 12)
        if but:
            self.beat(*but)
        return self.sweep()

    def told(self, *kinds: str) -> list[tuple[str, str | None]]:
        """Return the kinds of what was told, and of whom."""
        return [(notice.kind, notice.agent_name) for notice in notices(self.engine, *kinds)]

    def set(self, **settings: Any) -> None:
        """Go on with other settings."""
        self.settings = self.settings.model_copy(update=settings)


@pytest.fixture
def fleet(database: Engine, redis: Redis, quick: Settings) -> Fleet:
    return Fleet(database, redis, quick)


def sweep_at_once(fleet: Fleet, database_url: str) -> None:
    """Let four sweeps run at the same time."""
    barrier = threading.Barrier(4)

    def work() -> None:
        engine = open_engine(database_url)
        with reading(engine):
            pass  # connected before the start
        barrier.wait()
        sweep(fleet.redis, engine, fleet.settings)
        engine.dispose()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_silence_and_its_end_are_told_once_each(fleet: Fleet, database_url: str) -> None:
    """Four sweeps at once tell of a silence once, with what the agent was doing; its return is told once, too."""
    (session,) = fleet.enrol("torv", project="mail")
    fleet.beat(session, progress="reads", summary="half")
    assert fleet.told() == []
    let_pass(fleet.engine, 12)
    since = agent(fleet.engine, session).last_seen_at
    sweep_at_once(fleet, database_url)
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
    assert fleet.told() == [("degraded", "torv"), ("recovered", "torv")]
    back = notices(fleet.engine, "recovered")[0].detail
    assert (back["since"], back["silent_seconds"]) == (since.isoformat(), pytest.approx(12, abs=10))
    assert (back["current_work"], back["summary"], back["last_seen_at"]) == ("reads", "half", since.isoformat())


def test_an_end_of_who_was_degraded_or_stuck_is_told(fleet: Fleet) -> None:
    """A new session of the name, or a goodbye, is the last that there is to tell of a session; other ends are not."""
    fleet.set(stuck_after=1)
    restarts, leaves = fleet.enrol("restarts", "leaves")
    (loops,) = fleet.enrol("loops", interval_seconds=20.0)
    fleet.beat(restarts, leaves, loops, progress="page 1")
    for _ in range(2):
        let_pass(fleet.engine, 15)
        fleet.beat(loops, progress="page 1")
        fleet.sweep()
    assert sorted(fleet.told()) == [("degraded", "leaves"), ("degraded", "restarts"), ("stuck", "loops")]
    (again,) = fleet.enrol("restarts")
    fleet.beat(again)
    goodbyes = [deregister(session, error="no disk", exit_status=3) for session in (leaves, loops, again)]
    send(fleet.redis, *goodbyes, *goodbyes)
    drain(fleet.redis, fleet.engine, fleet.settings)
    fleet.sweep()
    assert fleet.told()[3:] == [("recovered", "restarts"), ("recovered", "leaves"), ("unstuck", "loops")]
    restart, goodbye = (row.detail for row in notices(fleet.engine, "recovered"))
    assert (restart["end"], restart["exit_status"], restart["progress"]) == ("restarted", None, "page 1")
    assert (goodbye["end"], goodbye["exit_status"], goodbye["error"]) == ("deregistered", 3, "no disk")
    assert restart["silent_seconds"] == pytest.approx(30, abs=10)
    assert notices(fleet.engine, "unstuck")[0].detail["end"] == "deregistered"


def test_who_was_never_heard_is_told_of(fleet: Fleet) -> None:
    """A pending agent that stays silent is degraded, and told of as such."""
    fleet.enrol("torv")
    assert fleet.fall_silent() == ["torv"]
    assert fleet.told() == [("degraded", "torv")]


def test_a_dry_run_tells_nobody(fleet: Fleet) -> None:
    """What a sweep only would do isn't told."""
    fleet.enrol("torv")
    let_pass(fleet.engine, 12)
    assert sweep(fleet.redis, fleet.engine, fleet.settings, dry_run=True).degraded == ["torv"]
    assert (fleet.told(), events(fleet.engine, "degraded")) == ([], [])


def test_an_outage_is_told_with_its_time(fleet: Fleet) -> None:
    """Nobody watched for ten minutes: one notice of the whole fleet."""
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
    database_url: str,
    silent: int,
    live: int,
    incident: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """The flags and their events stand either way; four sweeps at once tell of one incident, or of each agent once."""
    sessions = fleet.enrol(*[f"agent {number}" for number in range(live)])
    let_pass(fleet.engine, 12)
    fleet.beat(*sessions[silent:])
    sweep_at_once(fleet, database_url)
    names = [f"agent {number}" for number in range(silent)]
    assert sorted(event.agent_name for event in events(fleet.engine, "degraded")) == names
    assert len(events(fleet.engine, "incident")) == incident
    if not incident:
        assert sorted(fleet.told()) == [("degraded", name) for name in names]
        return
    (notice,) = notices(fleet.engine)
    assert (notice.kind, notice.detail["agents"], notice.detail["live_agents"]) == ("incident", silent, live)
    assert notice.detail["names"] == names
    assert notice.detail["first_silent_at"] <= notice.detail["last_silent_at"]
    assert {agent(fleet.engine, session).incident_id for session in sessions[:silent]} != {None}


def test_paused_and_ended_agents_are_no_part_of_the_fleet(fleet: Fleet) -> None:
    """Of ten agents two are ended and paused: five of the others are more than half."""
    sessions = fleet.enrol(*[f"agent {number}" for number in range(10)])
    with writing(fleet.engine) as connection:
        for number, found in ((8, "paused"), (9, "ended")):
            connection.execute(update(Liveness).where(Liveness.session_id == sessions[number]).values(state=found))
    assert len(fleet.fall_silent(*sessions[5:8])) == 5
    assert fleet.told() == [("incident", None)]


def test_a_fleet_that_is_found_sweep_after_sweep_is_an_incident(database: Engine) -> None:
    """Agents that each beat at a time of their own stop at one moment: it is told with the fifth of eight."""
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


def test_silences_that_are_far_apart_are_no_incident(database: Engine) -> None:
    """Who was flagged more than two minutes ago, or is back, doesn't count."""
    fleet = Simulation(database)
    sessions = [fleet.register(f"agent {number}", 0) for number in range(8)]
    for when in range(10, 400, 10):
        for number, session in enumerate(sessions):
            if when < 40 * (number + 1) or (number == 2 and when > 150):
                fleet.beat(session, when)
        fleet.sweep(when + 5)
    assert {notice.kind for notice in notices(database)} == {"degraded", "recovered"}


def test_an_incident_ends_when_half_are_back(fleet: Fleet) -> None:
    """Those who come back are told of as one; who is silent still is named, and his return is told by itself."""
    names = [f"agent {number}" for number in range(6)]
    sessions = fleet.enrol(*names)
    assert fleet.fall_silent() == names
    fleet.beat(*sessions[:2])
    fleet.sweep()
    assert fleet.told() == [("incident", None)]
    fleet.beat(*sessions[:3])
    fleet.sweep()
    fleet.sweep()
    assert len(events(fleet.engine, "recovered")) == 3
    assert fleet.told() == [("incident", None), ("incident_over", None)]
    over = notices(fleet.engine, "incident_over")[0].detail
    assert (over["agents"], over["back"], over["silent"], over["names"]) == (6, 3, 3, names[3:])
    assert len(events(fleet.engine, "incident_over")) == 1
    fleet.beat(sessions[5])
    assert fleet.told()[2:] == [("recovered", "agent 5")]
    assert [agent(fleet.engine, session).incident_id for session in sessions] == [None] * 6


def test_an_ended_agent_is_back(fleet: Fleet) -> None:
    """Members whose sessions end, here as their names are taken, count as those that came back."""
    names = [f"agent {number}" for number in range(6)]
    fleet.enrol(*names)
    fleet.fall_silent()
    fleet.enrol(*names[:3], interval_seconds=3600.0)
    fleet.sweep()
    assert fleet.told() == [("incident", None), ("incident_over", None)]


def test_an_incident_that_nobody_comes_back_from_is_given_up(fleet: Fleet) -> None:
    """A day after its last flag it is over, told once with who is silent; then each return is told by itself."""
    names = [f"agent {number}" for number in range(6)]
    sessions = fleet.enrol(*names)
    fleet.fall_silent()
    fleet.beat(sessions[0])
    fleet.sweep()
    assert fleet.told() == [("incident", None)]
    with writing(fleet.engine) as connection:
        flagged_at = redis_time(fleet.redis) - timedelta(days=1)
        connection.execute(update(Liveness).where(Liveness.state == "degraded").values(state_changed_at=flagged_at))
    fleet.sweep()
    fleet.sweep()
    assert fleet.told() == [("incident", None), ("incident_over", None)]
    over = notices(fleet.engine, "incident_over")[0].detail
    assert (over["agents"], over["back"], over["silent"], over["names"]) == (6, 1, 5, names[1:])
    fleet.beat(sessions[5])
    assert fleet.told()[2:] == [("recovered", "agent 5")]
    assert [agent(fleet.engine, session).incident_id for session in sessions] == [None] * 6


def test_a_paused_agent_is_back(fleet: Fleet) -> None:
    """Members that are silenced on purpose are no longer waited for."""
    names = [f"agent {number}" for number in range(6)]
    fleet.enrol(*names)
    fleet.fall_silent()
    with writing(fleet.engine) as connection:
        for name in names[:3]:
            pause(connection, name, redis_time(fleet.redis), None, None)
    fleet.sweep()
    assert fleet.told() == [("incident", None), ("incident_over", None)]
    over = notices(fleet.engine, "incident_over")[0].detail
    assert (over["back"], over["away"], over["silent"]) == (3, 3, 3)


def test_who_ended_is_away_unless_its_name_goes_on(fleet: Fleet) -> None:
    """A member that said goodbye isn't told as back; one that a new session of its name follows is."""
    sessions = fleet.enrol(*[f"agent {number}" for number in range(6)])
    fleet.fall_silent()
    send(fleet.redis, *[deregister(session) for session in sessions[:2]])
    drain(fleet.redis, fleet.engine, fleet.settings)
    fleet.enrol("agent 2")
    fleet.sweep()
    assert fleet.told() == [("incident", None), ("incident_over", None)]
    over = notices(fleet.engine, "incident_over")[0].detail
    assert (over["back"], over["away"], over["silent"]) == (3, 2, 3)


def test_a_second_wave_joins_a_young_incident(fleet: Fleet) -> None:
    """Agents with a longer interval that fall silent soon after are told as more of the incident; later ones aren't."""
    fast = fleet.enrol(*[f"fast {number}" for number in range(6)])
    slow, later = *fleet.enrol("slow", interval_seconds=8.0), *fleet.enrol("later", interval_seconds=3600.0)
    assert len(fleet.fall_silent()) == 6
    let_pass(fleet.engine, 12)
    assert fleet.sweep() == ["slow"]
    told = notices(fleet.engine)
    assert [(notice.kind, notice.detail["agents"]) for notice in told] == [("incident", 6), ("incident", 1)]
    assert (told[1].detail["agents_before"], told[1].detail["names"]) == (6, ["slow"])
    assert agent(fleet.engine, slow).incident_id == agent(fleet.engine, fast[0]).incident_id
    for _ in range(6):
        let_pass(fleet.engine, 25)
        fleet.sweep()
    let_pass_until_due(fleet.engine, later)
    assert fleet.sweep() == ["later"]
    assert fleet.told("degraded") == [("degraded", "later")]
    assert agent(fleet.engine, later).incident_id is None


def let_pass_until_due(engine: Engine, session: UUID) -> None:
    with writing(engine) as connection:
        earlier = agent(engine, session).deadline_at - seconds(9000)
        connection.execute(update(Liveness).where(Liveness.session_id == session).values(deadline_at=earlier))


def test_a_flapping_agent_is_told_of_once(fleet: Fleet) -> None:
    """With more changes than the limit in twenty intervals single ones aren't told, until it is calm."""
    fleet.set(flapping_changes=2)
    (session,) = fleet.enrol("torv")
    for _ in range(3):
        fleet.fall_silent()
        fleet.beat(session)
    assert fleet.told() == [("degraded", "torv"), ("recovered", "torv"), ("flapping", "torv")]
    assert len(events(fleet.engine, "degraded", "recovered")) == 6
    assert len(events(fleet.engine, "flapping")) == 1
    assert agent(fleet.engine, session).flapping_at is not None
    for _ in range(5):
        let_pass(fleet.engine, 25)
        fleet.beat(session)
        assert fleet.sweep() == []
    assert fleet.told()[3:] == [("calm", "torv")]
    (event,) = events(fleet.engine, "calm")
    assert event.detail["state"] == "ok"
    fleet.fall_silent()
    assert fleet.told()[4:] == [("degraded", "torv")]


def test_a_return_can_be_the_change_too_many(fleet: Fleet) -> None:
    """Where a recovery makes it more than the limit, the batch that stores it tells of flapping instead."""
    fleet.set(flapping_changes=3)
    (session,) = fleet.enrol("torv")
    for _ in range(2):
        fleet.fall_silent()
        fleet.beat(session)
    assert [kind for kind, _ in fleet.told()] == ["degraded", "recovered", "degraded", "flapping"]
    assert len(events(fleet.engine, "flapping")) == 1


def test_changes_of_long_ago_make_nobody_flap(fleet: Fleet) -> None:
    """Each change within the limit of its twenty intervals is told."""
    fleet.set(flapping_changes=2)
    (session,) = fleet.enrol("torv")
    for _ in range(3):
        fleet.fall_silent()
        fleet.beat(session)
        for _ in range(5):
            let_pass(fleet.engine, 21)
            fleet.beat(session)
            fleet.sweep()
    kinds = [kind for kind, _ in fleet.told()]
    assert kinds == ["degraded", "recovered"] * 3
    assert agent(fleet.engine, session).flapping_at is None


def test_an_end_makes_calm(fleet: Fleet) -> None:
    """A session that ends doesn't flap any more, and nobody is told of it."""
    fleet.set(flapping_changes=2)
    (session,) = fleet.enrol("torv")
    for _ in range(2):
        fleet.fall_silent()
        fleet.beat(session)
    fleet.enrol("torv")
    fleet.sweep()
    assert agent(fleet.engine, session).flapping_at is None
    assert fleet.told("calm") == []


def pass_intervals(fleet: Fleet, number: int, *sessions: UUID, **fields: Any) -> None:
    """Let agents that beat each 20 s do so some times, always the same, 15 s apart, while sweeps go on."""
    for _ in range(number):
        let_pass(fleet.engine, 15)
        fleet.beat(*sessions, **fields)
        assert fleet.sweep() == []


def test_an_agent_that_says_the_same_is_stuck(fleet: Fleet, database_url: str) -> None:
    """It is told once by four sweeps at once; another status ends it, which is told once."""
    fleet.set(stuck_after=3)
    loops, works, silent = fleet.enrol("loops", "works", "mute", interval_seconds=20.0)
    fleet.beat(loops, works, progress="page 1", status="ok")
    for number in range(2, 5):
        let_pass(fleet.engine, 15)
        fleet.beat(loops, progress="page 1")
        fleet.beat(works, progress=f"page {number}")
        fleet.beat(silent)
        fleet.sweep()
    assert fleet.told() == []
    let_pass(fleet.engine, 20)
    fleet.beat(works, progress="page 5")
    sweep_at_once(fleet, database_url)
    assert fleet.told() == [("stuck", "loops")]
    (notice,) = notices(fleet.engine)
    assert (notice.detail["progress"], notice.detail["status"], notice.detail["stuck_after"]) == ("page 1", "ok", 3)
    assert notice.detail["changed_at"] == agent(fleet.engine, loops).changed_at.isoformat()
    assert agent(fleet.engine, loops).stuck_at is not None
    pass_intervals(fleet, 1, loops, works, silent, progress="page 1", summary="another summary")
    assert len(events(fleet.engine, "stuck")) == 1
    fleet.beat(loops, status="done")
    fleet.beat(loops, status="done")
    assert fleet.told() == [("stuck", "loops"), ("unstuck", "loops")]
    assert agent(fleet.engine, loops).stuck_at is None
    assert len(events(fleet.engine, "unstuck")) == 1


def test_there_and_back_in_one_batch_is_a_change(fleet: Fleet) -> None:
    """An agent that did something else between two looks isn't stuck, though it says the same at both."""
    fleet.set(stuck_after=3)
    (session,) = fleet.enrol("torv", interval_seconds=20.0)
    fleet.beat(session, progress="A")
    pass_intervals(fleet, 3, session, progress="A")
    let_pass(fleet.engine, 20)
    send_spread(fleet.redis, *[heartbeat(session, progress=progress) for progress in "ABA"])
    drain(fleet.redis, fleet.engine, fleet.settings)
    fleet.sweep()
    assert fleet.told() == []
    found = agent(fleet.engine, session)
    assert found.changed_at == found.last_seen_at


def test_an_agents_own_limit_comes_first(fleet: Fleet) -> None:
    """One that says never isn't stuck where the fleet's limit says so; one with a limit is where the fleet has none."""
    never, own = fleet.enrol("never", "own", interval_seconds=20.0)
    fleet.beat(never, own, status="busy")
    set_stuck_after(fleet, never, 0)
    pass_intervals(fleet, 5, never, own, status="busy")
    assert fleet.told() == []
    set_stuck_after(fleet, own, 3)
    fleet.sweep()
    assert fleet.told() == [("stuck", "own")]
    fleet.set(stuck_after=2)
    fleet.sweep()
    assert fleet.told() == [("stuck", "own")]


def set_stuck_after(fleet: Fleet, session: UUID, number: int) -> None:
    with writing(fleet.engine) as connection:
        connection.execute(update(Agent).where(Agent.session_id == session).values(stuck_after=number))


def test_a_silence_is_no_loop(fleet: Fleet) -> None:
    """Who comes back from a silence with what it did before gets the whole time anew."""
    fleet.set(stuck_after=3)
    (session,) = fleet.enrol("torv", interval_seconds=20.0)
    fleet.beat(session, status="busy")
    for _ in range(4):
        let_pass(fleet.engine, 20)
        fleet.sweep()
    assert fleet.told() == [("degraded", "torv")]
    fleet.beat(session, status="busy")
    pass_intervals(fleet, 3, session, status="busy")
    assert fleet.told("stuck") == []
    pass_intervals(fleet, 2, session, status="busy")
    assert fleet.told("stuck") == [("stuck", "torv")]


def test_nothing_had_to_change_in_maintenance(fleet: Fleet) -> None:
    """An agent that did the same in a window has the whole time anew after it."""
    fleet.set(stuck_after=3)
    (session,) = fleet.enrol("torv", interval_seconds=20.0)
    fleet.beat(session, status="busy")
    now = redis_time(fleet.redis)
    with writing(fleet.engine) as connection:
        add_rule(connection, WindowRule(now, now + seconds(80)), now)
    pass_intervals(fleet, 9, session, status="busy")
    assert fleet.told() == []
    pass_intervals(fleet, 3, session, status="busy")
    assert fleet.told() == [("stuck", "torv")]


def test_an_outage_makes_nobody_stuck(fleet: Fleet) -> None:
    """The time in which nobody watched isn't time in which nothing changed."""
    fleet.set(stuck_after=20)
    (session,) = fleet.enrol("torv")
    fleet.beat(session, status="busy")
    fleet.sweep()
    let_pass(fleet.engine, 600)
    fleet.sweep()
    fleet.beat(session, status="busy")
    fleet.sweep()
    assert fleet.told("stuck") == []


def break_zone(fleet: Fleet, session: UUID, zone: str = "Mars/Olympus") -> None:
    with writing(fleet.engine) as connection:
        connection.execute(update(Liveness).where(Liveness.session_id == session).values(time_zone=zone))


def test_who_cannot_be_judged_stops_nobody(fleet: Fleet, database_url: str) -> None:
    """A time zone that is gone: the others are flagged, it is set aside and told of once, and shown."""
    (bad,) = fleet.enrol("bad", interval_seconds=None, schedule="* * * * *")
    fleet.enrol("silent")
    break_zone(fleet, bad)
    let_pass_until_due(fleet.engine, bad)
    let_pass(fleet.engine, 12)
    sweep_at_once(fleet, database_url)
    fleet.sweep()
    assert sorted(fleet.told()) == [("degraded", "silent"), ("unjudged", "bad")]
    assert (state(fleet.engine, bad), agent(fleet.engine, bad).unjudged_at is not None) == ("pending", True)
    (event,) = events(fleet.engine, "unjudged")
    assert "'Mars/Olympus' is no time zone" in event.detail["why"]


def test_many_that_cannot_be_judged_for_one_reason_are_told_as_one(fleet: Fleet) -> None:
    """A machine that lost a time zone tells once in a sweep of all that are due by it, and of the others singly."""
    names = [f"bad {number:02}" for number in range(25)]
    sessions = fleet.enrol(*names, "other", interval_seconds=None, schedule="* * * * *")
    for session in sessions:
        break_zone(fleet, session, "Mars/Olympus" if session is not sessions[-1] else "Mars/Hellas")
        let_pass_until_due(fleet.engine, session)
    assert sorted(sweep(fleet.redis, fleet.engine, fleet.settings).unjudged) == [*names, "other"]
    fleet.sweep()
    assert sorted(fleet.told(), key=str) == [("unjudged", "other"), ("unjudged", None)]
    assert len(events(fleet.engine, "unjudged")) == 26
    with reading(fleet.engine) as connection:
        (detail,) = connection.execute(select(Notification.detail).where(Notification.agent_name.is_(None))).scalars()
    assert (detail["agents"], detail["names"]) == (25, names[:20])
    assert "'Mars/Olympus' is no time zone" in detail["why"]


def test_a_heartbeat_that_can_be_judged_brings_it_back(fleet: Fleet) -> None:
    """Heartbeats are stored while it can't be judged; once its zone is there again the next one counts."""
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


def test_a_registration_brings_it_back(fleet: Fleet) -> None:
    """Another promise under the same session is judged like any other."""
    (session,) = fleet.enrol("torv", interval_seconds=None, schedule="* * * * *")
    break_zone(fleet, session)
    let_pass_until_due(fleet.engine, session)
    fleet.sweep()
    send(fleet.redis, register("torv", session, interval_seconds=5.0))
    drain(fleet.redis, fleet.engine, fleet.settings)
    assert agent(fleet.engine, session).unjudged_at is None
    assert fleet.fall_silent() == ["torv"]


def test_a_row_that_cannot_be_read_is_set_aside(fleet: Fleet) -> None:
    """A deadline that is no time of a calendar stops neither the sweep nor the other agents."""
    bad, _ = fleet.enrol("bad", "silent")
    raw = "-9000000000000000" if fleet.engine.dialect.name == "sqlite" else "'-infinity'"
    key = bad.bytes if fleet.engine.dialect.name == "sqlite" else bad
    with fleet.engine.begin() as connection:
        mark = "?" if fleet.engine.dialect.name == "sqlite" else "%s"
        connection.exec_driver_sql(f"UPDATE liveness SET deadline_at = {raw} WHERE session_id = {mark}", (key,))  # noqa: S608
    assert fleet.fall_silent() == ["silent"]
    assert sorted(fleet.told()) == [("degraded", "silent"), ("unjudged", "bad")]


def test_reminders_come_while_it_is_degraded(fleet: Fleet) -> None:
    """Each time that the hours are over once more there is one, numbered, and none once it is back."""
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


def test_nobody_is_reminded_of_incidents_and_flapping(fleet: Fleet) -> None:
    """Members of an open incident and flapping agents aren't told of by themselves, and so aren't reminded of."""
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
    assert fleet.told("reminder") == []
