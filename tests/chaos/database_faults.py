"""Faults of the database; each is a function of the rig."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from chaos.faulty_worker import FULL
from chaos.rig import HOLD_SECONDS, TIMEOUT_SECONDS, Rig, require
from fleetbeat_worker.telemetry.problems import REPEAT_SECONDS

UNSTORABLE = "unstorable"
"""The progress or the agent name of a valid message that the database refuses."""

LARGE = b"x" * 40_000
"""An invalid message that takes ten pages of SQLite's file when it is rejected."""


def restart_postgresql(rig: Rig) -> None:
    """Restart PostgreSQL immediately, in the middle of transactions."""
    time.sleep(0.5)
    _control_postgresql(rig, "restart")


def _control_postgresql(rig: Rig, action: str) -> None:
    server = rig.postgresql
    command = [server.bin_path / "pg_ctl", "-D", server.pgdata, "-m", "immediate", "-w", "-l", server.log, action]
    subprocess.run(command, check=True, user=server.system_user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rig.kills += 1


@contextmanager
def locked(rig: Rig) -> Iterator[None]:
    """Hold a lock that keeps all others from writing."""
    with rig.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
        if rig.postgresql is not None:
            connection.execute(text("LOCK TABLE liveness, heartbeats IN EXCLUSIVE MODE"))
        yield


def lock_database(rig: Rig) -> None:
    """Keep the database locked for a while."""
    with locked(rig):
        time.sleep(HOLD_SECONDS)


def keep_database_away(rig: Rig) -> None:
    """Keep the database down (SQLite: locked) for half of the time; then let it answer and refuse writes.

    So a batch is claimed and released much more often than a message may kill its process.
    """
    if rig.postgresql is not None:
        _control_postgresql(rig, "stop")
        time.sleep(rig.away_seconds / 2)
        rig.postgresql.ensure_postgres_running()
        rig.engine.dispose()
    else:
        with locked(rig):
            time.sleep(rig.away_seconds / 2)
    with locked(rig) if rig.postgresql is not None else full(rig):
        time.sleep(rig.away_seconds / 2)
    require(lambda: rig.has_logged("can't be used now"), "no worker logged that the database was down")


@contextmanager
def full(rig: Rig) -> Iterator[None]:
    """Limit SQLite's file to its current size, as on a full disk."""
    with rig.engine.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
    (rig.directory / FULL).write_text(str(pages))
    yield
    (rig.directory / FULL).unlink()


def fill_disk(rig: Rig) -> None:
    """Fill SQLite's disk until a worker logs it."""
    with full(rig):
        rig.send(LARGE)  # so that the disk is too small even if everything else was stored before
        time.sleep(HOLD_SECONDS)
        # If a locked database was logged just before, the next problem is logged a minute later.
        within = REPEAT_SECONDS + TIMEOUT_SECONDS
        require(lambda: rig.has_logged("database or disk is full"), "no worker logged that the disk was full", within)


def refuse_unstorable(rig: Rig) -> None:
    """Make the database refuse heartbeats with the progress UNSTORABLE, and agents of that name."""
    with rig.engine.begin() as connection:
        for table, column in (("heartbeats", "progress"), ("agents", "agent_name")):
            if rig.postgresql is not None:
                connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS refuse"))
                check = f"CHECK ({column} <> '{UNSTORABLE}')"
                connection.execute(text(f"ALTER TABLE {table} ADD CONSTRAINT refuse {check}"))
            else:
                when = f"BEFORE INSERT ON {table} WHEN NEW.{column} = '{UNSTORABLE}'"
                refuse = "BEGIN SELECT RAISE(ABORT, 'refused'); END"
                connection.execute(text(f"CREATE TRIGGER IF NOT EXISTS refuse_{table} {when} {refuse}"))
