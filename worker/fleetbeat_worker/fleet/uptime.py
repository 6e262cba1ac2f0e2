"""An agent's record: for which share of the time it was up, its silences, and what changed for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.rules.enums import LIFECYCLE, EventType
from fleetbeat_worker.rules.replay import Silence
from fleetbeat_worker.rules.spans import Span, clip, from_milliseconds, length, merge, subtract, to_milliseconds, uptime
from fleetbeat_worker.rules.timeline import (
    WINDOWS,
    Change,
    changes_of,
    live_spans,
    paused_spans,
    spans_of,
    told_silences,
)
from fleetbeat_worker.store import history as store

PERIODS = {"24h": timedelta(hours=24), "7d": timedelta(days=7), "30d": timedelta(days=30)}
SILENCES_SHOWN = 10
CHANGES_SHOWN = 10

OF_A_STATE = (
    *store.OF_A_SESSION,
    EventType.STUCK,
    EventType.UNSTUCK,
    EventType.FLAPPING,
    EventType.CALM,
)


@dataclass(frozen=True, slots=True)
class Uptime:
    """How long an agent was up in the last time."""

    share: float | None
    """Of the time that counts; None if there is none."""
    counted_seconds: float
    """How much time counts: in which it was registered, watched and not paused."""

    def to_json(self) -> dict[str, Any]:
        """Return the uptime as `--json` prints it."""
        share = None if self.share is None else round(self.share, 6)
        return {"share": share, "counted_seconds": round(self.counted_seconds, 3)}


@dataclass(frozen=True, slots=True)
class SilenceView:
    """A time in which an agent was silent for longer than it may be."""

    session_id: UUID
    silent_since: datetime
    degraded_at: datetime
    ended_at: datetime | None
    """When it was heard again, ended or paused; None if it still is silent."""
    seconds: float
    """From `silent_since` to the end, or to now."""
    ended_by: str | None = None
    """How it ended: the agent was `heard`, `paused`, or its session `ended`; None if it still is silent."""

    def to_json(self) -> dict[str, Any]:
        """Return the silence as `--json` prints it."""
        return {
            "session_id": self.session_id,
            "silent_since": self.silent_since,
            "degraded_at": self.degraded_at,
            "ended_at": self.ended_at,
            "seconds": self.seconds,
            "ended_by": self.ended_by,
        }


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of an agent's past."""

    uptime: dict[str, Uptime]
    """By the names of `PERIODS`."""
    silences: tuple[SilenceView, ...]
    """The last ones, the newest last."""
    state_changes: tuple[Row[Any], ...]
    """The last events that aren't heartbeats, the newest last: rows of `store.history.changes`."""


def read_record(connection: Connection, asked: str | UUID, as_of: datetime) -> Record:
    """Return the record of all sessions of a name, or of one session, as far as events tell it."""
    now = to_milliseconds(as_of)
    sessions = store.read_all_sessions(connection, asked)
    events: dict[UUID, list[Row[Any]]] = {row.session_id: [] for row in sessions}
    every = store.read_changes(connection, list(events), OF_A_STATE)
    for event in every:
        events[event.session_id].append(event)
    changes = {key: changes_of(rows) for key, rows in events.items()}
    windows = spans_of(changes_of(store.read_fleet_changes(connection, WINDOWS)), now, *WINDOWS)
    unwatched = merge([*read_outages(connection), *windows])
    silences = [
        (silence, row.session_id) for row in sessions for silence in told_silences(row, changes[row.session_id])
    ]
    silences.sort(key=lambda found: found[0].flagged_at)
    return Record(
        _uptimes(sessions, changes, unwatched, now),
        tuple(_view(silence, session_id, now) for silence, session_id in silences[-SILENCES_SHOWN:]),
        tuple(every[-CHANGES_SHOWN:]),
    )


def _uptimes(
    sessions: Sequence[Row[Any]], changes: dict[UUID, list[Change]], unwatched: Sequence[Span], now: int
) -> dict[str, Uptime]:
    expected: list[Span] = []
    up: list[Span] = []
    for row in sessions:
        own = changes[row.session_id]
        judged = subtract(live_spans(row, own, now), paused_spans(row, own, now))
        expected += judged
        # A name is up while one of its sessions is.
        up += subtract(judged, [(one.flagged_at, one.ended_at or now) for one in told_silences(row, own)])
    expected += _failures(changes.values(), now)
    counted = subtract(expected, unwatched)
    found: dict[str, Uptime] = {}
    for name, period in PERIODS.items():
        within = (now - period // timedelta(milliseconds=1), now)
        found[name] = Uptime(uptime(counted, up, within), length(clip(counted, within)) / 1000)
    return found


def _failures(changes: Iterable[Sequence[Change]], now: int) -> list[Span]:
    """Return the times after an end with an error, until the name was registered again: it should have been up."""
    sessions = [[change for change in each if change.kind in LIFECYCLE] for each in changes]
    starts = sorted(change.at for each in sessions for change in each if change.kind is EventType.REGISTERED)
    spans: list[Span] = []
    for each in sessions:
        for before, change in zip([None, *each], each, strict=False):
            failed = change.detail.get("error") or change.detail.get("exit_status")
            ended_before = (
                before is not None and before.kind is EventType.DEREGISTERED
            )  # then this one says nothing new
            if change.kind is EventType.DEREGISTERED and failed and not ended_before:
                spans.append((change.at, next((at for at in starts if at >= change.at), now)))
    return spans


def _view(silence: Silence, session_id: UUID, now: int) -> SilenceView:
    return SilenceView(
        session_id,
        from_milliseconds(silence.since),
        from_milliseconds(silence.flagged_at),
        None if silence.ended_at is None else from_milliseconds(silence.ended_at),
        max(0, (silence.ended_at or now) - silence.since) / 1000,
        silence.ended_by,
    )
