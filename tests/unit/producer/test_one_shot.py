from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fakeredis import FakeRedis

from fleetbeat_producer.one_shot import spool
from fleetbeat_producer.one_shot.call import OneShot
from fleetbeat_shared.errors import RedisUnavailable
from fleetbeat_shared.settings import Settings
from helpers import heartbeat


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(spool_dir=tmp_path / "spool", redis_timeout_seconds=0.2)


def test_a_hanging_name_lookup_is_abandoned(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang that no socket timeout limits, such as the resolver's, doesn't delay the call."""
    for_ever = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments: for_ever.wait(600) and [])
    one_shot = OneShot(settings.model_copy(update={"redis_url": "redis://me:hunter2@redis.example/0"}))
    with pytest.raises(RedisUnavailable, match=r"redis://redis\.example/0 .*no answer in time"):
        one_shot.send(heartbeat(uuid4()))
    for_ever.set()


def test_each_batch_gets_the_whole_timeout(
    settings: Settings, producer_redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draining a spool may take longer than the timeout, as long as Redis answers each batch in time."""
    monkeypatch.setattr(spool, "BATCH_SIZE", 1)
    one_shot = OneShot(settings)
    for _ in range(6):
        one_shot.spool(heartbeat(uuid4()), RedisUnavailable("away"))
    pipeline = producer_redis.pipeline

    def slow(**options: Any) -> Any:
        threading.Event().wait(0.05)
        return pipeline(**options)

    monkeypatch.setattr(producer_redis, "pipeline", slow)
    one_shot.send(heartbeat(uuid4()))
    assert producer_redis.xlen("fleetbeat:inbox") == 7
    assert one_shot.warnings == []


def test_a_thread_that_cannot_start_counts_as_redis_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may start no thread fails as if Redis were away."""

    def refuse(_thread: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RedisUnavailable):
        OneShot(settings).send(heartbeat(uuid4()))
