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
from fleetbeat_producer.transport import UNKNOWN_SESSION_SECONDS, Transport
from fleetbeat_shared import redis_keys
from fleetbeat_shared.messages import Heartbeat, Reply, parse_message
from fleetbeat_shared.settings import Settings

SESSION = UUID("3d6f6917-efad-4b03-b9bf-d8e124b2e8bb")
SEEN = datetime(2024, 6, 1, 12, tzinfo=UTC)
STORED = Reply(ok=True, session_id=SESSION, agent_name="hint", timestamp=SEEN, progress="reading")
UNKNOWN = Reply(ok=False, code="unknown_session", session_id=SESSION)


def answer(redis: FakeRedis, message: Heartbeat, *replies: Reply | bytes) -> None:
    for reply in replies:
        redis.rpush(redis_keys.reply_key(message.id), reply if isinstance(reply, bytes) else reply.model_dump_json())


def wait(message: Heartbeat, seconds: float, sent_at: float | None = None) -> Reply:
    transport = Transport(Settings(redis_timeout_seconds=0.1))
    return transport.wait_for_reply(message, seconds, time.monotonic() if sent_at is None else sent_at)


@pytest.fixture
def message() -> Heartbeat:
    return compose(Heartbeat, SESSION, reply=True)


@pytest.fixture
def unknown_for(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorten the time for which `unknown_session` isn't the last word."""
    monkeypatch.setattr("fleetbeat_producer.transport.UNKNOWN_SESSION_SECONDS", 0.2)
    return 0.2


@pytest.fixture
def worker(producer_redis: FakeRedis) -> Iterator[Callable[..., None]]:
    """Return a function that starts a worker which answers the first message of the inbox in these words."""
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


def test_a_waiting_heartbeat_returns_what_sql_says(worker: Callable[..., None]) -> None:
    """The result is the worker's answer, not what was sent."""
    worker(STORED)
    assert send_heartbeat(SESSION, "other", wait_seconds=10) == HeartbeatResult(SESSION, "hint", SEEN, "reading")


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        ("session_ended", SessionEnded, r"has ended\. Register the agent again"),
        ("failed", MessageRejected, "failed.*fleetbeat rejected list"),
        ("invalid", MessageRejected, "invalid"),
        (None, MessageRejected, "no reason given"),
    ],
)
def test_a_refusal_is_told_at_once(
    worker: Callable[..., None], code: str | None, error: type[Exception], says: str
) -> None:
    """Each reason of the workers becomes its error, long before the wait is over."""
    worker(Reply(ok=False, code=code, session_id=SESSION))
    started = time.monotonic()
    with pytest.raises(error, match=says):
        send_heartbeat(SESSION, wait_seconds=60)
    assert time.monotonic() - started < 30


def test_an_unknown_session_is_told_after_its_time(worker: Callable[..., None], unknown_for: float) -> None:
    """`unknown_session` alone becomes UnknownSession once the registration has had its time to arrive, not later."""
    worker(UNKNOWN)
    started = time.monotonic()
    with pytest.raises(UnknownSession, match="Register the agent first"):
        send_heartbeat(SESSION, wait_seconds=60)
    assert unknown_for <= time.monotonic() - started < 30


@pytest.mark.usefixtures("unknown_for")
def test_a_second_answer_puts_unknown_right(producer_redis: FakeRedis, message: Heartbeat) -> None:
    """A heartbeat that overtook its registration is confirmed by the second answer."""
    answer(producer_redis, message, UNKNOWN, STORED)
    assert wait(message, 10) == STORED


def test_a_second_answer_has_its_time_however_late_the_first_was(producer_redis: FakeRedis, message: Heartbeat) -> None:
    """Workers that are behind answer late: the time for the second answer starts with the first, not with sending."""
    long_ago = time.monotonic() - 2 * UNKNOWN_SESSION_SECONDS
    answer(producer_redis, message, UNKNOWN)
    timer = threading.Timer(0.2, answer, (producer_redis, message, STORED))
    timer.start()
    assert wait(message, 60, long_ago) == STORED
    timer.join()


def test_more_unknown_answers_win_no_time(producer_redis: FakeRedis, message: Heartbeat, unknown_for: float) -> None:
    """The time runs from the first `unknown_session`; repeating it doesn't start it anew."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(unknown_for / 4):
            answer(producer_redis, message, UNKNOWN)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        with pytest.raises(UnknownSession):
            wait(message, 30)
        assert not stop.is_set()
    finally:
        stop.set()
        thread.join()


def test_unknown_is_the_last_word_when_the_wait_is_shorter(producer_redis: FakeRedis, message: Heartbeat) -> None:
    """A caller that waits less than the two seconds still hears that the session is unknown."""
    answer(producer_redis, message, UNKNOWN)
    started = time.monotonic()
    with pytest.raises(UnknownSession):
        wait(message, 0.1)
    assert time.monotonic() - started < 1.5


def test_silence_is_not_confirmed_in_time(producer_redis: FakeRedis) -> None:
    """Without workers the call returns after its time, and says that the message stays in the inbox."""
    started = time.monotonic()
    with pytest.raises(NotConfirmed, match=r"within 0\.1s.*stays in the inbox"):
        send_heartbeat(SESSION, wait_seconds=0.1)
    assert 0.1 <= time.monotonic() - started < 10
    assert producer_redis.xlen(redis_keys.INBOX) == 1


def test_a_wait_may_be_longer_than_one_blocking_read(producer_redis: FakeRedis, message: Heartbeat) -> None:
    """An answer that comes after several empty reads is still heard."""
    timer = threading.Timer(0.2, answer, (producer_redis, message, STORED))
    timer.start()
    assert wait(message, 10) == STORED
    timer.join()


@pytest.mark.parametrize("garbage", [b"", b"hello", b"{}", b'{"ok": "maybe"}'])
def test_an_answer_of_another_version_confirms_nothing(
    producer_redis: FakeRedis, message: Heartbeat, garbage: bytes
) -> None:
    """An answer that can't be read is NotConfirmed, not a traceback."""
    answer(producer_redis, message, garbage)
    with pytest.raises(NotConfirmed, match="one version"):
        wait(message, 10)


def test_redis_lost_while_waiting_leaves_it_unconfirmed(
    producer_redis: FakeRedis, redis_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the message is in the inbox, a Redis that goes away means not confirmed: it may still be stored."""
    add = producer_redis.xadd

    def add_and_go_away(*arguments: object) -> object:
        entry = add(*arguments)
        redis_server.connected = False
        return entry

    monkeypatch.setattr(producer_redis, "xadd", add_and_go_away)
    with pytest.raises(NotConfirmed, match=r"was sent, but no reply could be read\. Redis at"):
        send_heartbeat(SESSION, wait_seconds=10)
