from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import Engine, select, update

from fleetbeat_worker.cli.agents import percent
from fleetbeat_worker.database.engine import reading, writing
from fleetbeat_worker.database.tables import Event
from fleetbeat_worker.downtime import pauses
from fleetbeat_worker.fleet.uptime import Record, read_record
from simulated import Simulation, at


def record(engine: Engine, asked: str | UUID, now: float) -> Record:
    with reading(engine) as connection:
        return read_record(connection, asked, at(now))


def shares(found: Record) -> list[tuple[float | None, float]]:
    return [(one.share, one.counted_seconds) for one in found.uptime.values()]


def test_uptime_is_the_time_without_being_degraded(memory: Engine) -> None:
    """From the deadline to the next heartbeat an agent is down; silences are from its last sign on."""
    fleet = Simulation(memory)
    session_id = fleet.register("torv", 0)
    fleet.beat(session_id, 4)
    fleet.sweep(5)
    fleet.sweep(30)
    fleet.beat(session_id, 50)
    fleet.sweep(55)
    fleet.sweep(75)
    found = record(memory, "torv", 100)
    # Down from 25 to 50, and from 71 on.
    assert shares(found) == [(0.46, 100)] * 3
    silences = [(one.silent_since, one.degraded_at, one.ended_at, one.seconds) for one in found.silences]
    assert silences == [(at(4), at(25), at(50), 46), (at(50), at(71), None, 50)]
    assert [event.type for event in found.state_changes] == ["registered", "degraded", "recovered", "degraded"]
    assert record(memory, session_id, 100) == found


def test_what_nobody_watched_does_not_count(memory: Engine) -> None:
    """The time of an outage is neither up nor down."""
    fleet = Simulation(memory)
    fleet.register("torv", 0)
    fleet.sweep(5)
    fleet.sweep(105)
    fleet.sweep(130)
    # The deadline of 21 was moved to 121; 5 to 105 is left out.
    assert shares(record(memory, "torv", 155)) == [(21 / 55, 55)] * 3


def test_a_silence_begins_where_its_clock_did(memory: Engine) -> None:
    """A pause is no silence, and neither is the time before a second registration that only changed the promise."""
    fleet = Simulation(memory)
    paused, never = fleet.register("paused", 0), fleet.register("never", 0)
    fleet.beat(paused, 1)
    with writing(memory) as connection:
        pauses.pause(connection, paused, at(5), None, None)
    fleet.register("never", 15, never)
    for second in range(1, 200, 5):
        if second == 101:
            with writing(memory) as connection:
                pauses.resume(connection, paused, at(101), 2)
        fleet.sweep(second)
    with reading(memory) as connection:
        found = [read_record(connection, name, at(130)).silences for name in ("paused", "never")]
    assert [[silence.silent_since for silence in silences] for silences in found] == [[at(101)], [at(0)]]


def test_a_pause_ends_a_silence_and_says_so(memory: Engine) -> None:
    """The silences before and after a pause are two that don't overlap, also by events of older versions."""
    fleet = Simulation(memory)
    torv = fleet.register("torv", 0)
    fleet.beat(torv, 1)
    for second in (5, 25):
        fleet.sweep(second)
    with writing(memory) as connection:
        pauses.pause(connection, torv, at(30), None, None)
        pauses.resume(connection, torv, at(40), 2)
    for second in (50, 65):
        fleet.sweep(second)
    fleet.beat(torv, 70)
    fleet.sweep(85)
    fleet.sweep(95)
    fleet.end(torv, 100)
    spans = [(at(1), at(30), "paused"), (at(40), at(70), "heard"), (at(70), at(100), "ended")]
    for _ in range(2):
        found = record(memory, "torv", 110)
        assert [(one.silent_since, one.ended_at, one.ended_by) for one in found.silences] == spans
        _forget(memory, "since")
    # Down from 22 to 30, from 61 to 70 and from 91 to 100; the pause doesn't count.
    assert shares(record(memory, "torv", 110))[0] == (64 / 90, 90)


def _forget(engine: Engine, name: str) -> None:
    """Leave out of flags what an older version didn't say."""
    with writing(engine) as connection:
        flags = connection.execute(select(Event.id, Event.detail).where(Event.type == "degraded")).all()
        for key, detail in flags:
            kept = {each: value for each, value in detail.items() if each != name}
            connection.execute(update(Event).where(Event.id == key).values(detail=kept))


def test_a_goodbye_is_no_downtime_and_a_failure_is(memory: Engine) -> None:
    """After an end in order nothing is expected; after one with an error the agent is down until it is back."""
    fleet = Simulation(memory)
    fleet.end(fleet.register("torv", 0), 10)
    fleet.end(fleet.register("torv", 20), 30, error="out of memory")
    last = fleet.register("torv", 50)
    found = record(memory, "torv", 60)
    assert shares(found) == [(30 / 50, 50)] * 3
    assert shares(record(memory, last, 60)) == [(1, 10)] * 3


def test_a_second_goodbye_is_no_failure(memory: Engine) -> None:
    """Of a session that has ended nothing is expected, whatever else it says."""
    fleet = Simulation(memory)
    session = fleet.register("torv", 0)
    fleet.end(session, 10)
    fleet.end(session, 30, error="out of memory")
    assert shares(record(memory, "torv", 60)) == [(1, 10)] * 3


def test_only_the_last_day_counts_for_a_day(memory: Engine) -> None:
    """Each period ends now and is as long as its name says; before the registration nothing counts."""
    day = 86_400.0
    fleet = Simulation(memory)
    fleet.register("torv", 0)
    fleet.sweep(15)
    fleet.sweep(30)
    found = record(memory, "torv", 10 * day)
    assert shares(found) == [(0, day), (0, 7 * day), (21 / (10 * day), 10 * day)]


def test_a_name_is_up_while_one_of_its_sessions_is(memory: Engine) -> None:
    """Of parallel sessions one that beats is enough; a session by itself is judged alone."""
    fleet = Simulation(memory)
    promise = {"interval_seconds": 10.0, "grace_seconds": 1.0, "parallel": True}
    alive, dead = (fleet.register("torv", 0, **promise) for _ in range(2))
    for second in range(1, 40, 10):
        fleet.beat(alive, second)
        fleet.sweep(second + 1)
    assert shares(record(memory, "torv", 42))[0] == (1, 42)
    assert shares(record(memory, dead, 42))[0] == (0.5, 42)


def test_nothing_expected_has_no_uptime(memory: Engine) -> None:
    """An agent that ended before the period has no share at all, instead of none or all."""
    fleet = Simulation(memory)
    session_id = fleet.register("torv", 0)
    fleet.end(session_id, 10)
    assert shares(record(memory, "torv", 86_400 * 40))[0] == (None, 0)


@pytest.mark.parametrize(("share", "text"), [(1, "100%"), (0.99999, "99.99%"), (0.5, "50%"), (0, "0%")])
def test_percent_is_never_rounded_up(share: float, text: str) -> None:
    """99.999% isn't all."""
    assert percent(share) == text
