from __future__ import annotations

import gc
from collections.abc import Iterator
from contextvars import Context

import pytest
from sqlalchemy import Engine, event

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_worker.telemetry.metrics import keep_counters
from fleetbeat_worker.workers import warmup as rehearsal
from fleetbeat_worker.workers.warmup import rehearse


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Let Python look through the objects of the tests again."""
    yield
    gc.unfreeze()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Every statement that any engine is told."""
    statements: list[str] = []

    def hear(*arguments: str) -> None:
        statements.append(arguments[2])

    event.listen(Engine, "before_cursor_execute", hear)
    yield statements
    event.remove(Engine, "before_cursor_execute", hear)


def test_a_rehearsal_does_the_work_and_leaves_no_trace(said: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """It stores a heartbeat and sweeps without a word, and none of it shows in the metrics."""

    def counted() -> list[float]:
        counters = keep_counters()
        rehearse()
        return counters.totals()

    assert not any(Context().run(counted))
    for statement in ("INSERT INTO heartbeats", "INSERT INTO events", "UPDATE liveness", "UPDATE pipeline"):
        assert any(said_one.startswith(statement) for said_one in said)
    assert not caplog.records


def test_a_rehearsal_that_fails_stops_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever works on PostgreSQL needs no SQLite that understands our statements."""

    def refuse(*_: object, **__: object) -> None:
        message = "near RETURNING: syntax error"
        raise DatabaseUnavailable(message)

    monkeypatch.setattr(rehearsal, "judge_fleet", refuse)
    with caplog.at_level("DEBUG"):
        rehearse()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "The work can't be rehearsed: DatabaseUnavailable")
    ]
