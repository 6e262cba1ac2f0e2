"""Output of the commands of `fleetbeat-agent`: one sentence, or one JSON object with `--json`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fleetbeat_shared.messages import Message


def describe_message(message: Message, agent_name: str | None) -> dict[str, Any]:
    """Build the JSON object for a message that was sent: the keys that every command prints, then its other fields."""
    fields = message.model_dump(mode="json", exclude_none=True, exclude={"version", "kind", "id", "reply"})
    first = {
        "ok": True,
        "message_id": str(message.id),
        "session_id": str(message.session_id),
        "agent_name": agent_name,
        "timestamp": format_time(message.sent_at),
        "progress": None,
    }
    return first | fields


def format_time(moment: datetime) -> str:
    """Format a time as all JSON output has it."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def print_result(result: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print a command's result as a JSON object, or as a sentence."""
    if as_json:
        print_json(result)
    else:
        click.echo(sentence)


def print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on one line."""
    click.echo(json.dumps(value))
