"""`fleetbeat agents`: list agents, show one in full, pause and resume them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.errors import UnknownSession
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.events import event_json, events_table
from fleetbeat_worker.cli.options import (
    all_option,
    common_options,
    example,
    open_database,
    open_redis,
    state_option,
)
from fleetbeat_worker.cli.output import ago, print_json, stamp
from fleetbeat_worker.cli.pauses import pause, resume
from fleetbeat_worker.cli.rendering import (
    banner,
    console,
    facts_table,
    headline,
    last_seen_text,
    marks,
    missed_text,
    name_column,
    no_agents_text,
    plain_table,
    promise_text,
    safe,
    schedule_text,
    state_text,
    wrapped,
)
from fleetbeat_worker.cli.types import NameType
from fleetbeat_worker.fleet.agents import (
    LIVE_STATES,
    AgentReport,
    FleetView,
    Selection,
    maintenance_json,
    read_agent,
    read_fleet,
)
from fleetbeat_worker.fleet.pipeline import PipelineView
from fleetbeat_worker.fleet.uptime import Record, SilenceView
from fleetbeat_worker.rules.liveness import Promise, State


@click.group()
def agents() -> None:
    """List agents, show one in full, pause and resume them."""


agents.add_command(pause)
agents.add_command(resume)


@agents.command(
    "list",
    epilog=example("fleetbeat agents list", "fleetbeat agents list --state ok,late", "fleetbeat agents list --all"),
)
@state_option
@all_option
@common_options
def list_agents(*, settings: Settings, states: frozenset[State] | None, show_all: bool, as_json: bool) -> None:
    """List the live agents, the newest heartbeat first."""
    selection = Selection(
        states=states or (frozenset(State) if show_all else LIVE_STATES),
        newest_first=True,
        count_missed=as_json,  # the text has no room for it
    )
    with open_database(settings) as engine, open_redis(settings) as client:
        view = read_fleet(settings, engine, client, selection)
    if as_json:
        print_json({"as_of": view.as_of, "held": view.pipeline.held, "agents": [a.to_json() for a in view.agents]})
    else:
        console().print(_list_text(view, filtered=bool(states)))


def _list_text(view: FleetView, *, filtered: bool) -> RenderableType:
    if not view.agents:
        return no_agents_text(filtered=filtered)
    table = plain_table(
        "State",
        name_column(view, max_width=24),
        "Last seen\n(UTC)",
        wrapped("Every", max_width=16),
        wrapped("Project", max_width=16),
        wrapped("Session"),
    )
    for agent in view.agents:
        table.add_row(
            Text("\n").join([state_text(agent), *marks(agent)]),
            safe(agent.agent_name, "bold"),
            last_seen_text(agent.last_seen_at, view.pipeline.now),
            schedule_text(agent),
            safe(agent.project),
            Text(str(agent.session_id)),
        )
    return Group(headline(view), *banner(view.pipeline, view.maintenance), Text(), table)


@agents.command(
    "show", epilog=example("fleetbeat agents show hint", "fleetbeat agents show 019c0d3e-0000-7000-8000-000000000000")
)
@click.argument("name_or_session", type=NameType())
@click.option(
    "--events",
    "event_limit",
    type=WholeNumber(0, 1_000_000),
    default=10,
    show_default=True,
    help="Show this many of its latest events.",
)
@common_options
def show_agent(*, settings: Settings, name_or_session: str, event_limit: int, as_json: bool) -> None:
    """Show one agent in full.

    Of a name this is the newest session, of a session's ID that session.
    """
    with open_database(settings) as engine, open_redis(settings) as client:
        report = read_agent(settings, engine, client, _session_id(name_or_session) or name_or_session, event_limit)
        if report is None:
            report = read_agent(settings, engine, client, name_or_session, event_limit)
    if report is None:
        message = f"No agent or session {name_or_session!r} was ever registered. See: fleetbeat agents list --all"
        raise UnknownSession(message)
    if as_json:
        print_json(_report_json(report))
    else:
        console().print(_report_text(report))


def _report_json(report: AgentReport) -> dict[str, Any]:
    return {
        "as_of": report.pipeline.as_of,
        "held": report.pipeline.held,
        "maintenance": maintenance_json(report.maintenance),
        "agent": report.agent.to_json(),
        "tasks": {"open": report.tasks.open, "stale": report.tasks.stale},
        "events": [event_json(event) for event in report.events],
        "uptime": {period: found.to_json() for period, found in report.record.uptime.items()},
        "silences": [silence.to_json() for silence in report.record.silences],
        "state_changes": [event_json(event) for event in report.record.state_changes],
    }


def _session_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _report_text(report: AgentReport) -> RenderableType:
    parts: list[RenderableType] = [*banner(report.pipeline, report.maintenance), facts_table(_facts(report))]
    if report.events:
        parts += [Text(), events_table(report.events, report.pipeline.now, with_agent=False)]
    return Group(*parts, *_record_text(report))


def _facts(report: AgentReport) -> dict[str, Text]:
    agent, now = report.agent, report.pipeline.now

    def moment(value: datetime | None) -> Text:
        return Text(f"{stamp(value)} UTC, {ago(value, now)}" if value is not None else "")

    return {
        "agent": safe(agent.agent_name, "bold"),
        "session": Text(str(agent.session_id)),
        "state": _state_fact(report),
        "last seen": moment(agent.last_seen_at) or Text("never"),
        "promise": _promise_fact(report),
        "deadline": Text() if agent.ended_at or agent.paused_at else moment(agent.deadline_at),
        "uptime": _uptime_text(report.record),
        "current work": safe(agent.current_work),
        "work item": safe(agent.work_item_id),
        "progress": safe(agent.progress),
        "status": safe(agent.status),
        "summary": safe(agent.summary),
        "error": safe(agent.error, "red"),
        "tasks": _tasks_fact(report),
        "project": safe(agent.project),
        "parent": Text(str(agent.parent_id) if agent.parent_id else ""),
        "parallel": Text("yes: several live sessions may share its name" if agent.parallel else ""),
        "paused": _pause_fact(report),
        "metadata": safe(json.dumps(agent.metadata, ensure_ascii=False) if agent.metadata else ""),
        "registered": moment(agent.registered_at),
        "ended": moment(agent.ended_at),
        "exit status": Text("" if agent.exit_status is None else str(agent.exit_status)),
    }


def _state_fact(report: AgentReport) -> Text:
    agent = report.agent
    since = f" since {stamp(agent.state_changed_at)} UTC" if agent.state is not State.LATE else ""
    missed = f", {missed_text(agent.missed_intervals)}" if agent.missed_intervals else ""
    beside = [part for mark in marks(agent) for part in (", ", mark)]
    return Text.assemble(state_text(agent), since, missed, *beside, _as_of(report.pipeline))


def _as_of(pipeline: PipelineView) -> str:
    """Say as of when a state is known, unless that is about now: what came since may have changed it."""
    if pipeline.as_of is None or not (pipeline.held or pipeline.is_late):
        return ""
    held = "HELD " if pipeline.held else ""
    behind = format_duration(round((pipeline.now - pipeline.as_of).total_seconds()))
    return f" ({held}as of {stamp(pipeline.as_of)} UTC; the pipeline is {behind} behind)"


def _promise_fact(report: AgentReport) -> Text:
    agent = report.agent
    promise = Promise(agent.interval_seconds, agent.schedule, agent.time_zone, agent.grace_seconds)
    text = promise_text(promise, agent.missed_limit)
    return text if report.stuck_limit is None else text.append(f", stuck after {report.stuck_limit}")


def _tasks_fact(report: AgentReport) -> Text:
    agent, stored = report.agent, report.tasks
    text = f"{agent.open_tasks} open, {agent.stale_tasks} stale"
    if (stored.open, stored.stale) != (agent.open_tasks, agent.stale_tasks):
        text += f" at its last heartbeat; {stored.open} open, {stored.stale} stale in fleetbeat tasks"
    return Text(text)


def _pause_fact(report: AgentReport) -> Text:
    agent = report.agent
    if agent.state is not State.PAUSED:
        return Text()
    until = f"until {stamp(agent.paused_until)} UTC" if agent.paused_until else "until resumed"
    return Text.assemble(until, safe(f": {agent.pause_reason}" if agent.pause_reason else ""))


def _uptime_text(record: Record) -> Text:
    """Show the uptimes in one line, with how much time counts: that may be less than the period."""
    shares = [
        f"{'-' if found.share is None else percent(found.share)} of {period}" for period, found in record.uptime.items()
    ]
    counted_seconds = next(reversed(record.uptime.values())).counted_seconds
    return Text(f"{', '.join(shares)} ({format_duration(round(counted_seconds))} counted)")


def percent(share: float) -> str:
    """Format a share in percent, never rounded up to 100: `99.99%`."""
    return f"{int(share * 10_000) / 100:g}%"


def _record_text(report: AgentReport) -> list[RenderableType]:
    """List the silences and the state changes, each under a title."""
    record = report.record
    parts: list[RenderableType] = []
    if record.silences:
        parts += [Text(), Text("Silences", style="bold"), _silences_table(record.silences)]
    # Left out if the events above include all of them.
    if {event.id for event in record.state_changes} - {event.id for event in report.events}:
        changes = events_table(record.state_changes, report.pipeline.now, with_agent=False)
        parts += [Text(), Text("State changes", style="bold"), changes]
    return parts


def _silences_table(silences: Sequence[SilenceView]) -> Table:
    table = plain_table("From (UTC)", "To", "Duration")
    for silence in silences:
        ended = "still silent" if silence.ended_at is None else stamp(silence.ended_at)
        if silence.ended_by in {"paused", "ended"}:
            ended += f", {silence.ended_by}"
        table.add_row(stamp(silence.silent_since), ended, format_duration(round(silence.seconds)))
    return table
