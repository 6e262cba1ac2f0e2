"""`fleetbeat worker`: the processes that do the work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing

import click

from fleetbeat_shared.connection import connect, place, redis_errors
from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker import rq_queue
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.broker.rq_queue import count_workers
from fleetbeat_worker.broker.server import redis_now
from fleetbeat_worker.cli.options import asked_to_stop, common_options, example, metrics_options, pool_options
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.notifications.job import notify
from fleetbeat_worker.rules.backoff import backoff
from fleetbeat_worker.sweep.job import sweep
from fleetbeat_worker.telemetry.exporter import Exporter
from fleetbeat_worker.telemetry.log import logger, set_up
from fleetbeat_worker.telemetry.problems import Complaint
from fleetbeat_worker.workers.autoscale import Bounds
from fleetbeat_worker.workers.pool import Pool

LOOK_SECONDS = 1.0
BURST_LOOK_SECONDS = 0.1


@click.command(
    epilog=example(
        "fleetbeat worker -n 2",
        "fleetbeat worker --autoscale 1:8",
        "fleetbeat worker --burst",
        "fleetbeat worker -n 4 --metrics-port 9180",
    )
)
@pool_options
@click.option("--burst", is_flag=True, help="Store what is in the inbox now, sweep once, send what is due, and exit.")
@common_options
@metrics_options
def worker(*, settings: Settings, workers: int, bounds: Bounds, burst: bool) -> None:
    """Run RQ workers and a dispatcher until Ctrl-C or SIGTERM.

    Redis or the database may be away, at the start or later: the workers wait for them and say so.
    While they run, fleetbeat workers scale changes how many they are.
    """
    set_up(settings.log_level)
    # A URL that is none of Redis's ends us here, with its name; each child would fail at it again and again.
    connect(settings.redis_url, timeout_seconds=rq_queue.WORKER_TIMEOUT_SECONDS).close()
    check_notify_urls(settings)
    settings.export(os.environ)  # for the jobs, which read their settings where they run
    asked = asked_to_stop()
    exporter = open_exporter(settings)
    prepare_database(settings, asked)
    if not asked():
        logger.info("Workers run", extra={"workers": workers, "redis": place(settings.redis_url)})
        run_pool(settings, Pool(settings, workers, bounds, exporter), burst=burst, asked=asked)
        logger.info("Workers ended")


def check_notify_urls(settings: Settings) -> None:
    """Make sure that notifications can be sent where the settings say. Raises SettingsError."""
    if settings.notify_urls.strip():
        from fleetbeat_worker.notifications.apprise_sender import (
            check_targets,  # it brings Apprise, for who sends something
        )

        check_targets(settings.notify_urls)


def open_exporter(settings: Settings) -> Exporter | None:
    """Return the exporter that the settings ask for, if they do. Raises FleetbeatError when it can't have its port."""
    if settings.metrics_port is None:
        return None
    from fleetbeat_worker.fleet.gauges import Sources
    from fleetbeat_worker.telemetry.exporter import (
        Exporter,  # it brings an HTTP server, which other workers needn't hold
    )

    return Exporter(settings, settings.metrics_port, lambda settings: Sources(settings).read)


def prepare_database(settings: Settings, asked: Callable[[], bool]) -> None:
    """Wait until the database can be used, and make sure of its schema.

    Raises SchemaOutdated, SettingsError.
    """
    complaint = Complaint("database", "parent")
    pauses = backoff(0.1, 5.0)
    while not asked():
        engine = open_engine(settings.sql_url)
        try:
            schema.prepare(engine)
        except DatabaseUnavailable as error:
            complaint.trouble(f"{error} Workers wait for it.")
            time.sleep(next(pauses))
        else:
            complaint.over("The database is there.")
            return
        finally:
            engine.dispose()


def run_pool(settings: Settings, pool: Pool, *, burst: bool, asked: Callable[[], bool]) -> None:
    """Run a pool until asked to stop, or until the inbox is drained."""
    pool.start()
    drained = _drained(settings) if burst else lambda: False
    while not asked() and not drained():
        pool.look_after(BURST_LOOK_SECONDS if burst else LOOK_SECONDS)
    pool.stop()
    if burst and not asked():
        _end_burst(settings)


def _drained(settings: Settings) -> Callable[[], bool]:
    """Return what tells whether the inbox is empty through the last message that stood in it at the first look."""
    last_id: list[str | None] = []

    def drained() -> bool:
        from redis.exceptions import RedisError

        try:
            # A client for each look: the pool may fork between two.
            with closing(connect(settings.redis_url, timeout_seconds=rq_queue.WORKER_TIMEOUT_SECONDS)) as client:
                inbox = Inbox(client)
                if not last_id:
                    last_id.append(inbox.last_id())
                return last_id[0] is None or not inbox.holds_through(last_id[0])
        except (RedisError, OSError):
            return False  # the dispatcher tells about it

    return drained


def _end_burst(settings: Settings) -> None:
    """Sweep, tell people, and leave no job behind that the dispatcher enqueued in its last moments."""
    engine = open_engine(settings.sql_url)
    try:
        client = connect(settings.redis_url, timeout_seconds=rq_queue.WORKER_TIMEOUT_SECONDS)
        with closing(client), redis_errors(settings.redis_url):
            sweep(client, engine, settings)
            while notify(engine, settings.notify_urls, lambda: redis_now(client)).sent:
                pass  # a portion at a time
            if not count_workers(client):
                rq_queue.withdraw(client)
    finally:
        engine.dispose()
