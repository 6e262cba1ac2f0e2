"""The simulator in its short form; `benchmarks/simulate.py` has the long one, and says what happens in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, event, text

from fleetbeat_worker.database.tables import Base, Pipeline
from fleetbeat_worker.ingest.batch import changed_at
from fleetbeat_worker.ingest.session_state import AgentRecord
from fleetbeat_worker.rules.anomalies import stuck_limit
from fleetbeat_worker.rules.liveness import Promise
from fleetbeat_worker.rules.spans import to_milliseconds
from simulation.incident_oracle import find_false_notices
from simulation.memory_store import MemoryStore
from simulation.oracle import Change, Judgement, Oracle
from simulation.plan import draw_plan
from simulation.play import play
from simulation.sql_store import SqlStore
from simulation.stuck_oracle import judge

LONG_AGO, SOON = (to_milliseconds(datetime(year, 1, 1, tzinfo=UTC)) for year in (2020, 2027))


@pytest.fixture
def without_disk(database: Engine) -> Engine:
    """Return an engine that waits for no disk: some thousand transactions are not what is tried."""
    if database.dialect.name == "sqlite":
        event.listen(database, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    return database


def _wrong(judgement: Judgement) -> dict[str, list[str]]:
    return {what: found for what, found in judgement.faults.items() if found}


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_the_rules_flag_who_is_silent_and_no_other(seed: int) -> None:
    """In half a week of all that can go wrong nobody is flagged in error, missed, or told of late."""
    plan = draw_plan(seed, agents=40, weeks=0.5)
    judgement = judge(plan, Oracle(plan), play(plan, MemoryStore(plan)))
    assert _wrong(judgement) == {}
    assert judgement.flags
    assert judgement.stuck


@pytest.mark.parametrize("seed", [5, 6])
def test_all_of_the_code_flags_who_is_silent_and_no_other(without_disk: Engine, seed: int) -> None:
    """The same with the real ingest and the real sweep on a database; and it says what the rules alone say."""
    plan = draw_plan(seed, agents=12, weeks=0.25)
    store, oracle = SqlStore(without_disk, plan), Oracle(plan)
    said = play(plan, store)
    judgement = judge(plan, oracle, said)
    judgement.false_notices = find_false_notices(plan, oracle, said, store.told())
    assert _wrong(judgement) == {}
    assert judgement.flags
    assert judgement.stuck
    assert said == play(plan, MemoryStore(plan))


def test_a_sweep_that_is_left_out_would_have_changed_nothing(without_disk: Engine) -> None:
    """With and without the sweeps that can find nothing, the same is said, and is in every table."""
    plan = draw_plan(7, agents=12, weeks=0.1)
    left = []
    for every_sweep in (True, False):
        said = play(plan, SqlStore(without_disk, plan, every_sweep=every_sweep))
        with without_disk.begin() as connection:
            # Numbers that the database counts on, and times of the machine's own clock, differ from run to run.
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
            if connection.dialect.name == "postgresql":  # incidents are named by their numbers
                connection.execute(text("TRUNCATE incidents RESTART IDENTITY CASCADE"))
            nothing = {column.name: None for column in Pipeline.__table__.columns if column.nullable}
            connection.execute(Pipeline.__table__.update().values(nothing))
        left.append((said, rows))
    assert left[0] == left[1]
    assert left[0][1]["heartbeats"]


@pytest.mark.parametrize(("kind", "place"), [("silent", 0), ("stuck", 3)])
def test_the_oracle_sees_what_is_wrong(kind: str, place: int) -> None:
    """A verdict too many, one too few, one too late, and an end of one that nobody told are found."""
    plan = draw_plan(3, agents=40, weeks=0.5)
    oracle, said = Oracle(plan), play(plan, MemoryStore(plan))
    changes: dict[int, list[Change]] = getattr(said, kind)
    number = next(number for number, each in changes.items() if len(each) > 1 and each[1].looks > each[0].looks + 1)
    begun, over, *others = changes[number]

    def count(*changed: Change) -> tuple[int, ...]:
        told = replace(said, **{kind: changes | {number: [*changed, *others]}})
        found = [len(faults) for faults in judge(plan, oracle, told).faults.values()]
        return tuple(found[place : place + 3])

    assert count(begun, over) == (0, 0, 0)
    assert count(begun._replace(looks=begun.looks - 1), over)[0] == 1
    assert count(begun._replace(looks=begun.looks + 1), over)[1] == 1
    assert count()[1] == 1
    assert count(begun, over._replace(looks=over.looks + 3))[2] >= 1


def _never(*_: object) -> None: ...


def _no_grace(promise: Promise, missed_limit: int) -> float | None:
    return promise.interval_seconds and promise.interval_seconds * promise.limit(missed_limit)


def _one_too_many(promise: Promise, missed_limit: int) -> float | None:
    return promise.interval_seconds and promise.interval_seconds * (promise.limit(missed_limit) + 1)


def _one_more(own: int | None, fleet: int | None) -> int | None:
    limit = stuck_limit(own, fleet)
    return limit and limit + 1


def _as_ever(agent: AgentRecord, order: tuple[int, int], said: Mapping[str, str]) -> int | None:
    return changed_at(agent, order, said) if agent.stuck_at is None else None


def _without_pauses(registered_at: int, last_seen_at: int | None, _resumed_at: int | None) -> int:
    return max(registered_at, last_seen_at or 0)


@pytest.mark.parametrize(
    ("seed", "rule", "broken", "found"),
    [
        (1, "simulation.memory_store.outage_between", _never, "false_flags"),
        (8, "simulation.memory_store.running", _never, "false_flags"),
        (3, "fleetbeat_worker.rules.deadlines.allowed_silence_seconds", _no_grace, "false_flags"),
        (3, "fleetbeat_worker.rules.deadlines.allowed_silence_seconds", _one_too_many, "missed_flags"),
        (3, "fleetbeat_worker.ingest.session_state.silent_since", _without_pauses, "false_flags"),
        (2, "fleetbeat_worker.broker.pulse.Pulse.new_gaps", lambda *_: [], "false_flags"),
        (3, "simulation.memory_store.silent_since", lambda *_: LONG_AGO, "missed_stuck"),
        (3, "simulation.memory_store.silent_since", lambda *_: SOON, "false_stuck"),
        (3, "simulation.memory_store.stuck_limit", _one_more, "missed_stuck"),
        (3, "fleetbeat_worker.ingest.batch.changed_at", _as_ever, "late_unstuck"),
    ],
)
def test_a_broken_rule_is_found(
    monkeypatch: pytest.MonkeyPatch, seed: int, rule: str, broken: object, found: str
) -> None:
    """Without outages, maintenance, grace or pauses, or with one interval too many, the oracle says what is wrong."""
    monkeypatch.setattr(rule, broken)
    plan = draw_plan(seed, agents=60, weeks=0.5)
    assert getattr(judge(plan, Oracle(plan), play(plan, MemoryStore(plan))), found)


def test_silences_told_singly_that_are_an_incident_are_found(
    monkeypatch: pytest.MonkeyPatch, without_disk: Engine
) -> None:
    """Half of a fleet falls silent at one moment; with a rule that sees no incident, the oracle says so."""
    plan = draw_plan(16, agents=12, weeks=0.2)
    monkeypatch.setattr("fleetbeat_worker.sweep.incidents.is_incident", lambda *_: False)
    store = SqlStore(without_disk, plan)
    said = play(plan, store)
    (fault,) = find_false_notices(plan, Oracle(plan), said, store.told())
    assert "told singly of 6 when it flagged 6" in fault


def test_a_clock_that_is_set_back_makes_no_verdict_wrong(without_disk: Engine) -> None:
    """Agents that were heard in a time that hasn't come yet are judged as the others are."""
    plan = draw_plan(39, agents=12, weeks=0.4, sets_back=True)
    assert plan.clock.steps
    judgement = judge(plan, Oracle(plan), play(plan, SqlStore(without_disk, plan)))
    assert _wrong(judgement) == {}
    assert judgement.flags


def test_who_is_heard_in_a_time_that_has_not_come_yet_and_goes_unjudged_is_found(
    monkeypatch: pytest.MonkeyPatch, without_disk: Engine
) -> None:
    """Without what a sweep does once the clock was put right, the oracle misses a flag."""
    monkeypatch.setattr("fleetbeat_worker.sweep.transaction.correct_future_times", _never)
    plan = draw_plan(39, agents=12, weeks=0.4, sets_back=True)
    assert judge(plan, Oracle(plan), play(plan, SqlStore(without_disk, plan))).missed_flags


def test_the_same_seed_is_the_same_plan() -> None:
    """A seed that failed replays."""
    first, second = draw_plan(7, agents=10, weeks=0.2), draw_plan(7, agents=10, weeks=0.2)
    assert first == second
    assert first != draw_plan(8, agents=10, weeks=0.2)
