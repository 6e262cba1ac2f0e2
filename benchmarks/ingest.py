"""How many heartbeats a second one worker stores, against one RQ job per heartbeat.

What is measured, in each run, on an empty database with a registered fleet:

  ingest        the inbox holds all heartbeats; one process drains it with `fleetbeat_worker.ingest.Ingest`, as the
                job `ingest` does, from opening the connections to the last acknowledgement
  SimpleWorker  the queue holds one RQ job for each heartbeat; RQ's SimpleWorker runs them in one process
  Worker        the same with RQ's Worker, which forks for each job; the modules are imported before it forks

A job validates its message and stores it in one transaction, with the same code as a batch. Serializer: JSON.
Valkey runs with AOF (everysec), SQLite with WAL and synchronous = FULL, PostgreSQL 18 as it comes.

How to read it: figures are medians over the runs, the lowest and the highest in brackets. The ratio is taken within
each run, so that it means something on a busy machine too.

Needed: 8,000 heartbeats/s on SQLite, 6,000 on PostgreSQL, each at least 50 times SimpleWorker.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import click
from rq import Queue, SimpleWorker, Worker
from sqlalchemy import func, select
from support import (
    databases,
    end_in_order,
    fill_inbox,
    heartbeats,
    in_new_process,
    print_json,
    print_machine,
    print_table,
    redis_client,
    registration,
    spread,
    valkey,
    verbatim,
)

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.database import open_engine, reading
from fleetbeat_worker.ingest import Ingest
from fleetbeat_worker.tables import StoredHeartbeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

NEEDED_PER_SECOND = {"sqlite": 8_000, "postgresql": 6_000}
NEEDED_RATIO = 50
PROGRESS_SHARE = 0.1
PATIENCE_SECONDS = 600.0
_WORKERS = {"SimpleWorker": SimpleWorker, "Worker": Worker}


@dataclass(frozen=True)
class Sizes:
    """How much is measured in each run."""

    heartbeats: int
    agents: int
    simple_jobs: int
    forked_jobs: int
    batch_size: int


@dataclass(frozen=True)
class Run:
    """What one run found, in heartbeats per second."""

    ingest: float
    simple_worker: float
    forking_worker: float

    @property
    def ratio(self) -> float:
        """How many times faster than SimpleWorker."""
        return self.ingest / self.simple_worker


def drain(count: int) -> float:
    """Drain the inbox in this process; return the seconds that it took."""
    settings = Settings.from_environment(os.environ)
    started = time.perf_counter()
    engine = open_engine(settings.sql_url)
    with closing(redis_client(settings.redis_url)) as client:
        run: Ingest
        run = Ingest(client, engine, settings, "benchmark", stop=lambda: run.stored >= count)
        stored = run.run(PATIENCE_SECONDS)
        seconds = time.perf_counter() - started
    engine.dispose()
    if stored != count:
        message = f"{stored} of {count} messages were stored."
        raise click.ClickException(message)
    return seconds


def work_off(kind: str) -> float:
    """Run all jobs of the queue in this process; return the seconds that it took."""
    import single_jobs  # noqa: F401 - imported before the worker starts (and forks), so that no job pays for it

    settings = Settings.from_environment(os.environ)
    with closing(redis_client(settings.redis_url)) as client:
        queue = Queue("benchmark", connection=client, serializer="json")
        worker = _WORKERS[kind]([queue], connection=client, serializer="json")
        started = time.perf_counter()
        worker.work(burst=True, logging_level="WARNING")
        return time.perf_counter() - started


def measure(new_database: Callable[[], str], redis_url: str, sizes: Sizes) -> Run:
    """Return the figures of one run, on a new database and an empty Redis."""
    settings = Settings(redis_url=redis_url, database_url=new_database(), batch_size=sizes.batch_size)
    settings.export(os.environ)  # for the measured processes
    with closing(redis_client(redis_url)) as client:
        client.flushall()
        agents = [registration(number) for number in range(sizes.agents)]
        fill_inbox(client, (agent.to_wire() for agent in agents))
        in_new_process(drain, sizes.agents)
        sessions = [agent.session_id for agent in agents]
        fill_inbox(client, heartbeats(sessions, sizes.heartbeats, PROGRESS_SHARE))
        seconds = in_new_process(drain, sizes.heartbeats)
        run = Run(
            ingest=sizes.heartbeats / seconds,
            simple_worker=_jobs_per_second(client, "SimpleWorker", sessions, sizes.simple_jobs),
            forking_worker=_jobs_per_second(client, "Worker", sessions, sizes.forked_jobs),
        )
    _check_count(settings, sizes.heartbeats + sizes.simple_jobs + sizes.forked_jobs)
    return run


def _jobs_per_second(client: Any, kind: str, sessions: list[UUID], count: int) -> float:  # noqa: ANN401 - see support
    queue = Queue("benchmark", connection=client, serializer="json")
    for wire in heartbeats(sessions, count, PROGRESS_SHARE):
        queue.enqueue("single_jobs.store_heartbeat", wire.decode(), result_ttl=0)
    return count / in_new_process(work_off, kind)


def _check_count(settings: Settings, expected: int) -> None:
    engine = open_engine(settings.sql_url)
    with reading(engine) as connection:
        stored = connection.execute(select(func.count()).select_from(StoredHeartbeat)).scalar_one()
    engine.dispose()
    if stored != expected:
        message = f"SQL holds {stored} heartbeats instead of {expected}: the figures mean nothing."
        raise click.ClickException(message)


def report(kind: str, runs: list[Run], sizes: Sizes) -> None:
    """Print the table of one database."""
    ingest = [run.ingest for run in runs]
    ratio = [run.ratio for run in runs]
    reached = median(ingest) >= NEEDED_PER_SECOND[kind] and median(ratio) >= NEEDED_RATIO
    print_table(
        f"{kind}: heartbeats/s of one worker; median of {len(runs)} runs, {sizes.agents:,} agents",
        ("what", "heartbeats", "per second", "ingest is faster by", "needed"),
        (
            (
                f"ingest, batches of {sizes.batch_size:,}",
                f"{sizes.heartbeats:,}",
                spread(ingest),
                "",
                f"{NEEDED_PER_SECOND[kind]:,}",
            ),
            (
                "RQ job each, SimpleWorker",
                f"{sizes.simple_jobs:,}",
                spread([run.simple_worker for run in runs]),
                spread(ratio),
                f"{NEEDED_RATIO}",
            ),
            (
                "RQ job each, Worker (forks)",
                f"{sizes.forked_jobs:,}",
                spread([run.forking_worker for run in runs]),
                spread([run.ingest / run.forking_worker for run in runs]),
                "",
            ),
        ),
    )
    print("reached" if reached else "NOT REACHED")


@click.command(help=verbatim(__doc__))
@click.option("--database", type=click.Choice(["sqlite", "postgresql", "both"]), default="both", show_default=True)
@click.option("--heartbeats", type=click.IntRange(1), default=50_000, show_default=True, help="In the inbox.")
@click.option("--agents", type=click.IntRange(1), default=1_000, show_default=True, help="In the fleet.")
@click.option("--simple-jobs", type=click.IntRange(1), default=500, show_default=True, help="For SimpleWorker.")
@click.option("--forked-jobs", type=click.IntRange(1), default=40, show_default=True, help="For Worker.")
@click.option("--batch-size", type=click.IntRange(1, 10_000), default=1_000, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="How often all is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def main(*, database: str, runs: int, as_json: bool, **sizes: int) -> None:
    """Measure, and print."""
    end_in_order()
    chosen = Sizes(**sizes)
    kinds = list(NEEDED_PER_SECOND) if database == "both" else [database]
    found: dict[str, list[Run]] = {}
    for kind in kinds:
        with valkey() as redis_url, databases(kind) as new_database:
            found[kind] = [measure(new_database, redis_url, chosen) for _ in range(runs)]
        if not as_json:
            report(kind, found[kind], chosen)
    if as_json:
        figures = {kind: [asdict(run) | {"ratio": run.ratio} for run in found[kind]] for kind in kinds}
        print_json("ingest", {"sizes": asdict(chosen), "runs": figures})
    else:
        print_machine()


if __name__ == "__main__":
    main()
