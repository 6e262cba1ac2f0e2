from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ops_fixtures import put_event, put_rejected, put_sweep
from sqlalchemy import Engine, select

from fleetbeat_worker.cli import main
from fleetbeat_worker.cli.exit_codes import DONE, REFUSED, USAGE
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.database.tables import Base, Event
from fleetbeat_worker.retention.job import FIRST_ROWS, LEAST_ROWS, MOST_ROWS, SLICE_SECONDS, next_size


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["db", *args])


def answer(*args: str) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == DONE, result.output
    return json.loads(result.stdout)


def count_events(engine: Engine) -> int:
    with reading(engine) as connection:
        return len(connection.execute(select(Event.id)).all())


def test_prune_says_what_it_removes(engine: Engine) -> None:
    """By the settings' ages, or by one age for all; a dry run says the same and changes nothing."""
    put_sweep(engine, ago(0))
    for days in (40, 10, 5):
        put_event(engine, "heartbeat", "torv", at=ago(days))
    assert answer("prune", "--dry-run")["removed"]["events"] == 1
    assert answer("prune", "--dry-run", "--older-than", "7d")["removed"]["events"] == 2
    assert count_events(engine) == 3
    report = answer("prune")
    assert report["removed"].pop("events") == 1
    assert set(report["removed"]) == {"heartbeats", "rejected_messages", "notifications", "agents", "outages"}
    assert set(report["removed"].values()) == {0}
    assert (report["partitions"], report["in_use"], report["finished"], report["dry_run"]) == ([], [], True, False)
    assert set(report["cutoffs"]) == {"as_of", "history", "rejected", "ended_sessions", "notifications"}
    told = run("prune", "--older-than", "7d").stdout
    assert [line.split()[:2] for line in told.splitlines() if line.startswith("events")] == [["events", "1"]]
    assert count_events(engine) == 1


def test_prune_wants_a_sweep_and_a_sensible_age(engine: Engine) -> None:
    """Before the first sweep nothing is old; an age that would take what is still in use is refused."""
    result = run("prune")
    assert (result.exit_code, result.stderr.count("\n")) == (REFUSED, 1)
    put_sweep(engine, ago(0))
    for age in ("59m", "-1d", "soon", "40000d"):
        assert run("prune", "--older-than", age).exit_code == USAGE


def test_prune_that_is_stopped_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C what was removed is told, and the exit status says that something is left."""
    put_sweep(engine, ago(0))
    put_event(engine, "heartbeat", "torv", at=ago(40))
    monkeypatch.setattr("fleetbeat_worker.cli.db.asked_to_stop", lambda: lambda: True)
    result = run("prune")
    assert result.exit_code == REFUSED
    assert "Stopped" in result.stdout


def test_stats_has_every_table(engine: Engine) -> None:
    """`stats` counts each table's rows, with their size and span, and says how large the file is."""
    put_event(engine, "heartbeat", "torv", at=ago(2))
    put_event(engine, "heartbeat", "torv", at=ago(1))
    put_rejected(engine, "1-0", b"x")
    found = answer("stats")
    tables = {table["name"]: table for table in found["tables"]}
    assert set(tables) == set(Base.metadata.tables)
    assert tables["events"]["rows"] == 2
    assert tables["events"]["oldest_at"] < tables["events"]["newest_at"]
    assert tables["heartbeats"]["oldest_at"] is None
    assert 0 <= found["file"]["free_bytes"] < found["file"]["bytes"]
    assert "rejected_messages" in run("stats").stdout


def test_slices_follow_the_time_that_they_take() -> None:
    """A slice grows while it is quick, shrinks at once when it was slow, and stays within its bounds."""
    assert next_size(FIRST_ROWS, SLICE_SECONDS / 2) == 2 * FIRST_ROWS
    assert next_size(1_000, SLICE_SECONDS * 1.5) == 750
    assert next_size(1_000, SLICE_SECONDS * 3) == 250
    assert next_size(MOST_ROWS, 0.0) == MOST_ROWS
    assert next_size(LEAST_ROWS, 60.0) == LEAST_ROWS
