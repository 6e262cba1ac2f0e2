"""An explanation: a verdict with the facts behind it, as `fleetbeat explain` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from fleetbeat_worker.explain.anomalies import Flapping, Stuck
from fleetbeat_worker.explain.deadline_sum import Arithmetic
from fleetbeat_worker.explain.evidence import Beat
from fleetbeat_worker.explain.suppressions import Ended, Spell
from fleetbeat_worker.fleet.pipeline import PipelineView
from fleetbeat_worker.rules.liveness import State
from fleetbeat_worker.rules.spans import Span, from_milliseconds


@dataclass(frozen=True, slots=True)
class Flag:
    """The sweep that flagged the agent, as its event tells."""

    flagged_at: datetime
    detail: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the flag as `--json` prints it."""
        return {"flagged_at": self.flagged_at, **self.detail}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A verdict and the facts behind it."""

    agent_name: str
    session_id: UUID
    state: State
    state_since: datetime | None
    """None where nothing stored tells."""
    asked_at: datetime | None
    """The moment of before that was asked for; None: now."""
    as_of: datetime
    held: bool
    pipeline: PipelineView | None
    """How the pipeline is; None for a moment of before, of which nobody wrote that down."""
    missed: int
    arithmetic: Arithmetic
    flag: Flag | None
    ended: Ended | None
    """How it ended, if it did."""
    stuck: Stuck | None
    """Whether it is stuck, or when it would be; None where it never is."""
    flapping: Flapping | None
    heartbeats: tuple[Beat, ...]
    pauses: tuple[Spell, ...]
    maintenance: tuple[Spell, ...]
    outages: tuple[Span, ...]
    next: str
    """What would change the verdict next, and when."""
    next_at: datetime | None
    notes: tuple[str, ...] = ()
    """What can't be known, and why."""

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as `--json` prints it."""
        return {
            "agent_name": self.agent_name,
            "session_id": self.session_id,
            "asked_at": self.asked_at,
            "as_of": self.as_of,
            "verdict": {
                "state": self.state,
                "since": self.state_since,
                "confidence": "held" if self.held else "current",
                "missed_intervals": self.missed,
            },
            "deadline": self.arithmetic.to_json(),
            "flagged_by": self.flag.to_json() if self.flag else None,
            "ended": self.ended.to_json() if self.ended else None,
            "stuck": self.stuck.to_json() if self.stuck else None,
            "flapping": self.flapping.to_json() if self.flapping else None,
            "next": {"text": self.next, "at": self.next_at},
            "heartbeats": [beat.to_json() for beat in self.heartbeats],
            "pauses": [pause.to_json() for pause in self.pauses],
            "maintenance": [window.to_json() for window in self.maintenance],
            "outages": _spans_json(self.outages),
            "pipeline": self.pipeline.to_json() if self.pipeline else None,
            "notes": list(self.notes),
        }


def _spans_json(spans: Sequence[Span]) -> list[dict[str, datetime]]:
    return [{"started_at": from_milliseconds(start), "ended_at": from_milliseconds(end)} for start, end in spans]
