from __future__ import annotations

import gc
from collections.abc import Iterator
from contextvars import Context

import pytest
from sqlalchemy import Engine, event

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_worker.telemetry.metrics import keep_counters
from fleetbeat_worker.workers import warmup
from fleetbeat_worker.workers.warmup import warm_up


@pytest.fixture(autouse=True)
def _collected_again() -> Iterator[None]:
    """Let the garbage collector visit the objects of the tests again."""
    yield
    gc.unfreeze()


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """Record every statement that any engine executes."""
    recorded: list[str] = []

    def record(*arguments: str) -> None:
        recorded.append(arguments[2])

    event.listen(Engine, "before_cursor_execute", record)
    yield recorded
    event.remove(Engine, "before_cursor_execute", record)


def test_a_warm_up_does_the_work_and_leaves_no_trace(statements: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """It stores a heartbeat and sweeps; nothing is logged, and nothing is counted in the metrics."""

    def counted() -> list[float]:
        counters = keep_counters()
        warm_up()
        return counters.totals()

    assert not any(Context().run(counted))
    for start in ("INSERT INTO heartbeats", "INSERT INTO events", "UPDATE liveness", "UPDATE pipeline"):
        assert any(statement.startswith(start) for statement in statements)
    assert not caplog.records


def test_a_warm_up_that_fails_stops_no_pool(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A pool on PostgreSQL starts although the machine's SQLite doesn't understand our statements."""

    def fail(*_: object, **__: object) -> None:
        message = "near RETURNING: syntax error"
        raise DatabaseUnavailable(message)

    monkeypatch.setattr(warmup, "judge_fleet", fail)
    with caplog.at_level("DEBUG"):
        warm_up()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "The warm-up failed: DatabaseUnavailable")
    ]
