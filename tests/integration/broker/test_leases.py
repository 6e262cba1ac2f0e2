from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from fleetbeat_shared.redis_keys import GROUP, INBOX
from fleetbeat_worker.broker.consumer import Prefetch
from fleetbeat_worker.broker.entries import RawEntry
from fleetbeat_worker.broker.inbox import Inbox, Pending, is_missing
from helpers import backlog, register, send

LONG = 1000.0


@pytest.fixture
def inbox(redis: Redis) -> Inbox:
    inbox = Inbox(redis)
    inbox.create_group()
    return inbox


def test_taking_over_counts_a_death(inbox: Inbox, redis: Redis) -> None:
    """Each taking over raises the delivery count by one; only what was idle for the lease is taken."""
    ids = send(redis, b"one")
    inbox.read("a", 1, 0.01)
    assert inbox.expired(LONG, 10) == []
    assert inbox.take_over("b", ids, LONG) == []
    assert inbox.expired(0, 10) == [Pending(ids[0], 1)]
    assert inbox.take_over("b", ids, 0) == [RawEntry(ids[0], b"one")]
    assert (inbox.pending_of("a", 10), inbox.pending_of("b", 10)) == ([], [Pending(ids[0], 2)])


def test_renewing_leaves_the_count(inbox: Inbox, redis: Redis) -> None:
    """A sign of life begins the lease anew and isn't counted as a delivery."""
    ids = send(redis, b"one")
    inbox.read("a", 1, 0.01)
    redis.xclaim(INBOX, GROUP, "a", 0, ids, idle=5000, justid=True)
    assert inbox.expired(4, 10) == [Pending(ids[0], 1)]
    inbox.renew("a", ids)
    assert inbox.expired(4, 10) == []
    assert inbox.pending_of("a", 10) == [Pending(ids[0], 1)]


def test_what_is_laid_down_can_be_taken_at_once(inbox: Inbox, redis: Redis) -> None:
    """Released entries are expired for everybody, and their count is as it was before: nobody died."""
    ids = send(redis, b"one")
    inbox.read("a", 1, 0.01)
    inbox.release("a", ids, LONG, 0)
    assert inbox.expired(LONG, 10) == [Pending(ids[0], 0)]
    assert inbox.take_over("b", ids, LONG) == [RawEntry(ids[0], b"one")]
    assert inbox.pending_of("b", 10) == [Pending(ids[0], 1)]


def test_demand_tells_what_waits_and_who_reads(inbox: Inbox, redis: Redis) -> None:
    """Demand counts undelivered entries and recent readers, and knows of a dead one's entries."""
    ids = send(redis, b"one", b"two", b"three")
    assert (inbox.demand(LONG).undelivered, inbox.demand(LONG).readers) == (3, 0)
    inbox.read("a", 1, 0.01)
    demand = inbox.demand(LONG)
    assert (demand.undelivered, demand.readers, demand.expired) == (2, 1, False)
    inbox.release("a", ids[:1], LONG, 1)
    assert inbox.demand(LONG).expired


def test_a_missing_group_is_told_from_other_trouble(redis: Redis) -> None:
    """What Redis says before anybody made the group, or after it lost its data, is recognised."""
    inbox = Inbox(redis)
    for act in (lambda: inbox.read("a", 1, 0.01), lambda: inbox.pending_of("a", 1), lambda: inbox.demand(1)):
        with pytest.raises(ResponseError) as caught:
            act()
        assert is_missing(caught.value)
    assert not is_missing(ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"))


def test_how_many_are_read_at_once_follows_their_size(inbox: Inbox, redis: Redis) -> None:
    """Small entries are read by the batch; large ones that hide behind small ones end the batch early."""
    send(redis, *[b"x"] * 1000)
    assert len(inbox.read("worker", 1000, 0.1)) == 1000
    send(redis, *[b"x"] * 150, *[b"x" * 1_000_000] * 300)
    read = inbox.read("worker", 1000, 0.1)
    assert 150 < len(read) <= 200
    assert len(inbox.read("worker", 1000, 0.1)) == 100


def test_of_large_ones_that_were_prefetched_some_stay_pending(inbox: Inbox, redis: Redis) -> None:
    """What was asked for without knowing its size is read as far as it is small; the rest is pending, for its turn."""
    send(redis, b"first", *[b"x"] * 150, *[b"x" * 1_000_000] * 300)
    done = [entry.id for entry in inbox.read("worker", 1, 0.1)]
    unit, is_all = Prefetch(redis, "worker", 1000, done).result()
    assert (150 < len(unit.entries) <= 200, is_all, backlog(redis)) == (True, False, 450)
    assert len(inbox.pending_of("worker", 1000)) == 450
    assert redis.ping()  # no answer of these is taken for another's


def test_all_that_was_prefetched_comes(inbox: Inbox, redis: Redis) -> None:
    """A prefetch brings as many as asked, or as many as there are, once; and how much waits in the lane by then."""
    inbox.create_group()
    send(redis, *[b"x"] * 350, register())
    found = [Prefetch(redis, "worker", 250, []).result() for _ in range(3)]
    assert [(len(unit.entries), unit.lane_backlog, is_all) for unit, is_all in found] == [
        (250, 1, True),
        (100, 1, True),
        (0, 1, True),
    ]
