from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fakeredis import FakeRedis

from fleetbeat_shared.redis_keys import GROUP, INBOX, SESSIONS
from fleetbeat_worker.broker.entries import RawEntry, arrival
from fleetbeat_worker.broker.inbox import Inbox, Pending
from fleetbeat_worker.rules.spans import from_milliseconds, to_milliseconds
from helpers import redis_time, register, seconds, send

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
LONG = 1000.0


@pytest.fixture
def inbox(redis: FakeRedis) -> Inbox:
    inbox = Inbox(redis)
    inbox.create_group()
    return inbox


def test_the_group_is_made_once(inbox: Inbox, redis: FakeRedis) -> None:
    """Making the group again changes nothing, and it begins with the oldest entry."""
    send(redis, b"first")
    inbox.read("a", 10, 0.01)
    inbox.create_group()
    assert [item.deliveries for item in inbox.pending_of("a", 10)] == [1]
    redis.xgroup_destroy(INBOX, GROUP)
    inbox.create_group()
    assert [entry.wire for entry in inbox.read("a", 10, 0.01)] == [b"first"]


def test_an_entry_goes_to_one_reader(inbox: Inbox, redis: FakeRedis) -> None:
    """What one consumer read, no other reads."""
    first, second = send(redis, b"one", b"two")
    assert inbox.read("a", 1, 0.01) == [RawEntry(first, b"one")]
    assert inbox.read("b", 10, 0.01) == [RawEntry(second, b"two")]
    assert inbox.read("b", 10, 0.01) == []


def test_an_entry_without_our_field_is_kept_as_it_is(inbox: Inbox, redis: FakeRedis) -> None:
    """Fields that aren't ours become the bytes of what will be set aside."""
    redis.xadd(INBOX, {b"x": b"1", b"y": b"\xff"})
    (entry,) = inbox.read("a", 1, 0.01)
    assert entry.wire == b"x=1 y=\xff"


def test_acknowledged_entries_are_gone(inbox: Inbox, redis: FakeRedis) -> None:
    """An acknowledgement removes entries from the stream and from their holder's hands."""
    ids = send(redis, b"one", b"two")
    inbox.read("a", 10, 0.01)
    inbox.acknowledge(ids, "worker")
    assert redis.xlen(INBOX) == 0
    assert inbox.pending_of("a", 10) == []


def test_taking_over_what_is_gone_brings_nothing(inbox: Inbox, redis: FakeRedis) -> None:
    """An entry that was deleted from the stream meanwhile is no entry."""
    ids = send(redis, b"one", b"two")
    inbox.read("a", 2, 0.01)
    redis.xdel(INBOX, ids[0])
    assert inbox.take_over("b", ids, 0) == [RawEntry(ids[1], b"two")]


def test_a_consumer_leaves_with_empty_hands_only(inbox: Inbox, redis: FakeRedis) -> None:
    """A consumer that holds entries stays, because deleting it would drop them."""
    ids = send(redis, b"one")
    inbox.read("a", 1, 0.01)
    assert not inbox.leave("a")
    assert inbox.pending_of("a", 10) == [Pending(ids[0], 1)]
    inbox.acknowledge(ids, "worker")
    assert inbox.leave("a")
    assert redis.xinfo_consumers(INBOX, GROUP) == []


def test_leaving_a_group_that_is_gone_is_no_error(inbox: Inbox, redis: FakeRedis) -> None:
    """After Redis lost its data there is nothing to leave."""
    redis.flushall()
    assert inbox.leave("a")


def test_forgotten_consumers_are_removed(inbox: Inbox, redis: FakeRedis) -> None:
    """Housekeeping removes idle consumers, but none that holds entries."""
    send(redis, b"one")
    inbox.read("holds", 1, 0.01)
    inbox.read("empty", 1, 0.01)
    inbox.remove_idle_consumers(LONG)
    assert len(redis.xinfo_consumers(INBOX, GROUP)) == 2
    inbox.remove_idle_consumers(-1)
    assert [consumer["name"] for consumer in redis.xinfo_consumers(INBOX, GROUP)] == [b"holds"]


def test_the_watermark_is_the_oldest_entry(inbox: Inbox, redis: FakeRedis) -> None:
    """The watermark is the receipt of the oldest entry, read or unread, else Redis's time."""
    horizon = inbox.horizon()
    assert (horizon.watermark, horizon.backlog) == (horizon.now, 0)
    ids = send(redis, b"one", at=NOON) + send(redis, b"two", at=NOON + seconds(60))
    assert (inbox.horizon().watermark, inbox.horizon().backlog) == (NOON, 2)
    inbox.read("a", 1, 0.01)
    assert inbox.horizon().watermark == NOON
    inbox.acknowledge(ids[:1], "worker")
    assert (inbox.horizon().watermark, inbox.horizon().backlog) == (NOON + seconds(60), 1)


def test_the_watermark_is_never_later_than_now(inbox: Inbox, redis: FakeRedis) -> None:
    """With an explicit id of tomorrow nobody knows when anything was received, so there is no watermark."""
    send(redis, b"one", at=redis_time(redis) + seconds(86_400))
    assert inbox.horizon().watermark is None


def test_a_clock_that_was_set_back_a_little_is_no_fault(inbox: Inbox, redis: FakeRedis) -> None:
    """Of ids that run ahead by some seconds, as after a small step of Redis's clock, it is known when the step was."""
    ahead = redis_time(redis) + seconds(10)
    (entry_id,) = send(redis, b"one", at=ahead)
    assert inbox.horizon().watermark == from_milliseconds(int(entry_id.partition("-")[0])) - seconds(60)


def test_how_far_a_burst_drains(inbox: Inbox, redis: FakeRedis) -> None:
    """The last ids at the start tell when all that stood then is gone from both streams, whatever came later."""
    assert not inbox.holds_through(inbox.last_ids())
    ids = send(redis, b"one", b"two") + send(redis, register())
    last = inbox.last_ids()
    assert last == {INBOX: ids[1], SESSIONS: ids[2]}
    send(redis, b"later")
    assert inbox.holds_through(last)
    inbox.acknowledge(ids, "worker")
    assert inbox.holds_through(last)
    redis.xdel(SESSIONS, ids[2])
    assert not inbox.holds_through(last)


def test_the_lane_holds_the_watermark_too(inbox: Inbox, redis: FakeRedis) -> None:
    """The watermark is the older of the two streams' oldest entries, and one of tomorrow in either hides it."""
    send(redis, b"one", at=NOON + seconds(60))
    (oldest,) = send(redis, register(), at=NOON)
    horizon = inbox.horizon()
    assert (horizon.watermark, horizon.backlog, horizon.oldest_id) == (NOON, 2, oldest)
    redis.xdel(SESSIONS, oldest)
    assert inbox.horizon().watermark == NOON + seconds(60)
    send(redis, register(), at=redis_time(redis) + seconds(86_400))
    assert inbox.horizon().watermark is None


def test_positions_follow_the_stream() -> None:
    """Positions order entries as their ids do, within a millisecond too, and fit an SQL integer."""
    ids = ["1000-0", "1000-1", "1000-2000000", "1001-0", f"{to_milliseconds(NOON)}-7"]
    positions = [arrival(entry_id, to_milliseconds(NOON))[1] for entry_id in ids]
    assert positions == sorted(set(positions))
    assert positions[-1] < 2**63


def test_a_place_follows_the_id_through_a_step_of_the_clock() -> None:
    """With its clock set back a little, Redis counts on from the latest id: the order stays, the time is clamped."""
    now = to_milliseconds(NOON)
    arrivals = [arrival(f"{now + 50_000}-{sequence}", now + sequence) for sequence in (1, 2)]
    assert arrivals[0][1] < arrivals[1][1]
    assert [received_at for received_at, _ in arrivals] == [now + 1, now + 2]
    assert arrival(f"{now + 50_000}-0", now)[1] > arrival(f"{now}-9", now)[1]
