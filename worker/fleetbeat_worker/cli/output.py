"""Output without rich: JSON for programs, and the sentences, times and counts that all text for people shares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.fleet.agents import IncidentView
from fleetbeat_worker.rules.maintenance_windows import Window


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object in ASCII, so that nothing in it can act on a terminal."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, UUID):
        return str(value)
    message = f"{type(value).__name__} can't be written as JSON"
    raise TypeError(message)


def ago(moment: datetime, now: datetime) -> str:
    """Format how long ago a moment was: `12s ago`. Up to a second ahead counts as now."""
    seconds = (now - moment).total_seconds()
    if seconds < -1:
        return f"in {format_duration(round(-seconds))}"
    return f"{format_duration(round(max(0.0, seconds)))} ago"


def stamp(moment: datetime) -> str:
    """Format a moment in full, in UTC: `2026-01-31 08:15:00`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def clock(moment: datetime, now: datetime) -> str:
    """Format a moment in UTC: the time alone on the day of `now`, with the date on another."""
    moment, now = moment.astimezone(UTC), now.astimezone(UTC)
    return f"{moment:%H:%M:%S}" if moment.date() == now.date() else stamp(moment)


def counted(number: int, noun: str) -> str:
    """Format a number with its noun: `1 agent`, `1,200 agents`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(texts: Sequence[str], most: int = 10) -> str:
    """Join texts with commas; of those beyond `most` only the number is given."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def maintenance_sentence(window: Window, now: datetime) -> str:
    """Say since when and until when maintenance runs, and why."""
    until = f"until {clock(window.ends_at, now)}" if window.ends_at else "until ended"
    reason = f" ({clean(window.reason)})" if window.reason else ""
    return f"Maintenance since {clock(window.starts_at, now)} UTC {until}{reason}: no agent is flagged."


def incident_sentence(incident: IncidentView, now: datetime) -> str:
    """Say since when an incident is open, how many agents it took, and how many of them are still silent."""
    agents = f"{incident.agents:,} of {counted(incident.live_agents, 'agent')} fell silent"
    since = clock(incident.started_at, now)
    return f"Incident open since {since} UTC: {agents}, still silent: {incident.silent:,}."
