"""`fleetbeat explain`: why an agent is judged as it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import click
from rich.console import Group
from rich.text import Text

from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import amount, exact, format_duration
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import console, counted, facts_table, plain_table, print_json, safe
from fleetbeat_worker.cli.rendering import STYLES, missed_text
from fleetbeat_worker.cli.types import MomentType, NameType
from fleetbeat_worker.explain.evidence import Beat
from fleetbeat_worker.explain.explanation import Explanation
from fleetbeat_worker.explain.suppressions import Spell
from fleetbeat_worker.explain.verdict import explain as run_explain
from fleetbeat_worker.rules.spans import Span, from_milliseconds, parse_time

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

CLOCK_SECONDS = 5.0
"""By how much an agent's clock may be off before the table of heartbeats says so."""


@click.command(
    epilog=example(
        "fleetbeat explain hint",
        "fleetbeat explain hint --at 2h",
        "fleetbeat explain --session 019c0d3e-0000-7000-8000-000000000000 --at 2026-01-31T08:15:00Z",
    )
)
@click.argument("name", type=NameType(), required=False)
@click.option("--session", "session_id", type=click.UUID, metavar="ID", help="The session with this id.")
@click.option(
    "--at",
    type=MomentType("2h for 2 h ago"),
    help="Explain a moment of before: ISO 8601 (local time unless it says a zone), or how long ago it was: 2h.",
)
@json_option
@common_options
def explain(
    *, settings: Settings, name: str | None, session_id: UUID | None, at: datetime | timedelta | None, as_json: bool
) -> None:
    """Say how an agent is judged, as of when, and every fact behind it, with the sum that gives its deadline.

    Of a name, the live session is explained, or else the last one.
    """
    if (name is None) == (session_id is None):
        message = "Name an agent, or give --session ID."
        raise click.UsageError(message)
    asked = session_id or name or ""
    with open_database(settings) as engine, open_redis(settings) as client:
        moment = datetime.now(UTC) - at if isinstance(at, timedelta) else at
        found = run_explain(settings, engine, client, asked, moment)
    if as_json:
        print_json(found.to_json())
    else:
        console().print(explanation_text(found))


def explanation_text(found: Explanation) -> RenderableType:
    """Return an explanation as people read it."""
    parts: list[RenderableType] = []
    if found.pipeline and found.pipeline.trouble:
        parts.append(safe(found.pipeline.trouble, "bold yellow"))
    parts.append(facts_table({name: value for name, value in _facts(found).items() if value}))
    parts += [Text(note, style="yellow") for note in found.notes]
    if found.heartbeats:
        parts += [Text(), _heartbeats_table(found.heartbeats)]
    return Group(*parts)


def _facts(found: Explanation) -> dict[str, Text]:
    return {
        "agent": safe(found.agent_name, "bold"),
        "session": Text(str(found.session_id)),
        "verdict": _verdict(found),
        "as of": _as_of(found),
        "promise": _promise(found),
        "deadline": safe_lines(found.arithmetic.lines()),
        "flagged": Text(_flagged(found)),
        "stuck": safe_lines(found.stuck.lines() if found.stuck else []),
        "flapping": safe_lines(found.flapping.lines() if found.flapping else []),
        "next": Text(found.next),
        "ended": safe(found.ended.text() if found.ended else ""),
        "paused": safe_lines([_spell(pause, "somebody resumes it") for pause in found.pauses]),
        "maintenance": safe_lines([_spell(window, "somebody ends it") for window in found.maintenance]),
        "outages": Text(_spans(found.outages)),
    }


def safe_lines(lines: Sequence[str]) -> Text:
    """Return lines as text that a terminal only shows."""
    return Text("\n").join([safe(line) for line in lines])


def _verdict(found: Explanation) -> Text:
    since = f" since {exact(found.state_since)} UTC" if found.state_since else ""
    missed = f", {missed_text(found.missed)}" if found.missed else ""
    confidence = (", HELD", "bold yellow") if found.held else (", current", "")
    return Text.assemble((found.state.upper(), STYLES.get(found.state, "")), since, missed, confidence)


def _as_of(found: Explanation) -> Text:
    if found.pipeline is None:
        return Text(f"{exact(found.as_of)} UTC, from what is stored of that time")
    if found.pipeline.backlog is None or found.pipeline.lag_seconds is None:
        return Text(f"{exact(found.as_of)} UTC")
    waiting = counted(found.pipeline.backlog, "message")
    lag = format_duration(found.pipeline.lag_seconds)
    return Text(f"{exact(found.as_of)} UTC (the watermark; {waiting} in the inbox, {lag} behind)")


def _promise(found: Explanation) -> Text:
    sum_of = found.arithmetic
    limit = f"{amount(sum_of.promise.grace_seconds)} grace; degraded when {sum_of.missed_limit} are missed"
    if sum_of.promise.interval_seconds is not None:
        return Text(f"every {amount(sum_of.promise.interval_seconds)}, {limit}")
    return Text.assemble("at ", safe(sum_of.promise.schedule), " ", safe(sum_of.promise.time_zone), f", {limit}")


def _flagged(found: Explanation) -> str:
    if found.flag is None:
        return ""
    detail = found.flag.detail
    text = f"by the sweep of {exact(found.flag.flagged_at)} UTC"
    if detail.get("watermark"):
        text += f", as of the watermark {_told(detail['watermark'])}"
    if isinstance(detail.get("backlog"), int):
        text += f", with {counted(detail['backlog'], 'message')} in the inbox"
    if detail.get("deadline_at"):
        text += f": the deadline {_told(detail['deadline_at'])} lay before it"
    return text


def _told(value: object) -> str:
    """Return a moment of an event's detail as the rest of the page has it."""
    moment = parse_time(value)
    return exact(moment) if moment else safe(str(value)).plain


def _spell(spell: Spell, otherwise: str) -> str:
    """Return a pause or maintenance; `otherwise` is until when it lasts if no moment was set."""
    long = format_duration(spell.seconds)
    if spell.ended_at is None:
        until = f"{exact(spell.until)} UTC" if spell.until else otherwise
        text = f"since {exact(spell.started_at)} UTC ({long} so far, until {until})"
    else:
        text = f"{exact(spell.started_at)} to {exact(spell.ended_at)} UTC ({long})"
    return f"{text}: {spell.reason}" if spell.reason else text


def _spans(spans: Sequence[Span]) -> str:
    return "\n".join(
        f"{exact(from_milliseconds(start))} to {exact(from_milliseconds(end))} UTC"
        f" ({format_duration((end - start) / 1000)})"
        for start, end in spans
    )


def _heartbeats_table(beats: Sequence[Beat]) -> Table:
    table = plain_table()
    for header in ("Received (UTC)", "Seen", "Sent (its clock)"):
        table.add_column(header, no_wrap=True)
    table.add_column("Note", overflow="fold")
    for beat in beats:
        table.add_row(exact(beat.received_at), exact(beat.seen_at), exact(beat.sent_at), _note(beat))
    return table


def _note(beat: Beat) -> str:
    notes = []
    if beat.waited_seconds:
        notes.append(f"waited {format_duration(beat.waited_seconds)} to be sent")
    off = (beat.sent_at - beat.seen_at).total_seconds()
    if abs(off) > CLOCK_SECONDS:
        notes.append(f"its clock is {format_duration(off)} {'ahead' if off > 0 else 'behind'}")
    if not beat.counted:
        notes.append("older than the one before: moved nothing")
    return "; ".join(notes)
