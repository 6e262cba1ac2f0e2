from __future__ import annotations

from uuid import uuid4

from hypothesis import given, strategies as st

from fleetbeat_producer.background.auto_heartbeats import AutoHeartbeats
from fleetbeat_producer.background.buffer import Buffer
from fleetbeat_producer.compose import compose
from fleetbeat_shared.messages import Deregister, Heartbeat, Register

SESSION = uuid4()


def kinds(buffer: Buffer) -> list[str]:
    return [queued.message.kind for queued in buffer.take(100)]


def test_messages_leave_in_the_order_of_the_calls() -> None:
    """Registrations, heartbeats and deregistrations stay in order, whichever queue holds them."""
    buffer = Buffer()
    buffer.put(compose(Register, SESSION, agent_name="hint", interval_seconds=5), 0)
    buffer.put(compose(Heartbeat, SESSION), 1)
    buffer.put(compose(Deregister, SESSION), 2)
    buffer.put(compose(Heartbeat, SESSION), 3)
    assert kinds(buffer) == ["register", "heartbeat", "deregister", "heartbeat"]


def test_the_oldest_heartbeats_are_dropped_first() -> None:
    """A full buffer drops old heartbeats, and keeps the registration."""
    buffer = Buffer(capacity=3)
    buffer.put(compose(Register, SESSION, agent_name="hint", interval_seconds=5), 0)
    for number in range(5):
        buffer.put(compose(Heartbeat, SESSION, open_tasks=number), number)
    assert buffer.counts() == (3, 0, 3)
    first, *heartbeats = [queued.message for queued in buffer.take(10)]
    assert isinstance(first, Register)
    assert [heartbeat.open_tasks for heartbeat in heartbeats if isinstance(heartbeat, Heartbeat)] == [3, 4]


def test_a_flush_does_not_wait_for_later_messages() -> None:
    """A message in flight or put back counts as held; a later one doesn't."""
    buffer = Buffer()
    buffer.put(compose(Heartbeat, SESSION), 0)
    end = buffer.next_number()
    buffer.put(compose(Heartbeat, SESSION), 1)
    first = buffer.take(1)
    assert buffer.holds_before(end)
    buffer.settle(0, first)
    assert buffer.holds_before(end)
    buffer.take(1)
    buffer.settle(1)
    assert not buffer.holds_before(end)
    assert buffer.counts() == (1, 1, 0)


@given(st.lists(st.sampled_from(["put", "take", "sent", "back"]), max_size=60))
def test_every_call_is_queued_sent_or_dropped(acts: list[str]) -> None:
    """Whatever happens in whatever order, the counts add up to the calls, and the capacity is kept."""
    buffer = Buffer(capacity=5)
    calls, out = 0, []
    for act in acts:
        if act == "put":
            buffer.put(compose(Heartbeat, SESSION), calls)
            calls += 1
        elif act == "take":
            out.append(buffer.take(2))
        elif out:
            taken = out.pop()
            buffer.settle(len(taken)) if act == "sent" else buffer.settle(0, taken)
        queued, sent, dropped = buffer.counts()
        assert queued + sent + dropped == calls
        assert queued <= 5


def test_automatic_heartbeats_are_spread_over_the_interval() -> None:
    """Sessions that start together send at different times, once in an interval, and not after their end."""
    auto_heartbeats = AutoHeartbeats()
    sessions = [uuid4() for _ in range(200)]
    for session in sessions:
        auto_heartbeats.add(session, 10.0, now=0.0)
    halves = [len(auto_heartbeats.take_due(float(second))) for second in range(1, 21)]
    assert sum(halves[:10]) == sum(halves[10:]) == 200
    assert max(halves) < 60
    for session in sessions[1:]:
        auto_heartbeats.remove(session)
    assert [heartbeat.session_id for heartbeat in auto_heartbeats.take_due(30.0)] == [sessions[0]]


def test_one_heartbeat_follows_a_sleep_of_the_machine() -> None:
    """After an hour's sleep each session sends one heartbeat, not one per interval, and keeps its own offset."""
    auto_heartbeats = AutoHeartbeats()
    for _ in range(200):
        auto_heartbeats.add(uuid4(), 10.0, now=0.0)
    assert len(auto_heartbeats.take_due(3600.0)) == 200
    after = [len(auto_heartbeats.take_due(3600.0 + second)) for second in range(1, 11)]
    assert sum(after) == 200
    assert max(after) < 60
