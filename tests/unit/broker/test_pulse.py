from __future__ import annotations

import threading
import time

import pytest
from fakeredis import FakeRedis
from sqlalchemy import Engine, select

from fleetbeat_shared.redis_keys import PULSE, PULSE_GAPS
from fleetbeat_worker.broker.pulse import GAP_MILLISECONDS, Pulse, PulseWriter, read_pulse
from fleetbeat_worker.broker.server import read_write_refusal
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.database.tables import Liveness
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.rules.spans import to_milliseconds
from helpers import events
from simulated import Simulation, at

LONGEST = 30_000


def ms(number: float) -> int:
    return to_milliseconds(at(number))


def span(start: float, end: float) -> tuple[int, int]:
    return ms(start), ms(end)


@pytest.mark.parametrize(
    ("pulse", "gaps"),
    [
        (Pulse(), []),
        (Pulse(ms(99)), []),
        (Pulse(ms(98.75)), []),
        (Pulse(ms(98)), [span(98.5, 100)]),
        (Pulse(ms(70)), [span(93.75, 100)]),  # the sweep at 95 knew of what was late then
        (Pulse(ms(65)), [span(93.75, 100)]),  # Redis may be away since that sweep
        (Pulse(ms(64.9)), []),  # no pool runs that could write it
        (Pulse(ms(101)), []),
        (Pulse(ms(100), (span(40, 90), span(96, 99))), [span(96, 99)]),
        (Pulse(ms(100), (span(94, 99),)), [span(94, 99)]),
        (Pulse(ms(100), ((0, ms(99)),)), [span(93.75, 99)]),
        (Pulse(ms(103), (span(99, 103),)), []),  # of before the clock was set back
    ],
)
def test_gaps_that_are_new_since_the_last_sweep(pulse: Pulse, gaps: list[tuple[int, int]]) -> None:
    """Gaps that no sweep knew of, and a late pulse; but not one that no pool writes any more."""
    assert pulse.new_gaps(ms(95), ms(100), LONGEST) == gaps


def test_a_redis_that_is_away_for_almost_an_outage(memory: Engine) -> None:
    """The sweep right after it is too early for an outage, and before the next pulse: the last one is old."""
    fleet = Simulation(memory)
    session = fleet.register("torv", 0)
    fleet.sweep(10, pulse=Pulse(ms(9.9)))
    fleet.beat(session, 9.95)
    assert fleet.sweep(39.95, pulse=Pulse(ms(9.9))).degraded == []
    assert outages_of(memory) == [span(10.4, 39.95)]


def test_a_pulse_that_comes_in_time_leaves_no_gap(redis: FakeRedis) -> None:
    """Each pulse is stored; the very first one leaves a gap of unknown start."""
    writer = PulseWriter(redis)
    writer.write()
    first = read_pulse(redis)
    assert first.gaps == ((0, first.at),)
    time.sleep(0.01)
    writer.write()
    second = read_pulse(redis)
    assert second.gaps == first.gaps
    assert (second.at or 0) > (first.at or 0)


def test_a_late_pulse_leaves_a_gap(redis: FakeRedis) -> None:
    """From when the next one was due to when it came, also if another pool wrote the one before."""
    PulseWriter(redis).write()
    last = int(redis.get(PULSE)) - 5 * GAP_MILLISECONDS
    redis.set(PULSE, last)
    PulseWriter(redis).write()
    found = read_pulse(redis)
    assert found.gaps[1:] == ((last + 500, found.at),)


def test_the_last_pulse_survives_the_loss_of_data(redis: FakeRedis) -> None:
    """The writer remembers its last pulse, and SQL has the one of the last sweep."""
    writer = PulseWriter(redis)
    writer.write()
    redis.flushall()
    writer.write()
    assert read_pulse(redis).gaps == ()
    assert Pulse().or_last_known(at(3)) == Pulse(ms(3))
    assert Pulse(ms(5)).or_last_known(at(3)) == Pulse(ms(5))
    assert Pulse().or_last_known(None) == Pulse()


def test_pulses_are_written_until_asked_to_stop(redis: FakeRedis) -> None:
    """A thread writes them, and continues after Redis has failed."""
    stop = threading.Event()
    redis.set(PULSE_GAPS, "no list")  # so that the first ones fail
    redis.set(PULSE, 1)
    thread = threading.Thread(target=PulseWriter(redis).run, args=(stop,))
    thread.start()
    time.sleep(0.7)
    redis.delete(PULSE, PULSE_GAPS)
    ends_at = time.monotonic() + 10
    while not redis.get(PULSE) and time.monotonic() < ends_at:
        time.sleep(0.02)
    stop.set()
    thread.join()
    assert read_pulse(redis).at


def test_a_redis_that_accepts_writes_gives_no_reason(redis: FakeRedis) -> None:
    """The probe leaves no key."""
    assert read_write_refusal(redis) is None
    assert redis.keys() == []


def test_a_gap_is_excluded_from_deadlines(memory: Engine) -> None:
    """No agent is flagged for 18 s without Redis; the gap is stored once, and deadlines of silent agents move by it."""
    fleet = Simulation(memory)
    well, dead, _ = (fleet.register(name, 0) for name in ("well", "dead", "gone"))
    fleet.sweep(0.1, pulse=Pulse(ms(0)))
    for session in (well, dead):
        fleet.beat(session, 9)
    for session in (well, dead):
        fleet.beat(session, 18)
    assert fleet.sweep(22, pulse=Pulse(ms(22))).degraded == ["gone"]
    # Redis is away from 26 to 44; well and dead are due at 39.
    assert fleet.sweep(44.2, pulse=Pulse(ms(26))).degraded == []
    assert outages_of(memory) == [span(26.5, 44.2)]
    assert due(memory, dead) == at(18 + 21 + 17.7)
    fleet.beat(well, 44.5, waited=17.5)
    assert fleet.sweep(49, pulse=Pulse(ms(48.9), (span(26.5, 44.4),))).degraded == []
    assert outages_of(memory) == [span(26.5, 44.2), span(44.2, 44.4)]
    fleet.beat(well, 54)
    assert fleet.sweep(57, pulse=Pulse(ms(56.9), (span(26.5, 44.4),))).degraded == ["dead"]
    assert outages_of(memory) == [span(26.5, 44.2), span(44.2, 44.4)]
    assert [event.agent_name for event in events(memory, "degraded")] == ["gone", "dead"]
    assert events(memory, "outage", "recovered") == []


def test_a_gap_counts_while_a_clock_that_was_set_back_is_behind_the_last_sweep(memory: Engine) -> None:
    """Two minutes back: the deadline of an agent that is registered then, and due in the gap, moves by it as ever."""
    fleet = Simulation(memory)
    fleet.sweep(300, pulse=Pulse(ms(300)))
    session = fleet.register("new", 181)  # from 185 to 203 Redis stands still; it is due at 202
    assert fleet.sweep(203.2, pulse=Pulse(ms(203), (span(185.5, 203),))).degraded == []
    assert due(memory, session) == at(202 + 17.5)
    assert outages_of(memory) == [span(185.5, 203)]
    assert fleet.sweep(220, pulse=Pulse(ms(220), (span(185.5, 203),))).degraded == ["new"]
    assert outages_of(memory) == [span(185.5, 203)]


def test_an_outage_includes_its_gaps(memory: Engine) -> None:
    """A time without sweeps is stored as one outage, and moves each deadline once."""
    fleet = Simulation(memory)
    session = fleet.register("torv", 0)
    fleet.sweep(1, pulse=Pulse(ms(1)))
    fleet.beat(session, 10)
    fleet.sweep(11, pulse=Pulse(ms(11)))
    fleet.sweep(61, pulse=Pulse(ms(60.9), (span(11.5, 60.9),)))
    assert outages_of(memory) == [span(11, 61)]
    assert due(memory, session) == at(31 + 50)
    assert fleet.sweep(81, pulse=Pulse(ms(81))).degraded == []
    assert fleet.sweep(81.1, pulse=Pulse(ms(81))).degraded == ["torv"]


def test_a_fleet_without_pulses_is_judged_as_before(memory: Engine) -> None:
    """Workers without a pool write no pulse: after a while its absence says nothing of Redis."""
    fleet = Simulation(memory)
    fleet.register("torv", 0)
    fleet.sweep(0.1, pulse=Pulse(ms(0)))
    flagged_at = next(when for when in range(5, 200, 5) if fleet.sweep(when, pulse=Pulse(ms(0))).degraded)
    assert 21 + 25 < flagged_at <= 21 + 40


def outages_of(engine: Engine) -> list[tuple[int, int]]:
    with reading(engine) as connection:
        return read_outages(connection)


def due(engine: Engine, session: object) -> object:
    with reading(engine) as connection:
        return connection.execute(select(Liveness.deadline_at).where(Liveness.session_id == session)).scalar()
