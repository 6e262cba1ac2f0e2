"""The sweep's transaction: judges the fleet as of the watermark, and records every change with its notices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.broker.accounting import Account
from fleetbeat_worker.broker.inbox import Horizon
from fleetbeat_worker.broker.pulse import Pulse
from fleetbeat_worker.downtime.maintenance import record_maintenance
from fleetbeat_worker.downtime.outages import record_gaps, record_outage
from fleetbeat_worker.downtime.pauses import resume_due
from fleetbeat_worker.notifications.notice import NAMED, Notice, agent_notice, fleet_notice
from fleetbeat_worker.notifications.outbox import add_notices
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.spans import Span, from_milliseconds, to_milliseconds
from fleetbeat_worker.rules.sweep_gaps import (
    OVERTAKEN_SECONDS,
    is_turned_back,
    last_look,
    longest_gap_seconds,
    outage_between,
)
from fleetbeat_worker.store.events import record_agent_events, record_fleet_event
from fleetbeat_worker.store.pipeline import PipelineState, read_pipeline_state, write_pipeline
from fleetbeat_worker.store.sessions import SessionName, read_names, set_time
from fleetbeat_worker.sweep.anomalies import end_flapping, mark_stuck
from fleetbeat_worker.sweep.clock_repair import correct_future_times
from fleetbeat_worker.sweep.incidents import end_incident
from fleetbeat_worker.sweep.overdue import exclude_downtime, find_reminders, flag_overdue, judge_overdue
from fleetbeat_worker.sweep.queries import count_unjudged
from fleetbeat_worker.telemetry.log import logger

NO_PULSE = Pulse()
WHY_CHARACTERS = 500
"""How much is kept of the reason for which an agent can't be judged."""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """The result of a sweep."""

    swept_at: datetime
    """Redis's time."""
    watermark: datetime | None
    """The time that the verdicts are as of; None before anything is known."""
    outage_seconds: float | None
    """How long monitoring was interrupted, if that was long enough to be an outage."""
    degraded: list[str]
    """Names of the agents that were flagged as degraded."""
    stuck: list[str] = field(default_factory=list)
    """Names of the agents that were found stuck."""
    unjudged: list[str] = field(default_factory=list)
    """Names of the agents that were found impossible to judge."""
    trimmed: int = 0
    """How many messages left the inbox unprocessed since the last sweep: something other than a worker removed them."""
    lost_backlog: int | None = None
    """If Redis came back without the inbox: how many messages waited in it at the last sweep."""
    resumed: list[str] = field(default_factory=list)
    """Names of the agents whose pause ended."""
    maintenance_since: datetime | None = None
    """The start of the current maintenance window, during which no agent is flagged."""
    refused: str | None = None
    """Why Redis refuses what agents send, so that no agent can be judged."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a sweep changed; `SweepReport` describes the fields."""

    notices: list[Notice]
    degraded: list[str]
    unjudged: list[str]
    resumed: list[str]
    maintenance_since: datetime | None


def judge_fleet(  # noqa: PLR0913 - what was read from Redis, and by whom
    connection: Connection,
    horizon: Horizon,
    account: Account,
    settings: Settings,
    *,
    periodic: bool,
    pulse: Pulse = NO_PULSE,
) -> SweepReport:
    """Judge all agents as of the watermark by what was read from Redis; all in the caller's transaction.

    `periodic`: a sweep by the workers, whose interval is stored; other sweeps may have another setting.
    """
    last = read_pipeline_state(connection, lock=True)
    if is_turned_back(last.last_sweep_at, horizon.now):
        logger.warning("Redis's clock was set back; stored times after its present time are set to it")
        correct_future_times(connection, horizon.now, settings.missed_intervals)
        last = replace(last, watermark=None)  # otherwise verdicts would be as of a time in the future
    watermark = max((time for time in (horizon.watermark, last.watermark) if time is not None), default=None)
    interval = settings.sweep_seconds if periodic else max(settings.sweep_seconds, last.sweep_seconds or 0)
    gap = outage_between(last.last_sweep_at, horizon.now, interval)
    outage = (last.last_sweep_at, horizon.now) if gap is not None and last.last_sweep_at is not None else None
    pulse = pulse.or_last_known(last.pulse_at)
    gaps = _redis_gaps(last, pulse, horizon.now, interval)
    # As of this sweep's own watermark: after the clock was set back, an earlier one says nothing of what waits now.
    changes, current = _apply_changes(connection, last, outage, gaps, horizon, settings)
    current = replace(current, watermark=watermark, last_sweep_at=last_look(last.last_sweep_at, horizon.now))
    if pulse.at is not None:
        current = replace(current, pulse_at=from_milliseconds(pulse.at))
    if periodic:
        current = replace(current, sweep_seconds=settings.sweep_seconds)
    trimmed, lost_backlog = 0, None
    # Another sweep may have been first, with an account that was read later.
    if account.life is not None and (last.last_sweep_at is None or account.read_at > last.last_sweep_at):
        current = replace(current, inbox_life=account.life, inbox_lost=account.lost, inbox_backlog=horizon.backlog)
        trimmed, lost_backlog = count_losses(last, account)
        if lost_backlog is not None:
            record_fleet_event(connection, EventType.INBOX_LOST, horizon.now, {"messages_waited": lost_backlog})
        if trimmed:
            record_fleet_event(connection, EventType.INBOX_TRIMMED, horizon.now, {"messages_lost": trimmed})
    write_pipeline(connection, current)
    return SweepReport(
        swept_at=horizon.now,
        watermark=watermark,
        outage_seconds=gap.total_seconds() if gap else None,
        degraded=changes.degraded,
        stuck=[notice.agent_name or "" for notice in changes.notices if notice.kind is NoticeKind.STUCK],
        unjudged=changes.unjudged,
        trimmed=trimmed,
        lost_backlog=lost_backlog,
        resumed=changes.resumed,
        maintenance_since=changes.maintenance_since,
    )


def count_losses(last: PipelineState, account: Account) -> tuple[int, int | None]:
    """Count the messages trimmed since the last sweep; if the whole inbox was lost, those that waited at that sweep."""
    if last.inbox_life is None or last.inbox_lost is None:
        return 0, None  # there is nothing to compare with
    if account.life != last.inbox_life:
        return max(0, account.lost), last.inbox_backlog or 0
    if account.lost < last.inbox_lost:  # it never decreases: the stream was deleted, or an older one was restored
        return 0, last.inbox_backlog or 0
    return account.lost - last.inbox_lost, None


def _redis_gaps(last: PipelineState, pulse: Pulse, now: datetime, interval: float) -> list[Span]:
    """Return the gaps of a few seconds since the last sweep in which agents could not reach Redis."""
    if last.last_sweep_at is None:
        return []
    longest = round(longest_gap_seconds(interval) * 1000)
    since = last.last_sweep_at
    if since > now:  # another sweep overtook this one, or the clock was set back: recorded gaps count once
        since = now - timedelta(seconds=OVERTAKEN_SECONDS)
    return pulse.new_gaps(to_milliseconds(since), to_milliseconds(now), longest)


def _apply_changes(  # noqa: PLR0913, PLR0917 - all that a sweep knows
    connection: Connection,
    last: PipelineState,
    outage: tuple[datetime, datetime] | None,
    gaps: Sequence[Span],
    horizon: Horizon,
    settings: Settings,
) -> tuple[Changes, PipelineState]:
    """Record downtime, judge the agents, and put the notices into the outbox; return also the new pipeline row.

    `last` is the pipeline row of the last sweep. `gaps` are shorter than an outage.
    """
    watermark, now = horizon.watermark, horizon.now
    notices: list[Notice] = []
    degraded: list[str] = []
    unjudged: list[str] = []
    if outage is not None:
        notices.append(fleet_notice(NoticeKind.OUTAGE, now, record_outage(connection, *outage)))
    else:  # an outage has locked most agents, so an incident ends at the next sweep
        notices += end_incident(connection, now)
        record_gaps(connection, gaps)
    resumed = [agent.agent_name for agent in resume_due(connection, now, settings.missed_intervals)]
    maintenance, current = record_maintenance(connection, last, now)
    if watermark is not None and maintenance.running is None:
        overdue = judge_overdue(connection, watermark)
        agents = exclude_downtime(connection, overdue.agents, maintenance, watermark, now, settings.missed_intervals)
        degraded = [agent.agent_name for agent in agents]
        notices += flag_overdue(connection, agents, watermark, now, horizon.backlog, settings)
        notices += find_reminders(connection, last, watermark, settings)
        calm, faults = end_flapping(connection, now, settings, {agent.session_id for agent in agents})
        notices += calm
        notices += mark_stuck(connection, watermark, now, maintenance, settings)
        unjudged, of_unjudged = _mark_unjudged(connection, overdue.unjudged | faults, now)
        notices += of_unjudged
    add_notices(connection, notices, to_milliseconds(now))
    since = maintenance.running.starts_at if maintenance.running else None
    current = replace(current, unjudged=count_unjudged(connection))
    return Changes(notices, degraded, unjudged, resumed, since), current


def _mark_unjudged(connection: Connection, faults: Mapping[UUID, str], now: datetime) -> tuple[list[str], list[Notice]]:
    """Exclude agents that can't be judged from later sweeps, until a registration or a heartbeat can be judged.

    Returns their names and the notices: one for each reason, as a machine without time zone data has many agents.
    """
    by_reason: dict[str, list[SessionName]] = defaultdict(list)
    for agent in read_names(connection, faults):
        by_reason[clean(faults[agent.session_id])[:WHY_CHARACTERS]].append(agent)
    set_time(connection, "unjudged_at", faults, now)
    moment = to_milliseconds(now)
    events = [
        (moment, agent.session_id, agent.agent_name, {"why": why})
        for why, agents in by_reason.items()
        for agent in agents
    ]
    record_agent_events(connection, EventType.UNJUDGED, events)
    notices = []
    for number, (why, agents) in enumerate(by_reason.items()):
        if len(agents) == 1:
            notices.append(agent_notice(NoticeKind.UNJUDGED, agents[0], now, {"why": why}))
        else:
            names = sorted(agent.agent_name for agent in agents)
            detail = {"why": why, "agents": len(agents), "names": names[:NAMED]}
            notices.append(fleet_notice(NoticeKind.UNJUDGED, now, detail, number=number))
    return [name for _, _, name, _ in events], notices
