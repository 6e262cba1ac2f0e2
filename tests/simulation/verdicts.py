"""Verdicts of the code under test, and the oracle's findings about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple


class Change(NamedTuple):
    """A change of a verdict: whether it now holds, and how many sweeps had decided before."""

    sweeps: int
    holds: bool


@dataclass(slots=True)
class Verdicts:
    """All verdicts of a run, by the agents' numbers."""

    degraded: dict[int, list[Change]] = field(default_factory=dict)
    stuck: dict[int, list[Change]] = field(default_factory=dict)


class Flag(NamedTuple):
    """A correct verdict: when it was due, when it came, and the pipeline's lag at the previous sweep."""

    due_at: int
    flagged_at: int
    lag: int

    @property
    def delay(self) -> int:
        """How long after the deadline it came."""
        return self.flagged_at - self.due_at


@dataclass(slots=True)
class Findings:
    """What the oracle found: errors as sentences, and correct verdicts."""

    false_flags: list[str] = field(default_factory=list)
    missed_flags: list[str] = field(default_factory=list)
    late_recoveries: list[str] = field(default_factory=list)
    false_stuck: list[str] = field(default_factory=list)
    missed_stuck: list[str] = field(default_factory=list)
    late_unstuck: list[str] = field(default_factory=list)
    false_notices: list[str] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    """Correct verdicts that an agent is degraded."""
    stuck: list[Flag] = field(default_factory=list)
    """Correct verdicts that an agent is stuck."""

    @property
    def errors(self) -> dict[str, list[str]]:
        """All errors by their kinds."""
        return {
            "false flags": self.false_flags,
            "missed flags": self.missed_flags,
            "late recoveries": self.late_recoveries,
            "false stuck": self.false_stuck,
            "missed stuck": self.missed_stuck,
            "late unstuck": self.late_unstuck,
            "false notices": self.false_notices,
        }


def spans_of(changes: Sequence[Change], sweeps: int) -> list[tuple[int, int]]:
    """List the spans of sweeps in which a verdict held: the first one, and the first one after it."""
    spans: list[tuple[int, int]] = []
    since: int | None = None
    for change in [*changes, Change(sweeps, holds=False)]:
        if change.holds:
            since = change.sweeps if since is None else since
        elif since is not None:
            if spans and spans[-1][1] == since:
                since = spans.pop()[0]
            spans.append((since, change.sweeps))
            since = None
    return spans


def shown(moment: int) -> str:
    """Format a time for an error."""
    return f"{datetime.fromtimestamp(moment / 1000, UTC):%m-%d %H:%M:%S.%f}"[:-3]
