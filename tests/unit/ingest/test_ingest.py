from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError, ResponseError
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, ProgrammingError

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.redis_keys import GROUP, INBOX
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker import consumer as consumers
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.ingest import job as module, transaction as transactions
from fleetbeat_worker.ingest.job import Ingest
from helpers import backlog, count_heartbeats, heartbeat, reasons, register, rejected, send, state

SETTINGS = Settings(batch_size=10, linger_seconds=0.02, lease_seconds=3600.0)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait."""
    monkeypatch.setattr(module, "BLOCK_SECONDS", 0.002)
    monkeypatch.setattr(consumers, "PACE_SECONDS", 0.002)
    for place in (module, consumers):
        monkeypatch.setattr(place, "FIRST_PAUSE_SECONDS", 0.002)
        monkeypatch.setattr(place, "LONGEST_PAUSE_SECONDS", 0.002)


@pytest.fixture
def run(redis: FakeRedis, memory: Engine) -> Callable[..., int]:
    """Return what runs one ingest job for a few seconds at most."""

    def act(consumer: str = "worker", stop: Callable[[], bool] = lambda: False, within: float = 5.0) -> int:
        Inbox(redis).create_group()  # it takes longer than a run lingers
        return Ingest(redis, memory, SETTINGS, consumer, stop=stop).run(within)

    return act


def deliver(redis: FakeRedis, consumer: str, times: int) -> None:
    """Put all entries into a consumer's hands, as if so many holders had died with them."""
    inbox = Inbox(redis)
    inbox.create_group()
    ids = [entry.id for entry in inbox.read(consumer, 100, 0.001)]
    redis.xclaim(INBOX, GROUP, consumer, 0, ids, retrycount=times, justid=True)


def died(error: type[Exception]) -> Any:
    """Return what raises an error of the database."""

    def act(*_arguments: object) -> None:
        raise error("a statement", {}, Exception("as the driver says"))  # noqa: EM101, TRY003 - SQLAlchemy's own

    return act


def test_a_run_ends_when_nothing_comes(run: Callable[..., int], redis: FakeRedis, memory: Engine) -> None:
    """Everything is stored, then the run lingers for its time and ends, leaving nothing of itself behind."""
    message = register()
    send(redis, message, *[heartbeat(message.session_id) for _ in range(25)], b"hello")
    assert run() == 27
    assert (count_heartbeats(memory), reasons(memory), backlog(redis)) == (25, ["not_json"], 0)
    assert redis.xinfo_consumers(INBOX, GROUP) == []
    assert run() == 0


def test_nothing_is_acknowledged_before_it_is_on_the_disk(
    run: Callable[..., int], redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that is committed, entries leave the inbox only after a flush that began after their commit."""
    committed, flushed, gone = [0], [0], [0]
    whole = module.store_heartbeats

    def store(engine: Engine, entries: list[Any], *rest: Any) -> Any:
        gone.append(60 - backlog(redis))
        assert gone[-1] <= flushed[0]
        batches = whole(engine, entries, *rest)
        committed[0] += len(entries)
        return batches

    def flush(_: Engine) -> None:
        flushed[0] = committed[0]

    monkeypatch.setattr(module, "store_heartbeats", store)
    monkeypatch.setattr(module, "flush", flush)
    send(redis, *[b"x"] * 60)
    assert run() == 60
    assert (max(gone), flushed[0], backlog(redis)) == (40, 60, 0)


@pytest.mark.parametrize("failing", [1, 2, 6])
def test_what_does_not_get_to_the_disk_is_stored_again(
    run: Callable[..., int], redis: FakeRedis, memory: Engine, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """A disk that fails in a flush leaves its batch in the inbox, with no blame on the messages; later it goes on."""
    message = register()
    send(redis, message, *[heartbeat(message.session_id) for _ in range(59)])
    calls = iter(range(1, 100))

    def fail(_: Engine) -> None:
        if next(calls) == failing:
            message = "The disk failed."
            raise DatabaseUnavailable(message)

    monkeypatch.setattr(module, "flush", fail)
    with suppress(DatabaseUnavailable):
        run()
    counts = {item["times_delivered"] for item in redis.xpending_range(INBOX, GROUP, "-", "+", 100)}
    assert counts <= {0}
    run()
    run("other")
    assert (backlog(redis), count_heartbeats(memory), rejected(memory)) == (0, 59, [])


def test_a_run_ends_when_it_is_asked(run: Callable[..., int], redis: FakeRedis) -> None:
    """Asked to stop, a run finishes the batch that it has; there is always one, so that others can't keep it idle."""
    Inbox(redis).create_group()
    send(redis, *[b"x"] * 35)
    assert run(stop=lambda: True) == 10
    assert backlog(redis) == 25
    looks = iter([False, True])
    assert run(stop=lambda: next(looks)) == 20
    assert backlog(redis) == 5


@pytest.mark.parametrize(("share", "stored"), [(0.0, 20), (3600.0, 35)])
def test_a_run_makes_room_after_its_share(
    redis: FakeRedis, memory: Engine, monkeypatch: pytest.MonkeyPatch, share: float, stored: int
) -> None:
    """Other work that waits ends a run after its share; what it had fetched by then it stores, and holds nothing."""
    monkeypatch.setattr(module, "FAIR_SHARE_SECONDS", share)
    Inbox(redis).create_group()
    send(redis, *[b"x"] * 35)
    assert Ingest(redis, memory, SETTINGS, "worker", stop=lambda: False, make_room=lambda: True).run(60.0) == stored
    assert backlog(redis) == 35 - stored
    assert redis.xpending(INBOX, GROUP)["pending"] == 0


def test_a_run_ends_when_its_time_is_up(run: Callable[..., int], redis: FakeRedis) -> None:
    """A run's slice bounds it, whatever waits."""
    send(redis, *[b"x"] * 35)
    assert run(within=0.0) <= 10
    assert backlog(redis) >= 25


def test_the_group_is_made_where_it_is_missing(run: Callable[..., int], redis: FakeRedis, memory: Engine) -> None:
    """The first run ever makes the group and reads from the beginning."""
    send(redis, b"x")
    assert run() == 1
    assert len(rejected(memory)) == 1


def test_own_leftovers_come_first(run: Callable[..., int], redis: FakeRedis) -> None:
    """What this consumer's earlier life held is stored at once; another's is left while its lease lasts."""
    send(redis, b"x", b"y")
    deliver(redis, "worker", 1)
    send(redis, b"z")
    assert run("other") == 1
    assert backlog(redis) == 2
    assert run("worker") == 2


@pytest.mark.parametrize(("deaths", "sizes"), [(0, [10, 10, 10, 3]), (1, [4] * 8 + [1]), (2, [1] * 33), (4, [1] * 33)])
def test_suspects_are_taken_in_smaller_units(
    run: Callable[..., int], redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, deaths: int, sizes: list[int]
) -> None:
    """The more holders died with entries, the fewer are taken together."""
    monkeypatch.setattr(consumers, "SUSPECTS_TOGETHER", 4)
    taken: list[int] = []
    whole = module.store_heartbeats

    def watch(engine: Engine, entries: list[Any], *rest: Any) -> Any:
        taken.append(len(entries))
        return whole(engine, entries, *rest)

    monkeypatch.setattr(module, "store_heartbeats", watch)
    send(redis, *[b"x"] * 33)
    deliver(redis, "worker", deaths)
    assert run() == 33
    assert taken == sizes


@pytest.mark.parametrize(
    ("deaths", "stored"), [(consumers.DIED_ALONE_THRICE, []), (consumers.DIED_ALONE_THRICE - 1, ["ok"])]
)
def test_what_killed_three_times_alone_is_poison(
    run: Callable[..., int], redis: FakeRedis, memory: Engine, deaths: int, stored: list[str]
) -> None:
    """An entry that three processes running died with alone is set aside undecoded, with its bytes; not after two."""
    started = register()
    send(redis, started)
    run()
    message = heartbeat(started.session_id)
    send(redis, message)
    deliver(redis, "worker", deaths)
    assert run() == 1
    assert [(row.reason, row.raw) for row in rejected(memory)] == [("poison", message.to_wire())] * (not stored)
    assert state(memory, started.session_id) == (stored or ["pending"])[0]


@pytest.mark.parametrize("deaths", [0, 1, 3])
def test_trouble_with_the_database_is_no_death(
    run: Callable[..., int],
    redis: FakeRedis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    deaths: int,
) -> None:
    """While the database fails entries keep the counts that they had, and the trouble is told once."""
    caplog.set_level(logging.INFO, "fleetbeat")
    send(redis, *[b"x"] * 25)  # with the first batch in its hands a run has the second too
    if deaths:
        deliver(redis, "worker", deaths)
    with monkeypatch.context() as patch:
        patch.setattr(transactions, "write_changes", died(OperationalError))
        assert run(within=0.1) == 0
    assert {item["times_delivered"] for item in redis.xpending_range(INBOX, GROUP, "-", "+", 50)} == {deaths}
    assert sum("Messages wait in the inbox" in record.getMessage() for record in caplog.records) == 1
    assert run() == 25


def test_our_own_fault_is_no_death_either(
    run: Callable[..., int], redis: FakeRedis, memory: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a table is missing the run fails aloud, and its entries keep the counts that they had."""
    send(redis, b"x")
    with monkeypatch.context() as patch:
        patch.setattr(transactions, "write_changes", died(ProgrammingError))
        for _ in range(6):
            with pytest.raises(ProgrammingError):
                run()
    assert run() == 1
    assert reasons(memory) == ["not_json"]


def test_a_commit_is_acknowledged_when_redis_is_back(
    run: Callable[..., int], redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis that breaks off after a commit is waited for, and the batch is acknowledged then."""
    whole, failures = Inbox.acknowledge, iter(range(3))

    def break_off(self: Inbox, ids: list[str], consumer: str) -> None:
        if next(failures, None) is not None:
            raise RedisConnectionError
        whole(self, ids, consumer)

    monkeypatch.setattr(Inbox, "acknowledge", break_off)
    send(redis, b"x")
    assert run() == 1
    assert backlog(redis) == 0


def test_other_trouble_with_redis_is_raised(
    run: Callable[..., int], redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What isn't a missing group is no reason to make one: the run ends with the error."""

    def wrong(*_arguments: object) -> None:
        raise ResponseError("WRONGTYPE")  # noqa: EM101 - as Redis says it

    monkeypatch.setattr(Inbox, "read", wrong)
    send(redis, b"x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        run()
