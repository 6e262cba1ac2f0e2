"""An agent's record as text: its uptime, its silences, what changed for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.events import events_table
from fleetbeat_worker.cli.output import plain_table, stamp
from fleetbeat_worker.fleet.agents import AgentReport
from fleetbeat_worker.fleet.uptime import Record, SilenceView

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def uptime_text(record: Record) -> Text:
    """Return the uptimes on one line; how much time counts is said where it is less than the period."""
    parts = []
    for period, found in record.uptime.items():
        share = "-" if found.share is None else percent(found.share)
        parts.append(f"{share} of {period}")
    counted = next(reversed(record.uptime.values())).counted_seconds
    return Text(f"{', '.join(parts)} ({format_duration(round(counted))} counted)")


def percent(share: float) -> str:
    """Return a share in percent, never rounded up to 100: `99.99%`."""
    return f"{int(share * 10_000) / 100:g}%"


def record_text(report: AgentReport) -> list[RenderableType]:
    """Return the silences and what changed, each under a title."""
    record = report.record
    parts: list[RenderableType] = []
    if record.silences:
        parts += [Text(), Text("Silences", style="bold"), _silences_table(record.silences)]
    # Where the events above are all of them, they needn't be told twice.
    if {event.id for event in record.state_changes} - {event.id for event in report.events}:
        changes = events_table(record.state_changes, report.pipeline.now, with_agent=False)
        parts += [Text(), Text("Changes of state", style="bold"), changes]
    return parts


def _silences_table(silences: Sequence[SilenceView]) -> Table:
    table = plain_table()
    for header in ("From (UTC)", "To", "Length"):
        table.add_column(header, no_wrap=True)
    for silence in silences:
        ended = "still silent" if silence.ended_at is None else stamp(silence.ended_at)
        if silence.ended_by in {"paused", "ended"}:
            ended += f", {silence.ended_by}"
        table.add_row(stamp(silence.silent_since), ended, format_duration(round(silence.seconds)))
    return table
