from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fakeredis import FakeRedis
from sqlalchemy import Engine

from fleetbeat_shared import connection


@pytest.fixture
def engine(engine: Engine, monkeypatch: pytest.MonkeyPatch, redis: FakeRedis) -> Engine:
    """Return the database that the commands use; the Redis that they use is `redis`."""
    monkeypatch.setenv("FLEETBEAT_REDIS_URL", "redis://user:secret@127.0.0.1:1/0")
    monkeypatch.setattr(connection, "connect", lambda *_, **__: redis)
    return engine


@pytest.fixture
def now() -> datetime:
    """Return the time, which fakeredis has from this machine."""
    return datetime.now(UTC)
