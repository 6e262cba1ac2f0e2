"""`fleetbeat agents`: list agents, show one, pause and resume some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
from rich.console import Group
from rich.text import Text

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.errors import UnknownSession
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import amount, format_duration
from fleetbeat_worker.cli.events import event_json, events_table
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import ago, console, facts_table, plain_table, print_json, safe, stamp
from fleetbeat_worker.cli.pauses import pause, resume
from fleetbeat_worker.cli.rendering import (
    add_name_column,
    headline,
    heard_text,
    maintenance_sentence,
    marks,
    missed_text,
    no_agents_text,
    promise_text,
    state_text,
)
from fleetbeat_worker.cli.types import NameType, States
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
from fleetbeat_worker.rules.liveness import State

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


if TYPE_CHECKING:
    from rich.console import RenderableType


@click.group()
def agents() -> None:
    """List agents, show one in full, pause and resume them."""


agents.add_command(pause)
agents.add_command(resume)


@agents.command(
    "list",
    epilog=example("fleetbeat agents list", "fleetbeat agents list --state ok,late", "fleetbeat agents list --all"),
)
@click.option("--state", "states", type=States(), help="Only these: pending, ok, late, degraded, paused, ended.")
@click.option("--all", "show_all", is_flag=True, help="Ended sessions too.")
@json_option
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
    table = plain_table()
    table.add_column("State", no_wrap=True)
    add_name_column(table, view, max_width=24)
    table.add_column("Last heard\n(UTC)", no_wrap=True)
    table.add_column("Every", overflow="fold", max_width=16)
    table.add_column("Project", overflow="fold", max_width=16)
    table.add_column("Session", overflow="fold")
    for agent in view.agents:
        table.add_row(
            Text("\n").join([state_text(agent), *marks(agent)]),
            safe(agent.agent_name, "bold"),
            heard_text(agent.last_seen_at, view.pipeline.now),
            promise_text(agent),
            safe(agent.project),
            Text(str(agent.session_id)),
        )
    trouble = [safe(view.pipeline.trouble, "bold yellow")] if view.pipeline.trouble else []
    if view.maintenance:
        trouble.append(safe(maintenance_sentence(view.maintenance, view.pipeline.now), "bold magenta"))
    return Group(headline(view), *trouble, Text(), table)


@agents.command(
    "show", epilog=example("fleetbeat agents show hint", "fleetbeat agents show 019c0d3e-0000-7000-8000-000000000000")
)
@click.argument("name_or_session", type=NameType())
@click.option(
    "--events", "event_limit", type=WholeNumber(0, 1_000_000), default=10, help="How many of its last events."
)
@json_option
@common_options
def show_agent(*, settings: Settings, name_or_session: str, event_limit: int, as_json: bool) -> None:
    """Show one agent in full: the newest session of a name, or the session with an id."""
    with open_database(settings) as engine, open_redis(settings) as client:
        report = read_agent(settings, engine, client, _session_id(name_or_session) or name_or_session, event_limit)
        if report is None:
            report = read_agent(settings, engine, client, name_or_session, event_limit)
    if report is None:
        message = f"No agent or session {name_or_session!r} was ever registered; see: fleetbeat agents list --all"
        raise UnknownSession(message)
    if as_json:
        print_json(
            {
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
        )
    else:
        console().print(_report_text(report))


def _session_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _report_text(report: AgentReport) -> RenderableType:
    parts: list[RenderableType] = []
    if report.pipeline.trouble:
        parts.append(safe(report.pipeline.trouble, "bold yellow"))
    if report.maintenance:
        parts.append(safe(maintenance_sentence(report.maintenance, report.pipeline.now), "bold magenta"))
    parts.append(facts_table({name: value for name, value in _facts(report).items() if value}))
    if report.events:
        parts += [Text(), events_table(report.events, report.pipeline.now, with_agent=False)]
    return Group(*parts, *record_text(report))


def _facts(report: AgentReport) -> dict[str, Text]:
    agent, now = report.agent, report.pipeline.now

    def moment(value: datetime | None) -> Text:
        return Text(f"{stamp(value)} UTC, {ago(value, now)}" if value is not None else "")

    work = f"{agent.open_tasks} open, {agent.stale_tasks} stale"
    if (report.tasks.open, report.tasks.stale) != (agent.open_tasks, agent.stale_tasks):
        work += f" at its last heartbeat; {report.tasks.open} open, {report.tasks.stale} stale in fleetbeat tasks"
    return {
        "agent": safe(agent.agent_name, "bold"),
        "session": Text(str(agent.session_id)),
        "state": _state_fact(report),
        "last heard": moment(agent.last_seen_at) or Text("never"),
        "promise": _promise_fact(report),
        "deadline": Text() if agent.ended_at or agent.paused_at else moment(agent.deadline_at),
        "uptime": uptime_text(report.record),
        "current work": safe(agent.current_work),
        "work item": safe(agent.work_item_id),
        "progress": safe(agent.progress),
        "status": safe(agent.status),
        "summary": safe(agent.summary),
        "error": safe(agent.error, "red"),
        "tasks": Text(work),
        "project": safe(agent.project),
        "works for": Text(str(agent.parent_id) if agent.parent_id else ""),
        "parallel": Text("yes: other live sessions may have its name" if agent.parallel else ""),
        "paused": _pause_fact(report),
        "metadata": safe(_compact(agent.metadata)),
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
    """Return as of when a state is taken, if that isn't about now: what came since may have changed it."""
    if pipeline.as_of is None or not (pipeline.held or pipeline.is_late):
        return ""
    held = "HELD " if pipeline.held else ""
    behind = format_duration(round((pipeline.now - pipeline.as_of).total_seconds()))
    return f" ({held}as of {stamp(pipeline.as_of)} UTC; the pipeline is {behind} behind)"


def _pause_fact(report: AgentReport) -> Text:
    agent = report.agent
    if agent.state is not State.PAUSED:
        return Text()
    until = f"until {stamp(agent.paused_until)} UTC" if agent.paused_until else "until somebody resumes it"
    return Text.assemble(until, safe(f": {agent.pause_reason}" if agent.pause_reason else ""))


def _promise_fact(report: AgentReport) -> Text:
    agent = report.agent
    grace = f", {amount(agent.grace_seconds)} grace, degraded at {agent.missed_limit} missed"
    if report.stuck_limit is not None:
        grace += f", stuck after {report.stuck_limit}"
    if agent.interval_seconds is not None:
        return Text(f"every {amount(agent.interval_seconds)}{grace}")
    return Text.assemble("at ", safe(agent.schedule), " ", safe(agent.time_zone or "UTC"), grace)


def _compact(value: dict[str, Any] | None) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


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
