"""What the commands of `fleetbeat-agent` print."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fleetbeat_shared.messages import Message


def sent(message: Message, agent_name: str | None) -> dict[str, Any]:
    """Return what was sent, under the names that every answer has, and the rest."""
    rest = message.model_dump(mode="json", exclude_none=True, exclude={"version", "kind", "id", "reply"})
    first = {
        "ok": True,
        "message_id": str(message.id),
        "session_id": str(message.session_id),
        "agent_name": agent_name,
        "timestamp": iso(message.sent_at),
        "progress": None,
    }
    return first | rest


def iso(moment: datetime) -> str:
    """Return a moment as all answers write it."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def tell(told: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print an answer: as an object, or as a sentence."""
    if as_json:
        print_json(told)
    else:
        click.echo(sentence)


def print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on one line."""
    click.echo(json.dumps(value))
