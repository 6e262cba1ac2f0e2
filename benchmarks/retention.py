"""How fast old heartbeats are pruned, and how long another writer waits meanwhile.

What is measured, in each run, on a database of its own with `--rows` old heartbeats in it:

  slices     `fleetbeat_worker.retention.job.prune`, row by row: SQLite's table, and PostgreSQL's default partition
  partition  the same, with all rows in the partition of one day, which is dropped whole (PostgreSQL)
  DELETE     what one would write by hand: one statement for all

Beside each, another process stores batches of 50 heartbeats, 20 times a second, as an ingest does. Shown is the longest
time that one of these took from asking for the lock to the end of its commit, and the same with nothing beside it.
SQLite runs with WAL and synchronous = FULL, PostgreSQL 18 as it comes.

How to read it: figures are medians over the runs, the lowest and the highest in brackets.

Needed: slices hold SQLite's write lock for 100 ms at most. A writer that waits may see more: it looks for the lock each
100 ms at worst.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Self
from uuid import UUID, uuid4

import click
from sqlalchemy import Engine, Table, delete, event, func, select, update
from support import databases, end_in_order, in_new_process, print_json, print_machine, print_table, spread, verbatim

from fleetbeat_shared.identifiers import new_message_id
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.partitions import make_partitions
from fleetbeat_worker.database.tables import Pipeline, StoredHeartbeat
from fleetbeat_worker.ingest.session_state import HEARTBEAT_COLUMNS
from fleetbeat_worker.retention.job import Cutoffs, prune
from fleetbeat_worker.rules.spans import to_milliseconds

AGE = timedelta(days=40)
ROWS_AT_ONCE = 10_000
BATCH_ROWS = 50
BATCH_SECONDS = 0.05
ALONE_SECONDS = 3.0
NEEDED_LOCK_SECONDS = 0.1

_HEARTBEATS: Table = StoredHeartbeat.__table__  # type: ignore[assignment] # a mapped class has a Table

WAYS = {"sqlite": ("slices", "DELETE"), "postgresql": ("partition", "slices", "DELETE")}

Figures = dict[str, float]
"""Rows/s, and seconds: of the longest lock that pruning held, and of the longest batch beside it and alone."""


def put_old(engine: Engine, count: int, *, in_partition: bool) -> None:
    """Store heartbeats of one day long ago, and that a sweep has just run."""
    moment = datetime.now(UTC) - AGE
    start = to_milliseconds(moment.replace(hour=0, minute=0, second=0, microsecond=0))
    draw = random.Random(5)  # noqa: S311 - no secret
    with writing(engine) as connection:
        if in_partition:
            make_partitions(connection, moment)
        connection.execute(update(Pipeline).values(watermark=datetime.now(UTC)))
    sessions = [uuid4() for _ in range(1_000)]
    for first in range(0, count, ROWS_AT_ONCE):
        rows = []
        for number in range(first, min(first + ROWS_AT_ONCE, count)):
            sent = start + 86_000_000 * number // count
            key = UUID(int=sent << 80 | 0x7 << 76 | draw.getrandbits(12) << 64 | 0b10 << 62 | draw.getrandbits(62))
            rows.append((key, sessions[number % len(sessions)], sent, sent, sent))
        with writing(engine) as connection:
            bulk.insert(connection, _HEARTBEATS, HEARTBEAT_COLUMNS[:5], rows)


class Writer:
    """Stores batches beside what is measured, and keeps the longest time that one took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.longest_seconds = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._done.wait(BATCH_SECONDS):
            now = to_milliseconds(datetime.now(UTC))
            rows = [(new_message_id(), new_message_id(), now, now, now) for _ in range(BATCH_ROWS)]
            started = time.perf_counter()
            with writing(self._engine) as connection:
                bulk.insert(connection, _HEARTBEATS, HEARTBEAT_COLUMNS[:5], rows)
            self.longest_seconds = max(self.longest_seconds, time.perf_counter() - started)


def prune_all(url: str) -> tuple[float, float]:
    """Prune by the settings' ages; return the seconds that it took, and for how long it held its locks at most."""
    return _timed(url, _prune)


def delete_all(url: str) -> tuple[float, float]:
    """Delete by one statement; return the same."""
    return _timed(url, _delete)


def _prune(engine: Engine, ended: Callable[[object], None]) -> None:
    cutoffs = Cutoffs.of(engine, Settings(), datetime.now(UTC))
    if cutoffs is None:
        raise AssertionError
    prune(engine, cutoffs, advance=ended)


def _delete(engine: Engine, ended: Callable[[object], None]) -> None:
    with writing(engine) as connection:
        old = StoredHeartbeat.received_at < datetime.now(UTC) - timedelta(days=30)
        connection.execute(delete(StoredHeartbeat).where(old))
    ended(None)


def _timed(url: str, act: Callable[[Engine, Callable[[object], None]], None]) -> tuple[float, float]:
    engine = open_engine(url)
    began, longest = 0.0, 0.0

    def begun(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal began
        if not began and statement.lstrip().startswith(("DELETE", "ALTER")):
            began = time.perf_counter()

    def ended(_rows: object) -> None:
        nonlocal began, longest
        began, longest = 0.0, max(longest, time.perf_counter() - began if began else 0.0)

    event.listen(engine, "before_cursor_execute", begun)
    # SQLAlchemy tells of a commit before it is done, and the next transaction may be a while.
    event.listen(engine, "begin", ended)
    started = time.perf_counter()
    act(engine, ended)
    seconds = time.perf_counter() - started
    engine.dispose()
    return seconds, longest


def measure(kind: str, way: str, rows: int) -> Figures:
    """Return the figures of one run."""
    with databases(kind) as new_database:
        url = new_database()
        engine = open_engine(url)
        put_old(engine, rows, in_partition=way == "partition")
        with Writer(engine) as alone:
            time.sleep(ALONE_SECONDS)
        with Writer(engine) as beside:
            seconds, lock_seconds = in_new_process(delete_all if way == "DELETE" else prune_all, url)
        with reading(engine) as connection:
            old = StoredHeartbeat.received_at < datetime.now(UTC) - timedelta(days=30)
            left = connection.execute(select(func.count()).where(old)).scalar_one()
        engine.dispose()
    if left:
        message = f"{left} old heartbeats are left: the figures mean nothing."
        raise click.ClickException(message)
    return {
        "rows_per_second": rows / seconds,
        "lock_seconds": lock_seconds,
        "beside_seconds": beside.longest_seconds,
        "alone_seconds": alone.longest_seconds,
    }


def report(kind: str, rows: int, found: dict[str, list[Figures]]) -> None:
    """Print the table of one database, and whether what is needed was reached."""
    columns = ("rows_per_second", "lock_seconds", "beside_seconds", "alone_seconds")
    headers = ("way", "rows/s", "longest lock, ms", "longest batch beside, ms", "alone, ms")
    lines = []
    for way, runs in found.items():
        figures = [[run[column] * (1 if column == columns[0] else 1000) for run in runs] for column in columns]
        lines.append((way, *map(spread, figures)))
    print_table(f"{kind}: {rows:,} old heartbeats", headers, lines)
    if kind == "sqlite":
        reached = median(run["lock_seconds"] for run in found["slices"]) <= NEEDED_LOCK_SECONDS
        print("reached" if reached else "NOT REACHED")


@click.command(help=verbatim(__doc__))
@click.option("--database", type=click.Choice(["sqlite", "postgresql", "both"]), default="both", show_default=True)
@click.option("--rows", type=click.IntRange(1), default=1_000_000, show_default=True, help="Old heartbeats.")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="How often all is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def main(*, database: str, rows: int, runs: int, as_json: bool) -> None:
    """Measure, and print."""
    end_in_order()
    found: dict[str, dict[str, list[Figures]]] = {}
    for kind in WAYS if database == "both" else [database]:
        found[kind] = {way: [] for way in WAYS[kind]}
        for _ in range(runs):
            for way, figures in found[kind].items():
                figures.append(measure(kind, way, rows))
        if not as_json:
            report(kind, rows, found[kind])
    if as_json:
        print_json("retention", {"rows": rows, "runs": found})
    else:
        print_machine()


if __name__ == "__main__":
    main()
