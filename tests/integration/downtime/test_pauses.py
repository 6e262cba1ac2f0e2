from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from redis import Redis
from sqlalchemy import Engine, delete, update

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database.engine import open_engine, writing
from fleetbeat_worker.database.tables import Liveness, Maintenance
from fleetbeat_worker.downtime import maintenance
from fleetbeat_worker.downtime.pauses import pause, resume
from fleetbeat_worker.fleet.agents import read_fleet
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
    redis_time,
    register,
    seconds,
    send,
    state,
    wait_sweeping,
)


@pytest.fixture
def wait(database: Engine, look: Callable[[], list[str]]) -> Callable[[float], list[str]]:
    """Return what lets time pass while sweeps go on, and tells whom they flagged."""
    return lambda number: wait_sweeping(database, look, number)


def silence(database: Engine, redis: Redis, name: str, length: float | None = None, reason: str | None = None) -> None:
    now = redis_time(redis)
    with writing(database) as connection:
        assert pause(connection, name, now, now + seconds(length) if length else None, reason)


def begin(database: Engine, redis: Redis, length: float | None = None, reason: str | None = None) -> int:
    now = redis_time(redis)
    with writing(database) as connection:
        return maintenance.add_rule(
            connection, WindowRule(now, now + seconds(length) if length else None, reason=reason), now
        )


def kinds(database: Engine, *types: str) -> list[tuple[str, str]]:
    return [(event.agent_name, event.type) for event in events(database, *types)]


def test_a_paused_agent_is_not_judged_until_its_clock_started_anew(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """Silent in its pause it isn't flagged; resumed as of the pause's end it has two intervals from there."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=30.0)
    send(redis, heartbeat(session))
    drain(redis, database, quick)
    look()
    silence(database, redis, "torv", 100, "new disk")
    until = agent(database, session).paused_until
    assert wait(95) == []
    assert state(database, session) == "paused"
    assert wait(20) == []
    row = agent(database, session)
    assert (row.state, row.paused_at, row.paused_until, row.pause_reason) == ("ok", None, None, None)
    (resumed,) = events(database, "resumed")
    (paused,) = events(database, "paused")
    assert row.resumed_at == row.state_changed_at == until - seconds(115)
    assert resumed.occurred_at - datetime.fromisoformat(paused.detail["until"]) < timedelta(0.001)
    assert (paused.detail["reason"], paused.detail["was"], resumed.detail["reason"]) == ("new disk", "ok", "new disk")
    assert row.deadline_at == row.resumed_at + seconds(61.5)
    assert wait(40) == []
    assert wait(8) == ["torv"]


def test_heartbeats_of_a_paused_agent_are_stored(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """They move its last sign and nothing else; neither they nor a registration end the pause, a goodbye does."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=30.0)
    silence(database, redis, "torv")
    send(redis, heartbeat(session, progress="still here"), heartbeat(session))
    drain(redis, database, quick)
    assert wait(100) == []
    send(redis, register("torv", session, interval_seconds=30.0))
    drain(redis, database, quick)
    row = agent(database, session)
    assert (row.state, row.progress, row.last_seen_at is not None) == ("paused", "still here", True)
    send(redis, deregister(session))
    drain(redis, database, quick)
    row = agent(database, session)
    assert (row.state, row.paused_at, row.paused_until) == ("ended", None, None)
    send(redis, register("torv", session, interval_seconds=30.0))
    drain(redis, database, quick)
    look()
    assert state(database, session) == "pending"


def test_a_degraded_agent_that_was_paused_comes_back_without_having_recovered(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """Its clock starts anew: ok, or pending if never heard, then flagged a second time; it never recovered."""
    seen, never = enrol(redis, database, quick, "seen", "never", interval_seconds=5.0)
    send(redis, heartbeat(seen))
    drain(redis, database, quick)
    look()
    assert wait(15) == ["never", "seen"]
    with writing(database) as connection:
        connection.execute(update(Liveness).values(incident_id=1))
    for name in ("seen", "never"):
        silence(database, redis, name)
    assert wait(100) == []
    with writing(database) as connection:
        for name in ("seen", "never"):
            assert [one.agent_name for one in resume(connection, name, redis_time(redis), 2)] == [name]
    assert (state(database, seen), state(database, never)) == ("ok", "pending")
    assert wait(5) == []
    assert wait(10) == ["never", "seen"]
    assert agent(database, seen).incident_id is None
    assert kinds(database, "recovered") == []


def test_a_pause_ends_once(
    database: Engine, redis: Redis, quick: Settings, sweep_at_once: Callable[[Settings], list[str]]
) -> None:
    """Four sweeps at once resume an agent with one event, and who resumes it by hand afterwards finds nothing to do."""
    enrol(redis, database, quick, "torv")
    silence(database, redis, "torv", 5)
    let_pass(database, 10)

    sweep_at_once(quick)
    assert kinds(database, "resumed") == [("torv", "resumed")]
    with writing(database) as connection:
        assert resume(connection, "torv", redis_time(redis), 2) == []


def test_all_live_sessions_of_a_name_are_paused(database: Engine, redis: Redis, quick: Settings) -> None:
    """Parallel sessions are paused and resumed together, or one by its id; ended ones are let be."""
    old, first, second = (
        enrol(redis, database, quick, "torv", parallel=True)[0],
        *enrol(redis, database, quick, "torv", "torv", parallel=True),
    )
    send(redis, deregister(old))
    drain(redis, database, quick)
    silence(database, redis, "torv")
    assert [state(database, one) for one in (old, first, second)] == ["ended", "paused", "paused"]
    with writing(database) as connection:
        resume(connection, first, redis_time(redis), 2)
    assert [state(database, one) for one in (old, first, second)] == ["ended", "pending", "paused"]


def test_an_outage_in_a_pause_counts_from_its_end(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """With nobody watching when the pause ended, the deadline moves by what of the outage lies after that end."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=10.0)
    look()
    silence(database, redis, "torv", 40)
    let_pass(database, 100)
    assert look() == []
    row = agent(database, session)
    assert row.state == "pending"
    assert abs(row.deadline_at - (redis_time(redis) + seconds(21))) < seconds(10)
    assert wait(10) == []
    assert wait(20) == ["torv"]


def test_nobody_is_flagged_in_maintenance_and_every_clock_starts_anew(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """Who fell silent before or in the window is flagged two intervals and grace after its end, which is told once."""
    before, during, well = enrol(redis, database, quick, "before", "during", "well", interval_seconds=30.0)
    send(redis, heartbeat(before), heartbeat(during), heartbeat(well))
    drain(redis, database, quick)
    look()
    assert wait(40) == []
    begin(database, redis, 100, "new switch")
    send(redis, heartbeat(during))
    drain(redis, database, quick)
    assert wait(95) == []
    send(redis, heartbeat(well))
    drain(redis, database, quick)
    assert [event.detail["reason"] for event in events(database, "maintenance")] == ["new switch"]
    assert events(database, "maintenance_over") == []
    view = read_fleet(quick, database, redis)
    assert view.maintenance is not None
    assert view.maintenance.reason == "new switch"
    assert {one.agent_name: str(one.state) for one in view.agents} == {"before": "late", "during": "ok", "well": "ok"}
    assert wait(8) == []  # three seconds after the end
    view = read_fleet(quick, database, redis)
    assert view.maintenance is None
    assert {str(one.state) for one in view.agents} == {"ok"}
    assert wait(20) == []
    send(redis, heartbeat(well))
    drain(redis, database, quick)
    assert wait(35) == []
    assert wait(6) == ["before", "during"]
    assert kinds(database, "maintenance", "maintenance_over") == [(None, "maintenance"), (None, "maintenance_over")]
    assert state(database, well) == "ok"


def test_what_was_degraded_before_maintenance_stays_so(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """A window takes no verdict back; a heartbeat in it does."""
    stays, returns = enrol(redis, database, quick, "stays", "returns", interval_seconds=5.0)
    look()
    assert wait(15) == ["returns", "stays"]
    begin(database, redis, 30)
    send(redis, heartbeat(returns))
    drain(redis, database, quick)
    wait(25)
    assert (state(database, stays), state(database, returns)) == ("degraded", "ok")


def test_a_window_that_no_sweep_saw_counts(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """Begun and over between two sweeps, it is told by both events, and clocks start at its end."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=10.0)
    look()
    begin(database, redis, 10)
    let_pass(database, 22)
    assert look() == []
    assert kinds(database, "maintenance", "maintenance_over") == [(None, "maintenance"), (None, "maintenance_over")]
    over = events(database, "maintenance_over")[0].occurred_at
    assert agent(database, session).deadline_at == over + seconds(21)
    assert wait(12) == ["torv"]


def test_maintenance_that_somebody_ends(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """Without an end it lasts until it is ended, also over an outage; the next sweep says that it is over, once."""
    enrol(redis, database, quick, "torv", interval_seconds=5.0)
    look()
    number = begin(database, redis)
    look()
    let_pass(database, 500)
    assert look() == []
    assert wait(40) == []
    with writing(database) as connection:
        maintenance.end_rules(connection, [number], redis_time(redis))
    look()
    look()
    assert kinds(database, "maintenance", "maintenance_over") == [(None, "maintenance"), (None, "maintenance_over")]
    assert wait(10) == []
    assert wait(2) == ["torv"]


def test_two_windows_one_after_the_other(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """The first window's end starts the clock anew; the next one moves the deadline by its time, and no more."""
    enrol(redis, database, quick, "torv", interval_seconds=10.0)
    look()
    begin(database, redis, 30)
    assert wait(40) == []
    begin(database, redis, 30)
    assert wait(38) == []
    assert wait(5) == ["torv"]


def test_windows_that_come_again_and_again_hide_nobody(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """An agent that may be silent for longer than windows are apart is flagged in the end, and has its whole time."""
    enrol(redis, database, quick, "torv", interval_seconds=30.0)
    look()
    flagged, waited = False, 0
    while not flagged and waited < 600:
        begin(database, redis, 5)
        for _ in range(2):
            waited += 10
            flagged = flagged or wait(10) == ["torv"]
    # The first window, then 61.5 s of which each 20 s have 5 s of maintenance.
    assert 5 + 61.5 + 15 < waited <= 5 + 61.5 + 25 + 10
    assert kinds(database, "degraded") == [("torv", "degraded")]


def test_a_spooled_heartbeat_of_the_window_flags_nobody_too_early(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """One that was said in the window and arrives after it sets an older deadline; time counts from the end anyway."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=30.0)
    look()
    begin(database, redis, 60)
    assert wait(100) == []
    send(redis, heartbeat(session, buffered_seconds=70.0))
    drain(redis, database, quick)
    assert agent(database, session).deadline_at < redis_time(redis)
    assert look() == []
    assert wait(15) == []
    assert wait(10) == ["torv"]


def test_maintenance_is_over_if_its_row_is_gone(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """If what a sweep found isn't there any more, every clock starts at the sweep that misses it."""
    enrol(redis, database, quick, "torv", interval_seconds=5.0)
    look()
    begin(database, redis, 100)
    look()
    with writing(database) as connection:
        connection.execute(delete(Maintenance))
    let_pass(database, 15)
    assert look() == []
    assert kinds(database, "maintenance_over") == [(None, "maintenance_over")]
    assert wait(12) == ["torv"]


def test_maintenance_that_cant_be_worked_out(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """A window whose time zone is gone is left out, and keeps no sweep from the others, nor from verdicts."""
    enrol(redis, database, quick, "torv", interval_seconds=5.0)
    with writing(database) as connection:
        rule = WindowRule(redis_time(redis), None, "* * * * *", "Mars/Olympus", 30.0)
        maintenance.add_rule(connection, rule, redis_time(redis))
    look()
    begin(database, redis, 15)
    assert wait(12) == []
    assert read_fleet(quick, database, redis).maintenance is not None
    assert wait(12) == []
    assert wait(5) == ["torv"]


def test_pauses_race_with_batches_and_sweeps(postgres_url: str, redis: Redis, quick: Settings) -> None:
    """While agents beat and sweeps look, pauses come and go: nothing waits in a circle, each change is told once."""
    engines = [open_engine(postgres_url) for _ in range(3)]
    names = [f"agent-{number}" for number in range(10)]
    sessions = enrol(redis, engines[0], quick, *names)

    def beat() -> None:
        for _ in range(15):
            send(redis, *[heartbeat(session, progress="on") for session in sessions])
            drain(redis, engines[0], quick)

    def silence_some() -> None:
        for number in range(90):
            with writing(engines[1]) as connection:
                name, now = names[number % 10], redis_time(redis)
                if number // 10 % 3:
                    pause(connection, name, now, now + seconds(0.05), None)
                else:
                    resume(connection, name, now, 2)

    def look() -> None:
        for _ in range(40):
            sweep(redis, engines[2], quick)

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(act) for act in (beat, silence_some, look)]:
            done.result()
    let_pass(engines[0], 1)
    sweep(redis, engines[0], quick)
    assert {state(engines[0], session) for session in sessions} == {"ok"}
    told = {
        name: "".join(kind[0] for who, kind in kinds(engines[0], "paused", "resumed") if who == name) for name in names
    }
    assert all(re.fullmatch("(p+r)+", kinds_of_one) for kinds_of_one in told.values()), told
    for engine in engines:
        engine.dispose()


def test_an_agents_own_limit_goes_before_the_fleets(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """One miss or three are what it takes if the agent said so, and a registration without a number takes that back."""
    one, three = (
        enrol(redis, database, quick, name, interval_seconds=10.0, missed_intervals=number, stuck_after=number)[0]
        for name, number in (("one", 1), ("three", 3))
    )
    enrol(redis, database, quick, "fleet", interval_seconds=10.0)
    look()
    assert wait(12) == ["one"]
    assert wait(10) == ["fleet"]
    assert {view.agent_name: view.missed_limit for view in read_fleet(quick, database, redis).agents} == {
        "one": 1,
        "three": 3,
        "fleet": 2,
    }
    assert (agent(database, three).stuck_after, agent(database, three).missed_limit) == (3, 3)
    send(redis, register("three", three, interval_seconds=10.0))
    drain(redis, database, quick)
    assert (agent(database, three).stuck_after, agent(database, three).missed_limit) == (None, None)
    assert look() == ["three"]
    assert agent(database, one).missed_limit == 1


def test_an_outage_around_a_resume_counts_from_there(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]]
) -> None:
    """Resumed by hand while nobody watched, an agent's deadline moves by what of the outage came after that."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=10.0)
    look()
    silence(database, redis, "torv")
    let_pass(database, 50)
    with writing(database) as connection:
        resume(connection, "torv", redis_time(redis), 2)
    let_pass(database, 50)
    assert look() == []
    row = agent(database, session)
    assert abs(row.deadline_at - (row.resumed_at + seconds(21 + 50))) < seconds(10)


def test_after_maintenance_the_display_needs_no_sweep(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """Between a window's end and the next sweep, agents are shown with the clock that starts at that end."""
    enrol(redis, database, quick, "never", interval_seconds=60.0)
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=10.0)
    send(redis, heartbeat(session))
    drain(redis, database, quick)
    look()
    begin(database, redis, 18)
    assert wait(10) == []
    let_pass(database, 12)
    (shown,) = (one for one in read_fleet(quick, database, redis).agents if one.agent_name == "torv")
    assert (str(shown.state), shown.missed_intervals) == ("ok", 0)
    assert shown.deadline_at > agent(database, session).deadline_at
    assert look() == []
    assert agent(database, session).deadline_at == shown.deadline_at


def test_who_registers_after_maintenance_is_judged_as_ever(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], wait: Callable[[float], list[str]]
) -> None:
    """A window that was over before an agent was there moves none of its deadlines."""
    look()
    begin(database, redis, 5)
    assert wait(15) == []
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=5.0)
    before = agent(database, session).deadline_at
    assert wait(15) == ["torv"]
    assert agent(database, session).deadline_at == before - seconds(15)
