from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.explain import verdict as explaining
from fleetbeat_worker.explain.backtest import Trial, backtest
from fleetbeat_worker.explain.verdict import explain
from fleetbeat_worker.fleet.uptime import read_record
from fleetbeat_worker.store import history
from fleetbeat_worker.sweep.job import sweep
from fleetbeat_worker.workers.registry import WorkerHealth
from helpers import drain, enrol, events, eventually, heartbeat, let_pass, send
from simulated import Simulation, at


def fleet_of(engine: Engine, agents: int) -> None:
    """Let agents beat for two minutes with ids of clocks that are right or years off; every second one dies then."""
    fleet = Simulation(engine)
    sessions = [fleet.register(f"agent {number}", 0) for number in range(agents)]
    for second in range(1, 240, 10):
        for number, session_id in enumerate(sessions):
            if second < 120 or number % 2:
                fleet.beat(session_id, second + number / 100, clock_off=(number % 3 - 1) * 3e7)
        fleet.sweep(second + 5)


def test_signs_are_read_by_session_and_by_receipt(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces smaller than what there is, each heartbeat of a time comes once, wherever its id lies."""
    monkeypatch.setattr(history, "_ROWS_AT_ONCE", 7)
    fleet_of(database, 6)
    with reading(database) as connection:
        signs = list(history.read_heartbeat_times(connection, at(30), at(100)))
        first = history.read_sessions_after(connection, None, 1)[0].session_id
        of_one = list(history.read_heartbeat_times(connection, at(30), at(100), [first]))
        last = history.read_heartbeats(connection, first, at(0), at(101.5), 3)
    assert len(signs) == 7 * 6
    assert signs == sorted(signs)
    assert of_one == [sign for sign in signs if sign[0] == first.bytes]
    assert [row.received_at for row in last] == [at(81), at(91), at(101)]


def test_who_is_one_of_many_is_explained_as_by_itself(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few heartbeats are looked through at first, the verdict of any moment and its sum are the same."""
    fleet_of(database, 6)
    client: Any = None
    monkeypatch.setattr(explaining, "read_redis", lambda *_: (Horizon(at(240), at(240), 0), WorkerHealth(1), None))

    def told(neighbours: int) -> list[Any]:
        monkeypatch.setattr(history, "NEIGHBOURS", neighbours)
        found = [
            explain(Settings(), database, client, f"agent {number}", None if when is None else at(when))
            for number in range(6)
            for when in (None, 30, 118, 125, 139, 200, 239)
        ]
        return [(one.state, one.arithmetic.start, one.arithmetic.deadline_at, one.heartbeats[-1].id) for one in found]

    assert told(4) == told(1000)
    assert told(0) == told(1000)


def test_only_neighbours_are_looked_through(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session's heartbeats those are found that are among the fleet's last ones, and the strays of that time."""
    fleet_of(database, 6)
    monkeypatch.setattr(history, "NEIGHBOURS", 5)
    with reading(database) as connection:
        sessions = {row.agent_name: row.session_id for row in history.read_sessions_after(connection, None, 10)}
        right, wrong = sessions["agent 1"], sessions["agent 2"]
        near = [history.read_heartbeats_near(connection, key, at(40), at(102), 10) for key in (right, wrong)]
    assert {row.received_at for row in near[0]} == {at(71.01), at(81.01), at(91.01)}
    assert [row.received_at for row in near[1]][-1] == at(101.02)


def test_the_settings_of_today_find_what_was_flagged(database: Engine) -> None:
    """On both databases a fleet judged again by its own settings has the flags that it got."""
    fleet_of(database, 6)
    report = backtest(database, Settings(), Trial(), since=timedelta(days=7))
    assert (report.sessions, report.heartbeats) == (6, 3 * 24 + 3 * 12)
    assert report.would == report.was
    assert report.would.flags == 3
    assert [finding.was_at for finding in report.findings] == [at(132 + number / 100) for number in (0, 2, 4)]
    assert backtest(database, Settings(), Trial(missed=100), since=timedelta(days=7)).would.flags == 0


def test_a_real_verdict_is_explained(redis: Redis, database: Engine, quick: Settings) -> None:
    """Flagged by a real sweep on a real Valkey, an agent's verdict is told with its sweep, now and at its time."""
    (session_id,) = enrol(redis, database, quick, "torv", interval_seconds=10.0)
    send(redis, heartbeat(session_id, progress="page 1"))
    drain(redis, database, quick)
    sweep(redis, database, quick)
    let_pass(database, 25)
    sweep(redis, database, quick)
    (flagged,) = eventually(lambda: events(database, "degraded"))
    found = explain(quick, database, redis, "torv")
    assert (found.state, found.held, found.missed) == ("degraded", False, 2)
    assert found.flag is not None
    assert (found.flag.flagged_at, found.flag.detail["backlog"]) == (flagged.occurred_at, 0)
    assert found.arithmetic.start.why == "last heartbeat"
    assert found.arithmetic.other_seconds == 0
    assert len(found.heartbeats) == 1
    with reading(database) as connection:
        record = read_record(connection, "torv", found.as_of)
    assert len(record.silences) == 1
    assert record.uptime["24h"].share is not None
