"""The job that finds the silent agents.

Every verdict is taken as of the watermark: what was received before it is in SQL, so an agent whose deadline lies
before it can have no heartbeat that somebody merely hasn't read yet. Workers that are behind delay verdicts and invent
none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from redis import Redis
from redis.exceptions import OutOfMemoryError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from fleetbeat_shared.errors import DatabaseUnavailable
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Account
from fleetbeat_worker.broker.foreign import remove_foreign
from fleetbeat_worker.broker.inbox import Horizon, Inbox
from fleetbeat_worker.broker.pulse import Pulse, read_pulse, refusal
from fleetbeat_worker.database.engine import writing
from fleetbeat_worker.database.partitions import make_partitions
from fleetbeat_worker.ingest.transaction import put_right, put_right_within
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.spans import Span, from_milliseconds, to_milliseconds
from fleetbeat_worker.rules.sweep_gaps import OVERTAKEN_SECONDS, is_turned_back, last_look, longest_gap_seconds
from fleetbeat_worker.store.pipeline import StoredPipeline, stored_pipeline, write_pipeline
from fleetbeat_worker.sweep.changes import make_changes
from fleetbeat_worker.sweep.clock_repair import rewind
from fleetbeat_worker.sweep.queries import record
from fleetbeat_worker.telemetry.log import Complaint, logger
from fleetbeat_worker.telemetry.metrics import DEGRADED, SWEEP_SECONDS, SWEEPS, count, observe

FORGOTTEN_CONSUMER_SECONDS = 600.0
"""After this time, a consumer that a dead worker left behind is removed."""

NO_PULSE = Pulse()


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
    stuck: list[str] = field(default_factory=list)
    """Names of those that were found stuck."""
    unjudged: list[str] = field(default_factory=list)
    """Names of those that were set aside, as they can't be judged."""
    trimmed: int = 0
    """How many messages were removed from the inbox by others than the workers, since the last sweep."""
    lost_backlog: int | None = None
    """If Redis came back without the inbox: how many messages waited in it at the last sweep."""
    resumed: list[str] = field(default_factory=list)
    """Names of the agents whose pause was over."""
    maintenance_since: datetime | None = None
    """Since when there is maintenance, in which nobody is flagged."""
    refused: str | None = None
    """Why Redis refuses what agents send, so that nobody can be judged."""

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


def decide(  # noqa: PLR0913 - what was seen of Redis, and by whom
    connection: Connection,
    horizon: Horizon,
    account: Account,
    settings: Settings,
    *,
    periodic: bool,
    pulse: Pulse = NO_PULSE,
) -> SweepReport:
    """Flag who is silent as of the watermark, by what was seen of Redis; all of it in one transaction."""
    last = stored_pipeline(connection, lock=True)
    if is_turned_back(last.last_sweep_at, horizon.now):
        logger.warning("Redis's clock was turned back; what it says is later than now counts as of now")
        rewind(connection, horizon.now, settings.missed_intervals)
        last = replace(last, watermark=None)  # else verdicts would be of a time that hasn't come
    known = [moment for moment in (horizon.watermark, last.watermark) if moment is not None]
    watermark = max(known, default=None)
    interval = settings.sweep_seconds if periodic else max(settings.sweep_seconds, last.sweep_seconds or 0)
    gap = outage_between(last.last_sweep_at, horizon.now, interval)
    outage = (last.last_sweep_at, horizon.now) if gap is not None and last.last_sweep_at is not None else None
    gaps: list[Span] = []
    pulse = pulse.known_by(last.pulse_at)
    if last.last_sweep_at is not None:
        longest = round(longest_gap_seconds(interval) * 1000)
        since = last.last_sweep_at
        if since > horizon.now:  # a sweep overtook this one, or the clock was set back: what is known counts once
            since = horizon.now - timedelta(seconds=OVERTAKEN_SECONDS)
        gaps = pulse.unheard(to_milliseconds(since), to_milliseconds(horizon.now), longest)
    # As of what this sweep saw: how far one before it knew says nothing of what waits, once the clock was turned back.
    changes, stored = make_changes(connection, last, outage, gaps, horizon, settings)
    now = replace(stored, watermark=watermark, last_sweep_at=last_look(last.last_sweep_at, horizon.now))
    if pulse.at is not None:
        now = replace(now, pulse_at=from_milliseconds(pulse.at))
    if periodic:
        now = replace(now, sweep_seconds=settings.sweep_seconds)
    trimmed, lost_backlog = 0, None
    # Another sweep may have got here first, with an account that was read later.
    if account.life is not None and (last.last_sweep_at is None or account.read_at > last.last_sweep_at):
        now = replace(now, inbox_life=account.life, inbox_lost=account.lost, inbox_backlog=horizon.backlog)
        trimmed, lost_backlog = losses(last, account)
        _record_losses(connection, trimmed, lost_backlog, horizon.now)
    write_pipeline(connection, now)
    return SweepReport(
        swept_at=horizon.now,
        watermark=watermark,
        outage_seconds=gap.total_seconds() if gap else None,
        degraded=changes.degraded,
        stuck=changes.named(NoticeKind.STUCK),
        unjudged=changes.unjudged,
        trimmed=trimmed,
        lost_backlog=lost_backlog,
        resumed=changes.resumed,
        maintenance_since=changes.maintenance_since,
    )


def losses(last: StoredPipeline, account: Account) -> tuple[int, int | None]:
    """Return how many messages were trimmed since the last sweep; and if all were lost, how many had waited then."""
    if last.inbox_life is None or last.inbox_lost is None:
        return 0, None  # whatever happened before anybody looked
    if account.life != last.inbox_life:
        return max(0, account.lost), last.inbox_backlog or 0
    if account.lost < last.inbox_lost:  # within one life that can't be: the stream was deleted, or is one of before
        return 0, last.inbox_backlog or 0
    return account.lost - last.inbox_lost, None


def _record_losses(connection: Connection, trimmed: int, lost_backlog: int | None, now: datetime) -> None:
    if lost_backlog is not None:
        record(connection, EventType.INBOX_LOST, now, {"messages_waited": lost_backlog})
    if trimmed:
        record(connection, EventType.INBOX_TRIMMED, now, {"messages_lost": trimmed})


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


def outage_between(last_sweep_at: datetime | None, now: datetime, sweep_seconds: float) -> timedelta | None:
    """Return the time between two sweeps if it is long enough to be an outage."""
    if last_sweep_at is None:
        return None
    gap = now - last_sweep_at
    return gap if gap.total_seconds() > longest_gap_seconds(sweep_seconds) else None


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
