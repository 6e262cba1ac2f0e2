"""The sweep job: judges the fleet every few seconds.

Verdicts are as of the watermark: everything received before it is in SQL. So an agent whose deadline is before the
watermark has no heartbeat that only waits to be stored. Ingest that is behind delays verdicts, and makes none false.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime

from redis import Redis
from redis.exceptions import OutOfMemoryError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.inbox import Inbox
from fleetbeat_worker.broker.lane import Lane
from fleetbeat_worker.broker.pulse import read_pulse
from fleetbeat_worker.broker.server import read_write_refusal, repair_keys
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.partitions import make_partitions
from fleetbeat_worker.ingest.lane import apply_lane
from fleetbeat_worker.sweep.transaction import SweepReport, judge_fleet
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import DEGRADED, SWEEP_SECONDS, SWEEPS, count, observe
from fleetbeat_worker.telemetry.problems import ProblemReporter

IDLE_CONSUMER_SECONDS = 600.0
"""After this time, a consumer that a dead worker left behind is removed."""
LOGGED_NAMES = 20
"""How many agents one line of the log names."""
LANE_ENTRIES = 1000
"""About how many registrations and ends a sweep applies at most: it must not be late for a flood of them."""


def sweep(
    client: Redis, engine: Engine, settings: Settings, *, periodic: bool = True, dry_run: bool = False
) -> SweepReport:
    """Apply what waits in the lane, then flag every agent whose deadline is before the watermark.

    `periodic`: a sweep by the workers, whose interval is stored; other sweeps may have another setting. With `dry_run`
    nothing is changed: the report has what would be.

    Raises redis-py's errors and DatabaseUnavailable.
    """
    with nullcontext() if dry_run else _counted():
        return _sweep(client, engine, settings, periodic=periodic, dry_run=dry_run)


@contextmanager
def _counted() -> Iterator[None]:
    started_at = time.monotonic()
    try:
        yield
    except BaseException:
        count(SWEEPS, 1, "failed")
        raise
    count(SWEEPS, 1, "done")
    observe(SWEEP_SECONDS, time.monotonic() - started_at)


def _sweep(client: Redis, engine: Engine, settings: Settings, *, periodic: bool, dry_run: bool) -> SweepReport:
    inbox = Inbox(client)
    problem, refused = ProblemReporter("refused", "sweep"), read_write_refusal(client)
    if refused is not None:
        # Nothing is stored of this sweep, so that the first one afterwards finds an outage.
        problem.report(f"Verdicts wait, as Redis refuses what agents send: {refused}")
        now = inbox.horizon().now
        if not dry_run:
            _make_partitions(engine, now)
        return SweepReport(now, watermark=None, outage_seconds=None, degraded=[], refused=refused)
    problem.resolve("Redis accepts what agents send again; verdicts go on.")
    repair_keys(client)
    if not dry_run:
        lane = Lane(client, "sweep")
        try:
            apply_lane(lane, client, engine, settings, min(lane.backlog(), LANE_ENTRIES))
        except SQLAlchemyError as error:  # it must not stand in the way of the verdicts
            logger.error("Registrations can't be applied", exc_info=error)
    # Redis first, SQL afterwards: whatever is committed in between can only make agents look more alive.
    pulse = read_pulse(client)
    account = inbox.account()  # before the time of this sweep, so that it is newer than those of earlier ones
    horizon = inbox.horizon()
    with writing(engine) as connection:
        report = judge_fleet(connection, horizon, account, settings, periodic=periodic, pulse=pulse)
        if dry_run:
            connection.rollback()
    if not dry_run:
        count(DEGRADED, len(report.degraded))
        _log(report)
        _clean_up(inbox, engine, horizon.now)
    return report


def _clean_up(inbox: Inbox, engine: Engine, now: datetime) -> None:
    """Maintain the inbox and the partitions, after the verdicts; what fails is tried again by the next sweep."""
    with suppress(OutOfMemoryError):  # a later sweep does it when there is room
        inbox.create_group()  # with the account, if there was none
    for stream in inbox.rebuild_if_in_future():
        logger.warning(
            "A stream was rebuilt: an agent had added an explicit id, and all later ids were in the future",
            extra={"stream": stream},
        )
    inbox.remove_idle_consumers(IDLE_CONSUMER_SECONDS)
    _make_partitions(engine, now)


def _make_partitions(engine: Engine, now: datetime) -> None:
    if engine.dialect.name != "postgresql":
        return
    try:
        with writing(engine) as connection:
            make_partitions(connection, now)
    except DatabaseUnavailable as error:
        # For example, a backup reads the default partition. Partitions are made some days ahead, so there is time.
        # If the database is away, the next job that needs it reports that under the same name, once.
        ProblemReporter("database", "sweep").report(f"Partitions can't be made now: {error}")


def _log(report: SweepReport) -> None:
    if report.outage_seconds is not None:
        fields = {"seconds": report.outage_seconds}
        logger.warning("Monitoring was interrupted; deadlines were moved by that time", extra=fields)
    if report.lost_backlog is not None:
        logger.warning(
            "Redis came back without the inbox, or with an older one; messages that waited in it may be lost",
            extra={"waited_at_last_sweep": report.lost_backlog},
        )
    if report.trimmed:
        logger.warning(
            "Messages were removed from the inbox before they were stored; some agent trims it with its XADD",
            extra={"count": report.trimmed},
        )
    for names, message in (
        (report.degraded, "Agents are degraded"),
        (report.unjudged, "Agents can't be judged"),
    ):
        if names:
            logger.warning(message, extra={"count": len(names), "agents": names[:LOGGED_NAMES]})
