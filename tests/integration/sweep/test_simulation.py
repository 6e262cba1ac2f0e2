"""Simulated fleets, in a short form; `benchmarks/simulate.py` is the long one and describes what happens in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, event, text

from fleetbeat_worker.database.tables import Base, Pipeline
from fleetbeat_worker.ingest.doing import changed_at
from fleetbeat_worker.ingest.session_state import AgentRecord
from fleetbeat_worker.rules.anomalies import stuck_limit
from fleetbeat_worker.rules.liveness import Promise
from fleetbeat_worker.rules.spans import to_milliseconds
from simulation.incident_oracle import find_false_notices
from simulation.memory_store import MemoryStore
from simulation.oracle import Oracle
from simulation.plan import draw_plan
from simulation.play import play
from simulation.sql_store import SqlStore
from simulation.stuck_oracle import check_verdicts
from simulation.verdicts import Change, Findings

LONG_AGO, SOON = (to_milliseconds(datetime(year, 1, 1, tzinfo=UTC)) for year in (2020, 2027))


@pytest.fixture
def without_disk(database: Engine) -> Engine:
    """Return a database that doesn't flush to disk, as a simulation has thousands of transactions."""
    if database.dialect.name == "sqlite":
        event.listen(database, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    return database


def _wrong(findings: Findings) -> dict[str, list[str]]:
    return {what: found for what, found in findings.errors.items() if found}


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_the_rules_flag_exactly_the_silent_agents(seed: int) -> None:
    """In half a week of faults, no agent is flagged in error, missed, or recovers late."""
    plan = draw_plan(seed, agents=40, weeks=0.5)
    findings = check_verdicts(plan, Oracle(plan), play(plan, MemoryStore(plan)))
    assert _wrong(findings) == {}
    assert findings.flags
    assert findings.stuck


@pytest.mark.parametrize("seed", [5, 6])
def test_ingest_and_sweep_flag_exactly_the_silent_agents(without_disk: Engine, seed: int) -> None:
    """The same with the real ingest and sweep on a database, whose verdicts equal those of the rules alone."""
    plan = draw_plan(seed, agents=12, weeks=0.25)
    store, oracle = SqlStore(without_disk, plan), Oracle(plan)
    verdicts = play(plan, store)
    findings = check_verdicts(plan, oracle, verdicts)
    findings.false_notices = find_false_notices(plan, oracle, verdicts, store.notices())
    assert _wrong(findings) == {}
    assert findings.flags
    assert findings.stuck
    assert verdicts == play(plan, MemoryStore(plan))


def test_a_skipped_sweep_would_have_changed_nothing(without_disk: Engine) -> None:
    """With and without the sweeps that can't find anything, the verdicts and all tables are equal."""
    plan = draw_plan(7, agents=12, weeks=0.1)
    left = []
    for every_sweep in (True, False):
        verdicts = play(plan, SqlStore(without_disk, plan, every_sweep=every_sweep))
        with without_disk.begin() as connection:
            # Ids that the database generates differ from run to run.
            rows = {
                table.name: sorted(
                    repr([value for column, value in row.items() if column != "id" or table.name == "heartbeats"])
                    for row in connection.execute(table.select()).mappings()
                )
                for table in Base.metadata.sorted_tables
            }
            for table in reversed(Base.metadata.sorted_tables):
                if table.name != "pipeline":
                    connection.execute(table.delete())
            if connection.dialect.name == "postgresql":  # incidents are named by their ids
                connection.execute(text("TRUNCATE incidents RESTART IDENTITY CASCADE"))
            nothing = {column.name: None for column in Pipeline.__table__.columns if column.nullable}
            connection.execute(Pipeline.__table__.update().values(nothing))
        left.append((verdicts, rows))
    assert left[0] == left[1]
    assert left[0][1]["heartbeats"]


@pytest.mark.parametrize(("kind", "place"), [("degraded", 0), ("stuck", 3)])
def test_the_oracle_finds_wrong_verdicts(kind: str, place: int) -> None:
    """The oracle finds a verdict too early, one too late, one missing, and one that ends too late."""
    plan = draw_plan(3, agents=40, weeks=0.5)
    oracle, verdicts = Oracle(plan), play(plan, MemoryStore(plan))
    changes: dict[int, list[Change]] = getattr(verdicts, kind)
    number = next(number for number, each in changes.items() if len(each) > 1 and each[1].sweeps > each[0].sweeps + 1)
    first, end, *others = changes[number]

    def count(*changed: Change) -> tuple[int, ...]:
        altered = replace(verdicts, **{kind: changes | {number: [*changed, *others]}})
        found = [len(errors) for errors in check_verdicts(plan, oracle, altered).errors.values()]
        return tuple(found[place : place + 3])

    assert count(first, end) == (0, 0, 0)
    assert count(first._replace(sweeps=first.sweeps - 1), end)[0] == 1
    assert count(first._replace(sweeps=first.sweeps + 1), end)[1] == 1
    assert count()[1] == 1
    assert count(first, end._replace(sweeps=end.sweeps + 3))[2] >= 1


def _never(*_: object) -> None: ...


def _no_grace(promise: Promise, missed_limit: int) -> float | None:
    return promise.interval_seconds and promise.interval_seconds * promise.limit(missed_limit)


def _one_too_many(promise: Promise, missed_limit: int) -> float | None:
    return promise.interval_seconds and promise.interval_seconds * (promise.limit(missed_limit) + 1)


def _one_more(own: int | None, fleet: int | None) -> int | None:
    limit = stuck_limit(own, fleet)
    return limit and limit + 1


def _unless_stuck(agent: AgentRecord, order: tuple[int, int], said: Mapping[str, str]) -> int | None:
    return changed_at(agent, order, said) if agent.stuck_at is None else None


def _without_pauses(registered_at: int, last_seen_at: int | None, _resumed_at: int | None) -> int:
    return max(registered_at, last_seen_at or 0)


@pytest.mark.parametrize(
    ("seed", "rule", "broken", "found"),
    [
        (3, "simulation.memory_store.outage_between", _never, "false_flags"),
        (8, "simulation.memory_store.running", _never, "false_flags"),
        (3, "fleetbeat_worker.rules.deadlines.allowed_silence_seconds", _no_grace, "false_flags"),
        (3, "fleetbeat_worker.rules.deadlines.allowed_silence_seconds", _one_too_many, "missed_flags"),
        (3, "fleetbeat_worker.ingest.session_state.silent_since", _without_pauses, "false_flags"),
        (2, "fleetbeat_worker.broker.pulse.Pulse.unheard", lambda *_: [], "false_flags"),
        (3, "simulation.memory_store.silent_since", lambda *_: LONG_AGO, "missed_stuck"),
        (3, "simulation.memory_store.silent_since", lambda *_: SOON, "false_stuck"),
        (3, "simulation.memory_store.stuck_limit", _one_more, "missed_stuck"),
        (3, "fleetbeat_worker.ingest.batch.changed_at", _unless_stuck, "late_unstuck"),
    ],
)
def test_a_broken_rule_is_found(
    monkeypatch: pytest.MonkeyPatch, seed: int, rule: str, broken: object, found: str
) -> None:
    """Without outages, maintenance, grace or pauses, or with one interval too many, the oracle reports errors."""
    monkeypatch.setattr(rule, broken)
    plan = draw_plan(seed, agents=60, weeks=0.5)
    assert getattr(check_verdicts(plan, Oracle(plan), play(plan, MemoryStore(plan))), found)


def test_single_notices_of_an_incident_are_found(monkeypatch: pytest.MonkeyPatch, without_disk: Engine) -> None:
    """When half of a fleet falls silent and no incident is detected, the oracle reports it."""
    plan = draw_plan(16, agents=12, weeks=0.2)
    monkeypatch.setattr("fleetbeat_worker.sweep.incidents.is_incident", lambda *_: False)
    store = SqlStore(without_disk, plan)
    verdicts = play(plan, store)
    (error,) = find_false_notices(plan, Oracle(plan), verdicts, store.notices())
    assert "sent 6 single notices when it flagged 6" in error


def test_verdicts_are_right_after_the_clock_is_set_back(without_disk: Engine) -> None:
    """Agents whose last heartbeat is in the future are judged like the others."""
    plan = draw_plan(39, agents=12, weeks=0.4, sets_clock_back=True)
    assert plan.clock.steps
    findings = check_verdicts(plan, Oracle(plan), play(plan, SqlStore(without_disk, plan)))
    assert _wrong(findings) == {}
    assert findings.flags


def test_future_times_that_are_not_repaired_are_found(monkeypatch: pytest.MonkeyPatch, without_disk: Engine) -> None:
    """Without the repair of future times after a step back of the clock, the oracle reports a missed flag."""
    monkeypatch.setattr("fleetbeat_worker.sweep.transaction.correct_future_times", _never)
    plan = draw_plan(39, agents=12, weeks=0.4, sets_clock_back=True)
    assert check_verdicts(plan, Oracle(plan), play(plan, SqlStore(without_disk, plan))).missed_flags


def test_the_same_seed_is_the_same_plan() -> None:
    """A failing seed can be replayed."""
    first, second = draw_plan(7, agents=10, weeks=0.2), draw_plan(7, agents=10, weeks=0.2)
    assert first == second
    assert first != draw_plan(8, agents=10, weeks=0.2)
