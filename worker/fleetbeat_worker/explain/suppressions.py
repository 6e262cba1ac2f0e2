"""Pauses and maintenance as they are explained: since when, until when, and why; and how a session ended.

Pure. A spell that lasts has no end yet: only a moment at which it is meant to end, or none where somebody will end it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.maintenance_windows import Window
from fleetbeat_worker.rules.spans import Span, from_milliseconds, parse_time, to_milliseconds
from fleetbeat_worker.rules.timeline import PAUSES, WINDOWS, Change, is_open, paused_spans, spans_of


@dataclass(frozen=True, slots=True)
class Spell:
    """A time in which an agent is, or was, not judged on purpose."""

    started_at: datetime
    ended_at: datetime | None
    """None: it lasts."""
    seconds: float
    """How long it was, or has been so far."""
    until: datetime | None = None
    """Of one that lasts: when it ends; None: when somebody ends it."""
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "seconds": self.seconds,
            "until": self.until,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """How a session ended."""

    exit_status: int | None
    error: str | None
    superseded_by: str | None
    """The session that took its name."""

    def to_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {"exit_status": self.exit_status, "error": self.error, "superseded_by": self.superseded_by}

    def text(self) -> str:
        """Return it in words."""
        if self.superseded_by is not None:
            return f"session {self.superseded_by} took its name"
        said = [] if self.exit_status is None else [f"exit status {self.exit_status}"]
        said += [f"error: {self.error}"] if self.error else []
        return "it said goodbye" + (f", {', '.join(said)}" if said else "")


def pauses_of(session: Row[Any], agent: Row[Any] | None, past: Sequence[Change], now: int) -> list[Spell]:
    """Return a session's pauses by a moment, up to which `past` is what changed.

    `agent` is its row in `agents`, for the pause of which no event tells any more.
    """
    spans = paused_spans(session, past, now)
    told = [change for change in past if change.kind is EventType.PAUSED]
    lasts = is_open(past, *PAUSES) or (session.paused_at is not None and not told)
    spells = [_spell(span, told, now, lasts=lasts and span is spans[-1]) for span in spans]
    if agent is not None and lasts and not told:
        spells[-1] = Spell(spells[-1].started_at, None, spells[-1].seconds, agent.paused_until, agent.pause_reason)
    return spells


def windows_of(windows: Sequence[Change], running: Window | None, now: int) -> list[Spell]:
    """Return maintenance by a moment; `running`: the window of now, whose end may have been changed since it began."""
    spans = spans_of(windows, now, *WINDOWS)
    told = [change for change in windows if change.kind is EventType.MAINTENANCE]
    lasts = is_open(windows, *WINDOWS)
    spells = [_spell(span, told, now, lasts=lasts and span is spans[-1]) for span in spans]
    if lasts and running is not None:
        spells[-1] = Spell(spells[-1].started_at, None, spells[-1].seconds, running.ends_at, running.reason)
    return spells


def ended(agent: Row[Any] | None, past: Sequence[Change]) -> Ended | None:
    """Return how a session ended that has, by its event or else by its row."""
    ends = [change.detail for change in past if change.kind is EventType.DEREGISTERED]
    if ends:
        return Ended(ends[-1].get("exit_status"), ends[-1].get("error"), ends[-1].get("superseded_by"))
    return None if agent is None else Ended(agent.exit_status, agent.error, None)


def paused_until(past: Sequence[Change]) -> datetime | None:
    """Return until when a pause was to last that lasts at a moment, as the one who last set it said."""
    told = [change.detail for change in past if change.kind is EventType.PAUSED]
    return parse_time(told[-1].get("until")) if told else None


def _spell(span: Span, told: Sequence[Change], now: int, *, lasts: bool) -> Spell:
    start, end = span
    said: dict[str, Any] = next((one.detail for one in reversed(told) if start <= one.at <= end), {})
    reason = said.get("reason")
    if not lasts:
        return Spell(from_milliseconds(start), from_milliseconds(end), (end - start) / 1000, reason=reason)
    until = parse_time(said.get("until") or said.get("ends_at"))
    return Spell(from_milliseconds(start), None, max(0, now - start) / 1000, until, reason)


def ended_since(spells: Sequence[Spell], moment: int) -> tuple[Spell, ...]:
    """Return those that last, or ended no earlier than a moment."""
    return tuple(one for one in spells if one.ended_at is None or to_milliseconds(one.ended_at) >= moment)
