from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fakeredis import FakeRedis, FakeServer
from sqlalchemy import Engine

from fleetbeat_worker.database.engine import open_engine


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the settings of whoever runs the tests out of them, and what may wait in their spool."""
    for variable in [name for name in os.environ if name.startswith("FLEETBEAT_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("FLEETBEAT_SPOOL_DIR", str(tmp_path_factory.getbasetemp() / "spool"))


@pytest.fixture
def engine(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Return the database that the commands use."""
    monkeypatch.setenv("FLEETBEAT_DATABASE_URL", sqlite_url)
    made = open_engine(sqlite_url)
    yield made
    made.dispose()


@pytest.fixture
def redis_server() -> FakeServer:
    """Return a Redis in memory; a test may take it away with `connected = False`."""
    return FakeServer()


@pytest.fixture
def redis(redis_server: FakeServer) -> Iterator[FakeRedis]:
    """Return a client of an empty Redis in memory, of this test alone."""
    client = FakeRedis(server=redis_server)
    yield client
    client.close()


@pytest.fixture
def producer_redis(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRedis]:
    """Let the producer's calls reach the Redis in memory, whatever URL they are given."""
    from fleetbeat_producer import transport
    from fleetbeat_producer.background import process, sender

    for module in (sender, transport):
        monkeypatch.setattr(module, "connect", lambda _url, **_options: redis)
    monkeypatch.setattr(sender, "GATHER_SECONDS", 0.001)
    monkeypatch.setattr(process, "_senders", {})  # each test is a process of its own
    transport._transport_of.cache_clear()  # noqa: SLF001 - as above
    yield redis
    transport._transport_of.cache_clear()  # noqa: SLF001 - as above
