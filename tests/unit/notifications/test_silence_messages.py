"""Messages about silence, from the notices that sweeps and batches write."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select

from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.database.tables import Notification
from fleetbeat_worker.downtime import maintenance, pauses
from fleetbeat_worker.notifications.messages import Message, compose
from fleetbeat_worker.notifications.wording import Facts
from fleetbeat_worker.rules.enums import NoticeKind
from fleetbeat_worker.rules.maintenance_windows import WindowRule
from simulated import Simulation, at


def messages(engine: Engine) -> list[Message]:
    """Compose the messages of all notifications, as if they were sent at once."""
    with reading(engine) as connection:
        rows = connection.execute(select(Notification.__table__).order_by(Notification.id)).all()
    columns = ("key", "agent_name", "project", "created_at", "detail")
    every = [Facts(NoticeKind(row.kind), *(getattr(row, name) for name in columns)) for row in rows]
    return [compose(facts, facts.created_at) for facts in every]


@pytest.fixture
def fleet(memory: Engine) -> Simulation:
    return Simulation(memory, notify_reminder_hours=1.0)


def test_silence_after_a_pause(memory: Engine, fleet: Simulation) -> None:
    """The message has the last heartbeat before the pause, and the recovery counts from that heartbeat."""
    session_id = fleet.register("torv", 0)
    fleet.beat(session_id, 1)
    with writing(memory) as connection:
        pauses.pause(connection, session_id, at(5), None, None)
        pauses.resume(connection, session_id, at(20), 2)
    fleet.sweep(40)
    fleet.sweep(42)
    fleet.beat(session_id, 45)
    degraded, recovered = messages(memory)
    assert degraded.title == "torv is degraded: silent since its pause ended at 2026-01-31 12:00:20 UTC"
    assert degraded.body.splitlines()[:2] == [
        (
            "Last heartbeat: 2026-01-31 12:00:01 UTC, none for 41s since. "
            "Silence counts from 2026-01-31 12:00:20 UTC, when its pause ended."
        ),
        (
            "Heartbeats are expected every 10s; the limit is 2 missed and 1s of grace. "
            "The deadline was 2026-01-31 12:00:41 UTC."
        ),
    ]
    assert recovered.title == "torv has recovered after 44s of silence"
    assert recovered.body.startswith(
        "Heartbeat at 2026-01-31 12:00:45 UTC; previous heartbeat at 2026-01-31 12:00:01 UTC."
    )


def test_an_agent_without_any_heartbeat(memory: Engine, fleet: Simulation) -> None:
    """Its silence counts from its registration, and its first heartbeat is not called a recovery."""
    session_id = fleet.register("torv", 0, interval_seconds=10.0, grace_seconds=1.0, work="reads the mail")
    fleet.sweep(21.5)
    fleet.sweep(3700)
    fleet.sweep(3730)
    fleet.beat(session_id, 3740, progress="page 1", error="disk full")
    found = [message for message in messages(memory) if message.kind != "outage"]
    assert [message.title for message in found] == [
        "torv is degraded: no heartbeat since its registration at 2026-01-31 12:00:00 UTC",
        "torv is still degraded, no heartbeat for 1h 1m",
        "torv sent its first heartbeat",
    ]
    assert "\nCurrent work: reads the mail\n" in found[0].body
    assert "\nCurrent work: page 1\nError: disk full\n" in found[2].body


def test_silence_after_maintenance(memory: Engine, fleet: Simulation) -> None:
    """Silence counts from the end of the first window; the time by which later ones moved the deadline is given."""
    session_id = fleet.register("torv", 0, interval_seconds=15.0, grace_seconds=1.0)
    fleet.beat(session_id, 2)
    with writing(memory) as connection:
        for start in (10, 40):
            maintenance.add_rule(connection, WindowRule(at(start), at(start + 10)), at(0))
    for second in range(5, 90, 5):
        fleet.sweep(second)
    (degraded,) = messages(memory)
    assert degraded.title == "torv is degraded: silent since maintenance ended at 2026-01-31 12:00:20 UTC"
    assert "Last heartbeat: 2026-01-31 12:00:02 UTC, none for 1m 3s since. Silence counts from" in degraded.body
    deadline = "The deadline was 2026-01-31 12:01:01 UTC: 10s later, as outages and maintenance are excluded."
    assert deadline in degraded.body


def test_every_message_about_an_agent_has_its_work(memory: Engine) -> None:
    """Messages of all kinds have the work as the agent had reported it when the change was found."""
    fleet = Simulation(memory, flapping_changes=2, stuck_after=3)
    session_id = fleet.register("torv", 0)
    for start in (1, 41, 81):
        fleet.beat(session_id, start, progress="page 7", summary=f"at {start}")
        fleet.sweep(start + 1)
        fleet.sweep(start + 25)
    for second in range(121, 400, 10):
        fleet.beat(session_id, second, progress="page 7", summary="at last")
        fleet.sweep(second + 1)
    fleet.beat(session_id, 402, progress="page 8")
    found = messages(memory)
    assert [message.kind for message in found] == ["degraded", "recovered", "flapping", "stuck", "calm", "unstuck"]
    assert all("\nCurrent work: page " in message.body for message in found)
    assert [message.body.count("Summary: at last\n") for message in found] == [0, 0, 0, 1, 1, 1]
    assert "Summary: at 41\n" in found[1].body


def test_silence_of_a_flapping_agent(memory: Engine) -> None:
    """When it stays silent while it flaps, the end of a pause isn't taken for a heartbeat either."""
    fleet = Simulation(memory, flapping_changes=2)
    session_id = fleet.register("torv", 0)
    for start in (1, 41):
        fleet.beat(session_id, start)
        fleet.sweep(start + 1)
        if start == 41:
            with writing(memory) as connection:
                pauses.pause(connection, session_id, at(43), None, None)
                pauses.resume(connection, session_id, at(45), 2)
        fleet.sweep(start + 26)
    for second in range(80, 460, 20):
        fleet.sweep(second)
    found = {message.kind: message for message in messages(memory)}
    assert set(found) == {"degraded", "recovered", "flapping", "calm"}
    for kind in ("flapping", "calm"):
        lines = found[kind].body.splitlines()
        assert lines[0] == "It is degraded: silent since its pause ended at 2026-01-31 12:00:45 UTC."
        assert lines[1].startswith("Last heartbeat: 2026-01-31 12:00:41 UTC, none for ")
