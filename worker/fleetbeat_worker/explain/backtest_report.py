"""What a backtest is asked, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from fleetbeat_worker.rules.liveness import Promise


@dataclass(frozen=True, slots=True)
class Trial:
    """The settings to try; None stays as each agent has it."""

    missed: int | None = None
    """How many intervals an agent may miss."""
    grace_seconds: float | None = None
    interval_seconds: float | None = None
    """In place of the intervals that agents promised; those on a schedule keep it."""

    def promise(self, promise: Promise) -> Promise:
        """Return what a promise is with these settings."""
        if self.grace_seconds is not None:
            promise = replace(promise, grace_seconds=self.grace_seconds)
        if self.interval_seconds is not None and promise.interval_seconds is not None:
            promise = replace(promise, interval_seconds=self.interval_seconds)
        return promise


@dataclass(slots=True)
class Total:
    """How often and for how long."""

    flags: int = 0
    seconds: float = 0.0

    def add(self, other: Total) -> None:
        """Count another total in."""
        self.flags += other.flags
        self.seconds += other.seconds

    def to_json(self) -> dict[str, Any]:
        """Return the total as `--json` prints it."""
        return {"flags": self.flags, "degraded_seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class Finding:
    """A silence for which an agent would be flagged, or was, or both."""

    agent_name: str
    session_id: UUID
    silent_since: datetime
    would_at: datetime | None
    """When it would have been flagged: at its deadline; None if it wouldn't."""
    was_at: datetime | None
    """The deadline for which it was flagged; None if it wasn't."""
    ended_at: datetime | None
    """When it was heard again, ended or paused; None if it still is silent."""

    def to_json(self) -> dict[str, Any]:
        """Return the silence as `--json` prints it."""
        return {
            "agent_name": self.agent_name,
            "session_id": self.session_id,
            "silent_since": self.silent_since,
            "would_be_degraded_at": self.would_at,
            "degraded_at": self.was_at,
            "ended_at": self.ended_at,
        }


@dataclass(slots=True)
class BacktestReport:
    """What a backtest found."""

    since: datetime
    """From when on flags count."""
    until: datetime
    """The watermark: as far as anything is known."""
    is_cut: bool
    """Whether less is stored than was asked for."""
    sessions: int = 0
    heartbeats: int = 0
    unjudged: int = 0
    """Sessions whose promise can't be worked out: they are left out."""
    would: Total = field(default_factory=Total)
    was: Total = field(default_factory=Total)
    by_agent: dict[str, tuple[Total, Total]] = field(default_factory=dict)
    """Agents that would be flagged or were, by name: both totals."""
    findings: list[Finding] = field(default_factory=list)
    """The latest silences, the newest last."""
