"""What was laid down of a change, and how each piece of it is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.explain.deadline_sum import amount
from fleetbeat_worker.rules.enums import NoticeKind

LONGEST_TEXT = 300
"""How many letters of a text of an agent's are told."""
LONGEST_NAME = 128
LONGEST_SECONDS = 1e10
"""What is longer than three centuries is no duration."""

_CALLS = re.compile(r"@(?=everyone|here|channel|all\b|room\b)|<(?=[!@#])", re.IGNORECASE)
"""What calls everybody in Slack, Discord or Matrix."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A notification as it was laid down."""

    kind: NoticeKind
    key: str
    agent_name: str | None
    project: str | None
    created_at: datetime
    detail: Mapping[str, Any]

    @property
    def who(self) -> str:
        """The agent's name, made harmless."""
        return told(self.agent_name, LONGEST_NAME) or "an agent"

    def moment(self, name: str) -> datetime | None:
        """Return a moment of the detail."""
        try:
            moment = datetime.fromisoformat(str(self.detail.get(name)))
            return moment.astimezone(UTC) if moment.tzinfo else None
        except (ValueError, OverflowError):
            return None

    def number(self, name: str) -> float | None:
        """Return a number of the detail."""
        value = self.detail.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def duration(self, name: str) -> str | None:
        """Return a number of seconds as people say it."""
        seconds = self.number(name)
        return None if seconds is None or abs(seconds) > LONGEST_SECONDS else format_duration(round(seconds))

    def amount(self, name: str) -> str | None:
        """Return a number of seconds without loss, so that it can be added up."""
        seconds = self.number(name)
        return None if seconds is None or abs(seconds) > LONGEST_SECONDS else amount(seconds)

    def count(self, name: str) -> str:
        """Return a whole number of the detail."""
        number = self.number(name)
        return "some" if number is None else f"{int(number):,}"


def told(text: object, limit: int = LONGEST_TEXT) -> str:
    """Return a text of an agent's as it may be told."""
    harmless = _CALLS.sub(lambda found: f"{found[0]} ", clean(text)) if isinstance(text, str) else ""
    return harmless if len(harmless) <= limit else f"{harmless[:limit].rstrip()}… (+{len(harmless) - limit})"


def at_text(moment: datetime | None) -> str:
    """Return a moment as titles have it, to the second."""
    return "an unknown time" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"
