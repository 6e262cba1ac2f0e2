"""`fleetbeat events`: the latest events, such as registrations, flags and outages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table
from rich.text import Text
from sqlalchemy import Row

from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.options import common_options, example, limit_option, open_database, unknown_name
from fleetbeat_worker.cli.output import clock, print_json
from fleetbeat_worker.cli.rendering import console, plain_table, safe, wrapped
from fleetbeat_worker.cli.types import NameType
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.rules.enums import EventType
from fleetbeat_worker.rules.spans import parse_time
from fleetbeat_worker.store.events import read_latest_events

_STYLES = {
    EventType.DEGRADED: "bold red",
    EventType.RECOVERED: "green",
    EventType.STUCK: "yellow",
    EventType.FLAPPING: "yellow",
    EventType.UNJUDGED: "bold yellow",
    EventType.INCIDENT: "bold red",
    EventType.INCIDENT_OVER: "green",
    EventType.OUTAGE: "yellow",
    EventType.INBOX_TRIMMED: "bold yellow",
    EventType.INBOX_LOST: "bold yellow",
    EventType.HEARTBEAT: "dim",
}

_JSON_KEYS = ("id", "type", "occurred_at", "agent_name", "session_id", "message_id", "text", "detail")


@click.command(
    epilog=example(
        "fleetbeat events",
        "fleetbeat events --agent hint --limit 100",
        "fleetbeat events --type degraded --type recovered",
    )
)
@click.option("--agent", "agent_name", type=NameType(), help="Only events of the agent of this name.")
@click.option(
    "--type",
    "types",
    type=click.Choice([kind.value for kind in EventType]),
    multiple=True,
    help="Only events of this type; may be repeated.",
)
@limit_option
@common_options
def events(*, settings: Settings, agent_name: str | None, types: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Show the latest events, newest last. Exit status 1 if no agent of the given name was ever registered."""
    with open_database(settings) as engine, reading(engine) as connection:
        found = read_latest_events(connection, limit, agent_name=agent_name, types=types)
        unknown = unknown_name(connection, agent_name, found)
    if as_json:
        print_json({"events": [event_json(event) for event in found]})
    elif found:
        console().print(events_table(found, datetime.now(UTC)))
    elif unknown is None:
        click.echo("No events.")
    if unknown is not None:
        raise unknown


def event_json(event: Row[Any]) -> dict[str, Any]:
    """Convert an event's row to what `--json` prints."""
    return {key: getattr(event, key) for key in _JSON_KEYS}


def events_table(found: Sequence[Row[Any]], now: datetime, *, with_agent: bool = True) -> Table:
    """Show rows of the table `events`."""
    table = plain_table(
        "Time (UTC)", "Event", *([wrapped("Agent", max_width=24)] if with_agent else []), wrapped("Details")
    )
    for event in found:
        row = [Text(clock(event.occurred_at, now)), safe(event.type, _STYLES.get(event.type, ""))]
        if with_agent:
            row.append(safe(event.agent_name, "bold"))
        table.add_row(*row, safe(_details(event, now)))
    return table


def _details(event: Row[Any], now: datetime) -> str:
    facts = ", ".join(_fact(name, value, now) for name, value in (event.detail or {}).items() if value is not None)
    return " · ".join(part for part in (event.text, facts) if part)


def _fact(name: str, value: Any, now: datetime) -> str:  # noqa: ANN401 - JSON is what it is
    """Format one entry of an event's detail: `deadline 13:08:51`, `silent 20s`."""
    if name.endswith("_seconds") and isinstance(value, int | float):
        return f"{name.removesuffix('_seconds').replace('_', ' ')} {format_duration(value)}"
    label = name.removesuffix("_at").replace("_", " ")
    if not isinstance(value, str):
        return f"{label} {json.dumps(value, ensure_ascii=False)}"
    moment = parse_time(value)
    return f"{label} {clock(moment, now) if moment else value}"
