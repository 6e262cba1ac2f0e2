"""`fleetbeat explain`: an agent's state, with every fact behind it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import exact, format_duration
from fleetbeat_worker.cli.options import common_options, example, name_or_session, open_database, open_redis
from fleetbeat_worker.cli.output import counted, print_json
from fleetbeat_worker.cli.rendering import (
    STYLES,
    console,
    facts_table,
    missed_text,
    plain_table,
    promise_text,
    safe,
    safe_lines,
    wrapped,
)
from fleetbeat_worker.cli.types import MomentType
from fleetbeat_worker.explain.evidence import Beat
from fleetbeat_worker.explain.explanation import Explanation
from fleetbeat_worker.explain.suppressions import Spell
from fleetbeat_worker.explain.verdict import explain as run_explain
from fleetbeat_worker.rules.spans import Span, from_milliseconds, parse_time

CLOCK_SECONDS = 5.0
"""An agent's clock that is off by more than this is noted in the table of heartbeats."""


@click.command(
    epilog=example(
        "fleetbeat explain hint",
        "fleetbeat explain hint --at 2h",
        "fleetbeat explain --session 019c0d3e-0000-7000-8000-000000000000 --at 2026-01-31T08:15:00Z",
    )
)
@name_or_session
@click.option(
    "--at",
    type=MomentType("2h for 2 h ago"),
    help="Explain a past time: ISO 8601 (local time unless it has a zone), or how long ago: 2h.",
)
@common_options
def explain(*, settings: Settings, asked: str | UUID, at: datetime | timedelta | None, as_json: bool) -> None:
    """Explain an agent's state: as of when, from which facts, and how its deadline is computed.

    For a name this is the live session, or else the last one.
    """
    with open_database(settings) as engine, open_redis(settings) as client:
        moment = datetime.now(UTC) - at if isinstance(at, timedelta) else at
        found = run_explain(settings, engine, client, asked, moment)
    if as_json:
        print_json(found.to_json())
    else:
        console().print(explanation_text(found))


def explanation_text(found: Explanation) -> RenderableType:
    """Show an explanation: the facts, the notes, and the heartbeats that count."""
    parts: list[RenderableType] = []
    if found.pipeline and found.pipeline.trouble:
        parts.append(safe(found.pipeline.trouble, "bold yellow"))
    parts.append(facts_table(_facts(found)))
    parts += [Text(note, style="yellow") for note in found.notes]
    if found.heartbeats:
        parts += [Text(), _heartbeats_table(found.heartbeats)]
    return Group(*parts)


def _facts(found: Explanation) -> dict[str, Text]:
    return {
        "agent": safe(found.agent_name, "bold"),
        "session": Text(str(found.session_id)),
        "verdict": _verdict_text(found),
        "as of": _as_of(found),
        "promise": promise_text(found.arithmetic.promise, found.arithmetic.missed_limit),
        "deadline": safe_lines(found.arithmetic.lines()),
        "flagged": Text(_flag_text(found)),
        "stuck": safe_lines(found.stuck.lines() if found.stuck else []),
        "flapping": safe_lines(found.flapping.lines() if found.flapping else []),
        "next": Text(found.next),
        "ended": safe(found.ended.text() if found.ended else ""),
        "paused": safe_lines([_suppression_text(pause, "resumed") for pause in found.pauses]),
        "maintenance": safe_lines([_suppression_text(window, "ended") for window in found.maintenance]),
        "outages": Text(_spans_text(found.outages)),
    }


def _verdict_text(found: Explanation) -> Text:
    since = f" since {exact(found.state_since)} UTC" if found.state_since else ""
    missed = f", {missed_text(found.missed)}" if found.missed else ""
    confidence = (", HELD", "bold yellow") if found.held else (", current", "")
    return Text.assemble((found.state.upper(), STYLES.get(found.state, "")), since, missed, confidence)


def _as_of(found: Explanation) -> Text:
    if found.pipeline is None:
        return Text(f"{exact(found.as_of)} UTC, from the stored history")
    if found.pipeline.backlog is None or found.pipeline.lag_seconds is None:
        return Text(f"{exact(found.as_of)} UTC")
    waiting = counted(found.pipeline.backlog, "message")
    lag = format_duration(found.pipeline.lag_seconds)
    return Text(f"{exact(found.as_of)} UTC (the watermark; {waiting} in the inbox, {lag} behind)")


def _flag_text(found: Explanation) -> str:
    if found.flag is None:
        return ""
    detail = found.flag.detail
    text = f"by the sweep of {exact(found.flag.flagged_at)} UTC"
    if detail.get("watermark"):
        text += f", with the watermark at {_exact_text(detail['watermark'])}"
    if isinstance(detail.get("backlog"), int):
        text += f" and {counted(detail['backlog'], 'message')} in the inbox"
    if detail.get("deadline_at"):
        text += f": the deadline {_exact_text(detail['deadline_at'])} had passed"
    return text


def _exact_text(value: object) -> str:
    """Format a moment from an event's detail, which is ISO 8601, like all others here."""
    moment = parse_time(value)
    return exact(moment) if moment else safe(str(value)).plain


def _suppression_text(spell: Spell, end: str) -> str:
    """Describe a pause or a maintenance window; `end`: what ends one that has no end set."""
    length = format_duration(spell.seconds)
    if spell.ended_at is None:
        until = f"{exact(spell.until)} UTC" if spell.until else end
        text = f"since {exact(spell.started_at)} UTC ({length} so far, until {until})"
    else:
        text = f"{exact(spell.started_at)} to {exact(spell.ended_at)} UTC ({length})"
    return f"{text}: {spell.reason}" if spell.reason else text


def _spans_text(spans: Sequence[Span]) -> str:
    return "\n".join(
        f"{exact(from_milliseconds(start))} to {exact(from_milliseconds(end))} UTC"
        f" ({format_duration((end - start) / 1000)})"
        for start, end in spans
    )


def _heartbeats_table(beats: Sequence[Beat]) -> Table:
    table = plain_table("Received (UTC)", "Counted at", "Sent (agent's clock)", wrapped("Note"))
    for beat in beats:
        table.add_row(exact(beat.received_at), exact(beat.seen_at), exact(beat.sent_at), _note(beat))
    return table


def _note(beat: Beat) -> str:
    notes = []
    if beat.waited_seconds:
        notes.append(f"waited {format_duration(beat.waited_seconds)} to be sent")
    off = (beat.sent_at - beat.seen_at).total_seconds()
    if abs(off) > CLOCK_SECONDS:
        notes.append(f"the agent's clock is {format_duration(off)} {'ahead' if off > 0 else 'behind'}")
    if not beat.counted:
        notes.append("older than the one before, so it changed nothing")
    return "; ".join(notes)
