from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from fakeredis import FakeRedis

from fleetbeat_shared.redis_keys import GROUP, INBOX, POOLS, STORED, WANTED
from fleetbeat_worker.broker.accounting import Flow, Sample, flow, read_sample
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.workers.autoscale import Bounds
from fleetbeat_worker.workers.registry import (
    GONE_SECONDS,
    PoolState,
    read_pools,
    read_wanted,
    recent_flow,
    remove_pools,
    remove_stale_entries,
    spread,
    write_pool,
    write_wanted,
)
from helpers import redis_time, send


def pool(key: str, seen_at: datetime, sample: Sample | None = None) -> PoolState:
    return PoolState(key, "w1", 7, Bounds(1, 4), 2, (8, 9), seen_at, seen_at, sample)


def sample(at: float, added: int = 0, taken: int = 0, life: str | None = "a", **workers: int) -> Sample:
    return Sample(at, life, added, taken, workers)


def test_pools_are_read_as_they_were_written(redis: FakeRedis) -> None:
    """A pool's entry is there until it ends; then its requested number of workers is removed, too."""
    now = redis_time(redis)
    write_pool(redis, pool("one", now, sample(5.0, 3, 2, worker=2)))
    write_wanted(redis, {"one": Bounds(3, 3)})
    (found,) = read_pools(redis)
    assert found == pool("one", found.last_seen_at, sample(5.0, 3, 2, worker=2))
    assert abs(found.last_seen_at - now) < timedelta(milliseconds=1)
    assert (read_wanted(redis, "one"), read_wanted(redis, "two")) == (Bounds(3, 3), None)
    remove_pools(redis, ["one"])
    assert (read_pools(redis), read_wanted(redis, "one")) == ([], None)


def test_a_pool_with_a_stale_entry_is_gone(redis: FakeRedis) -> None:
    """A stale entry, and one that is no pool, isn't listed; it is removed with the requested number of workers."""
    now = redis_time(redis)
    write_pool(redis, pool("here", now))
    write_pool(redis, pool("gone", now - timedelta(seconds=GONE_SECONDS + 1)))
    redis.hset(POOLS, mapping={"broken": b"\xff{", "strange": b"[]", "other": b"{}"})
    redis.hset(WANTED, mapping={"gone": "2", "here": "x"})
    redis.hset(STORED, "nobody", 5)
    assert [found.id for found in read_pools(redis)] == ["here"]
    assert read_wanted(redis, "here") is None
    remove_stale_entries(redis)
    assert redis.hkeys(POOLS) == [b"here"]
    assert redis.hkeys(WANTED) == [b"here"]
    assert redis.hkeys(STORED) == []


@pytest.mark.parametrize(("total", "each"), [(0, [0, 0, 0]), (2, [1, 1, 0]), (7, [3, 2, 2]), (9, [3, 3, 3])])
def test_workers_are_spread_evenly(total: int, each: list[int]) -> None:
    """No pool has two more than another, and together they have the requested number."""
    now = datetime.now(UTC)
    assert list(spread(total, [pool(key, now) for key in "abc"]).values()) == each


def test_a_flow_is_the_difference_of_two_samples() -> None:
    """Rates are per second; a worker that is new counts from zero, one whose count began anew has no rate."""
    found = flow(sample(10.0, 100, 50, a=50, b=9), sample(12.0, 300, 90, a=80, b=3, c=10))
    assert found == Flow(100.0, 20.0, {"a": 15.0, "c": 5.0})
    assert flow(sample(10.0), sample(10.1)) == Flow()
    assert flow(sample(10.0, life="a"), sample(12.0, life="b")) == Flow()
    assert flow(sample(10.0, 100, 50), sample(12.0, 10, 60)) == Flow(None, 5.0, {})


def test_the_time_to_empty() -> None:
    """It is the backlog by the surplus of the drain rate; none if there is no surplus, or the rates aren't known."""
    assert Flow(10.0, 30.0).seconds_to_empty(100) == 5.0
    assert Flow(30.0, 30.0).seconds_to_empty(100) is None
    assert Flow().seconds_to_empty(100) is None
    assert Flow().seconds_to_empty(0) == 0.0


def test_rates_are_since_the_oldest_sample_of_this_life() -> None:
    """The oldest sample of all pools gives the rates; samples of before Redis lost its data don't count."""
    now = datetime.now(UTC)
    pools = [pool("a", now, sample(8.0)), pool("b", now, sample(4.0, taken=6)), pool("c", now, sample(1.0, life="z"))]
    assert recent_flow(pools, sample(14.0, taken=16)).drain_rate == 1.0
    assert recent_flow([], sample(14.0)) == Flow()


def test_what_workers_take_out_is_sampled(redis: FakeRedis) -> None:
    """A sample has what was added, what was taken out, and by which worker, also before anything ever came."""
    assert read_sample(redis).added == 0
    inbox = Inbox(redis)
    inbox.create_group()
    send(redis, *[b"x"] * 5)
    for consumer, number in (("a", 1), ("b", 2), ("a", 1)):
        inbox.acknowledge([entry.id for entry in inbox.read(consumer, number, 0.001)], consumer)
    found = read_sample(redis)
    assert (found.taken, found.workers) == (4, {"a": 2, "b": 2})
    assert found.life is not None
    assert redis.xpending(INBOX, GROUP)["pending"] == 0
