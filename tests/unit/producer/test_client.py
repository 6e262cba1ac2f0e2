from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from fakeredis import FakeRedis, FakeServer

import fleetbeat_producer
from fleetbeat_producer import (
    InvalidMessage,
    RedisUnavailable,
    SettingsError,
    deregister,
    flush,
    register,
    send_heartbeat,
    stats,
)
from fleetbeat_producer.transport import Transport, process_transport
from fleetbeat_shared.identifiers import stable_session_id
from fleetbeat_shared.messages import Message, Reason
from fleetbeat_shared.settings import Settings
from helpers import sent_messages

SESSION = UUID("3d6f6917-efad-4b03-b9bf-d8e124b2e8bb")


def sent(redis: FakeRedis) -> list[Message]:
    """Return what the inbox holds, in order, once all messages have arrived."""
    assert flush(10)
    return sent_messages(redis)


def test_register_sends_every_field(producer_redis: FakeRedis) -> None:
    """A registration with an interval reaches the inbox with every field, and its ids are returned."""
    parent = uuid4()
    made = register(
        " hint ",
        interval_seconds=30,
        grace_seconds=2,
        missed_intervals=3,
        stuck_after=0,
        project="p",
        work="w",
        parent_id=str(parent),
        metadata={"model": "small"},
        parallel=True,
    )
    (message,) = sent(producer_redis)
    assert (made.session_id, made.message_id, made.agent_name) == (message.session_id, message.id, "hint")
    assert message.model_dump(exclude={"id", "session_id", "sent_at"}, exclude_none=True) == {
        "version": 1,
        "kind": "register",
        "agent_name": "hint",
        "interval_seconds": 30,
        "grace_seconds": 2,
        "missed_intervals": 3,
        "stuck_after": 0,
        "project": "p",
        "work": "w",
        "parent_id": parent,
        "metadata": {"model": "small"},
        "parallel": True,
    }


def test_register_takes_a_schedule(producer_redis: FakeRedis) -> None:
    """A cron schedule with its time zone replaces the interval."""
    register("nightly", schedule="15  8 * * *", time_zone="Europe/Berlin")
    (message,) = sent(producer_redis)
    assert (message.schedule, message.time_zone, message.interval_seconds) == ("15 8 * * *", "Europe/Berlin", None)


def test_session_ids_are_random_given_or_stable(producer_redis: FakeRedis) -> None:
    """Each run gets a random session id, unless the caller gives one or asks for the stable one of the name."""
    first, second = register("hint", interval_seconds=30), register("hint", interval_seconds=30)
    assert first.session_id != second.session_id
    assert register("hint", interval_seconds=30, session_id=str(SESSION)).session_id == SESSION
    assert register(" hint\n", interval_seconds=30, stable=True).session_id == stable_session_id("hint")
    with pytest.raises(InvalidMessage, match="agent_name: it has characters that can't be printed"):
        register(" hi\x00nt", interval_seconds=30, stable=True)
    assert len(sent(producer_redis)) == 4


def test_heartbeat_sends_the_given_fields(producer_redis: FakeRedis) -> None:
    """A heartbeat's fields reach the inbox, and omitted ones are absent."""
    result = send_heartbeat(SESSION, "reading\n", "W-1", status="busy", open_tasks=3, stale_tasks=0, metadata={"a": 1})
    (message,) = sent(producer_redis)
    assert message.model_dump(exclude={"id", "sent_at", "version"}, exclude_none=True) == {
        "kind": "heartbeat",
        "session_id": SESSION,
        "progress": "reading",
        "work_item_id": "W-1",
        "status": "busy",
        "open_tasks": 3,
        "stale_tasks": 0,
        "metadata": {"a": 1},
        "reply": False,
    }
    assert result == fleetbeat_producer.HeartbeatResult(SESSION, None, message.sent_at, "reading")
    assert result.timestamp.tzinfo is UTC
    assert abs((datetime.now(UTC) - result.timestamp).total_seconds()) < 60


def test_deregister_sends_error_and_exit_status(producer_redis: FakeRedis) -> None:
    """A deregistration carries its error and exit status."""
    deregister(str(SESSION), error="out of tokens", exit_status=3)
    (message,) = sent(producer_redis)
    assert (message.kind, message.session_id, message.error, message.exit_status) == (
        "deregister",
        SESSION,
        "out of tokens",
        3,
    )


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: register("hint"), "either interval_seconds or schedule"),
        (lambda: register("hint", interval_seconds=0.1), "interval_seconds"),
        (lambda: register("hint", schedule="whenever"), "'whenever' is not a cron expression"),
        (lambda: register("", interval_seconds=5), "agent_name"),
        (lambda: register("", interval_seconds=5, stable=True), "agent_name"),
        (lambda: register(None, interval_seconds=5, stable=True), "agent_name"),
        (lambda: register("hint", interval_seconds=5, stable=True, parallel=True), "stable and parallel"),
        (lambda: register("hint", interval_seconds=5, stable=True, session_id=SESSION), "session_id"),
        (lambda: register("hint", interval_seconds=5, session_id="hint"), "session_id"),
        (lambda: register("hint", interval_seconds=5, parent_id="boss"), "parent_id"),
        (lambda: send_heartbeat("hint"), "session_id"),
        (lambda: send_heartbeat(None), "session_id"),
        (lambda: send_heartbeat(SESSION, "x" * 501), "progress"),
        (lambda: send_heartbeat(SESSION, "x" * 100_000), "progress"),
        (lambda: send_heartbeat(SESSION, b"x"), "progress"),
        (lambda: send_heartbeat(SESSION, open_tasks=-1), "open_tasks"),
        (lambda: send_heartbeat(SESSION, metadata=["a"]), "metadata"),
        (lambda: send_heartbeat(SESSION, metadata={"a": {1, 2}}), "metadata"),
        (lambda: send_heartbeat(SESSION, wait_seconds=0), "wait_seconds"),
        (lambda: send_heartbeat(SESSION, wait_seconds=float("nan")), "wait_seconds"),
        (lambda: send_heartbeat(SESSION, wait_seconds="5"), "wait_seconds"),
        (lambda: deregister(SESSION, exit_status=2**40), "exit_status"),
    ],
)
def test_a_bad_argument_raises_at_once(producer_redis: FakeRedis, call: Callable[[], Any], named: str) -> None:
    """What the workers would reject is never sent: one sentence names the argument, and nothing is sent."""
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert isinstance(caught.value, InvalidMessage)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith(".")
    assert sent(producer_redis) == []


def test_metadata_that_workers_could_not_read_is_refused(producer_redis: FakeRedis) -> None:
    """Nesting that Python can encode but the workers' JSON parser refuses raises a ValueError, and nothing is sent."""
    deep: dict[str, Any] = {}
    inner = deep
    for _ in range(250):
        inner["a"] = inner = {}
    with pytest.raises(InvalidMessage) as caught:
        send_heartbeat(SESSION, metadata=deep)
    assert caught.value.reason == Reason.INVALID
    assert sent(producer_redis) == []


def test_calls_return_while_redis_is_away(producer_redis: FakeRedis, redis_server: FakeServer) -> None:
    """With Redis away each call returns, and the messages arrive when Redis is back."""
    redis_server.connected = False
    made = register("hint", interval_seconds=5)
    send_heartbeat(made.session_id)
    deregister(made.session_id)
    assert stats().queued == 3
    redis_server.connected = True
    assert [message.kind for message in sent(producer_redis)] == ["register", "heartbeat", "deregister"]
    assert (stats().queued, stats().sent, stats().dropped) == (0, 3, 0)


@pytest.mark.usefixtures("producer_redis")
def test_a_waiting_call_raises_while_redis_is_away(redis_server: FakeServer) -> None:
    """Only a call that waits for a reply raises, with Redis's address and the cause."""
    redis_server.connected = False
    with pytest.raises(RedisUnavailable, match=r"redis://127\.0\.0\.1:6390/0") as caught:
        send_heartbeat(SESSION, wait_seconds=0.1)
    assert caught.value.__cause__ is not None


def test_a_refused_connection_is_reported_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection gives a sentence with the address; user and password are in neither it nor the repr."""
    settings = Settings(redis_url="redis://me:hunter2@127.0.0.1:1/0", redis_timeout_seconds=0.5)
    monkeypatch.setattr("fleetbeat_producer.client.process_transport", lambda: Transport(settings))
    with pytest.raises(RedisUnavailable) as caught:
        send_heartbeat(SESSION, wait_seconds=0.1)
    assert "redis://127.0.0.1:1/0" in str(caught.value)
    assert "hunter2" not in str(caught.value) + repr(Transport(settings))


def test_the_environment_is_read_at_the_first_call(monkeypatch: pytest.MonkeyPatch, producer_redis: FakeRedis) -> None:
    """A bad setting is reported by its variable at the first call; once it is corrected the calls work."""
    monkeypatch.setenv("FLEETBEAT_REDIS_TIMEOUT_SECONDS", "soon")
    with pytest.raises(SettingsError, match="FLEETBEAT_REDIS_TIMEOUT_SECONDS"):
        send_heartbeat(SESSION)
    monkeypatch.delenv("FLEETBEAT_REDIS_TIMEOUT_SECONDS")
    send_heartbeat(SESSION)
    assert len(sent(producer_redis)) == 1


@pytest.mark.usefixtures("producer_redis")
def test_a_forked_child_makes_its_own_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a process the transport is shared; another process id gets another one."""
    first = process_transport()
    assert process_transport() is first
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert process_transport() is not first


def test_importing_the_producer_is_cheap() -> None:
    """Neither redis nor croniter nor anything of the workers is imported before it is needed."""
    code = (
        "import sys, fleetbeat_producer; "
        "print(sorted({'redis', 'croniter', 'click', 'sqlalchemy', 'rq', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_all_public_names_can_be_imported() -> None:
    """Everything in __all__ can be imported."""
    assert all(hasattr(fleetbeat_producer, name) for name in fleetbeat_producer.__all__)
