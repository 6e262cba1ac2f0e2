"""What sweeps and batches lay down of silences, read as people read it."""

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


def told(engine: Engine) -> list[Message]:
    """Return all that was laid down, as it is sent."""
    with reading(engine) as connection:
        rows = connection.execute(select(Notification.__table__).order_by(Notification.id)).all()
    columns = ("key", "agent_name", "project", "created_at", "detail")
    every = [Facts(NoticeKind(row.kind), *(getattr(row, name) for name in columns)) for row in rows]
    return [compose(facts, facts.created_at) for facts in every]


@pytest.fixture
def fleet(memory: Engine) -> Simulation:
    return Simulation(memory, notify_reminder_hours=1.0)


def test_a_pause_is_no_sign_of_life(memory: Engine, fleet: Simulation) -> None:
    """The silence after a pause is told with the last heartbeat before it, and the return by the whole of it."""
    session_id = fleet.register("torv", 0)
    fleet.beat(session_id, 1)
    with writing(memory) as connection:
        pauses.pause(connection, session_id, at(5), None, None)
        pauses.resume(connection, session_id, at(20), 2)
    fleet.sweep(40)
    fleet.sweep(42)
    fleet.beat(session_id, 45)
    flagged, back = told(memory)
    assert flagged.title == "torv is degraded: silent since its pause ended at 2026-01-31 12:00:20 UTC"
    assert flagged.body.splitlines()[:2] == [
        (
            "It was last heard at 2026-01-31 12:00:01 UTC; nothing for 41s. "
            "Its clock started anew when its pause ended, at 2026-01-31 12:00:20 UTC."
        ),
        "It should beat every 10s; it may miss 2, and has 1s of grace. Its time was up at 2026-01-31 12:00:41 UTC.",
    ]
    assert back.title == "torv is back after 44s of silence"
    assert back.body.startswith("It was heard at 2026-01-31 12:00:45 UTC; before that at 2026-01-31 12:00:01 UTC.")


def test_who_was_never_heard_is_not_told_to_be_back(memory: Engine, fleet: Simulation) -> None:
    """Its silence counts from its registration, and its first heartbeat is its first."""
    session_id = fleet.register("torv", 0, interval_seconds=10.0, grace_seconds=1.0, work="reads the mail")
    fleet.sweep(21.5)
    fleet.sweep(3700)
    fleet.sweep(3730)
    fleet.beat(session_id, 3740, progress="page 1", error="disk full")
    found = [message for message in told(memory) if message.kind != "outage"]
    assert [message.title for message in found] == [
        "torv is degraded: never heard since its registration at 2026-01-31 12:00:00 UTC",
        "torv is still degraded, never heard for 1h 1m",
        "torv is heard for the first time",
    ]
    assert "\nCurrent work: reads the mail\n" in found[0].body
    assert "\nCurrent work: page 1\nError: disk full\n" in found[2].body


def test_maintenance_starts_a_clock_and_is_no_sign_of_life(memory: Engine, fleet: Simulation) -> None:
    """The silence after maintenance is told by its end; what later windows moved the deadline by is said."""
    session_id = fleet.register("torv", 0, interval_seconds=15.0, grace_seconds=1.0)
    fleet.beat(session_id, 2)
    with writing(memory) as connection:
        for start in (10, 40):
            maintenance.add(connection, WindowRule(at(start), at(start + 10)), at(0))
    for second in range(5, 90, 5):
        fleet.sweep(second)
    (flagged,) = told(memory)
    assert flagged.title == "torv is degraded: silent since maintenance ended at 2026-01-31 12:00:20 UTC"
    assert "It was last heard at 2026-01-31 12:00:02 UTC; nothing for 1m 3s. Its clock started anew" in flagged.body
    up = "Its time was up at 2026-01-31 12:01:01 UTC: 10s later, as outages and maintenance count for nobody."
    assert up in flagged.body


def test_each_message_of_an_agent_says_what_it_was_doing(memory: Engine) -> None:
    """Also those of a return, and of one that flaps or is calm again: as it was when the change was found."""
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
    found = told(memory)
    assert [message.kind for message in found] == ["degraded", "recovered", "flapping", "stuck", "calm", "unstuck"]
    assert all("\nCurrent work: page " in message.body for message in found)
    assert [message.body.count("Summary: at last\n") for message in found] == [0, 0, 0, 1, 1, 1]
    assert "Summary: at 41\n" in found[1].body


def test_a_silence_is_told_as_truly_while_its_agent_flaps(memory: Engine) -> None:
    """Of one that falls silent for good while it flaps, the pause after which it did is no last sign either."""
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
    found = {message.kind: message for message in told(memory)}
    assert set(found) == {"degraded", "recovered", "flapping", "calm"}
    for kind in ("flapping", "calm"):
        lines = found[kind].body.splitlines()
        assert lines[0] == "It is degraded: silent since its pause ended at 2026-01-31 12:00:45 UTC."
        assert lines[1].startswith("It was last heard at 2026-01-31 12:00:41 UTC; nothing for ")
