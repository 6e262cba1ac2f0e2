"""The simulator in its short form; `benchmarks/simulate.py` has the long one, and says what happens in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulate_oracle import Oracle
from simulate_plan import draw_plan
from simulate_stores import MemoryStore, SqlStore, play
from sqlalchemy import event

from fleetbeat_worker.tables import Base, Pipeline

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from simulate_oracle import Change
    from sqlalchemy import Engine


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
    changes = play(plan, SqlStore(without_disk, plan))
    judgement = Oracle(plan).judge(changes)
    assert (judgement.false_flags, judgement.missed_flags, judgement.late_recoveries) == ([], [], [])
    assert judgement.flags
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


def test_a_broken_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule of outages, agents are flagged in error, and the oracle says so."""

    def never(_last: datetime | None, _now: datetime, _seconds: float) -> timedelta | None:
        return None

    monkeypatch.setattr("simulate_stores.outage_between", never)
    plan = draw_plan(1, agents=40, weeks=0.5)
    assert Oracle(plan).judge(play(plan, MemoryStore(plan))).false_flags


def test_the_same_seed_is_the_same_plan() -> None:
    """A seed that failed replays."""
    first, second = draw_plan(7, agents=10, weeks=0.2), draw_plan(7, agents=10, weeks=0.2)
    assert first == second
    assert first != draw_plan(8, agents=10, weeks=0.2)
