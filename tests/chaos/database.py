"""What chaos.py does to the database: each fault is a function of the place."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text
from support import TIMEOUT_SECONDS

from chaos.place import HOLD_SECONDS, Place, insist
from chaos.worker import FULL
from fleetbeat_worker.telemetry.problems import REPEAT_SECONDS

UNSTORABLE = "unstorable"
"""The progress of a message that is right, and that the database refuses."""

LARGE = b"x" * 40_000
"""No message, and ten pages of SQLite's file among the rejected ones."""


def restart_postgresql(here: Place) -> None:
    """Let PostgreSQL go down at once, in the middle of transactions, and come back."""
    time.sleep(0.5)
    _control_postgresql(here, "restart")


def _control_postgresql(here: Place, action: str) -> None:
    server = here.postgresql
    command = [server.bin_path / "pg_ctl", "-D", server.pgdata, "-m", "immediate", "-w", "-l", server.log, action]
    subprocess.run(command, check=True, user=server.system_user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    here.kills += 1


@contextmanager
def locked(here: Place) -> Iterator[None]:
    """Hold a lock in which nobody else can write."""
    with here.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
        if here.postgresql is not None:
            connection.execute(text("LOCK TABLE liveness, heartbeats IN EXCLUSIVE MODE"))
        yield


def lock_database(here: Place) -> None:
    """Hold the database locked."""
    with locked(here):
        time.sleep(HOLD_SECONDS)


def keep_database_away(here: Place) -> None:
    """Keep the database away for long: down (SQLite: locked) for half of the time; then it answers and takes nothing.

    So a batch is taken and laid down again and again, much more often than a message may kill its process.
    """
    if here.postgresql is not None:
        _control_postgresql(here, "stop")
        time.sleep(here.away_seconds / 2)
        here.postgresql.ensure_postgres_running()
        here.engine.dispose()
    else:
        with locked(here):
            time.sleep(here.away_seconds / 2)
    with locked(here) if here.postgresql is not None else full(here):
        time.sleep(here.away_seconds / 2)
    insist(lambda: here.told("can't be used now"), "no worker told that the database was away")


@contextmanager
def full(here: Place) -> Iterator[None]:
    """Let SQLite's file grow no more, as on a disk that is full."""
    with here.engine.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
    (here.directory / FULL).write_text(str(pages))
    yield
    (here.directory / FULL).unlink()


def fill_disk(here: Place) -> None:
    """Let SQLite's disk be full, until a worker says so."""
    with full(here):
        here.send(LARGE)  # so that there is no room for all, also if the rest was stored before
        time.sleep(HOLD_SECONDS)
        # On a busy machine a locked database may have been told just before: then it takes a minute to be told more.
        patience = REPEAT_SECONDS + TIMEOUT_SECONDS
        insist(lambda: here.told("database or disk is full"), "no worker told that the disk was full", patience)


def refuse_unstorable(here: Place) -> None:
    """Let the database refuse heartbeats of a certain progress, and agents of a certain name."""
    with here.engine.begin() as connection:
        for table, column in (("heartbeats", "progress"), ("agents", "agent_name")):
            if here.postgresql is not None:
                connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS refuse"))
                check = f"CHECK ({column} <> '{UNSTORABLE}')"
                connection.execute(text(f"ALTER TABLE {table} ADD CONSTRAINT refuse {check}"))
            else:
                when = f"BEFORE INSERT ON {table} WHEN NEW.{column} = '{UNSTORABLE}'"
                refuse = "BEGIN SELECT RAISE(ABORT, 'refused'); END"
                connection.execute(text(f"CREATE TRIGGER IF NOT EXISTS refuse_{table} {when} {refuse}"))
