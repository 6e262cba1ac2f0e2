"""How many heartbeats a second one worker stores, beside other queues and beside the limit.

What is measured, in each run, for each fleet, on one database:

  ingest        the inbox holds all heartbeats; one process drains it with `fleetbeat_worker.ingest.job.Ingest`, as the
                job `ingest` does, from opening the connections to the last acknowledgement, 4,000 at a time
  the limit     a Valkey list holds as many; a loop by hand stores them, 1,000 at a time, without any queue library
                (limit.py)
  other queues  each holds one job for each heartbeat, which validates and stores it with the code of a batch
                (single_jobs.py); their workers have imported everything; from the first job that is stored to the last

`--stored` puts that many heartbeats into the database before. `--workers 2` lets two processes drain the inbox.
Valkey runs with AOF (everysec), SQLite with WAL and synchronous = FULL, PostgreSQL 18 as it comes.

How to read it: figures are medians over the runs, the lowest and the highest in brackets. Ratios are taken within each
run, so that they mean something on a busy machine too.

Needed: 20,000 heartbeats/s, 75% of the limit, 500 times RQ's Worker, 100 times its SimpleWorker, and 15 times the
fastest of the others. With 1,000,000 agents 60% of the rate with 1,000; with 20,000,000 heartbeats stored 70% of the
rate on an empty database; two workers on SQLite 1.3 times one.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import click
import limit
import single_jobs
from sqlalchemy import Engine, Table, func, select, text
from support import (
    databases,
    end_in_order,
    fill_stream,
    heartbeats,
    in_new_process,
    print_json,
    print_machine,
    print_table,
    redis_client,
    shown,
    spread,
    valkey,
    verbatim,
)

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database import bulk
from fleetbeat_worker.database.engine import open_engine, reading, writing
from fleetbeat_worker.database.tables import Agent, Liveness, StoredHeartbeat
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.ingest.session_state import HEARTBEAT_COLUMNS

OURS, LIMIT, ONE = "ingest", "the limit", "one worker"
NEEDED_PER_SECOND = 20_000
NEEDED_RATIO = {"RQ Worker (forks)": 500.0, "RQ SimpleWorker": 100.0, LIMIT: 0.75}
NEEDED_OTHERS = 15.0
NEEDED_OF_ONE = 1.3
"""Of two workers on SQLite."""
SMALL, LARGE, NEEDED_GROWTH = 1_000, 1_000_000, 0.6
"""Fleets, and how much of the small one's rate the large one's must be."""
JOBS = {"RQ Worker (forks)": 40}
"""How many jobs a queue gets that is slower than others."""
PROGRESS_SHARE = 0.1
PATIENCE_SECONDS = 600.0
ROWS_AT_ONCE = 10_000
DAY_MILLISECONDS = 86_400_000

Found = dict[str, list[float]]
"""Heartbeats/s of each run, by what stored them."""


def drain(count: int) -> float:
    """Drain the inbox in this process, until `count` are stored by it or none are left; return the seconds it took."""
    settings = Settings.from_environment(os.environ)
    started = time.perf_counter()
    engine = open_engine(settings.sql_url, flush_later=True)  # as the job does
    with closing(redis_client(settings.redis_url)) as client:
        run: Ingest
        run = Ingest(client, engine, settings, f"benchmark-{os.getpid()}", stop=lambda: run.stored >= count)
        run.run(PATIENCE_SECONDS)
        seconds = time.perf_counter() - started
    engine.dispose()
    return seconds


def measure_ingest(client: Any, sessions: Sequence[UUID], count: int, workers: int) -> float:  # noqa: ANN401 - see support
    """Return the heartbeats/s of one or more processes that drain the inbox."""
    fill_stream(client, heartbeats(sessions, count, PROGRESS_SHARE))
    if workers == 1:
        return count / in_new_process(drain, count)
    with ThreadPoolExecutor(workers) as threads:
        return count / max(threads.map(lambda _: in_new_process(drain_all), range(workers)))


def drain_all() -> float:
    """Drain the inbox beside another process; return the seconds until none was left."""
    settings = Settings.from_environment(os.environ)
    started = time.perf_counter()
    engine = open_engine(settings.sql_url, flush_later=True)
    with closing(redis_client(settings.redis_url)) as client:
        inbox: Any = client
        run = Ingest(
            client,
            engine,
            settings,
            f"benchmark-{os.getpid()}",
            stop=lambda: inbox.xinfo_groups("fleetbeat:inbox")[0]["lag"] == 0,
        )
        run.run(PATIENCE_SECONDS)
        seconds = time.perf_counter() - started
    engine.dispose()
    return seconds


def measure_limit(client: Any, settings: Settings, sessions: Sequence[UUID], count: int) -> float:  # noqa: ANN401
    """Return the heartbeats/s of the loop by hand."""
    with client.pipeline(transaction=False) as pipe:
        for wire in heartbeats(sessions, count, PROGRESS_SHARE):
            pipe.rpush(limit.LIST, wire)
            if len(pipe) == limit.BATCH:
                pipe.execute()
        pipe.execute()
    return count / in_new_process(limit.drain, settings.sql_url, settings.redis_url, count)


def measure_jobs(name: str, engine: Engine, sessions: Sequence[UUID], count: int) -> float:
    """Return the heartbeats/s of another queue's worker, from its first job to its last."""
    in_new_process(_enqueue, name, list(heartbeats(sessions, count, PROGRESS_SHARE)))
    before = _count(engine)
    command = [sys.executable, str(Path(single_jobs.__file__)), name]
    silent = subprocess.DEVNULL
    worker = subprocess.Popen(command, stdout=silent, stderr=silent, start_new_session=True)
    try:
        gives_up_at = time.perf_counter() + PATIENCE_SECONDS
        began, first = 0.0, 0
        while (stored := _count(engine) - before) < count:
            if stored and not began:
                began, first = time.perf_counter(), stored
            if worker.poll() is not None or time.perf_counter() > gives_up_at:
                message = f"{name} stored {stored} of {count} heartbeats."
                raise click.ClickException(message)
            time.sleep(0.02)
        return (count - first) / (time.perf_counter() - began)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _enqueue(name: str, wires: Sequence[bytes]) -> None:
    call = single_jobs.ENQUEUE[name]()
    for wire in wires:
        call(wire.decode())


def _count(engine: Engine) -> int:
    with reading(engine) as connection:
        return int(connection.execute(select(func.count()).select_from(StoredHeartbeat)).scalar_one())


def enrol(engine: Engine, count: int) -> list[UUID]:
    """Put registered agents into the database, which promise a heartbeat each 30 s; return their sessions."""
    sessions = [uuid4() for _ in range(count)]
    now = time.time_ns() // 1_000_000
    agents: Table = Agent.__table__  # type: ignore[assignment] # a mapped class has a Table
    liveness: Table = Liveness.__table__  # type: ignore[assignment] # as above
    named = ("session_id", "agent_name", "parallel")
    judged = ("session_id", "state", "state_changed_at", "deadline_at", "registered_at", "interval_seconds")
    for start in range(0, count, ROWS_AT_ONCE):
        part = list(enumerate(sessions[start : start + ROWS_AT_ONCE], start))
        with writing(engine) as connection:
            names = [(session, f"agent-{number:07}", False) for number, session in part]
            bulk.insert(connection, agents, named, names)
            rows = [(session, "pending", now, now + 61_500, now, 30.0, 1.5) for _, session in part]
            bulk.insert(connection, liveness, (*judged, "grace_seconds"), rows)
    return sessions


def store_before(engine: Engine, sessions: Sequence[UUID], count: int) -> None:
    """Put heartbeats of the last day into the database."""
    table: Table = StoredHeartbeat.__table__  # type: ignore[assignment] # as above
    ends_at = time.time_ns() // 1_000_000 - 1000
    draw = random.Random(3)  # noqa: S311 - no secret
    for start in range(0, count, ROWS_AT_ONCE):
        rows = []
        for number in range(start, min(start + ROWS_AT_ONCE, count)):
            sent = ends_at - DAY_MILLISECONDS + DAY_MILLISECONDS * number // count
            key = UUID(int=sent << 80 | 0x7 << 76 | draw.getrandbits(12) << 64 | 0b10 << 62 | draw.getrandbits(62))
            rows.append((key, sessions[number % len(sessions)], sent, sent, sent))
        with writing(engine) as connection:
            bulk.insert(connection, table, HEARTBEAT_COLUMNS[:5], rows)
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))


def measure(kind: str, fleet: int, sizes: dict[str, int], *, others: bool) -> Found:
    """Return the figures of all runs with one fleet on one database."""
    found: Found = {}
    with valkey() as redis_url, databases(kind) as new_database:
        settings = Settings(redis_url=redis_url, database_url=new_database(), batch_size=sizes["batch_size"])
        settings.export(os.environ)  # for the measured processes
        engine = open_engine(settings.sql_url)
        sessions = enrol(engine, fleet)
        store_before(engine, sessions, sizes["stored"])
        random.Random(4).shuffle(sessions)  # noqa: S311 - agents don't beat in the order of their rows
        expected = sizes["stored"]
        for _ in range(sizes["runs"]):
            with closing(redis_client(redis_url)) as client:
                client.flushall()
                rates = {OURS: measure_ingest(client, sessions, sizes["heartbeats"], sizes["workers"])}
                if sizes["workers"] > 1:
                    rates[ONE] = measure_ingest(client, sessions, sizes["heartbeats"], 1)
                rates[LIMIT] = measure_limit(client, settings, sessions, sizes["heartbeats"])
                expected += len(rates) * sizes["heartbeats"]
            for name in single_jobs.ENQUEUE if others else ():
                count = min(sizes["jobs"], JOBS.get(name, sizes["jobs"]))
                rates[name] = measure_jobs(name, engine, sessions, count)
                expected += count
            for name, rate in rates.items():
                found.setdefault(name, []).append(rate)
        stored = _count(engine)
        engine.dispose()
        if stored != expected:
            message = f"SQL holds {stored} heartbeats instead of {expected}: the figures mean nothing."
            raise click.ClickException(message)
    return found


def report(title: str, found: Found) -> None:
    """Print the table of one fleet on one database, and whether what is needed was reached."""
    others = [name for name in found if name not in {OURS, LIMIT, ONE}]
    fastest = max(others, key=lambda name: median(found[name]), default="")
    needs = {fastest: NEEDED_OTHERS} | NEEDED_RATIO | ({ONE: NEEDED_OF_ONE} if title.startswith("sqlite") else {})
    rows, reached = [], median(found[OURS]) >= NEEDED_PER_SECOND
    for name, rates in found.items():
        ratios = [ours / other for ours, other in zip(found[OURS], rates, strict=True)]
        needed = needs.get(name)
        reached &= needed is None or median(ratios) >= needed
        rows.append(
            (name, spread(rates), "", f"{NEEDED_PER_SECOND:,}/s")
            if name == OURS
            else (name, spread(rates), spread(ratios), f"{shown(needed)} times" if needed else "")
        )
    print_table(title, ("what", "per second", "ingest is faster by", "needed"), rows)
    print("reached" if reached else "NOT REACHED")


def report_growth(kind: str, found: dict[int, Found]) -> None:
    """Print how much of the rate of a small fleet is left with a large one, if both were measured."""
    if {SMALL, LARGE} <= found.keys():
        ours, limits = (median(found[LARGE][name]) / median(found[SMALL][name]) for name in (OURS, LIMIT))
        verdict = "reached" if ours >= NEEDED_GROWTH else "NOT REACHED"
        print(
            f"\n{kind}: with {LARGE:,} agents {ours:.0%} of the rate with {SMALL:,} (the limit {limits:.0%}); "
            f"needed {NEEDED_GROWTH:.0%}: {verdict}"
        )


@click.command(help=verbatim(__doc__))
@click.option("--database", type=click.Choice(["sqlite", "postgresql", "both"]), default="both", show_default=True)
@click.option("--agents", type=click.IntRange(1), multiple=True, default=(1_000, 1_000_000), show_default=True)
@click.option("--heartbeats", type=click.IntRange(1), default=100_000, show_default=True, help="In the inbox.")
@click.option("--stored", type=click.IntRange(0), default=0, show_default=True, help="In the database before.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes of ours.")
@click.option("--jobs", type=click.IntRange(1), default=1_000, show_default=True, help="For each other queue.")
@click.option("--others/--no-others", default=True, show_default=True, help="Whether to measure other queues.")
@click.option("--batch-size", type=click.IntRange(1, 10_000), default=Settings().batch_size, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="How often all is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def main(*, database: str, agents: Sequence[int], others: bool, as_json: bool, **sizes: int) -> None:
    """Measure, and print."""
    end_in_order()
    found: dict[str, dict[int, Found]] = {}
    for kind in ["sqlite", "postgresql"] if database == "both" else [database]:
        found[kind] = {}
        for fleet in agents:
            found[kind][fleet] = measure(kind, fleet, sizes, others=others)
            if not as_json:
                stored = f", {sizes['stored']:,} stored before" if sizes["stored"] else ""
                workers = f", {sizes['workers']} workers" if sizes["workers"] > 1 else ""
                report(f"{kind}: heartbeats/s, {fleet:,} agents{stored}{workers}", found[kind][fleet])
        if not as_json:
            report_growth(kind, found[kind])
    if as_json:
        print_json("ingest", {"sizes": sizes, "per_second": found})
    else:
        print_machine()


if __name__ == "__main__":
    main()
