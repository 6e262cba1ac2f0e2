"""Engine: connecting to the database, transactions, and errors.

An engine belongs to the process that made it: it must not be used after a fork.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)

from fleetbeat_shared.errors import DatabaseUnavailable, SettingsError
from fleetbeat_worker.database.pg_arrays import Array

BUSY_SECONDS = 5.0
"""How long a statement waits for another process's lock before it fails and is tried again."""

LOCK_POLL_SECONDS = 0.002
"""How often SQLite's lock is tried. SQLite itself waits longer and longer, up to 100 ms: two workers were a seventh
faster than one with that, and a third faster with this."""

CACHE_KIBIBYTES = 98_304
WAL_PAGES = 32_768
"""96 and 128 MiB in SQLite, instead of 2 and 4. A batch of a large fleet changes some thousand pages here and there:
they are written several times before it ends if they don't fit, and copied to the file after each batch."""

_ROLLED_BACK = {"40001", "40P01"}
"""PostgreSQL's serialization_failure and deadlock_detected: the transaction was rolled back; retry at once."""


def open_engine(url: str, *, flush_later: bool = False) -> Engine:
    """Make an engine for `sqlite:///…` or `postgresql://…`; it connects at its first use.

    With `flush_later` a commit to SQLite doesn't wait for the disk: `flush` does.

    Raises SettingsError when the URL is none of these, the database's driver isn't installed, or the folder of the
    SQLite file can't be made.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername in {"postgresql", "postgres"}:
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername == "postgresql+psycopg":
            return _open_postgresql(parsed)
        if parsed.drivername in {"sqlite", "sqlite+pysqlite"}:
            return _open_sqlite(parsed, flush_later=flush_later)
    except ModuleNotFoundError as error:
        message = 'The PostgreSQL driver is missing; install it with: pip install "fleetbeat[worker,postgres]".'
        raise SettingsError(message) from error
    except SettingsError:
        raise
    except (ArgumentError, NoSuchModuleError, ValueError):
        pass  # its text would repeat the URL, with the password
    message = "FLEETBEAT_DATABASE_URL is not a database URL. Write sqlite:///path or postgresql://user@host/name."
    raise SettingsError(message) from None


def _open_postgresql(url: Any) -> Engine:  # noqa: ANN401 - SQLAlchemy's URL
    engine = create_engine(
        url, pool_pre_ping=True, connect_args={"connect_timeout": int(BUSY_SECONDS), "application_name": "fleetbeat"}
    )
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _prepare_postgresql(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's connection
    connection.adapters.register_dumper(Array, _array_dumper())
    # By SET, not as a start-up option, which connection poolers refuse.
    connection.execute(f"SET lock_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.execute("SET timezone = 'UTC'")
    # What was committed is acknowledged to Redis and deleted there, so it must outlive a crash, however the server is
    # set. Any other setting stays: remote_apply, for example, or local.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


@lru_cache
def _array_dumper() -> type:
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class ArrayDumper(Dumper):
        """Sends an array as it is; each statement states its type."""

        format = Format.BINARY
        oid = 0

        def dump(self, obj: Array) -> bytes:
            return obj

    return ArrayDumper


def _open_sqlite(url: Any, *, flush_later: bool) -> Engine:  # noqa: ANN401 - SQLAlchemy's URL
    in_memory = url.database in {None, "", ":memory:"}
    if not in_memory:
        _make_folder(Path(url.database).parent)
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        execution_options={"flush_later": flush_later and not in_memory},
    )
    event.listen(engine, "connect", partial(_prepare_sqlite, flush_later=flush_later))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or type(error).__name__
        message = (
            f"The folder {folder} in FLEETBEAT_DATABASE_URL can't be made ({why}). Name one that you may write to."
        )
        raise SettingsError(message) from error


def _prepare_sqlite(connection: Any, _record: object, *, flush_later: bool) -> None:  # noqa: ANN401 - the driver's connection
    connection.isolation_level = None  # we begin transactions ourselves, see _begin_sqlite
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    # FULL, not NORMAL: what was committed is acknowledged to Redis and deleted there, so it must outlive a power cut.
    connection.execute(f"PRAGMA synchronous = {'NORMAL' if flush_later and mode == 'wal' else 'FULL'}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")


def flush(engine: Engine) -> None:
    """Wait until what was committed with `flush_later` is on the disk, so that it outlives a power cut.

    SQLite itself waits in each commit, with the lock that keeps others from writing. This is the same call on the same
    file, the log, after the lock was released.

    Raises DatabaseUnavailable.
    """
    if not engine.get_execution_options().get("flush_later"):
        return
    try:
        log = os.open(f"{engine.url.database}-wal", os.O_RDONLY)
    except FileNotFoundError:
        return  # another journal mode, in which commits wait
    try:
        getattr(os, "fdatasync", os.fsync)(log)
    except OSError as error:
        message = f"What was written to {place(engine)} can't be flushed to disk ({error.strerror})."
        raise DatabaseUnavailable(message) from error
    finally:
        os.close(log)


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a write fails at once when another writes, whatever the time-out is.
    begin = connection.get_execution_options().get("sqlite_begin", "BEGIN")
    if begin == "BEGIN":
        connection.exec_driver_sql(begin)
        return
    driver: Any = connection.connection.dbapi_connection
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        _begin_when_free(connection, driver, begin)
    finally:
        driver.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")


def _begin_when_free(connection: Connection, driver: Any, begin: str) -> None:  # noqa: ANN401 - the driver's connection
    gives_up_at = time.monotonic() + BUSY_SECONDS
    while time.monotonic() < gives_up_at:
        try:
            driver.execute(begin)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                break
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return
    connection.exec_driver_sql(begin)  # raises the error


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes; it commits at the end, or rolls back at an exception.

    Raises DatabaseUnavailable.
    """
    with database_errors(engine), engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a read-only transaction that sees one state of the database throughout.

    Raises DatabaseUnavailable.
    """
    with database_errors(engine), engine.connect() as opened:
        connection = opened
        if engine.dialect.name == "postgresql":
            connection = opened.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


@contextmanager
def database_errors(engine: Engine) -> Iterator[None]:
    """Translate errors that a retry may resolve into DatabaseUnavailable; faults of data or program stay as they are.

    Raises SettingsError when the URL has an option that the driver refuses, or the file is not a database.
    """
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        message = f"The database at {place(engine)} can't be used now ({reason(error)}). Trying again may help."
        raise DatabaseUnavailable(message) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            message = f"The connection to the database at {place(engine)} was lost. Trying again may help."
            raise DatabaseUnavailable(message) from error
        if type(error) is DatabaseError:  # not a subclass: SQLite raises it for a file that is not a database
            message = f"{place(engine)} can't be used as a database: {reason(error)}."
            raise SettingsError(message) from error
        if (
            isinstance(error, ProgrammingError) and error.statement is None
        ):  # no statement yet: the connection was refused
            message = f"FLEETBEAT_DATABASE_URL can't be used to connect to {place(engine)}: {reason(error)}."
            raise SettingsError(message) from error
        raise


def rolled_back_by_conflict(error: DatabaseUnavailable) -> bool:
    """Decide whether the transaction lost against another and can be retried at once."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and getattr(cause.orig, "sqlstate", None) in _ROLLED_BACK


def reason(error: DBAPIError) -> str:
    """Extract the first line of the driver's message; neither driver repeats passwords in it."""
    lines = str(error.orig).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error.orig).__name__


def place(engine: Engine) -> str:
    """Describe where the database is, without user and password."""
    url = engine.url
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{url.database or ':memory:'}"
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{url.host or 'localhost'}{port}/{url.database or ''}"
