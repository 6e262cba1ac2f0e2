from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from redis import Redis
from sqlalchemy import BigInteger, Boolean, Column, Double, Engine, Integer, LargeBinary, Text, select, text, update

from fleetbeat_shared.errors import DatabaseUnavailable, SchemaOutdated
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.column_types import Identifier, JsonObject
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.partitions import make_partitions, partition_name
from fleetbeat_worker.database.pg_arrays import array_of, element_type
from fleetbeat_worker.database.tables import Agent, Liveness
from helpers import count_heartbeats, drain, enrol, heartbeat, quick_settings, redis_time, schema_differences, send


@pytest.fixture
def postgresql(postgres_url: str) -> Iterator[Engine]:
    engine = open_engine(postgres_url)
    yield engine
    engine.dispose()


@pytest.fixture
def empty(postgres: Any) -> Iterator[str]:
    """Return the URL of a PostgreSQL database without any table."""
    name = f"empty_{new_message_id().hex}"
    engine = open_engine(postgres.get_uri()).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield postgres.get_uri(database=name)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def partitions(engine: Engine) -> dict[str, int]:
    """Return the partitions of heartbeats, and how many rows each holds."""
    with reading(engine) as connection:
        query = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'heartbeats'::regclass")
        names = list(connection.execute(query).scalars())
        return {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in names}  # noqa: S608


def test_the_migrations_make_the_tables_of_the_code(database: Engine) -> None:
    """On both databases, Alembic finds no difference between the migrated one and the tables of the code."""
    assert schema_differences(database) == []
    schema.check(database)


def test_promises_survive_the_move_to_liveness(redis: Redis, redis_url: str, database: Engine) -> None:
    """Promises and times of registration are the same after a downgrade and an upgrade."""
    settings = quick_settings(redis_url, str(database.url))
    enrol(redis, database, settings, "torv", interval_seconds=7.5, grace_seconds=2)
    enrol(redis, database, settings, "hint", schedule="15 8 * * *", time_zone="Europe/Berlin")

    def promises() -> list[Any]:
        with reading(database) as connection:
            query = select(Agent.agent_name, *Liveness.__table__.columns).join(Liveness.__table__)
            return list(connection.execute(query.order_by(Agent.agent_name)).all())

    before = promises()
    assert [(row.interval_seconds, row.schedule) for row in before] == [(None, "15 8 * * *"), (7.5, None)]
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with writing(database) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
        there = connection.execute(text("SELECT grace_seconds FROM agents ORDER BY agent_name")).scalars()
        assert list(there) == [60, 2]
    assert schema.upgrade(database)
    assert promises() == before
    assert schema_differences(database) == []


def test_incidents_survive_the_move_to_liveness(redis: Redis, redis_url: str, database: Engine) -> None:
    """An agent's open incident is the same after a downgrade and an upgrade."""
    settings = quick_settings(redis_url, str(database.url))
    (session, _) = enrol(redis, database, settings, "torv", "hint")
    with writing(database) as connection:
        connection.execute(update(Liveness).where(Liveness.session_id == session).values(incident_id=3))
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with writing(database) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
        there = connection.execute(text("SELECT incident_id FROM agents ORDER BY agent_name")).scalars()
        assert list(there) == [None, 3]
    assert schema.upgrade(database)
    with reading(database) as connection:
        found = select(Agent.agent_name, Liveness.incident_id).join(Liveness).order_by(Agent.agent_name)
        assert connection.execute(found).all() == [("hint", None), ("torv", 3)]
    assert schema_differences(database) == []


VALUES: list[tuple[Column[Any], Any]] = [
    (Column("a", Identifier), [new_message_id(), new_message_id()]),
    (Column("a", BigInteger), [-(2**63), 2**63 - 1]),
    (Column("a", Integer), [-(2**31), 2**31 - 1]),
    (Column("a", Double), [-0.1, 1e300]),
    (Column("a", Boolean), [True, False]),
    (Column("a", Text), ["", "NULL", '{"Ωmega", \\\\ 🚀}']),
    (Column("a", LargeBinary), [b"", b"\x00\xff"]),
    (Column("a", JsonObject), [{}, {"a": [1, None, "Ω"]}]),
]


@pytest.mark.parametrize(("column", "values"), VALUES, ids=lambda value: str(getattr(value, "type", "values")))
def test_arrays_arrive_unchanged(postgresql: Engine, column: Column[Any], values: list[Any]) -> None:
    """PostgreSQL reads each type's values unchanged, with and without NULL among them, and an empty array."""
    for sent in (values, [None, *values, None], [None], []):
        with postgresql.connect() as connection:
            query = f"SELECT * FROM unnest(CAST(%s AS {element_type(column)}[]))"  # noqa: S608 - a type of ours
            found = connection.exec_driver_sql(query, (array_of(column, sent),)).scalars()
            assert list(found) == sent


def test_workers_never_upgrade_postgresql(empty: str) -> None:
    """A worker with an old schema on PostgreSQL fails with what to do, and changes nothing."""
    engine = open_engine(empty)
    with pytest.raises(SchemaOutdated, match="Run: fleetbeat db upgrade"):
        schema.prepare(engine)
    assert schema.revision(engine) is None
    engine.dispose()


def test_many_upgrades_at_once_do_it_once(empty: str) -> None:
    """Of several upgrades at the same time one creates the tables; the others wait."""
    did: list[bool] = []

    def upgrade() -> None:
        engine = open_engine(empty)
        did.append(schema.upgrade(engine))
        engine.dispose()

    threads = [threading.Thread(target=upgrade) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(did) == [False, False, True]


def test_heartbeats_are_in_their_days_partitions(
    redis: Redis, redis_url: str, postgresql: Engine, postgres_url: str
) -> None:
    """A heartbeat is in its day's partition; one whose id has a distant time is in the default partition."""
    settings = quick_settings(redis_url, postgres_url)
    (session,) = enrol(redis, postgresql, settings, "torv")
    random = new_message_id().int & ((1 << 80) - 1)
    send(redis, heartbeat(session), heartbeat(session, id=type(session)(int=random)))
    drain(redis, postgresql, settings)
    found = partitions(postgresql)
    assert found["heartbeats_default"] == 1
    assert found[partition_name(redis_time(redis).date())] == 1
    assert count_heartbeats(postgresql) == 2


def test_partitions_are_made_ahead(postgresql: Engine) -> None:
    """There are partitions for a week; a second call makes none, and a later day adds the missing ones."""
    now = datetime.now(UTC)
    with writing(postgresql) as connection:
        assert make_partitions(connection, now) == []
        made = make_partitions(connection, now + timedelta(days=3))
    assert made == [partition_name((now + timedelta(days=days)).date()) for days in (8, 9, 10)]
    assert len(partitions(postgresql)) == 1 + 9 + 3


def test_a_day_in_the_default_partition_stays_there(postgresql: Engine) -> None:
    """Rows that came before their day's partition stay where they are, and stop no sweep."""
    day = datetime.now(UTC) + timedelta(days=20)
    early = int(day.timestamp() * 1000) << 80 | new_message_id().int & ((1 << 80) - 1)
    with writing(postgresql) as connection:
        connection.execute(
            text(
                "INSERT INTO heartbeats (id, session_id, received_at, seen_at, sent_at) "
                "VALUES (:id, :id, now(), now(), now())"
            ),
            {"id": type(new_message_id())(int=early)},
        )
        made = make_partitions(connection, day)
    assert partition_name(day.date()) not in made
    assert len(made) == 8


def test_an_error_of_the_database_names_no_password(postgresql: Engine) -> None:
    """The error for an unreachable database has its place, and neither user nor password."""
    assert postgresql.url.password is None or postgresql.url.password == ""
    engine = open_engine("postgresql://somebody:secret@127.0.0.1:1/fleet")
    with pytest.raises(DatabaseUnavailable) as caught, reading(engine):
        pass
    assert "postgresql://127.0.0.1:1/fleet" in str(caught.value)
    assert "secret" not in str(caught.value)
    engine.dispose()


def test_a_reader_sees_one_state(database: Engine, database_url: str) -> None:
    """A reading transaction doesn't see what is committed while it reads, on both databases."""
    query = text("SELECT count(*) FROM tasks")
    other = open_engine(database_url)
    moment = 0 if database.dialect.name == "sqlite" else datetime.now(UTC)
    with reading(database) as connection:
        assert connection.execute(query).scalar_one() == 0
        with writing(other) as writer:
            writer.execute(
                text("INSERT INTO tasks (agent_name, title, state, created_at, updated_at) VALUES ('a','b','c',:t,:t)"),
                {"t": moment},
            )
        assert connection.execute(query).scalar_one() == 0
    with reading(database) as connection:
        assert connection.execute(query).scalar_one() == 1
    other.dispose()


@pytest.mark.parametrize(("configured", "used"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")])
def test_a_commit_is_on_disk_before_it_counts(
    postgresql: Engine, postgres_url: str, configured: str, used: str
) -> None:
    """A database that is set to commit without waiting for its disk is overruled; any other setting stays."""
    name = postgresql.url.database
    with writing(postgresql) as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = {configured}"))
    engine = open_engine(postgres_url)
    with reading(engine) as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == used
    engine.dispose()


def test_sqlite_commits_to_the_disk(sqlite_url: str) -> None:
    """SQLite waits for its disk at every commit (`synchronous = FULL`), as what was committed is deleted from Redis."""
    engine = open_engine(sqlite_url)
    with reading(engine) as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    engine.dispose()
