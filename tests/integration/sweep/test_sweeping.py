from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from redis.exceptions import ResponseError
from sqlalchemy import Engine, select, text

from fleetbeat_shared.redis_keys import INBOX, SESSIONS
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Account
from fleetbeat_worker.broker.entries import RawEntry, decode
from fleetbeat_worker.broker.inbox import Horizon, Inbox
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.partitions import partition_name
from fleetbeat_worker.database.tables import OutageRow, Pipeline
from fleetbeat_worker.explain.verdict import explain
from fleetbeat_worker.fleet.agents import read_fleet
from fleetbeat_worker.ingest.lane import apply_entries
from fleetbeat_worker.ingest.transaction import apply_heartbeats
from fleetbeat_worker.notifications.outbox import claim_due
from fleetbeat_worker.rules.spans import to_milliseconds
from fleetbeat_worker.sweep.incidents import count_notified
from fleetbeat_worker.sweep.job import sweep
from fleetbeat_worker.sweep.transaction import SweepReport, judge_fleet
from helpers import (
    LONG_AGO,
    agent,
    backlog,
    drain,
    enrol,
    events,
    heartbeat,
    let_pass,
    notices,
    redis_time,
    register,
    seconds,
    send,
    state,
    wait_sweeping,
)
from simulated import Simulation, at


@pytest.fixture
def beat(redis: Redis, database: Engine, quick: Settings) -> Callable[..., None]:
    """Return a function that sends and stores one heartbeat of each of some sessions."""

    def act(*sessions: UUID) -> None:
        send(redis, *[heartbeat(session) for session in sessions])
        drain(redis, database, quick)

    return act


def pipeline(database: Engine) -> Any:
    with reading(database) as connection:
        return connection.execute(select(Pipeline.__table__)).one()


def test_silent_agents_are_flagged_once(
    database: Engine, redis: Redis, quick: Settings, beat: Callable[..., None], look: Callable[[], list[str]]
) -> None:
    """An agent that missed two intervals and its grace gets one event, with its deadline."""
    silent, well, never = enrol(redis, database, quick, "silent", "well", "never")
    beat(silent, well)
    look()
    assert wait_sweeping(database, look, 60) == []
    beat(well)
    deadline = agent(database, silent).deadline_at
    assert wait_sweeping(database, look, 2) == ["never", "silent"]
    assert wait_sweeping(database, look, 40) == []
    assert [state(database, session) for session in (silent, well, never)] == ["degraded", "ok", "degraded"]
    found = {event.agent_name: event for event in events(database, "degraded")}
    assert sorted(found) == ["never", "silent"]
    assert found["never"].detail["last_seen_at"] is None
    moved = deadline - datetime.fromisoformat(found["silent"].detail["deadline_at"])
    assert moved == seconds(2)
    assert datetime.fromisoformat(found["silent"].detail["watermark"]) <= redis_time(redis)


def test_a_flagged_agent_recovers_and_can_be_flagged_again(
    database: Engine, redis: Redis, quick: Settings, beat: Callable[..., None], look: Callable[[], list[str]]
) -> None:
    """Degraded, recovered, degraded: one event for each change."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=5.0)
    beat(session)
    look()
    assert wait_sweeping(database, look, 12) == ["torv"]
    beat(session)
    assert state(database, session) == "ok"
    assert wait_sweeping(database, look, 12) == ["torv"]
    assert [event.type for event in events(database)] == ["registered", "degraded", "recovered", "degraded"]


def test_an_ended_session_is_not_judged(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]]
) -> None:
    """A session that was replaced isn't flagged."""
    enrol(redis, database, quick, "torv", interval_seconds=1.0)
    enrol(redis, database, quick, "torv", interval_seconds=3600.0)
    look()
    assert wait_sweeping(database, look, 20) == []


def recreate_inbox(redis: Redis) -> Inbox:
    """Delete and create the stream, so that entries can have old ids."""
    redis.delete(INBOX)
    inbox = Inbox(redis)
    inbox.create_group()
    return inbox


@pytest.mark.parametrize("taken", [False, True], ids=["unread", "claimed"])
def test_an_unprocessed_heartbeat_delays_the_verdict(  # noqa: PLR0913, PLR0917 - its fixtures
    database: Engine,
    redis: Redis,
    quick: Settings,
    beat: Callable[..., None],
    look: Callable[[], list[str]],
    taken: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """While the inbox contains the heartbeat of an overdue agent it isn't flagged; once stored, the agent is ok."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=5.0)
    beat(session)
    look()
    let_pass(database, 12)
    inbox = recreate_inbox(redis)
    send(redis, heartbeat(session), at=agent(database, session).deadline_at - seconds(0.5))
    entries = inbox.read("slow", 10, 0.1) if taken else []
    assert look() == []
    assert state(database, session) == "ok"
    if taken:
        inbox.release("slow", [entry.id for entry in entries], quick.lease_seconds, 1)
    assert drain(redis, database, quick) == 1
    assert look() == []
    assert agent(database, session).deadline_at > redis_time(redis)


def test_any_unprocessed_message_delays_all_later_verdicts(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]]
) -> None:
    """A deadline after the oldest unread entry isn't judged; one before it is."""
    overdue, due_since = enrol(redis, database, quick, "overdue", "later", interval_seconds=5.0)
    look()
    let_pass(database, 12)
    with database.begin() as connection:
        change = "12000" if database.dialect.name == "sqlite" else "interval '12 seconds'"
        connection.execute(
            text(f"UPDATE liveness SET deadline_at = deadline_at + {change} WHERE session_id = :id"),  # noqa: S608
            {"id": due_since.bytes if database.dialect.name == "sqlite" else due_since},
        )
    recreate_inbox(redis)
    send(redis, b"anything", at=agent(database, overdue).deadline_at + seconds(1))
    assert look() == ["overdue"]
    assert pipeline(database).watermark < agent(database, due_since).deadline_at


def test_the_watermark_never_goes_back(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]]
) -> None:
    """Entries with old ids, for example after Redis lost its data, don't set the watermark back."""
    look()
    before = pipeline(database)
    recreate_inbox(redis)
    send(redis, b"anything", at=redis_time(redis) - seconds(100))
    look()
    after = pipeline(database)
    assert after.watermark == before.watermark
    assert after.last_sweep_at >= before.last_sweep_at
    assert drain(redis, database, quick) == 1


def test_sweeps_at_once_flag_once(
    database: Engine,
    redis: Redis,
    quick: Settings,
    look: Callable[[], list[str]],
    sweep_at_once: Callable[[Settings], list[str]],
) -> None:
    """Each silent agent gets one flag and one event from sweeps that run at the same time."""
    names = [f"agent {number:02}" for number in range(30)]
    enrol(redis, database, quick, *names, interval_seconds=5.0)
    look()
    let_pass(database, 12)
    assert sorted(sweep_at_once(quick)) == names
    assert len(events(database, "degraded")) == 30


def test_a_dry_run_changes_nothing(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]]
) -> None:
    """A dry run reports the outage, and leaves agents, events, notices and the pipeline row unchanged."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=5.0)
    look()
    let_pass(database, 700)
    before = pipeline(database)
    report = sweep(redis, database, quick, dry_run=True)
    assert report.outage_seconds == pytest.approx(700, abs=20)
    assert (state(database, session), pipeline(database)) == ("pending", before)
    assert events(database, "degraded", "outage") == notices(database) == []


def test_a_dry_run_leaves_the_lane_as_it_is(database: Engine, redis: Redis, quick: Settings) -> None:
    """It names nobody of whom something waits; the next sweep applies what was registered."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=5.0)
    sweep(redis, database, quick)
    send(redis, register("torv", session, interval_seconds=3600.0), at=redis_time(redis))
    let_pass(database, 12)
    redis.delete(SESSIONS)
    send(redis, register("torv", session, interval_seconds=3600.0), at=redis_time(redis) - seconds(10))
    assert sweep(redis, database, quick, dry_run=True).degraded == []
    assert (backlog(redis), len(events(database, "registered"))) == (1, 1)
    assert sweep(redis, database, quick).degraded == []
    assert (backlog(redis), len(events(database, "registered"))) == (0, 2)


def test_a_row_that_a_batch_holds_is_left_to_the_next_sweep(postgres_url: str, redis: Redis, quick: Settings) -> None:
    """On PostgreSQL a sweep skips rows that a batch has locked, and a later sweep reads them."""
    engine = open_engine(postgres_url)
    enrol(redis, engine, quick, "busy", "free", interval_seconds=5.0)
    sweep(redis, engine, quick)
    let_pass(engine, 12)
    with engine.connect() as holder:
        name = "SELECT session_id FROM agents WHERE agent_name = 'busy'"
        holder.execute(text(f"SELECT 1 FROM liveness WHERE session_id = ({name}) FOR UPDATE"))  # noqa: S608
        assert sweep(redis, engine, quick).degraded == ["free"]
    assert sweep(redis, engine, quick).degraded == ["busy"]
    engine.dispose()


def outages(database: Engine) -> list[Any]:
    with reading(database) as connection:
        return list(connection.execute(select(OutageRow.__table__)).all())


@pytest.mark.parametrize("sweep_first", [True, False], ids=["sweep first", "ingest first"])
def test_ten_minutes_without_workers(  # noqa: PLR0913, PLR0917 - its fixtures
    database: Engine,
    redis: Redis,
    quick: Settings,
    beat: Callable[..., None],
    look: Callable[[], list[str]],
    sweep_first: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Agents that sent heartbeats meanwhile stay ok; one that died is flagged in time afterwards."""
    well, dead, pending = enrol(redis, database, quick, "well", "dead", "pending")
    beat(well, dead)
    look()
    let_pass(database, 600)
    recreate_inbox(redis)
    for ago in range(599, 0, -30):
        send(redis, heartbeat(well), at=redis_time(redis) - seconds(ago))
    if sweep_first:
        assert look() == []
    drain(redis, database, quick)
    assert look() == []
    assert [state(database, session) for session in (well, dead, pending)] == ["ok", "ok", "pending"]
    (outage,) = outages(database)
    assert (outage.ended_at - outage.started_at).total_seconds() == pytest.approx(600, abs=20)
    assert len(events(database, "outage")) == 1
    flagged = []
    for _ in range(4):
        beat(well)
        flagged += wait_sweeping(database, look, 19)
    assert sorted(flagged) == ["dead", "pending"]
    assert state(database, well) == "ok"


def test_a_night_in_which_everything_slept(
    database: Engine, redis: Redis, quick: Settings, beat: Callable[..., None], look: Callable[[], list[str]]
) -> None:
    """After eight hours in which agents slept, too, each has two intervals before it is flagged."""
    names = ["a", "b", "c"]
    sessions = enrol(redis, database, quick, *names)
    beat(*sessions)
    look()
    let_pass(database, 8 * 3600)
    assert look() == []
    assert wait_sweeping(database, look, 19) == []
    beat(sessions[0])
    assert wait_sweeping(database, look, 38) == []
    assert wait_sweeping(database, look, 19) == ["b", "c"]


def test_silence_before_an_outage_counts(
    database: Engine, redis: Redis, quick: Settings, beat: Callable[..., None], look: Callable[[], list[str]]
) -> None:
    """After the outage an agent has the rest of its time, not all of it."""
    (session,) = enrol(redis, database, quick, "torv")
    beat(session)
    look()
    assert wait_sweeping(database, look, 55) == []
    let_pass(database, 600)
    assert look() == []
    assert wait_sweeping(database, look, 8) == ["torv"]


def test_a_heartbeat_during_an_outage(
    database: Engine, redis: Redis, quick: Settings, beat: Callable[..., None], look: Callable[[], list[str]]
) -> None:
    """A heartbeat that is stored after the first sweep moves the deadline by the rest of the outage."""
    (session,) = enrol(redis, database, quick, "torv")
    beat(session)
    look()
    let_pass(database, 600)
    assert look() == []
    recreate_inbox(redis)
    sent_at = redis_time(redis) - seconds(300)
    send(redis, heartbeat(session), at=sent_at)
    drain(redis, database, quick)
    found = agent(database, session)
    assert abs(found.last_seen_at - sent_at) < seconds(0.01)
    assert (found.deadline_at - redis_time(redis)).total_seconds() == pytest.approx(61.5, abs=20)


def test_a_registration_after_an_outage(
    database: Engine, redis: Redis, quick: Settings, beat: Callable[..., None], look: Callable[[], list[str]]
) -> None:
    """A session that is registered again after an outage keeps its moved deadline."""
    (session,) = enrol(redis, database, quick, "torv")
    beat(session)
    look()
    let_pass(database, 600)
    assert look() == []
    before = agent(database, session).deadline_at
    send(redis, register("torv", session))
    drain(redis, database, quick)
    assert agent(database, session).deadline_at == before
    assert look() == []


def test_a_short_gap_is_no_outage(
    database: Engine, redis: Redis, quick: Settings, beat: Callable[..., None], look: Callable[[], list[str]]
) -> None:
    """A few missing sweeps move no deadline."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=5.0)
    beat(session)
    look()
    let_pass(database, 25)
    assert look() == ["torv"]
    assert outages(database) == []


def test_a_clock_that_is_set_back_flags_no_agent(
    database: Engine, redis: Redis, quick: Settings, beat: Callable[..., None], look: Callable[[], list[str]]
) -> None:
    """After Redis's clock went back an hour, sweeps flag no agent, and the watermark follows the clock."""
    (session,) = enrol(redis, database, quick, "torv")
    beat(session)
    look()
    let_pass(database, -3600)
    assert look() == []
    found = pipeline(database)
    assert found.watermark == found.last_sweep_at
    assert state(database, session) == "ok"


def test_states_are_shown_as_of_now_after_the_clock_was_set_back(
    database: Engine, redis: Redis, quick: Settings, beat: Callable[..., None], look: Callable[[], list[str]]
) -> None:
    """No agent is shown as late by a watermark in the future, before the first sweep and after it."""
    (session,) = enrol(redis, database, quick, "torv")
    beat(session)
    look()
    let_pass(database, -3600)
    for _ in range(2):
        view = read_fleet(quick, database, redis)
        assert (view.as_of, view.agents[0].state) == (view.pipeline.now, "ok")
        look()
        beat(session)
    shown = explain(quick, database, redis, "torv")
    assert (shown.state, shown.as_of, shown.held) == ("ok", shown.pipeline.now, False)


def test_notifications_after_the_clock_was_set_back(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]]
) -> None:
    """Notifications with future times are due at once, and don't count for later incidents."""
    names = [f"agent {number}" for number in range(8)]
    enrol(redis, database, quick, *names[:4], interval_seconds=5.0)
    enrol(redis, database, quick, *names[4:])
    look()
    let_pass(database, 12)
    assert look() == names[:4]
    let_pass(database, -3600)
    look()
    with writing(database) as connection:
        now = redis_time(redis)
        assert len(claim_due(connection, now, seconds(60), 20)) == 4
        assert all(event.occurred_at <= now for event in events(database, "degraded"))
        assert count_notified(connection, now + seconds(1)) == 0


def test_a_registration_after_the_clock_was_set_back(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]]
) -> None:
    """Before the clock reaches the old watermark, an agent isn't overdue by it, and its heartbeats count."""
    look()
    let_pass(database, -3600)
    silent, well = enrol(redis, database, quick, "silent", "well")
    send(redis, heartbeat(well))
    drain(redis, database, quick)
    assert look() == []
    assert [state(database, session) for session in (silent, well)] == ["pending", "ok"]


def judge_as_of(database: Engine, settings: Settings, now: datetime) -> SweepReport:
    """Judge the fleet with an inbox that was empty at a given time."""
    horizon = Horizon(now, now, 0)
    with writing(database) as connection:
        return judge_fleet(connection, horizon, Account(now, None, 0), settings, periodic=True)


def test_an_outage_counts_for_who_is_stored_while_it_is_found(postgres_url: str) -> None:
    """A batch that read the outages before a sweep recorded one, and commits after it: its deadlines have it, too."""
    database = open_engine(postgres_url)
    fleet = Simulation(database)
    silent = fleet.register("silent", 0)
    for when in (0, 10, 20, 30, 35):
        fleet.sweep(when)
    assert state(database, silent) == "degraded"
    beat, joining = heartbeat(silent), register("new", interval_seconds=10.0, grace_seconds=1)
    arrived_at, now = to_milliseconds(at(36)), to_milliseconds(at(636))
    with writing(database) as connection:
        for message, stream, apply in ((beat, INBOX, apply_heartbeats), (joining, SESSIONS, apply_entries)):
            apply(
                connection, decode([RawEntry(f"{arrived_at}-0", message.to_wire())], now, stream), now, fleet.settings
            )
        assert fleet.sweep(636, watermark=36).outage_seconds == 601
    assert [fleet.sweep(when).degraded for when in (640, 645, 656.9)] == [[], [], []]
    assert sorted(fleet.sweep(657.1).degraded) == ["new", "silent"]
    database.dispose()


def test_agents_seen_in_the_future_are_judged_as_of_now(database: Engine) -> None:
    """Agents seen or registered while the clock was ahead are judged as of when it was set back."""
    fleet = Simulation(database)
    heard, unheard, limit = (fleet.register(name, 0) for name in ("heard", "unheard", "limit"))
    slots = fleet.register("slots", 0, schedule="* * * * *", time_zone="UTC", grace_seconds=1.0)
    for when in (5, 10):
        for session in (heard, unheard, limit, slots):
            fleet.beat(session, when)
        fleet.sweep(when)
    assert fleet.sweep(3610).outage_seconds == 3600
    fleet.beat(heard, 3611, progress="ahead")
    fleet.register("limit", 3611, limit, interval_seconds=10.0, grace_seconds=1.0, missed_intervals=3)
    fleet.beat(slots, 3612)
    fleet.sweep(3615)
    fleet.sweep(20)
    assert [(row.started_at, row.ended_at) for row in outages(database)] == [(at(10), at(20))]
    assert {agent(database, session).last_seen_at for session in (heard, slots)} == {at(20)}
    flagged = {when: names for when in range(25, 200, 5) if (names := sorted(fleet.sweep(when).degraded))}
    assert flagged == {45: ["heard", "unheard"], 55: ["limit"], 125: ["slots"]}


def test_a_backlog_delays_verdicts_when_the_clock_reaches_its_old_time(database: Engine) -> None:
    """The watermark from before the clock was set back says nothing about what waits now."""
    fleet = Simulation(database)
    session = fleet.register("torv", 0, interval_seconds=30.0, grace_seconds=1.0)
    fleet.sweep(0)
    fleet.sweep(1000)
    for when in range(100, 920, 20):
        fleet.beat(session, when)
        fleet.sweep(when)
    # Its heartbeats wait in the inbox from here on, the oldest of them from 930. By what is stored it is due at 961.
    assert [fleet.sweep(when, watermark=930).degraded for when in range(920, 1060, 20)] == [[]] * 7
    assert fleet.sweep(1060).degraded == ["torv"]


def test_heartbeats_count_after_the_clock_was_set_back(database: Engine) -> None:
    """They move the agent's last heartbeat, its deadline and its current work."""
    fleet = Simulation(database)
    session = fleet.register("torv", 0)
    fleet.sweep(3600)
    fleet.beat(session, 3601, progress="ahead")
    fleet.sweep(20)
    fleet.beat(session, 25, progress="back")
    found = agent(database, session)
    assert (found.last_seen_at, found.deadline_at, found.current_work) == (at(25), at(46), "back")


def test_an_overtaken_sweep_makes_no_outage(database: Engine, redis: Redis, quick: Settings) -> None:
    """A sweep that commits after later ones doesn't set the time of the last sweep back."""
    now = redis_time(redis)
    for ago in (60, 40, 20):
        judge_as_of(database, quick, now - seconds(ago))
    judge_as_of(database, quick, now - seconds(50))
    assert judge_as_of(database, quick, now).outage_seconds is None
    assert outages(database) == []


def test_an_outage_moves_no_deadline_that_had_passed(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]]
) -> None:
    """An agent whose deadline passed before the outage is flagged as soon as the backlog from before is stored."""
    (session,) = enrol(redis, database, quick, "torv", interval_seconds=5.0)
    look()
    let_pass(database, 12)
    recreate_inbox(redis)
    due_at = agent(database, session).deadline_at
    send(redis, b"anything", at=due_at - seconds(0.5))
    assert look() == []
    let_pass(database, 600)
    recreate_inbox(redis)
    send(redis, b"anything", at=agent(database, session).deadline_at + seconds(1))
    report = sweep(redis, database, quick)
    assert report.outage_seconds is not None
    assert report.degraded == ["torv"]


def test_ids_in_the_future_delay_all_verdicts(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]]
) -> None:
    """While an id of tomorrow hides the age of the backlog, no agent is flagged; afterwards the stream is rebuilt."""
    (session,) = enrol(redis, database, quick, "torv")
    look()
    let_pass(database, LONG_AGO)
    send(redis, heartbeat(session), at=redis_time(redis) + seconds(86_400))
    send(redis, heartbeat(session))
    assert wait_sweeping(database, look, 5 * LONG_AGO) == []
    drain(redis, database, quick)
    look()
    (entry_id,) = send(redis, heartbeat(session))
    assert int(entry_id.partition("-")[0]) < redis_time(redis).timestamp() * 1000 + 1000
    drain(redis, database, quick)
    assert state(database, session) == "ok"


def test_the_largest_id_is_repaired(
    database: Engine, redis: Redis, quick: Settings, look: Callable[[], list[str]], beat: Callable[..., None]
) -> None:
    """After the largest possible id nothing can be added to the stream, until it is drained and rebuilt."""
    (session,) = enrol(redis, database, quick, "torv")
    redis.xadd(INBOX, {"m": b"x"}, id=f"{2**64 - 1}-{2**64 - 1}")
    with pytest.raises(ResponseError):
        send(redis, heartbeat(session))
    drain(redis, database, quick)
    look()
    beat(session)
    assert state(database, session) == "ok"


def test_a_sweep_from_a_shell_takes_the_workers_interval(database: Engine, redis: Redis, quick: Settings) -> None:
    """Where workers sweep every five minutes, a sweep with a setting of five seconds finds no outage in four."""
    enrol(redis, database, quick, "torv", interval_seconds=3600.0)
    sweep(redis, database, quick.model_copy(update={"sweep_seconds": 300.0}))
    let_pass(database, 240)
    report = sweep(redis, database, quick.model_copy(update={"sweep_seconds": 5.0}), periodic=False)
    assert (report.outage_seconds, pipeline(database).sweep_seconds) == (None, 300.0)


def test_a_long_reader_stops_no_verdict(postgres_url: str, redis: Redis, quick: Settings) -> None:
    """While a backup prevents new partitions, silent agents are flagged."""
    engine = open_engine(postgres_url)
    (session,) = enrol(redis, engine, quick, "torv", interval_seconds=5.0)
    sweep(redis, engine, quick)
    let_pass(engine, LONG_AGO)
    missing = partition_name((redis_time(redis) + seconds(6 * 86_400)).date())
    with writing(engine) as connection:
        connection.execute(text(f"DROP TABLE {missing}"))
    with reading(engine) as backup:
        backup.execute(text("SELECT count(*) FROM heartbeats_default"))
        sweep(redis, engine, quick)
        assert state(engine, session) == "degraded"
    sweep(redis, engine, quick)
    with reading(engine) as connection:
        assert connection.execute(text("SELECT to_regclass(:name)"), {"name": missing}).scalar() is not None
    engine.dispose()


def test_partitions_are_created_while_redis_refuses_heartbeats(
    postgres_url: str, redis: Redis, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that is full for days stops verdicts, but not the creation of partitions."""
    engine = open_engine(postgres_url)
    sweep(redis, engine, quick)
    missing = partition_name((redis_time(redis) + seconds(6 * 86_400)).date())
    with writing(engine) as connection:
        connection.execute(text(f"DROP TABLE {missing}"))
    monkeypatch.setattr("fleetbeat_worker.sweep.job.read_write_refusal", lambda _: "OOM")
    assert sweep(redis, engine, quick, dry_run=True).refused == "OOM"
    with reading(engine) as connection:
        assert connection.execute(text("SELECT to_regclass(:name)"), {"name": missing}).scalar() is None
    report = sweep(redis, engine, quick)
    assert (report.refused, report.watermark, report.degraded) == ("OOM", None, [])
    with reading(engine) as connection:
        assert connection.execute(text("SELECT to_regclass(:name)"), {"name": missing}).scalar() is not None
    engine.dispose()
