"""What became of sessions, from what is stored: when they were live, paused and degraded, and what they had promised.

Pure: rows of `store.history` come in. Every moment is an integer of milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Row

from fleetbeat_worker.rules.enums import LIFECYCLE, EventType
from fleetbeat_worker.rules.liveness import Promise, State, default_grace_seconds
from fleetbeat_worker.rules.replay import Silence
from fleetbeat_worker.rules.spans import Span, parse_time, to_milliseconds

WINDOWS = (EventType.MAINTENANCE, EventType.MAINTENANCE_OVER)
"""How maintenance begins and ends."""

PAUSES = (EventType.PAUSED, EventType.RESUMED, EventType.DEREGISTERED)
"""How a pause begins, and how it ends: a goodbye ends it too."""

_BREAKS_A_SILENCE = {EventType.RECOVERED: "heard", EventType.DEREGISTERED: "ended", EventType.PAUSED: "paused"}


def promise_of(row: Row[Any]) -> Promise:
    """Return what a session promised last, of its row in `liveness`."""
    return Promise(row.interval_seconds, row.schedule, row.time_zone, row.grace_seconds)


def promise_told(detail: dict[str, Any], now: Promise) -> Promise:
    """Return what the event of a registration says was promised; `now` is what the session promised last.

    Events of older versions don't say the grace: it is taken to be today's, if the promise is.
    """
    told = Promise(detail.get("interval_seconds"), detail.get("schedule"), detail.get("time_zone"), now.grace_seconds)
    if told.schedule is not None and told.time_zone is None:
        told = replace(told, time_zone="UTC")
    grace = detail.get("grace_seconds")
    if grace is None and told != now:
        grace = default_grace_seconds(told.interval_seconds)
    return told if grace is None else replace(told, grace_seconds=grace)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that changed for a session."""

    at: int
    kind: EventType
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def known_at(self) -> int:
        """When it was in SQL: a heartbeat that waited brings its agent back as of before anybody knew of it."""
        return max(self.at, _moment(self.detail, "stored_at", self.at))


def changes_of(rows: Iterable[Row[Any]]) -> list[Change]:
    """Return rows of `events` as changes, in their order; what opens or ends a session before what overtook it.

    The rest is in the order of the verdicts: a heartbeat that waited recovers its agent as of before it was flagged.
    """
    found: list[Change] = []
    newest = 0
    for row in rows:
        change = Change(to_milliseconds(row.occurred_at), EventType(row.type), row.detail or {})
        place = len(found)
        if change.kind in LIFECYCLE and change.at < newest:
            place = next(at for at, other in enumerate(found) if other.kind in LIFECYCLE and other.at > change.at)
        elif change.kind in LIFECYCLE:
            newest = change.at
        found.insert(place, change)
    return found


def told_silences(session: Row[Any], changes: Iterable[Change]) -> list[Silence]:
    """Return when a session was degraded, as events tell it.

    `session`: its row, for what no event tells any more.
    """
    found: list[Silence] = []
    registered_at, resumed_at = to_milliseconds(session.registered_at), 0
    for change in changes:
        if change.kind is EventType.REGISTERED:
            registered_at = change.at
        elif change.kind is EventType.RESUMED:
            resumed_at = change.at
        elif change.kind is EventType.DEGRADED:
            if found and found[-1].ended_at is None:
                continue  # the same one, told again
            deadline_at = _moment(change.detail, "deadline_at", change.at)
            since = _moment(change.detail, "since", _moment(change.detail, "last_seen_at", registered_at))
            # Events of older versions don't say that the clock started anew at the end of a pause.
            found.append(Silence(min(max(since, resumed_at), deadline_at), deadline_at))
        elif change.kind in _BREAKS_A_SILENCE and found and found[-1].ended_at is None:
            found[-1].ended_at = max(change.at, found[-1].flagged_at)
            found[-1].ended_by = _BREAKS_A_SILENCE[change.kind]
    if not found and session.state == State.DEGRADED:
        flagged_at = to_milliseconds(session.state_changed_at)
        seen_at = session.last_seen_at or session.registered_at
        found.append(Silence(min(flagged_at, to_milliseconds(seen_at)), flagged_at))
    return found


def is_open(changes: Iterable[Change], opens: EventType, *closes: EventType) -> bool:
    """Return whether the last change of some kinds is the one that opens, and not one that closes."""
    kinds = [change.kind for change in changes if change.kind is opens or change.kind in closes]
    return bool(kinds) and kinds[-1] is opens


def spans_of(changes: Iterable[Change], until: int, opens: EventType, *closes: EventType) -> list[Span]:
    """Return the times from changes of one kind to those of others, the last until a moment if it isn't over."""
    spans: list[Span] = []
    opened: int | None = None
    for change in changes:
        if change.kind is opens and opened is None:
            opened = change.at
        elif change.kind in closes and opened is not None:
            spans.append((opened, change.at))
            opened = None
    return spans if opened is None else [*spans, (opened, until)]


def live_spans(session: Row[Any], changes: Sequence[Change], until: int) -> list[Span]:
    """Return when a session was registered and hadn't ended."""
    spans = spans_of(changes, until, EventType.REGISTERED, EventType.DEREGISTERED)
    lifecycle = [change for change in changes if change.kind in LIFECYCLE]
    if not lifecycle or lifecycle[0].kind is EventType.DEREGISTERED:  # its registration is no longer told
        first_end = lifecycle[0].at if lifecycle else to_milliseconds(session.ended_at) if session.ended_at else until
        # The row has the last opening, which may be after that end.
        spans.insert(0, (min(to_milliseconds(session.registered_at), first_end), first_end))
    return spans


def paused_spans(session: Row[Any], changes: Sequence[Change], until: int) -> list[Span]:
    """Return when a session was paused."""
    spans = spans_of(changes, until, *PAUSES)
    # Of a pause whose beginning no event tells any more, the row does.
    if session.paused_at is not None and not any(change.kind is EventType.PAUSED for change in changes):
        spans.append((to_milliseconds(session.paused_at), until))
    return spans


def _moment(detail: dict[str, Any], name: str, otherwise: int) -> int:
    """Return a moment that an event tells, or another if it doesn't."""
    moment = parse_time(detail.get(name))
    return otherwise if moment is None else to_milliseconds(moment)
