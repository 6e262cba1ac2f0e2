"""What `explain`, `agents show` and `check` say of agents that are stuck or flap."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from fakeredis import FakeRedis
from ops_fixtures import put_agent, put_sweep
from sqlalchemy import Engine

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.cli import main
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.downtime import pauses
from fleetbeat_worker.explain import verdict as explaining
from fleetbeat_worker.explain.explanation import Explanation
from fleetbeat_worker.explain.verdict import explain
from fleetbeat_worker.workers.registry import WorkerHealth
from simulated import Simulation, at


@pytest.fixture
def ask(memory: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Explanation]:
    """Return what explains torv at `now` seconds after noon; `when` is a moment before that."""

    def ask(now: float, when: float | None = None) -> Explanation:
        monkeypatch.setattr(explaining, "read_redis", lambda *_: (Horizon(at(now), at(now), 0), WorkerHealth(1), None))
        client: Any = None
        settings = Settings(stuck_after=3, flapping_changes=2)
        return explain(settings, memory, client, "torv", None if when is None else at(when))

    return ask


def test_stuck_is_explained_with_its_sum(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """Since when, what it says unchanged, when that was too long, and what ends it; now, then, and before."""
    fleet = Simulation(memory, stuck_after=3)
    session_id = fleet.register("torv", 0)
    for second in range(1, 100, 10):
        fleet.beat(session_id, second, progress="page 7", status="busy", summary=str(second))
        fleet.sweep(second + 1)
    same = "says the same since 2026-01-31 12:00:01 UTC (progress: page 7; status: busy)"
    summed = "last change 2026-01-31 12:00:01 + 3 x 10s + 1s grace = 2026-01-31 12:00:32"
    ends = "it ends with the first heartbeat that says something else"
    stuck = [f"STUCK since 2026-01-31 12:00:42 UTC: it {same}", summed, ends]
    for found in (ask(95), ask(95, 60)):
        assert found.state == "ok"
        assert found.stuck is not None
        assert found.stuck.lines() == stuck
    before = ask(95, 20).stuck
    assert before is not None
    assert before.lines() == [f"no; {same}, and is stuck at 2026-01-31 12:00:32 UTC unless that changes", summed]
    fleet.beat(session_id, 101, progress="page 8")
    assert ask(102, 99).to_json()["stuck"]["is_stuck"] is True
    answer = ask(102).to_json()["stuck"]
    assert (answer["is_stuck"], answer["changed_at"], answer["stuck_at"]) == (False, at(101), at(132))
    assert ask(102, 20).stuck is None  # what it said then is gone


def test_a_pause_starts_the_time_of_the_same_anew(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """The sum begins where the sweep's does: at the end of a pause, or at the return from a silence."""
    fleet = Simulation(memory, stuck_after=3)
    session_id = fleet.register("torv", 0)
    fleet.beat(session_id, 1, progress="page 7")
    with writing(memory) as connection:
        pauses.pause(connection, session_id, at(5), None, None)
    assert ask(6).stuck is None
    with writing(memory) as connection:
        pauses.resume(connection, session_id, at(15), 2)
    found = ask(16).stuck
    assert found is not None
    assert found.sum.lines() == ["end of the pause 2026-01-31 12:00:15 + 3 x 10s + 1s grace = 2026-01-31 12:00:46"]
    fleet.sweep(37)
    fleet.beat(session_id, 40, progress="page 7")
    found = ask(41).stuck
    assert found is not None
    assert found.sum.lines()[0].startswith("return from its silence 2026-01-31 12:00:40 + 3 x 10s")
    flagged = [second for second in range(41, 90) if _beat_and_sweep(fleet, session_id, second)]
    assert flagged == [72]  # the first sweep after 12:01:11


def _beat_and_sweep(fleet: Simulation, session_id: Any, second: int) -> list[str]:
    fleet.beat(session_id, second, progress="page 7")
    return fleet.sweep(second).stuck


def test_flapping_is_explained_with_its_count(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """How many changes in which time, more than how many flap, what that means, and when it is calm."""
    fleet = Simulation(memory, flapping_changes=2)
    session_id = fleet.register("torv", 0)
    for start in (1, 41, 81):
        fleet.beat(session_id, start)
        fleet.sweep(start + 1)
        fleet.sweep(start + 25)
    for found in (ask(110), ask(110, 108)):
        assert found.flapping is not None
        assert (found.flapping.changes, found.flapping.limit, found.flapping.since) == (5, 2, at(66))
        assert found.flapping.calm_at == at(266)
    found = ask(110)
    assert found.flapping is not None
    assert found.flapping.lines() == [
        (
            "FLAPPING since 2026-01-31 12:01:06 UTC: 5 changes between silent and heard in its last 20 intervals "
            "(since 2026-01-31 11:58:30 UTC);"
        ),
        "with more than 2 it flaps, and its single changes are told no longer",
        "calm at 2026-01-31 12:04:26 UTC if it keeps its state until then",
    ]
    assert found.to_json()["flapping"]["more_changes_than"] == 2
    assert ask(110, 50).flapping is None


@pytest.mark.usefixtures("redis")
def test_agents_show_and_check_name_the_stuck(
    engine: Engine, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` says who is stuck or flaps and ends with 0; the promise has the limit, without rounding."""
    from datetime import UTC, datetime

    from fleetbeat_shared import connection

    monkeypatch.setattr(connection, "connect", lambda *_, **__: redis)
    now = datetime.now(UTC)
    columns = {"interval_seconds": 90.5, "grace_seconds": 1.25}
    put_agent(engine, "loops", at=now, stuck_at=now, stuck_after=3, **columns)
    put_agent(engine, "flips", at=now, flapping_at=now)
    put_sweep(engine, now)
    run = CliRunner().invoke
    shown = run(main, ["agents", "show", "loops"]).output
    assert "every 90.5s, 1.25s grace, degraded at 2 missed, stuck after 3" in " ".join(shown.split())
    one = run(main, ["check", "--agent", "loops"])
    assert (one.exit_code, one.output.count("\n")) == (0, 1)
    assert one.output.endswith("Stuck: loops. For details see: fleetbeat explain NAME\n")
    every = json.loads(run(main, ["check", "--json"]).stdout)
    assert (every["stuck"], every["flapping"], every["exit_status"]) == (["loops"], ["flips"], 0)
    assert "Stuck" not in run(main, ["check", "--agent", "flips"]).output
