from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.config import Config
from redis import Redis
from rq import Queue
from sqlalchemy import Engine, delete, insert, select, text, update

from fleetbeat_shared.errors import SchemaOutdated
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.redis_keys import OLD_ROWS, QUEUE
from fleetbeat_shared.settings import Settings
from fleetbeat_worker import jobs
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.partitions import make_partitions, partition_name
from fleetbeat_worker.database.tables import (
    Agent,
    Base,
    Event,
    Liveness,
    Notification,
    OutageRow,
    Pipeline,
    RejectedMessage,
    StoredHeartbeat,
    StrayHeartbeat,
)
from fleetbeat_worker.notifications.notice import Notice
from fleetbeat_worker.notifications.outbox import add_notices
from fleetbeat_worker.retention import job, old_partitions, queries
from fleetbeat_worker.retention.job import Cutoffs, PruneReport, count_old, prune
from fleetbeat_worker.retention.table_sizes import read_file_size, read_table_sizes
from fleetbeat_worker.rules.enums import NoticeKind, NoticeState
from fleetbeat_worker.rules.spans import to_milliseconds
from helpers import (
    agent,
    count_heartbeats,
    deregister,
    drain,
    enrol,
    events,
    eventually,
    heartbeat,
    redis_time,
    register,
    rejected,
    schema_differences,
    send,
    state,
    stored_ids,
)
from processes import die, end_of, fork, running_pool

NOW = datetime.now(UTC).replace(microsecond=0)
SETTINGS = Settings(retention_days=30, rejected_days=10, ended_session_days=40)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prune without pauses between slices."""
    monkeypatch.setattr(job, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def swept(database: Engine) -> Engine:
    """Return a database whose last sweep was just now."""
    return sweep_at(database, NOW)


@pytest.fixture
def postgresql(postgres_url: str) -> Iterator[Engine]:
    engine = open_engine(postgres_url)
    yield sweep_at(engine, NOW)
    engine.dispose()


def sweep_at(engine: Engine, watermark: datetime) -> Engine:
    with writing(engine) as connection:
        connection.execute(update(Pipeline).values(watermark=watermark, last_sweep_at=watermark))
    return engine


def days_ago(number: float) -> datetime:
    """Return the time a number of days ago."""
    return NOW - timedelta(days=number)


def id_of(moment: datetime) -> UUID:
    """Make the id of a message whose sender's clock shows this time."""
    return UUID(int=to_milliseconds(moment) << 80 | new_message_id().int & ((1 << 80) - 1))


def put_heartbeats(engine: Engine, *received: datetime, clock: timedelta = timedelta(0)) -> list[UUID]:
    """Store heartbeats received at these times, from an agent whose clock is wrong by `clock`; return their ids."""
    ids = [id_of(moment + clock) for moment in received]
    rows = [
        {"id": key, "session_id": key, "received_at": moment, "seen_at": moment, "sent_at": moment + clock}
        for key, moment in zip(ids, received, strict=True)
    ]
    with writing(engine) as connection:
        connection.execute(insert(StoredHeartbeat), rows)
        if abs(clock) >= timedelta(days=1):
            connection.execute(insert(StrayHeartbeat), [{"id": r["id"], "received_at": r["received_at"]} for r in rows])
    return ids


def put_events(engine: Engine, *moments: datetime, kind: str = "heartbeat") -> None:
    with writing(engine) as connection:
        connection.execute(insert(Event), [{"type": kind, "occurred_at": moment} for moment in moments])


def put_session(engine: Engine, name: str, *, ended_at: datetime | None = None, **columns: Any) -> UUID:
    """Store a session that ended at `ended_at`, when it was last seen, or is live and was last seen now."""
    key, seen = new_message_id(), columns.pop("last_seen_at", ended_at or NOW)
    moments = {"state_changed_at": seen, "last_seen_at": seen, "deadline_at": seen + timedelta(seconds=62)}
    moments |= {"registered_at": columns.pop("registered_at", days_ago(400))}
    promise = {"interval_seconds": columns.pop("interval_seconds", 30.0), "grace_seconds": 2.0}
    known = {"session_id": key, "agent_name": name, "parallel": False, "ended_at": ended_at}
    known |= columns
    with writing(engine) as connection:
        connection.execute(insert(Agent).values(known))
        connection.execute(
            insert(Liveness).values(session_id=key, state="ended" if ended_at else "ok", **moments, **promise)
        )
    return key


def put_days(engine: Engine, *ago: int) -> None:
    """Create the partitions of some days, as sweeps did then."""
    with writing(engine) as connection:
        for number in ago:
            make_partitions(connection, days_ago(number))


def prune_all(engine: Engine, settings: Settings = SETTINGS, **options: Any) -> PruneReport:
    cutoffs = Cutoffs.of(engine, settings, NOW, options.pop("older_than", None))
    assert cutoffs is not None
    return prune(engine, cutoffs, **options)


def keys(engine: Engine, column: Any) -> set[Any]:
    with reading(engine) as connection:
        return set(connection.execute(select(column)).scalars())


def partitions(engine: Engine) -> set[str]:
    with reading(engine) as connection:
        query = text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'heartbeats%'")
        return set(connection.execute(query).scalars())


def test_all_but_waiting_notifications_are_pruned(swept: Engine) -> None:
    """Sent, dead and unrouted notifications are removed at their own age; a waiting one never."""
    for age in (21, 19):
        for notice_state in NoticeState:
            with writing(swept) as connection:
                notice = Notice(NoticeKind.OUTAGE, f"{notice_state.value} {age}", {})
                add_notices(connection, [notice], to_milliseconds(days_ago(age)))
                of_it = update(Notification).where(Notification.key == notice.key)
                connection.execute(of_it.values(state=notice_state.value))
    settings = SETTINGS.model_copy(update={"notification_days": 20})
    assert prune_all(swept, settings).removed["notifications"] == 3
    left = keys(swept, Notification.key)
    assert left == {"waiting 21", *(f"{notice_state.value} 19" for notice_state in NoticeState)}


def test_old_rows_are_removed_and_young_ones_kept(swept: Engine) -> None:
    """Each table has its own retention age; a second run removes nothing."""
    put_heartbeats(swept, *(days_ago(30.01 + number) for number in range(250)))
    young = put_heartbeats(swept, days_ago(29.99), days_ago(5), NOW)
    put_events(swept, days_ago(100), days_ago(31), days_ago(29))
    with writing(swept) as connection:
        for number, moment in enumerate((days_ago(11), days_ago(9))):
            values = {"entry_id": str(number), "received_at": moment, "rejected_at": moment, "raw": b"x"}
            connection.execute(insert(RejectedMessage).values(reason="not_json", detail="no JSON", **values))
    put_session(swept, "old", ended_at=days_ago(41))
    ended, live = (
        put_session(swept, "ended", ended_at=days_ago(39)),
        put_session(swept, "live", last_seen_at=days_ago(300)),
    )
    report = prune_all(swept)
    assert report.removed == {
        "heartbeats": 250,
        "events": 2,
        "rejected_messages": 1,
        "notifications": 0,
        "agents": 1,
        "outages": 0,
    }
    assert report.finished
    assert stored_ids(swept) == sorted(young)
    assert [row.occurred_at for row in events(swept)] == [days_ago(29)]
    assert [row.received_at for row in rejected(swept)] == [days_ago(9)]
    assert keys(swept, Agent.session_id) == keys(swept, Liveness.session_id) == {ended, live}
    assert prune_all(swept).rows == 0


@pytest.mark.parametrize("clock", [-20_000, -40, -29, -2, -0.9, 0.9, 2, 29, 40, 200_000])
def test_heartbeats_are_pruned_by_receipt_not_by_id(swept: Engine, clock: float) -> None:
    """However wrong the agent's clock is, and so the time in the id, the age counts from the receipt."""
    if swept.dialect.name == "postgresql":
        put_days(swept, 80, 60, 31, 2)
    wrong = timedelta(days=clock)
    put_heartbeats(swept, days_ago(36), days_ago(34), clock=wrong)
    young = put_heartbeats(swept, days_ago(29), days_ago(1), NOW, clock=wrong)
    prune_all(swept)
    assert stored_ids(swept) == sorted(young)
    expected = set(young) if abs(clock) >= 1 else set()
    assert keys(swept, StrayHeartbeat.id) == expected


def test_ingest_records_strays(redis: Redis, database: Engine, quick: Settings) -> None:
    """Heartbeats whose ids are a day or more from their receipt are recorded as strays, and no others."""
    (session,) = enrol(redis, database, quick, "torv")
    now = redis_time(redis)
    far = [id_of(now + timedelta(days=number)) for number in (-10_000, -1.01, 1.01, 5_000)]
    near = [id_of(now + timedelta(days=number)) for number in (-0.99, 0, 0.99)]
    beats = [heartbeat(session, id=key) for key in far + near]
    send(redis, *beats, *beats[:2])
    drain(redis, database, quick)
    assert stored_ids(database) == sorted(far + near)
    assert keys(database, StrayHeartbeat.id) == set(far)


def test_outages_are_kept_while_deadlines_depend_on_them(swept: Engine) -> None:
    """An outage after the last heartbeat of a live agent is kept, however old it is."""
    with writing(swept) as connection:
        for number in (300, 200, 100, 10):
            connection.execute(insert(OutageRow).values(started_at=days_ago(number + 1), ended_at=days_ago(number)))
    yearly = put_session(swept, "yearly", last_seen_at=days_ago(250), interval_seconds=31 * 86_400.0)
    assert prune_all(swept).removed["outages"] == 1
    with writing(swept) as connection:
        connection.execute(update(Liveness).where(Liveness.session_id == yearly).values(last_seen_at=NOW))
    prune_all(swept)
    assert keys(swept, OutageRow.ended_at) == {days_ago(10)}
    with writing(swept) as connection:
        connection.execute(delete(Agent))
    prune_all(swept)
    assert keys(swept, OutageRow.ended_at) == {days_ago(10)}


def test_maintenance_is_kept_while_deadlines_depend_on_it(swept: Engine) -> None:
    """The events of a window that ended after the last heartbeat of a live agent are kept, both of them."""
    for began, ended in ((301, 300), (260, 240), (200, 199), (20, 19)):
        put_events(swept, days_ago(began), kind="maintenance")
        put_events(swept, days_ago(ended), kind="maintenance_over")
    yearly = put_session(swept, "yearly", last_seen_at=days_ago(250), interval_seconds=31 * 86_400.0)
    put_events(swept, days_ago(251), days_ago(249))
    prune_all(swept)
    assert [row.occurred_at for row in events(swept)] == [days_ago(age) for age in (260, 240, 200, 199, 20, 19)]
    with writing(swept) as connection:
        connection.execute(update(Liveness).where(Liveness.session_id == yearly).values(last_seen_at=NOW))
    prune_all(swept)
    assert [row.occurred_at for row in events(swept)] == [days_ago(20), days_ago(19)]


def test_ages_count_from_the_watermark(swept: Engine) -> None:
    """Nothing ages while ingest is behind, or before the first sweep; a wrong clock removes nothing."""
    put_heartbeats(swept, days_ago(35))
    sweep_at(swept, days_ago(20))
    assert prune_all(swept).rows == 0
    sweep_at(swept, days_ago(-10_000))
    assert prune_all(swept, Settings(retention_days=40)).rows == 0
    with writing(swept) as connection:
        connection.execute(update(Pipeline).values(watermark=None))
    assert Cutoffs.of(swept, SETTINGS, NOW) is None


def test_parents_of_young_sessions_are_kept(swept: Engine) -> None:
    """The parent of a live or young session is kept; that of an old one isn't."""
    first = put_session(swept, "first", ended_at=days_ago(95))
    second = put_session(swept, "second", ended_at=days_ago(90), parent_id=first)
    parent = put_session(swept, "parent", ended_at=days_ago(80), parent_id=second)
    live = put_session(swept, "live", parent_id=parent)
    assert prune_all(swept).removed["agents"] == 2
    assert keys(swept, Agent.session_id) == {parent, live}
    for ended_at, left in ((days_ago(39), {parent, live}), (days_ago(41), set())):
        with writing(swept) as connection:
            connection.execute(update(Agent).where(Agent.session_id == live).values(ended_at=ended_at))
        prune_all(swept)
        assert keys(swept, Agent.session_id) == left


def test_circular_parents_are_removed(swept: Engine) -> None:
    """Sessions that are each other's parent, or their own, are removed when all of them are old."""
    one, two, alone = (put_session(swept, name, ended_at=days_ago(50)) for name in ("one", "two", "alone"))
    with writing(swept) as connection:
        for session, parent in ((one, two), (two, one), (alone, alone)):
            connection.execute(update(Agent).where(Agent.session_id == session).values(parent_id=parent))
        connection.execute(update(Agent).where(Agent.session_id == two).values(ended_at=days_ago(39)))
    cutoffs = Cutoffs.of(swept, SETTINGS, NOW)
    assert cutoffs is not None
    assert prune_all(swept).removed["agents"] == 1
    assert keys(swept, Agent.session_id) == keys(swept, Liveness.session_id) == {one, two}
    with writing(swept) as connection:
        connection.execute(update(Agent).values(ended_at=days_ago(50)))
    assert count_old(swept, cutoffs).removed["agents"] == 2
    assert prune_all(swept).removed["agents"] == 2


def test_a_pruned_session_can_be_registered_again(redis: Redis, database: Engine, quick: Settings) -> None:
    """Its id can be used again, as that of a new session."""
    (session,) = enrol(redis, database, quick, "torv")
    send(redis, deregister(session))
    drain(redis, database, quick)
    with writing(database) as connection:
        connection.execute(update(Agent).values(ended_at=days_ago(50)))
    sweep_at(database, NOW)
    assert prune_all(database).removed["agents"] == 1
    assert agent(database, session) is None
    send(redis, register("torv", session_id=session), heartbeat(session))
    drain(redis, database, quick)
    assert state(database, session) == "ok"


def test_a_session_that_is_registered_again_during_pruning_is_kept(
    redis: Redis, swept: Engine, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registration between finding and removing the session makes it live."""
    session = put_session(swept, "torv", ended_at=days_ago(50))

    def find_and_register(*arguments: Any) -> Any:
        found = kind.find(*arguments)
        if found:
            send(redis, register("torv", session_id=session))
            drain(redis, swept, quick)
        return found

    kind = queries.SESSIONS
    monkeypatch.setattr(queries, "SESSIONS", replace(kind, find=find_and_register))
    assert prune_all(swept).removed["agents"] == 0
    assert state(swept, session) == "pending"


def test_a_dry_run_changes_nothing(swept: Engine) -> None:
    """It counts the rows that a run then removes."""
    if swept.dialect.name == "postgresql":
        put_days(swept, 40)
    put_heartbeats(swept, days_ago(33), days_ago(50), days_ago(60))
    put_heartbeats(swept, days_ago(33), days_ago(2), clock=timedelta(days=-300))
    put_events(swept, days_ago(33))
    put_session(swept, "old", ended_at=days_ago(50))
    cutoffs = Cutoffs.of(swept, SETTINGS, NOW)
    assert cutoffs is not None
    before = stored_ids(swept)
    planned = count_old(swept, cutoffs)
    assert stored_ids(swept) == before
    done = prune_all(swept)
    assert (planned.removed, planned.partitions) == (done.removed, done.partitions)


def test_old_days_are_dropped_whole(postgresql: Engine) -> None:
    """A partition goes when all of its day, and a day for slow messages, is old; what is young in it stays."""
    put_days(postgresql, 50, 40)
    put_heartbeats(postgresql, days_ago(50), days_ago(40), days_ago(35))
    late = put_heartbeats(postgresql, days_ago(12), clock=timedelta(days=-38))
    report = prune_all(postgresql)
    assert partition_name(days_ago(50).date()) not in partitions(postgresql)
    assert len(report.partitions) >= 16
    assert report.partitions == sorted(report.partitions)
    assert stored_ids(postgresql) == late
    assert not any(name.endswith("_old") for name in partitions(postgresql))


def test_a_long_reader_delays_only_its_partition(
    redis: Redis, redis_url: str, postgresql: Engine, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While `heartbeats` is read, a partition is kept, ingest continues, the rest is pruned; the next run drops it."""
    monkeypatch.setattr(old_partitions, "LOCK_MILLISECONDS", 30)
    settings = Settings(redis_url=redis_url, database_url=postgres_url, linger_seconds=0.01, sweep_seconds=0.5)
    (session,) = enrol(redis, postgresql, settings, "torv")
    sweep_at(postgresql, NOW)
    put_days(postgresql, 50)
    put_heartbeats(postgresql, days_ago(50))
    put_events(postgresql, days_ago(50))
    other = open_engine(postgres_url)
    with reading(other) as connection:
        connection.execute(text("SELECT count(*) FROM heartbeats")).scalar()
        running = threading.Thread(target=lambda: reports.append(prune_all(postgresql)))
        reports: list[PruneReport] = []
        running.start()
        while running.is_alive():
            send(redis, heartbeat(session))
            assert drain(redis, other, settings) == 1
        running.join()
    assert reports[0].in_use
    assert reports[0].removed["events"] == 1
    assert not reports[0].partitions
    again = prune_all(postgresql)
    assert again.partitions[0] == days_ago(51).date().isoformat()
    assert not again.in_use
    other.dispose()


@pytest.mark.parametrize(("step", "calls"), [("remove", 2), ("drop", 1)])
def test_a_killed_run_is_continued_by_the_next(swept: Engine, database_url: str, step: str, calls: int) -> None:
    """SIGKILL before a removal commits, or while a partition is detached and not yet dropped, loses nothing."""
    if swept.dialect.name == "postgresql":
        put_days(swept, 40)
    elif step == "drop":
        return  # SQLite has no partitions
    put_heartbeats(swept, *(days_ago(50 + number) for number in range(400)))
    young = put_heartbeats(swept, days_ago(3)) + put_heartbeats(swept, days_ago(3), clock=timedelta(days=-37))
    swept.dispose()

    def run() -> None:
        place: Any = queries if step == "remove" else old_partitions
        whole, left = getattr(place, step), iter(range(calls - 1))

        def do_and_die(*arguments: Any) -> Any:
            answer = whole(*arguments)
            if next(left, None) is None:
                die()
            return answer

        setattr(place, step, do_and_die)
        prune_all(open_engine(database_url))

    assert end_of(fork(run)) == -9
    if step == "remove":
        assert 2 < count_heartbeats(swept) < 402
    else:
        assert any(name.endswith("_old") for name in partitions(swept))
    assert prune_all(swept).finished
    assert stored_ids(swept) == sorted(young)
    if swept.dialect.name == "postgresql":
        assert not any(name.endswith("_old") for name in partitions(swept))


def test_slices_are_small_and_others_write_in_between(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On SQLite a transaction removes one slice at most, and the lock is free between two slices."""
    engine = sweep_at(open_engine(sqlite_url), NOW)
    other = open_engine(sqlite_url)
    put_heartbeats(engine, *(days_ago(40) for _ in range(2_000)))
    sizes: list[int] = []

    def advance(number: int) -> None:
        sizes.append(number)
        put_events(other, NOW)  # fails if the database is locked

    monkeypatch.setattr(job, "next_size", lambda size, _seconds: min(size * 2, 400))
    prune_all(engine, advance=advance)
    assert sizes == [100, 200, 400, 400, 400, 400, 100]
    assert len(events(engine)) == len(sizes)
    engine.dispose()
    other.dispose()


def test_a_run_can_be_stopped(swept: Engine) -> None:
    """It ends between two slices and reports that; the next one continues."""
    put_heartbeats(swept, *(days_ago(50) for _ in range(300)))
    removed: list[int] = []
    report = prune_all(swept, stop=lambda: bool(removed), advance=removed.append)
    assert not report.finished
    assert report.removed["heartbeats"] == removed[0] == job.FIRST_ROWS
    assert prune_all(swept).removed["heartbeats"] == 200


def test_workers_prune(redis: Redis, database: Engine, quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool removes old rows beside ingest and sweeps."""
    monkeypatch.setattr(
        "fleetbeat_worker.workers.dispatcher.PRUNE_SECONDS", 0.5
    )  # the pool's processes are forked from here
    old = put_heartbeats(database, *(days_ago(40) for _ in range(300)))
    send(redis, register("torv"))
    database.dispose()
    with running_pool(quick):
        eventually(lambda: not set(old) & set(stored_ids(database)), within_seconds=60)
        eventually(lambda: len(events(database, "registered")) == 1)


def test_a_job_ends_when_other_jobs_wait(
    redis: Redis, redis_url: str, swept: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job prunes for a short time at least, ends when another job waits, and records whether rows are left."""
    monkeypatch.setenv("FLEETBEAT_REDIS_URL", redis_url)
    monkeypatch.setenv("FLEETBEAT_DATABASE_URL", swept.url.render_as_string(hide_password=False))
    put_heartbeats(swept, *(days_ago(40) for _ in range(300)))
    Queue(QUEUE, connection=redis, serializer="json").enqueue_call(
        "fleetbeat_worker.jobs.sweep", job_id="sweep-1", result_ttl=0
    )
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "PRUNE_UNDISTURBED_SECONDS", 0.0)
        jobs.prune()
        assert (count_heartbeats(swept), redis.exists(OLD_ROWS)) == (300, 0)
        patch.setattr(jobs, "read_waiting_ids", lambda _: ["sweep-1"] if count_heartbeats(swept) < 300 else [])
        jobs.prune()
        assert (count_heartbeats(swept), redis.exists(OLD_ROWS)) == (300 - job.FIRST_ROWS, 1)
    monkeypatch.setattr(jobs, "PRUNE_UNDISTURBED_SECONDS", 60.0)
    jobs.prune()
    assert (count_heartbeats(swept), redis.exists(OLD_ROWS)) == (0, 0)


def test_table_sizes(swept: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, bytes and times of each table; strays count by their receipt, and PostgreSQL estimates large tables."""
    put_heartbeats(swept, days_ago(20), days_ago(3))
    put_heartbeats(swept, days_ago(25), clock=timedelta(days=300))
    with reading(swept) as connection:
        sizes = {size.name: size for size in read_table_sizes(connection)}
        file = read_file_size(connection)
    assert set(sizes) == set(Base.metadata.tables)
    found = sizes["heartbeats"]
    assert (found.rows, found.estimated, found.oldest_at, found.newest_at) == (3, False, days_ago(25), days_ago(3))
    assert all(size.bytes for size in sizes.values())
    on_postgresql = swept.dialect.name == "postgresql"
    assert (found.partitions, sizes["events"].partitions) == (10 if on_postgresql else None, None)
    assert (file is None) == on_postgresql
    if on_postgresql:
        monkeypatch.setattr("fleetbeat_worker.retention.table_sizes.COUNTED_ROWS", 1)
        with swept.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE heartbeats"))
        with reading(swept) as connection:
            found = next(size for size in read_table_sizes(connection) if size.name == "heartbeats")
        assert (found.rows, found.estimated) == (3, True)


def test_the_migration_finds_strays(database: Engine) -> None:
    """It records the strays among stored heartbeats, and can be reversed."""
    far = [
        key
        for clock in (-15_000, -1.1, 1.1, 100_000)
        for key in put_heartbeats(database, NOW, clock=timedelta(days=clock))
    ]
    near = [key for clock in (-0.9, 0, 0.9) for key in put_heartbeats(database, NOW, clock=timedelta(days=clock))]
    assert stored_ids(database) == sorted(far + near)
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with writing(database) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    with pytest.raises(SchemaOutdated):
        schema.check(database)
    assert schema.upgrade(database)
    assert keys(database, StrayHeartbeat.id) == set(far)
    assert schema_differences(database) == []
