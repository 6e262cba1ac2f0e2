"""RQ jobs: the functions that a job may name. Jobs carry no arguments: settings come from the environment.

This module is imported before a worker forks, and imports what the jobs need, so that no job pays for imports.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from redis import Redis
from redis.exceptions import RedisError
from rq import get_current_job
from sqlalchemy import Engine

from fleetbeat_shared.errors import DatabaseUnavailable, FleetbeatError
from fleetbeat_shared.redis_keys import OLD_ROWS
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.rq_queue import read_waiting_ids
from fleetbeat_worker.broker.server import connect_worker, redis_now
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.notifications.due import announce_next_due
from fleetbeat_worker.notifications.job import notify as run_notify
from fleetbeat_worker.retention.job import Cutoffs, prune as run_prune
from fleetbeat_worker.sweep.job import sweep as run_sweep
from fleetbeat_worker.telemetry.problems import ProblemReporter

PRUNE_SECONDS = 30.0
"""How long one job prunes at most; the next one continues."""
PRUNE_UNDISTURBED_SECONDS = 0.5
"""How long it prunes while other jobs wait: a worker that is never idle would prune nothing otherwise."""
OLD_ROWS_SECONDS = 600
"""How long the key lives that says that old rows are left, if no job runs any more."""
NOTIFY_SECONDS = 60.0
"""How long one job sends notifications at most; the next one continues."""
NOTIFY_UNDISTURBED_SECONDS = 2.0
"""How long it sends while other jobs wait; the one that is being sent is finished after that."""


class RefusedJob(FleetbeatError):
    """A job that isn't Fleetbeat's was in the queue; it was not run."""

    code = "refused_job"


def ingest() -> int:
    """Move messages from the inbox to SQL; return how many."""
    with _open_tools(flush_later=True) as tools:
        job = get_current_job()
        consumer = (job and job.worker_name) or f"process-{os.getpid()}"

        def other_job_waits() -> bool:
            # Not another ingest job: it would do what this one does.
            return any(not job_id.startswith("ingest-") for job_id in read_waiting_ids(tools.client))

        run = Ingest(
            tools.client, tools.engine, tools.settings, consumer, stop=tools.stop_requested, make_room=other_job_waits
        )
        return run.run(tools.settings.sweep_seconds)


def sweep() -> None:
    """Flag the silent agents. With the database away there are no verdicts; the next sweep tries again."""
    with _open_tools() as tools, _report_database("sweep", "Verdicts wait", "verdicts continue"):
        run_sweep(tools.client, tools.engine, tools.settings)
        announce_next_due(tools.client, tools.engine)


def prune() -> None:
    """Delete rows that are older than their retention, for a while or until other jobs wait; the next one continues."""
    with _open_tools() as tools, _report_database("prune", "Old rows wait", "old rows are deleted"):
        stop = tools.stop_after(PRUNE_SECONDS, PRUNE_UNDISTURBED_SECONDS)
        cutoffs = Cutoffs.of(tools.engine, tools.settings, datetime.now(UTC))
        report = None if cutoffs is None else run_prune(tools.engine, cutoffs, stop=stop)
        with suppress(RedisError):  # away, or full: the job of the next minute continues then
            if report is not None and report.rows and not report.finished:
                tools.client.set(OLD_ROWS, 1, ex=OLD_ROWS_SECONDS)
            else:
                tools.client.delete(OLD_ROWS)


def notify() -> None:
    """Send the notifications that are due, for a while or until other jobs wait; the next one continues."""
    with _open_tools() as tools, _report_database("notify", "Notifications wait", "notifications continue"):
        stop = tools.stop_after(NOTIFY_SECONDS, NOTIFY_UNDISTURBED_SECONDS)
        run_notify(tools.engine, tools.settings.notify_urls, lambda: redis_now(tools.client), stop)
        announce_next_due(tools.client, tools.engine)


def refuse(reason: str) -> None:
    """Stand in for a job that isn't ours, so that it fails where people look for failed jobs."""
    raise RefusedJob(reason)


OURS = {f"{function.__module__}.{function.__name__}" for function in (ingest, sweep, notify, prune)}
"""What a job may name."""


@contextmanager
def sigterm_flag() -> Iterator[Callable[[], bool]]:
    """Make SIGTERM set a flag instead of ending the process, so that work in progress is finished; yield its reader."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, slots=True)
class _Tools:
    """What a job works with, made in the process that it runs in."""

    settings: Settings
    client: Redis
    engine: Engine
    stop_requested: Callable[[], bool]

    def stop_after(self, seconds: float, undisturbed_seconds: float) -> Callable[[], bool]:
        """Make the condition that ends a job: a request, its time is up, or after a shorter time other jobs wait."""
        started = time.monotonic()

        def stop() -> bool:
            worked = time.monotonic() - started
            return self.stop_requested() or worked >= seconds or (worked >= undisturbed_seconds and self._job_waits())

        return stop

    def _job_waits(self) -> bool:
        with suppress(RedisError):  # then no other job can be read
            return bool(read_waiting_ids(self.client))
        return False


@contextmanager
def _open_tools(*, flush_later: bool = False) -> Iterator[_Tools]:
    settings = Settings.from_environment(os.environ)
    client = connect_worker(settings)
    engine = open_engine(settings.sql_url, flush_later=flush_later)
    try:
        with sigterm_flag() as stop_requested:
            yield _Tools(settings, client, engine, stop_requested)
    finally:
        engine.dispose()
        client.close()


@contextmanager
def _report_database(role: str, what_waits: str, what_continues: str) -> Iterator[None]:
    """Report an unavailable database instead of failing the job."""
    problem = ProblemReporter("database", role)
    try:
        yield
    except DatabaseUnavailable as error:
        problem.report(f"{what_waits}: {error}")
    else:
        problem.resolve(f"The database is available again; {what_continues}.")
