"""TODO."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.output import ago, clock, counted, plain_table, safe, stamp
from fleetbeat_worker.fleet.agents import AgentView, FleetView, IncidentView
from fleetbeat_worker.fleet.pipeline import PipelineView
from fleetbeat_worker.rules.liveness import MISSED_COUNTED, State
from fleetbeat_worker.rules.maintenance_windows import Window

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


TEXT_LIMIT = 100
"""Characters of a text that the table shows; how many more there are is said in their place."""


NAME_WIDTH = 9
"""Columns that an agent's name has at least, if it needs them."""


STYLES = {
    State.DEGRADED: "bold red",
    State.LATE: "yellow",
    State.PENDING: "cyan",
    State.PAUSED: "magenta",
    State.OK: "green",
    State.ENDED: "dim",
}


def render(view: FleetView, *, filtered: bool = False) -> RenderableType:
    """Return the dashboard for a terminal of 100 columns or so.

    `filtered`: whether only some agents were asked for, so that none needn't mean that there are none.
    """
    parts: list[RenderableType] = [headline(view)]
    if view.pipeline.trouble:
        parts.append(safe(view.pipeline.trouble, "bold yellow"))
    if view.maintenance:
        parts.append(safe(maintenance_sentence(view.maintenance, view.pipeline.now), "bold magenta"))
    if view.incident:
        parts.append(safe(incident_sentence(view.incident, view.pipeline.now), "bold red"))
    parts.append(Text())
    if view.agents:
        parts.append(_agents_table(view))
    else:
        parts.append(no_agents_text(filtered=filtered))
    hidden = sum(view.counts.values()) - len(view.agents)
    if hidden:
        parts.append(Text(f"… and {counted(hidden, 'more agent')}: raise --limit.", style="dim"))
    if any(_is_cut(agent) for agent in view.agents):
        parts.append(Text("(+N): N characters more; all of it: fleetbeat agents show NAME", style="dim"))
    return Group(*parts, Text(), _pipeline_line(view.pipeline))


def headline(view: FleetView) -> Text:
    """Return how many agents there are in each state, and the moment that this is true of."""
    total = counted(sum(view.counts.values()), "agent")
    line = Text.assemble((total, "bold"))
    for state in sorted(view.counts, key=list(STYLES).index):
        line.append(", " if len(line) > len(total) else ": ")
        line.append(f"{view.counts[state]:,} {state}", style=STYLES[state])
    if view.as_of is None:
        return line.append("  HELD: nothing is known of any time yet", style="bold yellow")
    if not view.pipeline.held:
        return line.append(f"  as of {stamp(view.as_of)} UTC", style="dim")
    return line.append(
        f"  HELD as of {stamp(view.as_of)} UTC, {ago(view.as_of, view.pipeline.now)}", style="bold yellow"
    )


def _agents_table(view: FleetView) -> Table:
    table = plain_table()
    table.add_column("State", no_wrap=True)
    add_name_column(table, view, max_width=14)
    table.add_column("Last heard\n(UTC)", no_wrap=True)
    table.add_column("Every,\nmissed", overflow="fold", max_width=16)
    table.add_column("Tasks", no_wrap=True)
    table.add_column("Current work", overflow="fold", ratio=1)
    table.add_column("Summary, error", overflow="fold", ratio=1)
    for agent in view.agents:
        table.add_row(
            Text("\n").join([state_text(agent, view.pipeline.now), *marks(agent)]),
            safe(agent.agent_name, "bold"),
            heard_text(agent.last_seen_at, view.pipeline.now),
            Text.assemble(
                promise_text(agent),
                "\n",
                (missed_text(agent.missed_intervals), STYLES[agent.state] if agent.missed_intervals else "dim"),
            ),
            _tasks_text(agent),
            _work_text(agent),
            _said_text(agent),
        )
    return table


def add_name_column(table: Table, view: FleetView, *, max_width: int) -> None:
    """Give a table the column of names: a terminal that is too narrow for all columns takes from the others first."""
    longest = max(cell_len(clean(agent.agent_name)) for agent in view.agents)
    table.add_column("Agent", overflow="fold", min_width=min(NAME_WIDTH, longest), max_width=max_width)


def no_agents_text(*, filtered: bool) -> Text:
    """Return what stands in the place of an empty table."""
    if filtered:
        return Text("No agent matches; ended ones are seen with --all.")
    return Text("No live agents. Register one: fleetbeat-agent register --name NAME --every 30s")


def maintenance_sentence(window: Window, now: datetime) -> str:
    """Return what runs, since when and until when."""
    until = f"until {clock(window.ends_at, now)}" if window.ends_at else "until somebody ends it"
    why = f" ({clean(window.reason)})" if window.reason else ""
    return f"Maintenance since {clock(window.starts_at, now)} UTC {until}{why}: nobody is flagged."


def incident_sentence(incident: IncidentView, now: datetime) -> str:
    """Return what happened to many agents at once, since when, and how many of them are still silent."""
    many = f"{incident.agents:,} of {counted(incident.live_agents, 'agent')} fell silent"
    return (
        f"An incident is open since {clock(incident.started_at, now)} UTC: {many}, still silent: {incident.silent:,}."
    )


def state_text(agent: AgentView, now: datetime | None = None) -> Text:
    """Return the state as a word; degraded ones shout even without colour. With `now`, below it how long it lasts."""
    word = str(agent.state).upper() if agent.degraded else str(agent.state)
    text = Text(word, style=STYLES[agent.state])
    if now is not None and agent.paused_until is not None:
        text.append("\nuntil\n", style="dim").append(clock(agent.paused_until, now).replace(" ", "\n"), style="dim")
    return text


def marks(agent: AgentView) -> list[Text]:
    """Return what stands beside the state."""
    words = ("stuck", "flapping", "unjudged")
    return [Text(word, style="bold yellow") for word in words if getattr(agent, word)]


def heard_text(last_seen_at: datetime | None, now: datetime) -> Text:
    """Return how long ago an agent was heard, and below it when."""
    if last_seen_at is None:
        return Text("never", style="dim")
    return Text.assemble(ago(last_seen_at, now), "\n", (clock(last_seen_at, now).replace(" ", "\n"), "dim"))


def promise_text(agent: AgentView) -> Text:
    """Return how often an agent promised to beat."""
    if agent.interval_seconds is not None:
        return Text(format_duration(agent.interval_seconds))
    return Text.assemble(safe(agent.schedule), "\n", safe(agent.time_zone or "UTC", "dim"))


def missed_text(missed: int | None) -> str:
    """Return how many intervals an agent missed; counting stops at MISSED_COUNTED."""
    if missed is None:
        return "? missed"
    return f"{missed}+ missed" if missed >= MISSED_COUNTED else f"{missed} missed"


def _tasks_text(agent: AgentView) -> Text:
    stale = (f"{agent.stale_tasks:,} stale", "yellow" if agent.stale_tasks else "dim")
    return Text.assemble((f"{agent.open_tasks:,} open", "" if agent.open_tasks else "dim"), "\n", stale)


def _work_text(agent: AgentView) -> Text:
    work = safe(agent.current_work, limit=TEXT_LIMIT)
    if not agent.work_item_id:
        return work
    item = safe(f"[{agent.work_item_id}]", "dim", limit=TEXT_LIMIT)
    return Text("\n").join([work, item]) if work else item


def _said_text(agent: AgentView) -> Text:
    said = ": ".join(part for part in (clean(agent.status or ""), clean(agent.summary or "")) if part)
    lines = [safe(said, limit=TEXT_LIMIT)] if said else []
    if agent.error:
        lines.append(safe(f"error: {clean(agent.error)}", "red", limit=TEXT_LIMIT))
    return Text("\n").join(lines)


def _is_cut(agent: AgentView) -> bool:
    texts = (agent.current_work, f"{agent.status}: {agent.summary}", f"error: {agent.error}", agent.work_item_id)
    return any(len(text or "") > TEXT_LIMIT for text in texts)


def _pipeline_line(pipeline: PipelineView) -> Text:
    line = Text.assemble(("Pipeline  ", "bold"))
    if pipeline.backlog is None or pipeline.lag_seconds is None or pipeline.workers is None:
        line.append("Redis away", style="bold yellow")
    else:
        late = "bold yellow" if pipeline.held else ""
        line.append(f"backlog {pipeline.backlog:,}").append(", lag ")
        line.append(format_duration(pipeline.lag_seconds), style=late).append(", ")
        line.append(counted(pipeline.workers, "worker"), style="" if pipeline.workers else "bold yellow")
    line.append(", last sweep ")
    line.append("never" if pipeline.last_sweep_at is None else ago(pipeline.last_sweep_at, pipeline.now))
    line.append(", ")
    line.append(f"{pipeline.rejected:,} rejected", style="yellow" if pipeline.rejected else "")
    if pipeline.rejected:
        line.append(" (fleetbeat rejected list)", style="dim")
    return line
