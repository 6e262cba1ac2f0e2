"""TODO."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Account
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.broker.pulse import Pulse
from fleetbeat_worker.downtime.maintenance import MaintenanceState, note_maintenance, read_unwatched
from fleetbeat_worker.downtime.outages import read_outages, record_gaps, record_outage
from fleetbeat_worker.downtime.pauses import resume_due
from fleetbeat_worker.notifications.notice import NAMED, Notice, Who, agent_notice, fleet_notice
from fleetbeat_worker.notifications.outbox import put
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.spans import Span, from_milliseconds, to_milliseconds
from fleetbeat_worker.rules.sweep_gaps import (
    OVERTAKEN_SECONDS,
    is_turned_back,
    last_look,
    longest_gap_seconds,
    outage_between,
)
from fleetbeat_worker.store.events import record, record_all
from fleetbeat_worker.store.pipeline import StoredPipeline, stored_pipeline, write_pipeline
from fleetbeat_worker.store.sessions import mark, names_of
from fleetbeat_worker.sweep.anomalies import find_calm, find_stuck
from fleetbeat_worker.sweep.clock_repair import rewind
from fleetbeat_worker.sweep.incidents import end_incident
from fleetbeat_worker.sweep.overdue import find_reminders, flag_silent, judge_due, spare
from fleetbeat_worker.sweep.queries import Due, count_unjudged
from fleetbeat_worker.telemetry.log import logger

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


WHY_CHARACTERS = 500
"""How much of the reason is kept for which an agent can't be judged."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a sweep changed."""

    degraded: list[str] = field(default_factory=list)
    """Names of the agents that were flagged."""
    told: list[Notice] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    """Names of the agents that were set aside."""
    resumed: list[str] = field(default_factory=list)
    """Names of the agents whose pause was over."""
    maintenance_since: datetime | None = None
    """Since when there is maintenance, in which nobody is flagged."""

    def named(self, kind: NoticeKind) -> list[str]:
        """Return the agents that are told of by themselves with notices of a kind."""
        return [notice.agent_name or "" for notice in self.told if notice.kind is kind]


def make_changes(  # noqa: PLR0913, PLR0917 - all that a sweep goes by
    connection: Connection,
    last: StoredPipeline,
    outage: tuple[datetime, datetime] | None,
    gaps: Sequence[Span],
    horizon: Horizon,
    settings: Settings,
) -> tuple[Changes, StoredPipeline]:
    """Move deadlines over an outage, flag who is silent, find what else changed, and lay down what is told of it.

    `last` is what the last sweep knew of the pipeline, `horizon` how far this one knows; in `gaps`, shorter than an
    outage, nobody could be heard. Return also what is known now.
    """
    watermark, now = horizon.watermark, horizon.now
    notices = []
    degraded: list[str] = []
    set_aside: list[str] = []
    if outage is not None:
        notices.append(fleet_notice(NoticeKind.OUTAGE, now, record_outage(connection, *outage)))
    else:  # after an outage most agents are locked: an incident may end a sweep later
        notices += end_incident(connection, now)
        record_gaps(connection, gaps)
    resumed = [agent.agent_name for agent in resume_due(connection, now, settings.missed_intervals)]
    maintenance, known = note_maintenance(connection, last, now)
    if watermark is not None and maintenance.running is None:
        judged = judge_due(connection, watermark)
        if judged.due:
            judged.due = _spare(connection, judged.due, maintenance, horizon, settings)
        degraded = [agent.agent_name for agent in judged.due]
        notices += flag_silent(connection, judged.due, watermark, now, horizon.backlog, settings)
        notices += find_reminders(connection, last, watermark, settings)
        calm, unjudged = find_calm(connection, now, settings, {agent.session_id for agent in judged.due})
        notices += calm
        notices += find_stuck(connection, watermark, now, maintenance, settings)
        set_aside, told = _set_aside(connection, judged.unjudged | unjudged, now)
        notices += told
    put(connection, notices, to_milliseconds(now))
    since = maintenance.running.starts_at if maintenance.running else None
    unjudged_agents = count_unjudged(connection)
    return Changes(degraded, notices, set_aside, resumed, since), replace(known, unjudged=unjudged_agents)


def _spare(
    connection: Connection, due: list[Due], maintenance: MaintenanceState, horizon: Horizon, settings: Settings
) -> list[Due]:
    """Return who is due still when all is counted that nobody wrote to its deadline yet."""
    oldest, cleared_at = min(agent.since for agent in due), maintenance.cleared_at
    nothing_since = cleared_at is None or oldest >= cleared_at
    if horizon.watermark is None or (nothing_since and not read_outages(connection, oldest)):
        return due
    unwatched = read_unwatched(connection, maintenance, horizon.now)
    return spare(connection, due, unwatched, horizon.watermark, settings.missed_intervals)


def _set_aside(connection: Connection, unjudged: Mapping[UUID, str], now: datetime) -> tuple[list[str], list[Notice]]:
    """Leave agents out of later sweeps, until a registration or a heartbeat can be judged.

    Return their names, and what is told of it. Those for which the reason is the same are told of as one: a machine
    without time zones has many.
    """
    by_reason: dict[str, list[Who]] = defaultdict(list)
    for row in names_of(connection, unjudged):
        who = Who(row.session_id, row.agent_name, row.project)
        by_reason[clean(unjudged[who.session_id])[:WHY_CHARACTERS]].append(who)
    mark(connection, "unjudged_at", unjudged, now)
    found = [(who.session_id, who.agent_name, {"why": why}) for why, those in by_reason.items() for who in those]
    record_all(connection, EventType.UNJUDGED, now, found)
    notices = []
    for number, (why, those) in enumerate(by_reason.items()):
        if len(those) == 1:
            notices.append(agent_notice(NoticeKind.UNJUDGED, those[0], now, {"why": why}))
        else:
            names = sorted(who.agent_name for who in those)
            detail = {"why": why, "agents": len(those), "names": names[:NAMED]}
            notices.append(fleet_notice(NoticeKind.UNJUDGED, now, detail, number=number))
    return [name for _, name, _ in found], notices
