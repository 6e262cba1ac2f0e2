from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from sqlalchemy import Engine, insert, text, update

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.tables import Event
from fleetbeat_worker.downtime import maintenance, pauses
from fleetbeat_worker.explain import backtest as backtesting
from fleetbeat_worker.explain.backtest import BacktestReport, Trial, backtest
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from simulated import Simulation, at

SETTINGS = Settings()
WEEK = timedelta(days=7)


def judge(engine: Engine, trial: Trial | None = None, **options: Any) -> BacktestReport:
    return backtest(engine, SETTINGS, trial or Trial(), since=WEEK, **options)


def silences(report: BacktestReport, *, real: bool = False) -> list[tuple[str, float, float | None]]:
    """Return who was flagged (or would be), the deadline and the end, in seconds after noon."""
    found = []
    for finding in report.findings:
        moment = finding.was_at if real else finding.would_at
        if moment is not None:
            ended = None if finding.ended_at is None else (finding.ended_at - at(0)).total_seconds()
            found.append((finding.agent_name, (moment - at(0)).total_seconds(), ended))
    return found


_FORGET = "UPDATE pipeline SET watermark = NULL, last_sweep_at = NULL, maintenance_since = NULL, cleared_at = NULL"
_FATES = st.lists(
    st.one_of(
        st.tuples(st.just("beat"), st.integers(1, 60)),
        st.tuples(st.just("late"), st.integers(1, 40)),
        st.tuples(st.just("end"), st.integers(1, 30)),
        st.tuples(st.just("unwatched"), st.integers(31, 120)),
        st.tuples(st.just("pause"), st.integers(2, 60)),
        st.tuples(st.just("window"), st.integers(2, 60)),
    ),
    max_size=12,
)


def quiet_until(when: float, wait: int) -> float:
    """Return when a pause or a window ends that begins at a moment."""
    return when + wait // 2 + 0.4


def play(fleet: Simulation, sessions: dict[int, UUID], steps: list[tuple[float, int, str, int]]) -> None:
    """Let agents do what they do, in the order of time."""
    for when, number, kind, wait in sorted(steps, key=lambda step: step[0]):
        if kind == "end":
            fleet.end(sessions[number], when)
        if kind in {"register", "end"}:
            promise = {"interval_seconds": 10.0, "grace_seconds": 1.8}
            sessions[number] = fleet.register(f"agent {number}", when + 0.001, sessions.get(number), **promise)
        elif kind == "pause":
            with writing(fleet.engine) as connection:
                pauses.pause(connection, sessions[number], at(when), at(quiet_until(when, wait)), None)
        elif kind == "window":
            with writing(fleet.engine) as connection:
                maintenance.add_rule(connection, WindowRule(at(when), at(quiet_until(when, wait))), at(when))
        else:
            fleet.beat(sessions[number], when, waited=wait // 2 if kind == "late" else 0.0)


@given(fates=st.lists(_FATES, min_size=1, max_size=2))
@example([[("window", 56), ("beat", 1), ("window", 49), ("beat", 1)]])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_settings_of_today_find_what_was_flagged(memory: Engine, fates: list[Any]) -> None:
    """Judged again by the settings that it had, a fleet has the silences that real sweeps flagged, to the millisecond.

    Its agents beat, beat late, are paused, end and come back; now and then there is maintenance, or nobody watches.
    """
    with writing(memory) as connection:
        for table in ("heartbeats", "stray_heartbeats", "events", "outages", "maintenance", "liveness", "agents"):
            connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - our own names
        connection.execute(text(_FORGET))
    fleet = Simulation(memory)
    plan: list[tuple[float, int, str, int]] = []
    unwatched: list[tuple[int, int]] = []
    for number, fate in enumerate(fates):
        clock = 0.5
        plan.append((clock, number, "register", 0))
        for kind, wait in fate:
            if kind == "unwatched":
                unwatched.append((int(clock), int(clock) + wait))
            clock += wait
            plan.append((clock, number, kind, wait))
    ends_at = int(max(when for when, *_ in plan)) + 30
    ends = {int(quiet_until(when, wait)) for when, _, kind, wait in plan if kind in {"pause", "window"}}
    watched = ends | {int(when) for when, *_ in plan} | set(range(0, ends_at, 25)) | {ends_at}
    hidden = {second for start, end in unwatched for second in range(start + 1, end)}
    sessions: dict[int, UUID] = {}
    for second in sorted((watched | {end for _, end in unwatched}) - hidden):
        # Each deadline is at .2, .3 or .7, what happens is at .5: between them a sweep looks.
        play(fleet, sessions, [step for step in plan if step[0] < second])
        plan = [step for step in plan if step[0] >= second]
        fleet.sweep(second + 0.4)
    report = judge(memory, limit=1000)
    assert silences(report) == silences(report, real=True)
    assert report.would == report.was


def fleet_of(engine: Engine, *beats: float, **promise: Any) -> tuple[Simulation, UUID]:
    """Return a fleet with one agent that beats at some seconds, every 10 s with 1 s of grace, swept all the time."""
    fleet = Simulation(engine)
    session_id = fleet.register("torv", 0, **promise)
    sweep_from = 0
    for beat in beats:
        for second in range(sweep_from, int(beat), 2):
            fleet.sweep(second + 0.25)
        sweep_from = int(beat)
        fleet.beat(session_id, beat)
    fleet.sweep(sweep_from + 0.25)
    return fleet, session_id


def test_other_settings_flag_others(memory: Engine) -> None:
    """A lower limit, a shorter interval or less grace flags more, a higher one less, beside what was flagged."""
    fleet_of(memory, 1, 11, 26.5, 36, 60, 70)
    assert silences(judge(memory)) == [("torv", 57, 60)]
    assert silences(judge(memory, Trial(missed=1))) == [("torv", 22, 26.5), ("torv", 47, 60)]
    assert silences(judge(memory, Trial(interval_seconds=6, grace_seconds=0))) == [("torv", 23, 26.5), ("torv", 48, 60)]
    assert silences(judge(memory, Trial(grace_seconds=0))) == [("torv", 56, 60)]
    spared = judge(memory, Trial(missed=3))
    assert silences(spared) == []
    assert silences(spared, real=True) == [("torv", 57, 60)]
    assert (spared.would.flags, spared.was.flags, spared.was.seconds) == (0, 1, 3)
    assert spared.by_agent["torv"] == (spared.would, spared.was)


def test_an_interval_that_is_tried_leaves_schedules_alone(memory: Engine) -> None:
    """An agent on a cron schedule keeps it."""
    fleet, _ = fleet_of(memory, 1, schedule="* * * * *", time_zone="UTC", grace_seconds=5)
    for second in range(5, 200, 25):
        fleet.sweep(second)
    assert silences(judge(memory, Trial(interval_seconds=1))) == [("torv", 125, None)]


def test_an_agent_of_its_own_limit_keeps_it_unless_another_is_tried(memory: Engine) -> None:
    """The limit that a registration told counts, and without one the fleet's."""
    fleet_of(memory, 1, 40)
    assert silences(judge(memory)) == [("torv", 22, 40)]
    with writing(memory) as connection:
        detail = {"interval_seconds": 10.0, "grace_seconds": 1.0, "missed_intervals": 3}
        connection.execute(update(Event).where(Event.type == "registered").values(detail=detail))
    assert silences(judge(memory)) == [("torv", 32, 40)]
    assert silences(judge(memory, Trial(missed=1))) == [("torv", 12, 40)]


def put(engine: Engine, kind: str, when: float, session_id: UUID | None = None) -> None:
    with writing(engine) as connection:
        values = {"type": kind, "occurred_at": at(when), "session_id": session_id}
        connection.execute(insert(Event).values(values))


def test_pauses_and_maintenance_count_as_they_do(memory: Engine) -> None:
    """What was paused, or lies in a window, is nobody's silence under other settings either."""
    _, session_id = fleet_of(memory, 1, 11, 40, 50, 80, 90)
    assert [found[1] for found in silences(judge(memory))] == [32, 71]
    put(memory, "paused", 20, session_id)
    put(memory, "resumed", 30, session_id)
    assert [found[1] for found in silences(judge(memory))] == [71]
    put(memory, "maintenance", 60)
    put(memory, "maintenance_over", 75)
    report = judge(memory)
    assert silences(report) == []
    assert report.was.flags == 2


def test_what_began_before_is_not_counted(memory: Engine) -> None:
    """Of the last half minute only the silences that began in it count, and each agent's clock starts with it."""
    fleet, _ = fleet_of(memory, 1, 11, 60, 70)
    for second in (90, 100, 110):
        fleet.sweep(second)
    report = backtest(memory, SETTINGS, Trial(), since=timedelta(seconds=60))
    assert (report.since, report.is_cut) == (at(50), False)
    assert silences(report) == silences(report, real=True) == [("torv", 91, None)]
    assert judge(memory).is_cut


def test_clocks_that_are_wrong_hide_nothing(memory: Engine) -> None:
    """Heartbeats whose ids were made by a clock that is a year off are judged by their receipt like any other."""
    fleet, session_id = fleet_of(memory, 1)
    year = 365 * 86_400.0
    for second in range(10, 100, 10):
        fleet.sweep(second)
        fleet.beat(session_id, second, clock_off=-year if second % 20 else year)
    fleet.sweep(100)
    report = judge(memory)
    assert (report.heartbeats, silences(report)) == (10, [])


def test_agents_are_chosen_by_their_names(memory: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern chooses agents, whether few of them are read one by one or all are read and most left out."""
    fleet = Simulation(memory)
    names = ["crawler-1", "crawler-2", "mailer"]
    for name in names:
        fleet.beat(fleet.register(name, 0), 1)
    for second in (10, 20, 30):
        fleet.sweep(second)
    for at_most in (200, 1):
        monkeypatch.setattr(backtesting, "NAMED_AT_MOST", at_most)
        report = judge(memory, agent_glob="crawler-*")
        assert (report.sessions, report.heartbeats, sorted(report.by_agent)) == (2, 2, names[:2])
    assert judge(memory, agent_glob="nobody").sessions == 0


def test_a_promise_that_cannot_be_worked_out_stops_nobody(memory: Engine) -> None:
    """An agent whose time zone this machine lacks is left out and counted; the others are judged."""
    fleet, _ = fleet_of(memory, 1)
    lost = fleet.register("lost", 2, schedule="* * * * *", time_zone="UTC", grace_seconds=5)
    fleet.beat(lost, 3)
    for second in (20, 40):
        fleet.sweep(second)
    with writing(memory) as connection:
        detail = {"schedule": "* * * * *", "time_zone": "Mars/Olympus"}
        connection.execute(update(Event).where(Event.session_id == lost).values(detail=detail))
    report = judge(memory)
    assert (report.unjudged, list(report.by_agent)) == (1, ["torv"])


def test_only_the_latest_silences_are_kept(memory: Engine) -> None:
    """Memory is bounded: totals are of all, the list has the latest, the newest last; progress ends at the end."""
    fleet_of(memory, 1, 40, 80, 120, 160)
    steps: list[tuple[int, int]] = []
    report = judge(memory, limit=2, advance=lambda done, of: steps.append((done, of)))
    assert [found[1] for found in silences(report)] == [101, 141]
    assert report.would.flags == 4
    assert steps == [(1, 1)]


def test_nothing_stored_is_nothing_to_judge(memory: Engine) -> None:
    """Before the first sweep, and without a message, there is a sentence instead of an empty answer."""
    with pytest.raises(FleetbeatError, match="nothing to judge"):
        judge(memory)
    Simulation(memory).sweep(1)
    with pytest.raises(FleetbeatError, match="nothing to judge"):
        judge(memory)
