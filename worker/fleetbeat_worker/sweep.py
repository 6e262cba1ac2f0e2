"""The job that finds the silent agents.

Every verdict is taken as of the watermark: what was received before it is in SQL, so an agent whose deadline lies
before it can have no heartbeat that somebody merely hasn't read yet. Workers that are behind delay verdicts and invent
none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_worker.database import writing
from fleetbeat_worker.inbox import Inbox
from fleetbeat_worker.log import logger
from fleetbeat_worker.partitions import make_partitions
from fleetbeat_worker.store.verdicts import find_due, flag, lock_pipeline, record_outage, write_pipeline
from fleetbeat_worker.transactions import put_right

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Connection, Engine

    from fleetbeat_shared.settings import Settings
    from fleetbeat_worker.inbox import Horizon

OUTAGE_SECONDS = 30.0
OUTAGE_SWEEPS = 3
"""A gap between two sweeps is an outage when it is longer than both: 30 s, and three times the sweep's interval."""

FORGOTTEN_CONSUMER_SECONDS = 600.0
"""After this time, a consumer that a dead worker left behind is removed."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did."""

    swept_at: datetime
    """Redis's time."""
    watermark: datetime | None
    """As of when the verdicts are; None when nothing has ever been known."""
    outage_seconds: float | None
    """How long nobody had watched, if it was long enough to matter."""
    degraded: list[str]
    """Names of the agents that were flagged."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as `--json` prints it."""
        return asdict(self)


def sweep(
    client: Redis, engine: Engine, settings: Settings, *, periodic: bool = True, dry_run: bool = False
) -> SweepReport:
    """Put right what was overtaken, then flag every agent whose deadline lies before the watermark.

    `periodic` is one of the workers' own, which write down their interval; others may have been started with another.
    With `dry_run` nothing is changed: the report says what would be.

    Raises redis-py's errors and DatabaseUnavailable.
    """
    inbox = Inbox(client)
    if not dry_run:
        try:
            put_right(engine, client, inbox.horizon().now, settings)
        except SQLAlchemyError as error:  # it must not stand in the way of the verdicts
            logger.error("What overtook its registration can't be put right", exc_info=error)
    # Redis first, SQL afterwards: whatever is committed in between can only make agents look more alive.
    horizon = inbox.horizon()
    with writing(engine) as connection:
        report = _decide(connection, horizon, settings, periodic=periodic)
        if dry_run:
            connection.rollback()
    if not dry_run:
        _tell(report)
        _keep_house(inbox, engine, horizon.now)
    return report


def _decide(connection: Connection, horizon: Horizon, settings: Settings, *, periodic: bool) -> SweepReport:
    last = lock_pipeline(connection)
    known = [moment for moment in (horizon.watermark, last.watermark) if moment is not None]
    watermark = max(known, default=None)
    interval = settings.sweep_seconds if periodic else max(settings.sweep_seconds, last.sweep_seconds or 0)
    gap = outage_between(last.last_sweep_at, horizon.now, interval)
    if gap is not None and last.last_sweep_at is not None:
        record_outage(connection, last.last_sweep_at, horizon.now)
    due = find_due(connection, watermark) if watermark is not None else []
    if watermark is not None:
        flag(connection, due, watermark, horizon.now)
    write_pipeline(connection, watermark, horizon.now, settings.sweep_seconds if periodic else last.sweep_seconds)
    return SweepReport(
        swept_at=horizon.now,
        watermark=watermark,
        outage_seconds=gap.total_seconds() if gap else None,
        degraded=[agent.agent_name for agent in due],
    )


def _keep_house(inbox: Inbox, engine: Engine, now: datetime) -> None:
    """Do what has time: it comes after the verdicts, and what fails is tried again by the next sweep."""
    if inbox.rebuild_if_in_future():
        logger.warning("The inbox's ids lay in the future, where some agent's explicit id put them; it was made anew")
    inbox.remove_idle_consumers(FORGOTTEN_CONSUMER_SECONDS)
    try:
        with writing(engine) as connection:
            make_partitions(connection, now)
    except DatabaseUnavailable as error:
        # A backup that reads the default partition is in the way, say. There are some days' partitions in reserve.
        logger.warning("Partitions can't be made now: %s", error)


def outage_between(last_sweep_at: datetime | None, now: datetime, sweep_seconds: float) -> timedelta | None:
    """Return the time between two sweeps if it is long enough to be an outage."""
    if last_sweep_at is None:
        return None
    gap = now - last_sweep_at
    longest = timedelta(seconds=max(OUTAGE_SECONDS, OUTAGE_SWEEPS * sweep_seconds))
    return gap if gap > longest else None


def _tell(report: SweepReport) -> None:
    if report.outage_seconds is not None:
        logger.warning("Nobody watched for a time; the deadlines were moved", extra={"seconds": report.outage_seconds})
    if report.degraded:
        shown = report.degraded[:20]
        logger.warning("Agents are degraded", extra={"count": len(report.degraded), "agents": shown})
