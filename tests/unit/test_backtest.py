from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings, strategies as st
from simulated import Simulation, at
from sqlalchemy import text

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.backtest import Trial, backtest
from fleetbeat_worker.database import writing

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine

    from fleetbeat_worker.backtest import BacktestReport

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


_FATES = st.lists(
    st.one_of(
        st.tuples(st.just("beat"), st.integers(1, 60)),
        st.tuples(st.just("late"), st.integers(1, 40)),
        st.tuples(st.just("end"), st.integers(1, 30)),
        st.tuples(st.just("unwatched"), st.integers(31, 120)),
    ),
    max_size=12,
)


def play(fleet: Simulation, sessions: dict[int, UUID], steps: list[tuple[float, int, str, int]]) -> None:
    """Let agents do what they do, in the order of time."""
    for when, number, kind, wait in sorted(steps, key=lambda step: step[0]):
        if kind == "end":
            fleet.end(sessions[number], when)
        if kind in {"register", "end"}:
            sessions[number] = fleet.register(f"agent {number}", when + 0.001, sessions.get(number))
        else:
            fleet.beat(sessions[number], when, waited=wait // 2 if kind == "late" else 0.0)


@given(fates=st.lists(_FATES, min_size=1, max_size=2))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_settings_of_today_find_what_was_flagged(memory: Engine, fates: list[Any]) -> None:
    """Judged again by the settings that it had, a fleet has the silences that real sweeps flagged, to the millisecond.

    Its agents beat, beat late, end and come back; now and then nobody watches.
    """
    with writing(memory) as connection:
        for table in ("heartbeats", "stray_heartbeats", "events", "outages", "liveness", "agents"):
            connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - our own names
        connection.execute(text("UPDATE pipeline SET watermark = NULL, last_sweep_at = NULL"))
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
    watched = {int(when) for when, *_ in plan} | set(range(0, ends_at, 25)) | {ends_at}
    hidden = {second for start, end in unwatched for second in range(start + 1, end)}
    sessions: dict[int, UUID] = {}
    for second in sorted(watched - hidden | {end for _, end in unwatched}):
        play(fleet, sessions, [step for step in plan if step[0] < second])
        plan = [step for step in plan if step[0] >= second]
        fleet.sweep(second)
    report = judge(memory, limit=1000)
    assert silences(report) == silences(report, real=True)
    assert report.would == report.was
