"""Who changes state too often to be told of each time, and who is calm again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection

from fleetbeat_shared.settings import Settings
from fleetbeat_worker.ingest.batch import Batch
from fleetbeat_worker.notifications.notice import Who, agent_notice, promise_facts
from fleetbeat_worker.notifications.outbox import Notice
from fleetbeat_worker.notifications.signs import silence_facts
from fleetbeat_worker.rules.anomalies import WINDOW_INTERVALS, is_flapping
from fleetbeat_worker.rules.enums import EventType, NoticeKind
from fleetbeat_worker.rules.liveness import UNJUDGEABLE, Promise
from fleetbeat_worker.rules.spans import from_milliseconds
from fleetbeat_worker.sweep import change_rows as store
from fleetbeat_worker.sweep.queries import Due


class _Changed(Protocol):
    @property
    def session_id(self) -> UUID: ...
    @property
    def promise(self) -> Promise: ...


def flapping_among(
    connection: Connection, changed: Sequence[_Changed], now: datetime, limit: int, *, coming: int = 0
) -> set[UUID]:
    """Return which agents changed their state more often than `limit` allows, `coming` changes of now included.

    `coming` are those that aren't written yet.
    """
    since = _earliest_window((agent.promise for agent in changed), now)
    times = store.change_times(connection, [agent.session_id for agent in changed], since, limit - coming)
    often = [agent for agent in changed if agent.session_id in times]
    return {
        agent.session_id
        for agent in often
        if is_flapping([*times[agent.session_id], *[now] * coming], agent.promise, now, limit)
    }


def _earliest_window(promises: Iterable[Promise], now: datetime) -> datetime | None:
    """Return a moment before which no change of agents with these promises counts; None if a schedule says when."""
    intervals = [promise.interval_seconds for promise in promises]
    longest = max((seconds for seconds in intervals if seconds is not None), default=0.0)
    return None if None in intervals else now - timedelta(seconds=WINDOW_INTERVALS * longest)


def settle_recoveries(connection: Connection, batch: Batch, settings: Settings) -> None:
    """Let a batch tell of agents that begin to flap, instead of their recoveries.

    Those that come back from an incident are left out: it was one change for all of them, and is told as one.
    """
    ids = {notice.session_id for notice in batch.notices if notice.kind is NoticeKind.RECOVERED}
    if not ids:
        return
    recovered = [agent for agent in batch.agents.values() if agent.session_id in ids and agent.ended_at is None]
    now = from_milliseconds(batch.facts.now)
    for session_id in flapping_among(connection, recovered, now, settings.flapping_changes, coming=1):
        batch.flap(batch.agents[session_id])


def mark_flapping(
    connection: Connection, flagged: Sequence[Due], now: datetime, settings: Settings
) -> tuple[list[Notice], set[UUID]]:
    """Mark those of some agents that begin to flap, as they were just flagged; return what is told of them."""
    ids = flapping_among(connection, flagged, now, settings.flapping_changes)
    found = [agent for agent in flagged if agent.session_id in ids]
    detail = {"state": "degraded", "more_changes_than": settings.flapping_changes}
    store.mark(connection, "flapping_at", ids, now)
    store.record_all(
        connection, EventType.FLAPPING, now, [(agent.session_id, agent.agent_name, detail) for agent in found]
    )
    notices = []
    work = store.work_of(connection, ids)
    for agent in found:
        promised = promise_facts(agent.promise, settings.missed_intervals)
        who = Who(agent.session_id, agent.agent_name, agent.project)
        silence = silence_facts(agent.registered_at, agent.last_seen_at, agent.resumed_at, agent.cleared_at)
        facts = {**detail, **silence, **promised, **work.get(agent.session_id, {})}
        notices.append(agent_notice(NoticeKind.FLAPPING, who, now, facts))
    return notices, ids


def find_calm(
    connection: Connection, now: datetime, settings: Settings, changed: Collection[UUID]
) -> tuple[list[Notice], dict[UUID, str]]:
    """Mark flapping agents as calm that have kept their state; return what is told of them, and who can't be judged.

    `changed` are those that were flagged just now.
    """
    rows = [row for row in store.find_flapping(connection) if row.session_id not in changed]
    promises = [
        Promise(row.interval_seconds, row.schedule, row.time_zone, row.grace_seconds, row.missed_limit) for row in rows
    ]
    earliest = _earliest_window(promises, now)
    times = store.change_times(connection, [row.session_id for row in rows], earliest, settings.flapping_changes)
    calm, told, unjudged = [], [], {}
    for row, promise in zip(rows, promises, strict=True):
        try:
            if is_flapping(times.get(row.session_id, ()), promise, now, settings.flapping_changes):
                continue
        except UNJUDGEABLE as error:
            unjudged[row.session_id] = str(error)
            continue
        detail = {"state": row.state, "stuck": row.stuck_at is not None}
        calm.append((row.session_id, row.agent_name, detail))
        silence = silence_facts(row.registered_at, row.last_seen_at, row.resumed_at)
        facts = {**detail, **silence, **promise_facts(promise, settings.missed_intervals)}
        told.append((Who(row.session_id, row.agent_name, row.project), facts))
    store.mark(connection, "flapping_at", [session_id for session_id, *_ in calm], None)
    store.record_all(connection, EventType.CALM, now, calm)
    work = store.work_of(connection, [who.session_id for who, _ in told])
    notices = [agent_notice(NoticeKind.CALM, who, now, facts | work.get(who.session_id, {})) for who, facts in told]
    return notices, unjudged
