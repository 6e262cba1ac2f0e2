"""What `explain` says of pauses and maintenance that last, of how a session ended, and of what comes next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, delete

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.cli.explain import explanation_text
from fleetbeat_worker.cli.rendering import console
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.tables import Event
from fleetbeat_worker.downtime import maintenance, pauses
from fleetbeat_worker.explain import verdict as explaining
from fleetbeat_worker.explain.explanation import Explanation
from fleetbeat_worker.explain.verdict import explain
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from fleetbeat_worker.workers.registry import WorkerHealth
from simulated import Simulation, at

PAUSED = "somebody does it (fleetbeat agents resume); its clock starts anew then"


@pytest.fixture
def ask(memory: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Explanation]:
    """Return what explains torv at `now` seconds after noon; `when` is a moment before that."""

    def ask(now: float, when: float | None = None) -> Explanation:
        monkeypatch.setattr(explaining, "read_redis", lambda *_: (Horizon(at(now), at(now), 0), WorkerHealth(1), None))
        client: Any = None
        return explain(Settings(), memory, client, "torv", None if when is None else at(when))

    return ask


def lines(found: Explanation, name: str) -> list[str]:
    """Return the lines that an explanation has under a name."""
    made = console()
    made.width = 200
    with made.capture() as captured:
        made.print(explanation_text(found))
    shown: dict[str, list[str]] = {}
    key = ""
    for line in captured.get().splitlines():
        first, _, rest = line.partition(" ")
        key = first or key
        shown.setdefault(key, []).extend([rest.strip()] if line else [])
    return shown.get(name, [])


def test_a_pause_that_lasts_says_since_and_until(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """One that was changed is one pause since its beginning, until what was said last, now and looked back upon."""
    fleet = Simulation(memory)
    session_id = fleet.register("torv", 0)
    fleet.beat(session_id, 1)
    with writing(memory) as connection:
        pauses.pause(connection, session_id, at(10), None, "one \x1b[31m")
    first = ask(15)
    assert lines(first, "paused") == ["since 2026-01-31 12:00:10 UTC (5s so far, until resumed): one"]
    assert first.next == f"resumed when {PAUSED}"
    with writing(memory) as connection:
        pauses.pause(connection, session_id, at(20), at(3620), "two")
    for found in (ask(25), ask(30, 25)):
        assert (found.state, found.state_since) == ("paused", at(10))
        assert lines(found, "paused") == [
            "since 2026-01-31 12:00:10 UTC (15s so far, until 2026-01-31 13:00:20 UTC): two"
        ]
        assert found.next == "resumed at 2026-01-31 13:00:20; its clock starts anew then"
        assert found.next_at == at(3620)
        assert found.to_json()["pauses"][0]["ended_at"] is None
    assert ask(30, 15).next == f"resumed when {PAUSED}"
    with writing(memory) as connection:
        pauses.resume(connection, session_id, at(40), 2)
    assert lines(ask(45), "paused") == ["2026-01-31 12:00:10 to 2026-01-31 12:00:40 UTC (30s): two"]
    with writing(memory) as connection:
        pauses.pause(connection, session_id, at(50), at(60), "three")
        connection.execute(delete(Event))
    assert lines(ask(55), "paused") == [
        "since 2026-01-31 12:00:50 UTC (5s so far, until 2026-01-31 12:01:00 UTC): three"
    ]


def test_maintenance_that_lasts_says_since_and_until(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """Its end is the one that holds now; afterwards it is the one at which it ended."""
    fleet = Simulation(memory)
    fleet.register("torv", 0)
    with writing(memory) as connection:
        number = maintenance.add_rule(connection, WindowRule(at(5), None, reason="new switch"), at(0))
    fleet.sweep(6)
    text = "since 2026-01-31 12:00:05 UTC (2s so far, until ended): new switch"
    assert lines(ask(7), "maintenance") == [text]
    with writing(memory) as connection:
        maintenance.end_rules(connection, [number], at(20))
    fleet.sweep(21)
    assert lines(ask(22), "maintenance") == ["2026-01-31 12:00:05 to 2026-01-31 12:00:20 UTC (15s): new switch"]
    assert lines(ask(22, 7), "maintenance") == [text]


def test_maintenance_that_begins_before_the_deadline_is_mentioned(
    memory: Engine, ask: Callable[..., Explanation]
) -> None:
    """An agent isn't degraded at a deadline that a window spares it, once or again and again."""
    fleet = Simulation(memory)
    session_id = fleet.register("torv", 0, interval_seconds=100.0, grace_seconds=1.0)
    fleet.beat(session_id, 1)
    late = "late at 2026-01-31 12:01:42, "
    assert ask(5).next == f"{late}degraded at 2026-01-31 12:03:22 unless a heartbeat comes"
    with writing(memory) as connection:
        maintenance.add_rule(connection, WindowRule(at(300), at(310)), at(2))
    assert ask(5).next.startswith(f"{late}degraded at")
    with writing(memory) as connection:
        rule = WindowRule(at(0), schedule="2 12 * * *", time_zone="UTC", duration_seconds=30.0)
        maintenance.add_rule(connection, rule, at(2))
    spared = (
        "not degraded at 2026-01-31 12:03:22, as maintenance begins before, at 2026-01-31 12:02:00 "
        "(until 2026-01-31 12:02:30); its clock starts anew then"
    )
    found = ask(5)
    assert (found.next, found.next_at) == (late + spared, at(102))
    found = ask(110)
    assert (found.state, found.next, found.next_at) == ("late", spared, at(120))
    with writing(memory) as connection:
        maintenance.add_rule(connection, WindowRule(at(60), at(65)), at(2))
    assert ask(5).next.startswith(
        "not degraded at 2026-01-31 12:03:22, as maintenance begins before, at 2026-01-31 12:01:00"
    )


def test_an_end_is_explained(memory: Engine, ask: Callable[..., Explanation]) -> None:
    """An ended session says with which exit status and error, or that another took its name."""
    fleet = Simulation(memory)
    fleet.end(fleet.register("torv", 0), 10, exit_status=137, error="killed \x1b[1m")
    assert lines(ask(15), "ended") == ["it said goodbye, exit status 137, error: killed"]
    assert ask(15).to_json()["ended"] == {"exit_status": 137, "error": "killed", "superseded_by": None}
    with writing(memory) as connection:
        connection.execute(delete(Event))
    assert lines(ask(15), "ended") == ["it said goodbye, exit status 137, error: killed"]
    fleet.end(fleet.register("torv", 20), 30)
    assert lines(ask(35), "ended") == ["it said goodbye"]
    first, second = fleet.register("torv", 40), fleet.register("torv", 50)
    del first
    fleet.end(second, 60)
    assert lines(ask(65, 55), "ended") == []
