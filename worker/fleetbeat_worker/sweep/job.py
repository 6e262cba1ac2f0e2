"""The job that finds the silent agents.

Every verdict is taken as of the watermark: what was received before it is in SQL, so an agent whose deadline lies
before it can have no heartbeat that somebody merely hasn't read yet. Workers that are behind delay verdicts and invent
none.
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
from fleetbeat_worker.broker.pulse import read_pulse
from fleetbeat_worker.broker.server import refusal, remove_foreign
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.partitions import make_partitions
from fleetbeat_worker.ingest.transaction import put_right, put_right_within
from fleetbeat_worker.store.pipeline import stored_pipeline
from fleetbeat_worker.sweep.transaction import SweepReport, decide
from fleetbeat_worker.telemetry.log import logger
from fleetbeat_worker.telemetry.metrics import DEGRADED, SWEEP_SECONDS, SWEEPS, count, observe
from fleetbeat_worker.telemetry.problems import Complaint

FORGOTTEN_CONSUMER_SECONDS = 600.0
"""After this time, a consumer that a dead worker left behind is removed."""


def sweep(
    client: Redis, engine: Engine, settings: Settings, *, periodic: bool = True, dry_run: bool = False
) -> SweepReport:
    """Put right what was overtaken, then flag every agent whose deadline lies before the watermark.

    `periodic` is one of the workers' own, which write down their interval; others may have been started with another.
    With `dry_run` nothing is changed: the report says what would be.

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
    complaint, refused = Complaint("refused", "sweep"), refusal(client)
    if refused is not None:
        # As if this sweep hadn't been: the time in which nobody can be heard is an outage to the first one afterwards.
        complaint.trouble(f"Verdicts wait, as Redis refuses what agents send: {refused}")
        now = inbox.horizon().now
        if not dry_run:
            _make_partitions(engine, now)
        return SweepReport(now, watermark=None, outage_seconds=None, degraded=[], refused=refused)
    complaint.over("Redis takes again what agents send; verdicts go on.")
    remove_foreign(client)
    # Redis first, SQL afterwards: whatever is committed in between can only make agents look more alive.
    pulse = read_pulse(client)
    account = inbox.account()  # before the time of this sweep, so that it is newer than those of earlier ones
    horizon = inbox.horizon()
    if not dry_run:
        # After Redis, too: a registration that is stored in between holds back the watermark, or is found here.
        try:
            put_right(engine, client, horizon.now, settings)
        except SQLAlchemyError as error:  # it must not stand in the way of the verdicts
            logger.error("What overtook its registration can't be put right", exc_info=error)
    with writing(engine) as connection:
        if dry_run:
            stored_pipeline(connection, lock=True)  # first, as sweeps do: else one could wait for this one in a circle
            put_right_within(connection, horizon.now, settings)
        report = decide(connection, horizon, account, settings, periodic=periodic, pulse=pulse)
        if dry_run:
            connection.rollback()
    if not dry_run:
        count(DEGRADED, len(report.degraded))
        _tell(report)
        _keep_house(inbox, engine, horizon.now)
    return report


def _keep_house(inbox: Inbox, engine: Engine, now: datetime) -> None:
    """Do what has time: it comes after the verdicts, and what fails is tried again by the next sweep."""
    with suppress(OutOfMemoryError):  # then it has time until there is room
        inbox.create_group()  # with the account, if there was none
    if inbox.rebuild_if_in_future():
        logger.warning("The inbox's ids lay in the future, where some agent's explicit id put them; it was made anew")
    inbox.remove_idle_consumers(FORGOTTEN_CONSUMER_SECONDS)
    _make_partitions(engine, now)


def _make_partitions(engine: Engine, now: datetime) -> None:
    if engine.dialect.name != "postgresql":
        return
    try:
        with writing(engine) as connection:
            make_partitions(connection, now)
    except DatabaseUnavailable as error:
        # A backup that reads the default partition is in the way, say. There are some days' partitions in reserve.
        # If the database is gone, whoever meets that next shall not tell it once more.
        Complaint("database", "sweep").trouble(f"Partitions can't be made now: {error}")


def _tell(report: SweepReport) -> None:
    if report.outage_seconds is not None:
        logger.warning("Nobody watched for a time; the deadlines were moved", extra={"seconds": report.outage_seconds})
    if report.lost_backlog is not None:
        logger.warning(
            "Redis came back without the inbox, or with an older one; what waited in it may be lost",
            extra={"waited_at_last_sweep": report.lost_backlog},
        )
    if report.trimmed:
        logger.warning(
            "Messages were removed from the inbox before they were in SQL; some agent trims it with its XADD",
            extra={"count": report.trimmed},
        )
    if report.degraded:
        shown = report.degraded[:20]
        logger.warning("Agents are degraded", extra={"count": len(report.degraded), "agents": shown})
    if report.unjudged:
        shown = report.unjudged[:20]
        logger.warning("Agents can't be judged", extra={"count": len(report.unjudged), "agents": shown})
