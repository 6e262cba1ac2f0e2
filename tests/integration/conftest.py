from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from redis import Redis
from sqlalchemy import Engine

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker import consumer
from fleetbeat_worker.database import engine as databases
from fleetbeat_worker.database.engine import open_engine, reading
from fleetbeat_worker.ingest import job as ingest
from fleetbeat_worker.sweep.job import sweep


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an ingest job look around more often, so that no test waits for it."""
    monkeypatch.setattr(ingest, "BLOCK_SECONDS", 0.02)
    monkeypatch.setattr(consumer, "PACE_SECONDS", 0.002)
    monkeypatch.setattr(ingest, "LONGEST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(databases, "BUSY_SECONDS", 1.0)


@pytest.fixture
def look(redis: Redis, database: Engine, quick: Settings) -> Callable[[], list[str]]:
    """Return what sweeps once and tells whom it flagged."""
    return lambda: sorted(sweep(redis, database, quick).degraded)


@pytest.fixture
def sweep_at_once(redis: Redis, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], list[str]]:
    """Return a function that runs four sweeps at the same time, and returns the names of the flagged agents."""
    monkeypatch.setattr(databases, "BUSY_SECONDS", 10.0)  # on a busy machine they wait longer for each other

    def act(settings: Settings) -> list[str]:
        barrier = threading.Barrier(4)
        flagged: list[str] = []

        def work() -> None:
            engine = open_engine(database_url)
            with reading(engine):
                pass  # connected before the start
            barrier.wait()
            flagged.extend(sweep(redis, engine, settings).degraded)
            engine.dispose()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return flagged

    return act
