"""What is stored of one session, for who asks why it is judged as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from fleetbeat_shared.errors import FleetbeatError, UnknownSession
from fleetbeat_shared.time_text import exact
from fleetbeat_worker.downtime.maintenance import read_maintenance, read_running_and_next
from fleetbeat_worker.downtime.outages import read_outages
from fleetbeat_worker.explain.anomalies import OF_A_STANDING
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.maintenance_windows import Window
from fleetbeat_worker.rules.spans import Span, from_milliseconds, parse_time, to_milliseconds
from fleetbeat_worker.rules.timeline import WINDOWS, Change, changes_of, is_open, live_spans
from fleetbeat_worker.store import history as store
from fleetbeat_worker.store.pipeline import read_pipeline_state
from fleetbeat_worker.store.sessions import read_session

HEARTBEATS_SHOWN = 10
HEARTBEATS_READ = 500
"""So many of the last ones are looked at for the newest sign: one that waited long may arrive after newer ones."""

FIRST_LOOK = timedelta(hours=1)
"""How far back heartbeats are searched for at first; then eight times as far, and so on."""

_FLAGGED = frozenset({EventType.DEGRADED, EventType.RECOVERED})


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat as it is explained."""

    id: UUID
    sent_at: datetime
    """The agent's clock."""
    received_at: datetime
    seen_at: datetime
    counted: bool
    """Whether it was newer than those that had arrived before it: else it moved nothing."""

    @property
    def waited_seconds(self) -> float:
        """How long it waited before it could be sent."""
        return (self.received_at - self.seen_at).total_seconds()

    def to_json(self) -> dict[str, Any]:
        """Return the heartbeat as `--json` prints it."""
        return {
            "id": self.id,
            "sent_at": self.sent_at,
            "received_at": self.received_at,
            "seen_at": self.seen_at,
            "waited_seconds": round(self.waited_seconds, 3),
            "moved_last_seen": self.counted,
        }


@dataclass(slots=True)
class Case:
    """What is stored of a session."""

    row: Row[Any]
    """Of `store.history.sessions_named`."""
    changes: list[Change]
    """All of them, in their order."""
    windows: list[Change]
    """When maintenance began and ended."""
    outages: list[Span]
    beats: list[Beat] = field(default_factory=list)
    """The last heartbeats by the moment in question, the newest last."""
    agent: Row[Any] | None = None
    """Its row of now with all columns of `agents`."""
    standing: list[Change] = field(default_factory=list)
    """What changed for it, and what stood beside its state: `changes` with those of `OF_A_STANDING`."""
    running: Window | None = None
    """The maintenance of now."""
    coming: Window | None = None
    """The next maintenance that is known of."""
    namesakes: int = 0
    """How many other sessions of the name were live at that moment."""

    def life(self, moment: int) -> Span | None:
        """Return when the session was last opened by a moment, and until when it was live; None if it wasn't yet."""
        spans = live_spans(self.row, self.changes, max(moment, to_milliseconds(self.row.registered_at)))
        return max((span for span in spans if span[0] <= moment), default=None)

    def read_windows(self, connection: Connection, now: datetime) -> None:
        """Look for the maintenance that runs now, for what comes next, and for what no sweep has told of yet."""
        self.running, self.coming = read_running_and_next(connection, now)
        for window in read_maintenance(connection, read_pipeline_state(connection), now).windows:
            if not is_open(self.windows, *WINDOWS):
                detail = {"reason": window.reason, "ends_at": window.ends_at and window.ends_at.isoformat()}
                self.windows.append(Change(to_milliseconds(window.starts_at), EventType.MAINTENANCE, detail))
            if window.ends_at is not None and window.ends_at <= now:
                self.windows.append(Change(to_milliseconds(window.ends_at), EventType.MAINTENANCE_OVER))

    def read_heartbeats(self, connection: Connection, until: datetime) -> None:
        """Look for the last heartbeats received until a moment: first where they should be, then all over.

        They have no index by session, so that it matters where one looks.
        """
        found = {
            row.id: row
            for moment in self._signs(until)
            for row in store.read_heartbeats_near(connection, self.row.session_id, moment, until, HEARTBEATS_READ)
        }
        rows = sorted(found.values(), key=lambda row: (row.received_at, row.seen_at)) or self._search(connection, until)
        newest: datetime | None = None
        for row in rows:
            counted = newest is None or row.seen_at > newest
            newest = row.seen_at if counted else newest
            self.beats.append(Beat(row.id, row.sent_at, row.received_at, row.seen_at, counted))

    def _signs(self, until: datetime) -> list[datetime]:
        """Return near which moments the last heartbeats by a moment are: that one, and the last sign that is known."""
        if self.row.last_seen_at is not None and self.row.last_seen_at < until:
            return [self.row.last_seen_at]  # nothing newer is stored
        flags = [change for change in self.changes if change.kind in _FLAGGED and change.at <= to_milliseconds(until)]
        seen_at = parse_time(flags[-1].detail.get("last_seen_at")) if flags else None
        return [until] if seen_at is None else [seen_at, until]

    def _search(self, connection: Connection, until: datetime) -> Sequence[Row[Any]]:
        """Look farther and farther back: the agent's clock is wrong, or it was silent for long."""
        opened = min([from_milliseconds(change.at) for change in self.changes] + [self.row.registered_at])
        around = min(until, self.row.last_seen_at or until)
        span = FIRST_LOOK
        while True:
            since = around - span
            found = store.read_heartbeats(connection, self.row.session_id, since, until, HEARTBEATS_READ)
            if len(found) > HEARTBEATS_SHOWN or since < opened - timedelta(days=1):
                return found
            span *= 8


def read_case(connection: Connection, asked: str | UUID, moment: datetime) -> Case:
    """Return what is stored of a session, or of that session of a name that was live at a moment, or the last before.

    Raises UnknownSession; FleetbeatError when it wasn't registered by then.
    """
    rows = store.read_all_sessions(connection, asked)
    if not rows:
        message = f"No agent or session {str(asked)!r} was ever registered; see: fleetbeat agents list --all"
        raise UnknownSession(message)
    by_session: dict[UUID, list[Row[Any]]] = {row.session_id: [] for row in rows}
    for event in store.read_changes(connection, list(by_session)):
        by_session[event.session_id].append(event)
    windows = changes_of(store.read_fleet_changes(connection, WINDOWS))
    outages = read_outages(connection)
    cases = [Case(row, changes_of(by_session[row.session_id]), windows, outages) for row in rows]
    at = to_milliseconds(moment)
    lives = [(life[1] >= at, life[0], number) for number, case in enumerate(cases) if (life := case.life(at))]
    if not lives:
        first = min([from_milliseconds(c.at) for case in cases for c in case.changes] + [r.registered_at for r in rows])
        message = f"{asked} was not registered yet at {exact(moment)} UTC; it was at {exact(first)} UTC."
        raise FleetbeatError(message)
    live, _, number = max(lives)
    found = cases[number]
    found.namesakes = sum(other for other, _, _ in lives) - live
    found.agent = read_session(connection, found.row.session_id)
    beside = (*store.OF_A_SESSION, *OF_A_STANDING)
    found.standing = changes_of(store.read_changes(connection, [found.row.session_id], beside))
    return found
