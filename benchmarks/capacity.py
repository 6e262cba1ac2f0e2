"""What a heartbeat costs each part of the pipeline, and what fleets of some sizes need by that.

What is measured, in each run: agents add their heartbeats one by one to an empty Valkey; one process stores them with
`fleetbeat_worker.ingest.job.Ingest`, on SQLite and on PostgreSQL 18, all on this machine. One heartbeat in ten brings
progress text, so that it is an event too. For each heartbeat:

  Valkey, add      the server's CPU time for an XADD that comes alone
  Valkey, take     the server's CPU time for reading, acknowledging and deleting it
  worker           the process's CPU time
  PostgreSQL       the CPU time of all of its processes, checkpoints included as far as they came
  memory           what the inbox grew by in Valkey
  stored           what the database grew by, indexes and events included
  WAL              what PostgreSQL wrote ahead

How to read it: times are in microseconds, sizes in bytes, medians over the runs. The second table is arithmetic on the
first: heartbeats/s are agents / interval; a worker is planned at half of the rate at which it stored them on
PostgreSQL; the inbox grows by memory * heartbeats/s while no worker runs; a day has 86,400 s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, fields
from math import ceil
from pathlib import Path
from statistics import median

import click
import psutil
from ingest import PROGRESS_SHARE, drain, enrol
from sqlalchemy import Engine, text
from support import (
    databases,
    end_in_order,
    heartbeats,
    in_new_process,
    print_json,
    print_machine,
    print_table,
    redis_client,
    shown,
    valkey,
    verbatim,
)

from fleetbeat_shared.redis_keys import FIELD, INBOX
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.database.engine import open_engine

FLEETS = (
    (1_000, 30),
    (10_000, 60),
    (100_000, 60),
    (1_000_000, 300),
    (1_000_000, 60),
    (10_000_000, 600),
    (10_000_000, 60),
)
"""Agents, and their interval in seconds."""
AGENTS = 10_000
DAY_SECONDS = 86_400
GIGABYTE = 1e9


@dataclass(frozen=True)
class Costs:
    """What one heartbeat costs: CPU microseconds and bytes."""

    valkey_add: float
    valkey_take: float
    worker: float
    database: float
    """The database's own processes; SQLite has none."""
    memory: float
    stored: float
    wal: float
    per_second: float
    """How many one process stored."""


def worker_costs(count: int) -> tuple[float, float]:
    """Drain the inbox in this process; return the seconds and the CPU seconds that it took."""
    before = time.process_time()
    seconds = drain(count)
    return seconds, time.process_time() - before


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process, its children, and those that it has buried."""
    times = process.cpu_times()
    found = times.user + times.system + times.children_user + times.children_system
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            found += sum(child.cpu_times()[:2])
    return float(found)


def postgresql_of(engine: Engine) -> psutil.Process | None:
    """Return the first of PostgreSQL's processes, which started the one that serves us; None on SQLite."""
    if engine.dialect.name != "postgresql":
        return None
    with engine.connect() as connection:
        return psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar_one()).parent()


def sizes(engine: Engine) -> tuple[int, int]:
    """Return the bytes of the database, and of what PostgreSQL wrote ahead so far."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("CHECKPOINT"))
            query = "SELECT pg_database_size(current_database()), pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"
            size, written = connection.execute(text(query)).one()
            return int(size), int(written)
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return Path(str(engine.url.database)).stat().st_size, 0


def measure(kind: str, count: int) -> Costs:
    """Return the costs of one run."""
    with valkey() as url, databases(kind) as new_database, closing(redis_client(url)) as client:
        settings = Settings(redis_url=url, database_url=new_database())
        settings.export(os.environ)  # for the worker
        engine = open_engine(settings.sql_url)
        sessions = enrol(engine, AGENTS)
        server = psutil.Process(client.info("server")["process_id"])
        database = postgresql_of(engine)
        Inbox(client).create_group()
        memory, cpu = client.info("memory")["used_memory"], cpu_seconds(server)
        for wire in heartbeats(sessions, count, PROGRESS_SHARE):
            client.xadd(INBOX, {FIELD: wire})
        added = cpu_seconds(server)
        memory = client.info("memory")["used_memory"] - memory
        size, written = sizes(engine)
        database_cpu = cpu_seconds(database) if database else 0.0
        seconds, worker = in_new_process(worker_costs, count)
        taken = cpu_seconds(server)
        database_cpu = cpu_seconds(database) - database_cpu if database else 0.0
        after, written_after = sizes(engine)
        engine.dispose()
        total = Costs(
            valkey_add=(added - cpu) * 1e6,
            valkey_take=(taken - added) * 1e6,
            worker=worker * 1e6,
            database=database_cpu * 1e6,
            memory=memory,
            stored=after - size,
            wal=written_after - written,
            per_second=count * count / seconds,
        )
        return Costs(**{name: value / count for name, value in asdict(total).items()})


def median_costs(runs: Sequence[Costs]) -> Costs:
    """Return the median of each cost."""
    return Costs(**{field.name: median(getattr(run, field.name) for run in runs) for field in fields(Costs)})


def plan(costs: Costs) -> list[tuple[str, ...]]:
    """Return what each fleet needs, as rows of a table."""
    rows = []
    for agents, interval in FLEETS:
        rate = agents / interval
        core = 100 * rate * (costs.valkey_add + costs.valkey_take) / 1e6
        rows.append(
            (
                f"{agents:,} each {interval} s",
                shown(rate),
                shown(ceil(2 * rate / costs.per_second)),
                f"{shown(core)} %",
                f"{shown(rate * 3600 * costs.memory / GIGABYTE)} GB",
                f"{shown(rate * DAY_SECONDS / 1e6)} million",
                f"{shown(rate * DAY_SECONDS * costs.stored / GIGABYTE)} GB",
            )
        )
    return rows


@click.command(help=verbatim(__doc__))
@click.option("--heartbeats", "count", type=click.IntRange(1000), default=100_000, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def main(*, count: int, runs: int, as_json: bool) -> None:
    """Measure, and print."""
    end_in_order()
    found: dict[str, Costs] = {
        kind: median_costs([measure(kind, count) for _ in range(runs)]) for kind in ("sqlite", "postgresql")
    }
    if as_json:
        print_json("capacity", {"costs": {kind: asdict(costs) for kind, costs in found.items()}})
        return
    headers = ("database", "Valkey, add", "Valkey, take", "worker", "PostgreSQL", "memory", "stored", "WAL", "stored/s")
    rows = [(kind, *(shown(value) for value in asdict(costs).values())) for kind, costs in found.items()]
    print_table("What one heartbeat costs: CPU in us, sizes in bytes", headers, rows)
    needs = ("agents", "heartbeats/s", "workers", "Valkey's core", "inbox per hour", "rows per day", "SQL per day")
    print_table("What fleets need, on PostgreSQL", needs, plan(found["postgresql"]))
    print_machine()


if __name__ == "__main__":
    main()
