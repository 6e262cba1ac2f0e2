from __future__ import annotations

from typing import Any

import pytest
from fakeredis import FakeRedis
from hypothesis import given, strategies as st
from ops_fixtures import NOON, put_agent, put_rejected, put_sweep, seconds
from rich.console import Console
from sqlalchemy import Engine

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.cli.dashboard import render
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.fleet import agents as fleet, current_state as judging
from fleetbeat_worker.fleet.agents import FleetView, Selection, read_agent, read_fleet
from fleetbeat_worker.fleet.pipeline import view_pipeline
from fleetbeat_worker.rules.liveness import MISSED_COUNTED, State, missed_intervals
from fleetbeat_worker.store.pipeline import PipelineState
from fleetbeat_worker.store.tasks import add_task
from fleetbeat_worker.workers.registry import WorkerHealth

AWAY = Settings(redis_url="redis://user:secret@127.0.0.1:1/0")


def look(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    now_seconds: float = 0.0,
    lag_seconds: float = 0.0,
    **selection: object,
) -> FleetView:
    """Read the fleet some seconds after noon."""
    now = NOON + seconds(now_seconds)
    horizon = Horizon(now=now, watermark=now - seconds(lag_seconds), backlog=1 if lag_seconds else 0)
    monkeypatch.setattr(fleet, "read_redis", lambda *_: (horizon, WorkerHealth(2), None))
    return read_fleet(Settings(), engine, None, Selection(**selection))


def shown(view: FleetView) -> dict[str, State]:
    return {agent.agent_name: agent.state for agent in view.agents}


def text_of(view: FleetView, width: int = 100) -> str:
    console = Console(width=width, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(render(view))
    return captured.get()


def test_states_are_derived_as_of_the_watermark(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent is late once an interval and grace passed before the watermark, and not by this moment's clock."""
    put_agent(engine, "torv")
    put_sweep(engine, NOON)
    assert shown(look(engine, monkeypatch, now_seconds=31.9)) == {"torv": State.OK}
    put_sweep(engine, NOON + seconds(20))
    assert shown(look(engine, monkeypatch, now_seconds=32.0)) == {"torv": State.LATE}
    view = look(engine, monkeypatch, now_seconds=45.0, lag_seconds=20)
    assert shown(view) == {"torv": State.OK}
    assert view.as_of == NOON + seconds(25)


def test_a_watermark_that_sql_knows_is_never_taken_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an older entry in the inbox than the last sweep's watermark, verdicts stay as of that watermark."""
    put_sweep(engine, NOON - seconds(1))
    assert look(engine, monkeypatch, lag_seconds=5).as_of == NOON - seconds(1)


def test_the_most_urgent_come_first_and_ended_ones_only_when_asked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Degraded, late, pending, ok, then by name; a limit cuts the calm ones, and the counts know of them."""
    put_agent(engine, "b-ok")
    put_agent(engine, "a-ok")
    put_agent(engine, "z-degraded", at=NOON - seconds(90), state="degraded")
    put_agent(engine, "y-late", at=NOON - seconds(40))
    put_agent(engine, "x-pending", state="pending")
    put_agent(engine, "gone", state="ended", ended_at=NOON)
    put_sweep(engine, NOON)
    view = look(engine, monkeypatch, limit=3)
    assert list(shown(view)) == ["z-degraded", "y-late", "x-pending"]
    assert view.counts == {State.PENDING: 1, State.OK: 2, State.LATE: 1, State.DEGRADED: 1}
    assert shown(look(engine, monkeypatch, states=frozenset({State.ENDED}))) == {"gone": State.ENDED}
    assert list(shown(look(engine, monkeypatch, newest_first=True)))[-3:] == ["y-late", "z-degraded", "x-pending"]
    assert len(look(engine, monkeypatch, states=frozenset(State)).agents) == 6
    assert list(shown(look(engine, monkeypatch, agent_name="a-ok"))) == ["a-ok"]


def test_missed_intervals_count_from_the_deadline(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that an outage moved moves the count with it; an ended session misses nothing."""
    put_agent(engine, "rams", at=NOON - seconds(95), state="degraded")
    put_agent(engine, "kami", at=NOON - seconds(95), deadline_at=NOON + seconds(40))
    put_agent(engine, "gone", at=NOON - seconds(95), state="ended", ended_at=NOON)
    put_sweep(engine, NOON)
    missed = {a.agent_name: a.missed_intervals for a in look(engine, monkeypatch, states=frozenset(State)).agents}
    assert missed == {"rams": 3, "kami": 0, "gone": 0}


def test_slots_are_counted_for_those_who_are_shown_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of agents on schedules only those whose count is shown are counted; for a state one slot is enough, or none."""
    promise = {"interval_seconds": None, "schedule": "* * * * *", "time_zone": "UTC"}
    for number, state in enumerate(["degraded"] * 3 + ["ok"] * 2 + ["ended"]):
        ended_at = NOON if state == "ended" else None
        put_agent(engine, f"cron-{number}", at=NOON - seconds(90_000), state=state, ended_at=ended_at, **promise)
    put_sweep(engine, NOON)
    asked = []

    def counting(*arguments: Any, count_to: int) -> int:
        asked.append(count_to)
        return missed_intervals(*arguments, count_to=count_to)

    monkeypatch.setattr(judging, "missed_intervals", counting)
    unasked = look(engine, monkeypatch, count_missed=False, states=frozenset(State))
    assert list(unasked.counts) == [State.LATE, State.DEGRADED, State.ENDED]
    assert {agent.missed_intervals for agent in unasked.agents} == {None}
    assert asked == [1, 1]
    asked.clear()
    view = look(engine, monkeypatch, limit=1)
    assert [agent.missed_intervals for agent in view.agents] == [MISSED_COUNTED]
    assert sorted(asked) == [1, 1, MISSED_COUNTED]
    assert view.agents[0].to_json()["missed_intervals"] == 100
    assert "100+ missed" in text_of(view)


def test_what_an_agent_reported_goes_before_what_is_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open and stale counts are the agent's own, each by itself, else those of the tasks of its name."""
    put_agent(engine, "hint", open_tasks=7)
    put_agent(engine, "torv")
    with writing(engine) as connection:
        for name in ("hint", "torv"):
            add_task(connection, name, "old", NOON - seconds(90_000))
            add_task(connection, name, "new", NOON)
    put_sweep(engine, NOON)
    counts = {a.agent_name: (a.open_tasks, a.stale_tasks) for a in look(engine, monkeypatch).agents}
    assert counts == {"hint": (7, 1), "torv": (2, 1)}


def test_with_redis_away_the_last_watermark_holds(engine: Engine, redis: FakeRedis) -> None:
    """Nothing that Redis would know is made up, and no agent ages after the last watermark."""
    put_agent(engine, "torv")
    put_sweep(engine, NOON)
    redis.connection_pool.connection_kwargs["server"].connected = False
    view = read_fleet(AWAY, engine, redis)
    pipeline = view.pipeline
    assert (view.as_of, pipeline.held) == (NOON, True)
    assert (pipeline.backlog, pipeline.lag_seconds, pipeline.workers) == (None, None, None)
    assert shown(view) == {"torv": State.OK}
    assert "Redis at redis://127.0.0.1:1/0 can't be used" in text_of(view)
    assert "HELD as of 2026-01-31 12:00:00 UTC" in text_of(view)
    assert "secret" not in text_of(view)


def test_with_redis_away_and_no_sweep_ever_nothing_is_claimed(engine: Engine, redis: FakeRedis) -> None:
    """Without any watermark there is no moment to take a verdict as of."""
    put_agent(engine, "torv")
    redis.connection_pool.connection_kwargs["server"].connected = False
    view = read_fleet(AWAY, engine, redis)
    assert view.as_of is None
    assert view.agents[0].missed_intervals is None
    assert "no state is known yet" in text_of(view)


def test_redis_is_read_as_it_stands(engine: Engine, redis: FakeRedis) -> None:
    """With an empty inbox the watermark is Redis's time, nothing waits and nobody works."""
    pipeline = read_fleet(Settings(), engine, redis).pipeline
    assert (pipeline.backlog, pipeline.lag_seconds, pipeline.workers) == (0, 0.0, 0)
    assert pipeline.as_of == pipeline.now
    assert pipeline.trouble is not None
    assert pipeline.trouble.startswith("No sweep has run yet")


def test_a_newer_session_of_a_name_is_shown(engine: Engine, redis: FakeRedis) -> None:
    """By name one gets the live session before an ended one; by id exactly that one; else nothing."""
    ended = put_agent(engine, "hint", at=NOON + seconds(9), state="ended", ended_at=NOON + seconds(10))
    live = put_agent(engine, "hint")
    put_sweep(engine, NOON)

    def session(asked: object) -> object:
        report = read_agent(Settings(), engine, redis, asked, 10)
        return report.agent.session_id if report is not None else None

    assert session("hint") == live
    assert session(ended) == ended
    assert session("nobody") is None


@given(
    lag=st.floats(0, 10_000),
    swept_seconds_ago=st.none() | st.floats(0, 10_000),
    watermark_age=st.floats(0, 10_000),
    sweep_seconds=st.floats(0.1, 3600),
)
def test_held_means_behind_or_unwatched(
    lag: float, swept_seconds_ago: float | None, watermark_age: float, sweep_seconds: float
) -> None:
    """Verdicts are held just when the pipeline is late by 30 s and three sweeps; held ones never run ahead of SQL."""
    patience = max(30.0, 3 * sweep_seconds)
    horizon = Horizon(now=NOON, watermark=NOON - seconds(lag), backlog=1)
    stored = PipelineState()
    if swept_seconds_ago is not None:
        stored = PipelineState(NOON - seconds(watermark_age), NOON - seconds(swept_seconds_ago))
    settings = Settings(sweep_seconds=sweep_seconds)
    view = view_pipeline(settings, stored, horizon, crew=WorkerHealth(1), rejected=0, away=None, now=NOON)
    behind = (NOON - horizon.watermark).total_seconds() > patience
    unwatched = stored.last_sweep_at is not None and (NOON - stored.last_sweep_at).total_seconds() > patience
    assert view.held == (behind or unwatched)
    assert (view.trouble is None) == (not view.held and stored.last_sweep_at is not None)
    assert view.as_of is not None
    assert view.as_of <= NOON
    if unwatched:
        assert view.as_of == stored.watermark


@pytest.mark.parametrize(
    ("crew", "advice"),
    [
        (WorkerHealth(0), "None is running: fleetbeat worker"),
        (WorkerHealth(2), "Start more: fleetbeat worker -n 4"),
        (WorkerHealth(2, 1, 17.2), "1 of 2 workers have not responded for 17s. See: fleetbeat workers"),
        (WorkerHealth(1, 1, 40.0), "The only worker has not responded for 40s. See: fleetbeat workers"),
    ],
)
def test_what_to_do_about_a_lag_depends_on_who_works(crew: WorkerHealth, advice: str) -> None:
    """More workers help against too few of them, and not against some that stand still."""
    horizon = Horizon(now=NOON, watermark=NOON - seconds(31), backlog=3)
    swept = PipelineState(NOON, NOON)
    view = view_pipeline(Settings(), swept, horizon, crew=crew, rejected=0, away=None, now=NOON)
    assert view.trouble == f"The workers are 31s behind (3 messages wait). {advice}"


def test_the_dashboard_fits_and_hides_nothing_in_silence(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 100 columns every word is whole or folded, and what is cut says by how much."""
    put_agent(
        engine,
        "n" * 64,
        current_work="w" * 500,
        work_item_id="i" * 128,
        status="busy",
        summary="s" * 500,
        error="e" * 2000,
    )
    put_agent(engine, "cron", interval_seconds=None, schedule="15 8 * * 1-5", time_zone="America/New_York")
    put_rejected(engine, "1-1", b"x")
    put_sweep(engine, NOON)
    text = text_of(look(engine, monkeypatch))
    assert max(len(line) for line in text.splitlines()) <= 100
    flat = "".join(text.split())
    assert text.count("n" * 14) == 4
    assert "(+400)" in flat
    assert "(+N)" in flat
    assert "158*" in flat
    assert "America/New_York" in text
    assert "1 rejected (fleetbeat rejected list)" in text


def test_text_of_agents_is_inert(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape sequences, markup and emoji codes that got into the database do nothing on the terminal."""
    put_agent(
        engine, "[bold]x[/]\x1b[31m", current_work="\x1b]0;owned\x07a\nb", summary=":smile: [link=http://x]y[/link]"
    )
    put_sweep(engine, NOON)
    text = text_of(look(engine, monkeypatch), width=160)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]x[/]" in text
    assert ":smile: [link=http://x]y[/link]" in text
    assert "a b" in text


def test_an_empty_fleet_says_how_to_begin(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dashboard without agents isn't an empty screen, and one that was filtered doesn't call the fleet empty."""
    put_sweep(engine, NOON)
    view = look(engine, monkeypatch)
    assert "fleetbeat-agent register" in text_of(view)
    assert "No agent matches" in str(render(view, filtered=True).renderables[2])


def test_what_the_limit_hides_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboard counts the agents beyond its limit."""
    put_agent(engine, "hint")
    put_agent(engine, "torv")
    put_sweep(engine, NOON)
    assert "… and 1 more agent: raise --limit." in text_of(look(engine, monkeypatch, limit=1))
