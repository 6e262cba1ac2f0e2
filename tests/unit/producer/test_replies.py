from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from fakeredis import FakeRedis, FakeServer

from fleetbeat_producer import (
    HeartbeatResult,
    MessageRejected,
    NotConfirmed,
    SessionEnded,
    UnknownSession,
    send_heartbeat,
)
from fleetbeat_producer.compose import compose
from fleetbeat_producer.transport import Transport
from fleetbeat_shared import redis_keys
from fleetbeat_shared.messages import Heartbeat, Reply, parse_message
from fleetbeat_shared.settings import Settings

SESSION = UUID("3d6f6917-efad-4b03-b9bf-d8e124b2e8bb")
SEEN = datetime(2024, 6, 1, 12, tzinfo=UTC)
STORED = Reply(ok=True, session_id=SESSION, agent_name="hint", timestamp=SEEN, progress="reading")


def answer(redis: FakeRedis, message: Heartbeat, *replies: Reply | bytes) -> None:
    for reply in replies:
        redis.rpush(redis_keys.reply_key(message.id), reply if isinstance(reply, bytes) else reply.model_dump_json())


def wait(message: Heartbeat, seconds: float) -> Reply:
    return Transport(Settings(redis_timeout_seconds=0.1)).wait_for_reply(message, seconds, time.monotonic())


@pytest.fixture
def message() -> Heartbeat:
    return compose(Heartbeat, SESSION, reply=True)


@pytest.fixture
def worker(producer_redis: FakeRedis) -> Iterator[Callable[..., None]]:
    """Return a function that starts a worker which sends these replies to the first message of the inbox."""
    threads: list[threading.Thread] = []

    def work(*replies: Reply | bytes) -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            for _, entry in producer_redis.xrange(redis_keys.INBOX):
                message = parse_message(entry[redis_keys.FIELD.encode()])
                assert message.reply
                answer(producer_redis, message, *replies)
                return
            time.sleep(0.005)

    def start(*replies: Reply | bytes) -> None:
        threads.append(threading.Thread(target=work, args=replies))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def test_a_waiting_heartbeat_returns_the_reply(worker: Callable[..., None]) -> None:
    """The result is the worker's reply, not what was sent."""
    worker(STORED)
    assert send_heartbeat(SESSION, "other", wait_seconds=10) == HeartbeatResult(SESSION, "hint", SEEN, "reading")


@pytest.mark.parametrize(
    ("code", "error", "expected"),
    [
        ("unknown_session", UnknownSession, "Register the agent first"),
        ("session_ended", SessionEnded, r"has ended\. Register the agent again"),
        ("failed", MessageRejected, "failed.*fleetbeat rejected list"),
        ("invalid", MessageRejected, "invalid"),
        (None, MessageRejected, "no reason given"),
    ],
)
def test_a_refusal_raises_at_once(
    worker: Callable[..., None], code: str | None, error: type[Exception], expected: str
) -> None:
    """Each reason for a rejection raises its error, long before the wait is over."""
    worker(Reply(ok=False, code=code, session_id=SESSION))
    started = time.monotonic()
    with pytest.raises(error, match=expected):
        send_heartbeat(SESSION, wait_seconds=60)
    assert time.monotonic() - started < 30


def test_no_reply_in_time_raises_not_confirmed(producer_redis: FakeRedis) -> None:
    """Without workers the call returns after its wait, and says that the message stays in the inbox."""
    started = time.monotonic()
    with pytest.raises(NotConfirmed, match=r"within 0\.1s.*stays in the inbox"):
        send_heartbeat(SESSION, wait_seconds=0.1)
    assert 0.1 <= time.monotonic() - started < 10
    assert producer_redis.xlen(redis_keys.INBOX) == 1


def test_a_wait_may_be_longer_than_one_blocking_read(producer_redis: FakeRedis, message: Heartbeat) -> None:
    """A reply that comes after several empty reads is still received."""
    timer = threading.Timer(0.2, answer, (producer_redis, message, STORED))
    timer.start()
    assert wait(message, 10) == STORED
    timer.join()


@pytest.mark.parametrize("garbage", [b"", b"hello", b"{}", b'{"ok": "maybe"}'])
def test_an_unreadable_reply_raises_not_confirmed(
    producer_redis: FakeRedis, message: Heartbeat, garbage: bytes
) -> None:
    """A reply that can't be read raises NotConfirmed, not a parser's error."""
    answer(producer_redis, message, garbage)
    with pytest.raises(NotConfirmed, match="one version"):
        wait(message, 10)


def test_redis_lost_while_waiting_raises_not_confirmed(
    producer_redis: FakeRedis, redis_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the message is in the inbox, a lost Redis means not confirmed: it may still be stored."""
    add = producer_redis.xadd

    def add_and_go_away(*arguments: object) -> object:
        entry = add(*arguments)
        redis_server.connected = False
        return entry

    monkeypatch.setattr(producer_redis, "xadd", add_and_go_away)
    with pytest.raises(NotConfirmed, match=r"was sent, but no reply could be read\. Redis at"):
        send_heartbeat(SESSION, wait_seconds=10)
