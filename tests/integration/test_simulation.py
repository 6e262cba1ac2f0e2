"""The simulator in its short form; `benchmarks/simulate.py` has the long one, and says what happens in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulate_incidents import find_false_notices
from simulate_memory import MemoryStore
from simulate_oracle import Oracle
from simulate_plan import draw_plan
from simulate_play import play
from simulate_sql import SqlStore
from sqlalchemy import event, text

from fleetbeat_worker.tables import Base, Pipeline

if TYPE_CHECKING:
    from simulate_oracle import Change
    from sqlalchemy import Engine

    from fleetbeat_shared.liveness import Promise


@pytest.fixture
def without_disk(database: Engine) -> Engine:
    """Return an engine that waits for no disk: some thousand transactions are not what is tried."""
    if database.dialect.name == "sqlite":
        event.listen(database, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    return database


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_the_rules_flag_who_is_silent_and_no_other(seed: int) -> None:
    """In half a week of all that can go wrong nobody is flagged in error, missed, or told of late."""
    plan = draw_plan(seed, agents=40, weeks=0.5)
    judgement = Oracle(plan).judge(play(plan, MemoryStore(plan)))
    assert (judgement.false_flags, judgement.missed_flags, judgement.late_recoveries) == ([], [], [])
    assert judgement.flags


@pytest.mark.parametrize("seed", [5, 6])
def test_all_of_the_code_flags_who_is_silent_and_no_other(without_disk: Engine, seed: int) -> None:
    """The same with the real ingest and the real sweep on a database; and it says what the rules alone say."""
    plan = draw_plan(seed, agents=12, weeks=0.25)
    store, oracle = SqlStore(without_disk, plan), Oracle(plan)
    changes = play(plan, store)
    judgement = oracle.judge(changes)
    assert (judgement.false_flags, judgement.missed_flags, judgement.late_recoveries) == ([], [], [])
    assert judgement.flags
    assert find_false_notices(plan, oracle, changes, store.told()) == []
    assert changes == play(plan, MemoryStore(plan))


def test_a_sweep_that_is_left_out_would_have_changed_nothing(without_disk: Engine) -> None:
    """With and without the sweeps that can find nothing, the same is said, and is in every table."""
    plan = draw_plan(7, agents=12, weeks=0.1)
    left = []
    for every_sweep in (True, False):
        changes = play(plan, SqlStore(without_disk, plan, every_sweep=every_sweep))
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
        left.append((changes, rows))
    assert left[0] == left[1]
    assert left[0][1]["heartbeats"]


def test_the_oracle_sees_what_is_wrong() -> None:
    """A flag too many, one too few, one too late, and a recovery that nobody told are found."""
    plan = draw_plan(1, agents=40, weeks=0.5)
    oracle = Oracle(plan)
    changes = play(plan, MemoryStore(plan))
    number = next(
        number for number, said in changes.items() if [each.is_degraded for each in said[:2]] == [True, False]
    )
    flagged, back, *others = changes[number]
    before, after = flagged._replace(looks=flagged.looks - 1), flagged._replace(looks=flagged.looks + 1)

    def judge(*said: Change) -> tuple[int, int, int]:
        found = oracle.judge(changes | {number: [*said, *others]})
        return len(found.false_flags), len(found.missed_flags), len(found.late_recoveries)

    assert judge(flagged, back) == (0, 0, 0)
    assert judge(before, back)[0] == 1
    assert judge(after, back)[1] == 1
    assert judge()[1] == 1
    assert judge(flagged, back._replace(looks=back.looks + 1))[2] >= 1


def _never(*_: object) -> None: ...


def _no_grace(promise: Promise, missed_limit: int) -> float | None:
    return promise.interval_seconds and promise.interval_seconds * promise.limit(missed_limit)


def _one_too_many(promise: Promise, missed_limit: int) -> float | None:
    return promise.interval_seconds and promise.interval_seconds * (promise.limit(missed_limit) + 1)


def _without_pauses(registered_at: int, last_seen_at: int | None, _resumed_at: int | None) -> int:
    return max(registered_at, last_seen_at or 0)


@pytest.mark.parametrize(
    ("seed", "rule", "broken", "found"),
    [
        (3, "simulate_memory.outage_between", _never, "false_flags"),
        (3, "simulate_memory.running", _never, "false_flags"),
        (3, "simulate_memory.last_end", _never, "false_flags"),
        (3, "fleetbeat_worker.deadlines.allowed_silence_seconds", _no_grace, "false_flags"),
        (3, "fleetbeat_worker.deadlines.allowed_silence_seconds", _one_too_many, "missed_flags"),
        (3, "fleetbeat_worker.records.silent_since", _without_pauses, "false_flags"),
    ],
)
def test_a_broken_rule_is_found(
    monkeypatch: pytest.MonkeyPatch, seed: int, rule: str, broken: object, found: str
) -> None:
    """Without outages, maintenance, grace or pauses, or with one interval too many, the oracle says what is wrong."""
    monkeypatch.setattr(rule, broken)
    plan = draw_plan(seed, agents=60, weeks=0.5)
    assert getattr(Oracle(plan).judge(play(plan, MemoryStore(plan))), found)


def test_silences_told_singly_that_are_an_incident_are_found(
    monkeypatch: pytest.MonkeyPatch, without_disk: Engine
) -> None:
    """Half of a fleet falls silent at one moment; with a rule that sees no incident, the oracle says so."""
    plan = draw_plan(12, agents=12, weeks=0.2)
    monkeypatch.setattr("fleetbeat_worker.incidents.is_incident", lambda *_: False)
    store = SqlStore(without_disk, plan)
    changes = play(plan, store)
    (fault,) = find_false_notices(plan, Oracle(plan), changes, store.told())
    assert "told singly of 6 when it flagged 6" in fault


def test_the_same_seed_is_the_same_plan() -> None:
    """A seed that failed replays."""
    first, second = draw_plan(7, agents=10, weeks=0.2), draw_plan(7, agents=10, weeks=0.2)
    assert first == second
    assert first != draw_plan(8, agents=10, weeks=0.2)
