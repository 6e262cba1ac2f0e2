from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from command_line import answer, run
from ops_fixtures import put_event, put_rejected, put_sweep
from sqlalchemy import Engine, select

from fleetbeat_worker.cli.exit_codes import REFUSED, USAGE
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.database.tables import Base, Event
from fleetbeat_worker.retention.job import FIRST_ROWS, LEAST_ROWS, MOST_ROWS, SLICE_SECONDS, next_size


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def count_events(engine: Engine) -> int:
    with reading(engine) as connection:
        return len(connection.execute(select(Event.id)).all())


def test_prune_reports_what_it_removes(engine: Engine) -> None:
    """Rows go by the settings' ages, or by one age for all; a dry run reports the same and changes nothing."""
    put_sweep(engine, ago(0))
    for days in (40, 10, 5):
        put_event(engine, "heartbeat", "torv", at=ago(days))
    assert answer("db", "prune", "--dry-run")["removed"]["events"] == 1
    assert answer("db", "prune", "--dry-run", "--older-than", "7d")["removed"]["events"] == 2
    assert count_events(engine) == 3
    report = answer("db", "prune")
    assert report["removed"].pop("events") == 1
    assert set(report["removed"]) == {"heartbeats", "rejected_messages", "notifications", "agents", "outages"}
    assert set(report["removed"].values()) == {0}
    assert (report["partitions"], report["in_use"], report["finished"], report["dry_run"]) == ([], [], True, False)
    assert set(report["cutoffs"]) == {"as_of", "history", "rejected", "ended_sessions", "notifications"}
    told = run("db", "prune", "--older-than", "7d").stdout
    assert [line.split()[:2] for line in told.splitlines() if line.startswith("events")] == [["events", "1"]]
    assert count_events(engine) == 1


def test_prune_needs_a_sweep_and_a_valid_age(engine: Engine) -> None:
    """Before the first sweep no row is old; an age that would remove rows still in use is refused."""
    result = run("db", "prune")
    assert (result.exit_code, result.stderr.count("\n")) == (REFUSED, 1)
    put_sweep(engine, ago(0))
    for age in ("59m", "-1d", "soon", "40000d"):
        assert run("db", "prune", "--older-than", age).exit_code == USAGE


def test_stopped_prune_exits_with_1(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C the removed rows are reported, and exit status 1 shows that some are left."""
    put_sweep(engine, ago(0))
    put_event(engine, "heartbeat", "torv", at=ago(40))
    monkeypatch.setattr("fleetbeat_worker.cli.db.asked_to_stop", lambda: lambda: True)
    result = run("db", "prune")
    assert result.exit_code == REFUSED
    assert "Stopped" in result.stdout


def test_stats_has_every_table(engine: Engine) -> None:
    """`stats` counts each table's rows, with their size and span, and says how large the file is."""
    put_event(engine, "heartbeat", "torv", at=ago(2))
    put_event(engine, "heartbeat", "torv", at=ago(1))
    put_rejected(engine, "1-0", b"x")
    found = answer("db", "stats")
    tables = {table["name"]: table for table in found["tables"]}
    assert set(tables) == set(Base.metadata.tables)
    assert tables["events"]["rows"] == 2
    assert tables["events"]["oldest_at"] < tables["events"]["newest_at"]
    assert tables["heartbeats"]["oldest_at"] is None
    assert 0 <= found["file"]["free_bytes"] < found["file"]["bytes"]
    assert "rejected_messages" in run("db", "stats").stdout


def test_slice_size_follows_its_duration() -> None:
    """A slice grows after a quick one, shrinks after a slow one, and stays within its bounds."""
    assert next_size(FIRST_ROWS, SLICE_SECONDS / 2) == 2 * FIRST_ROWS
    assert next_size(1_000, SLICE_SECONDS * 1.5) == 750
    assert next_size(1_000, SLICE_SECONDS * 3) == 250
    assert next_size(MOST_ROWS, 0.0) == MOST_ROWS
    assert next_size(LEAST_ROWS, 60.0) == LEAST_ROWS
