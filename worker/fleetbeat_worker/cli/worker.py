"""`fleetbeat worker`: a pool of RQ workers with its dispatcher."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

import click

from fleetbeat_shared.connection import place, redis_errors
from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.broker.rq_queue import count_workers, remove_waiting_jobs
from fleetbeat_worker.broker.server import connect_worker, redis_now
from fleetbeat_worker.cli.options import asked_to_stop, example, metrics_options, pool_options, url_options
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.engine import open_engine
from fleetbeat_worker.notifications.job import notify
from fleetbeat_worker.rules.backoff import backoff
from fleetbeat_worker.sweep.job import sweep
from fleetbeat_worker.telemetry.log import logger, set_up
from fleetbeat_worker.telemetry.problems import ProblemReporter
from fleetbeat_worker.workers.autoscale import Bounds
from fleetbeat_worker.workers.pool import Pool

if TYPE_CHECKING:
    from fleetbeat_worker.telemetry.exporter import Exporter  # it imports an HTTP server

POLL_SECONDS = 1.0
"""How often the pool is looked after."""

BURST_POLL_SECONDS = 0.1


@click.command(
    epilog=example(
        "fleetbeat worker -n 2",
        "fleetbeat worker --autoscale 1:8",
        "fleetbeat worker --burst",
        "fleetbeat worker -n 4 --metrics-port 9180",
    )
)
@pool_options
@click.option(
    "--burst", is_flag=True, help="Store what is in the inbox now, sweep once, send due notifications, and exit."
)
@url_options
@metrics_options
def worker(*, settings: Settings, workers: int, bounds: Bounds, burst: bool) -> None:
    """Run RQ workers and a dispatcher until Ctrl-C or SIGTERM.

    Redis or the database may be unavailable, at the start or later: the workers log that and wait. While they run,
    `fleetbeat workers scale` changes their number.
    """
    set_up(settings.log_level)
    # An invalid URL is reported here once; otherwise each child would fail with it again and again.
    connect_worker(settings).close()
    check_notify_urls(settings)
    settings.export(os.environ)  # for the jobs, which read their settings where they run
    stop_asked = asked_to_stop()
    exporter = open_exporter(settings)
    prepare_database(settings, stop_asked)
    if not stop_asked():
        logger.info("Workers started", extra={"workers": workers, "redis": place(settings.redis_url)})
        _run_pool(settings, Pool(settings, workers, bounds, exporter), burst=burst, stop_asked=stop_asked)
        logger.info("Workers stopped")


def check_notify_urls(settings: Settings) -> None:
    """Check that notifications can be sent to the targets of the settings. Raises SettingsError."""
    if settings.notify_urls.strip():
        from fleetbeat_worker.notifications.apprise_sender import check_targets  # imports Apprise: only if needed

        check_targets(settings.notify_urls)


def open_exporter(settings: Settings) -> Exporter | None:
    """Open the metrics exporter if the settings ask for one. Raises FleetbeatError when its port can't be used."""
    if settings.metrics_port is None:
        return None
    from fleetbeat_worker.fleet.gauges import Sources
    from fleetbeat_worker.telemetry.exporter import Exporter

    return Exporter(settings, settings.metrics_port, lambda settings: Sources(settings).read)


def prepare_database(settings: Settings, stop_asked: Callable[[], bool]) -> None:
    """Wait until the database can be used, and create or check its schema. Raises SchemaOutdated, SettingsError."""
    problem = ProblemReporter("database", "parent")
    pauses = backoff(0.1, 5.0)
    while not stop_asked():
        engine = open_engine(settings.sql_url)
        try:
            schema.prepare(engine)
        except DatabaseUnavailable as error:
            problem.report(f"{error} Workers wait for it.")
            time.sleep(next(pauses))
        else:
            problem.resolve("The database is available.")
            return
        finally:
            engine.dispose()


def _run_pool(settings: Settings, pool: Pool, *, burst: bool, stop_asked: Callable[[], bool]) -> None:
    """Run a pool until asked to stop; in a burst, until the inbox is drained."""
    pool.start()
    is_drained = _make_drain_check(settings) if burst else lambda: False
    while not stop_asked() and not is_drained():
        pool.supervise(BURST_POLL_SECONDS if burst else POLL_SECONDS)
    pool.stop()
    if burst and not stop_asked():
        _end_burst(settings)


def _make_drain_check(settings: Settings) -> Callable[[], bool]:
    """Make a function that tells whether inbox and lane are drained, as far as they went at its first call."""
    last_ids: list[dict[str, str]] = []

    def is_drained() -> bool:
        from redis.exceptions import RedisError

        try:
            # A client for each call: the pool may fork between two.
            with closing(connect_worker(settings)) as client:
                inbox = Inbox(client)
                if not last_ids:
                    last_ids.append(inbox.last_ids())
                return not inbox.holds_through(last_ids[0])
        except (RedisError, OSError):
            return False  # the dispatcher logs it

    return is_drained


def _end_burst(settings: Settings) -> None:
    """Sweep, send the due notifications, and withdraw the jobs that the dispatcher enqueued last."""
    engine = open_engine(settings.sql_url)
    try:
        client = connect_worker(settings)
        with closing(client), redis_errors(settings.redis_url):
            sweep(client, engine, settings)
            while notify(engine, settings.notify_urls, lambda: redis_now(client)).sent:
                pass  # one call sends a limited number
            if not count_workers(client):
                remove_waiting_jobs(client)
    finally:
        engine.dispose()
