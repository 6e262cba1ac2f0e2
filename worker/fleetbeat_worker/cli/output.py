"""Printing: JSON for programs, plain or coloured text for people.

Whatever came from an agent is cleaned once more here and handed to rich as `Text`, never as markup.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import format_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPE_WIDTH = 100
"""Columns when the output is no terminal; the variable COLUMNS overrides it."""


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object in ASCII, so that nothing in it can act on a terminal."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, UUID):
        return str(value)
    message = f"{type(value).__name__} has no form in JSON"
    raise TypeError(message)


def iso(moment: datetime) -> str:
    """Return a moment as JSON shows it: UTC, to the millisecond, `2026-01-31T08:15:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def console() -> Console:
    """Return a console on the standard output: colours on a terminal, plain text elsewhere."""
    import os

    from rich.console import Console

    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # an agent's name may have letters that the terminal lacks
    made = Console(markup=False, emoji=False, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def safe(text: str | None, style: str = "", *, limit: int | None = None) -> Text:
    """Return text from outside as something that a terminal only shows; cut visibly after `limit` characters."""
    from rich.text import Text

    cleaned = clean(text or "")
    if limit is not None and len(cleaned) > limit:
        cleaned = f"{cleaned[:limit].rstrip()}… (+{len(cleaned) - limit})"
    return Text(cleaned, style=style)


def plain_table() -> Table:
    """Return an empty table in the one look of all commands."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))


def facts_table(facts: dict[str, Text]) -> Table:
    """Return names and values, one below the other."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), value)
    return table


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was: `12s ago`; a moment of the next second is now."""
    seconds = (now - moment).total_seconds()
    if seconds < -1:
        return f"in {format_duration(round(-seconds))}"
    return f"{format_duration(round(max(0.0, seconds)))} ago"


def stamp(moment: datetime) -> str:
    """Return a moment in full, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def clock(moment: datetime, now: datetime) -> str:
    """Return a moment in UTC: the time alone on the day of `now`, the date too on another."""
    moment, now = moment.astimezone(UTC), now.astimezone(UTC)
    return f"{moment:%H:%M:%S}" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M:%S}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 agent`, `1,200 agents`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
