"""The functions that RQ jobs may name. A job carries no arguments: settings come from the environment.

This module is imported before a worker forks, and it imports what the jobs need, so that no job pays for imports.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from redis import Redis
from redis.exceptions import RedisError
from rq import get_current_job
from sqlalchemy import Engine

from fleetbeat_shared.connection import connect
from fleetbeat_shared.errors import DatabaseUnavailable, FleetbeatError
from fleetbeat_shared.redis_keys import OLD_ROWS
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.rq_queue import WORKER_TIMEOUT_SECONDS, waiting_ids
from fleetbeat_worker.broker.server import redis_now
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.ingest.job import Ingest
from fleetbeat_worker.notifications.due import announce_next_due
from fleetbeat_worker.notifications.job import notify as run_notify
from fleetbeat_worker.retention.job import Cutoffs, prune as run_prune
from fleetbeat_worker.sweep.job import sweep as run_sweep
from fleetbeat_worker.telemetry.problems import Complaint

PRUNE_SECONDS = 30.0
"""How long one job prunes at most; the next one goes on."""
PRUNE_UNDISTURBED_SECONDS = 0.5
"""For how long it lets others wait: a worker that is never idle would prune nothing otherwise."""
OLD_ROWS_SECONDS = 600
"""How long it is known that old rows are left, if no job runs any more."""


NOTIFY_SECONDS = 60.0
"""How long one job sends at most. Those that it didn't come to are sent by the next one."""
NOTIFY_UNDISTURBED_SECONDS = 2.0
"""For how long it lets others wait, and as long again as what it sends at this moment takes."""


class RefusedJob(FleetbeatError):
    """Somebody enqueued a job that isn't ours; it was not run."""

    code = "refused_job"


def ingest() -> int:
    """Move messages from the inbox to SQL; return how many."""
    with _tools(flush_later=True) as (settings, client, engine), _asked_to_stop() as asked:
        job = get_current_job()
        consumer = (job and job.worker_name) or f"process-{os.getpid()}"
        # Not for another ingest job: it would do what this one does.
        waits = lambda: any(not job_id.startswith(b"ingest-") for job_id in waiting_ids(client))  # noqa: E731 - one look
        run = Ingest(client, engine, settings, consumer, stop=asked, make_room=waits)
        return run.run(settings.sweep_seconds)


def sweep() -> None:
    """Flag the silent agents. With the database away there are no verdicts; the next sweep tries again."""
    with _tools() as (settings, client, engine), _asked_to_stop():
        complaint = Complaint("database", "sweep")
        try:
            run_sweep(client, engine, settings)
            announce_next_due(client, engine)
        except DatabaseUnavailable as error:
            complaint.trouble(f"Verdicts wait: {error}")
        else:
            complaint.over("The database can be used again; verdicts go on.")


def prune() -> None:
    """Remove what is older than its age, for a while, and until other work waits; the next one goes on."""
    with _tools() as (settings, client, engine), _asked_to_stop() as asked:
        complaint = Complaint("database", "prune")
        started = time.monotonic()

        def stop() -> bool:
            worked = time.monotonic() - started
            return (
                asked() or worked >= PRUNE_SECONDS or bool(worked >= PRUNE_UNDISTURBED_SECONDS and waiting_ids(client))
            )

        try:
            cutoffs = Cutoffs.of(engine, settings, datetime.now(UTC))
            report = None if cutoffs is None else run_prune(engine, cutoffs, stop=stop)
            with suppress(RedisError):  # away, or full: the next minute's job goes on then
                if report is not None and report.rows and not report.finished:
                    client.set(OLD_ROWS, 1, ex=OLD_ROWS_SECONDS)
                else:
                    client.delete(OLD_ROWS)
        except DatabaseUnavailable as error:
            complaint.trouble(f"Old rows wait: {error}")
        else:
            complaint.over("The database can be used again; old rows go.")


def notify() -> None:
    """Send the notifications that are due, for a while, and until other work waits; the next one goes on."""
    with _tools() as (settings, client, engine), _asked_to_stop() as asked:
        complaint = Complaint("database", "notify")
        started = time.monotonic()

        def stop() -> bool:
            worked = time.monotonic() - started
            return asked() or worked >= NOTIFY_SECONDS or bool(worked >= NOTIFY_UNDISTURBED_SECONDS and _waits(client))

        try:
            run_notify(engine, settings.notify_urls, lambda: redis_now(client), stop)
            announce_next_due(client, engine)
        except DatabaseUnavailable as error:
            complaint.trouble(f"Notifications wait: {error}")
        else:
            complaint.over("The database can be used again; notifications go on.")


def _waits(client: Redis) -> bool:
    try:
        return bool(waiting_ids(client))
    except RedisError:
        return False  # then nobody can be waited for


def refuse(why: str) -> None:
    """Stand in for a job that isn't ours, so that it fails where people look for failed jobs."""
    raise RefusedJob(why)


OURS = {f"{function.__module__}.{function.__name__}" for function in (ingest, sweep, notify, prune)}
"""What a job may name."""


@contextmanager
def _tools(*, flush_later: bool = False) -> Iterator[tuple[Settings, Redis, Engine]]:
    """Make what a job works with, in the process that it runs in."""
    settings = Settings.from_environment(os.environ)
    client = connect(settings.redis_url, timeout_seconds=WORKER_TIMEOUT_SECONDS)
    engine = open_engine(settings.sql_url, flush_later=flush_later)
    try:
        yield settings, client, engine
    finally:
        engine.dispose()
        client.close()


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM set a flag that is looked at between batches, instead of killing the process in one."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)
