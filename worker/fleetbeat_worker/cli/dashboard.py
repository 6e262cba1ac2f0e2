"""`fleetbeat dashboard`: every agent, and the pipeline below."""

from __future__ import annotations

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.options import (
    all_option,
    common_options,
    example,
    open_database,
    open_redis,
    state_option,
    unknown_name,
)
from fleetbeat_worker.cli.output import ago, counted, print_json
from fleetbeat_worker.cli.rendering import (
    STYLES,
    banner,
    console,
    headline,
    last_seen_text,
    marks,
    missed_text,
    name_column,
    no_agents_text,
    plain_table,
    safe,
    schedule_text,
    state_text,
    wrapped,
)
from fleetbeat_worker.cli.types import LIMIT, NameType
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.fleet.agents import LIVE_STATES, AgentView, FleetView, Selection, read_fleet
from fleetbeat_worker.fleet.pipeline import PipelineView
from fleetbeat_worker.rules.liveness import State

TEXT_LIMIT = 100
"""Characters shown of each of an agent's texts."""


@click.command(
    epilog=example(
        "fleetbeat dashboard",
        "fleetbeat dashboard --state late,degraded",
        "fleetbeat dashboard --json | jq '.agents[] | select(.degraded) | .agent_name'",
    )
)
@state_option
@click.option("--agent", "agent_name", type=NameType(), help="Only the agent of this name.")
@click.option("--limit", type=LIMIT, help="At most this many agents, the most urgent first.")
@all_option
@common_options
def dashboard(  # noqa: PLR0913 - one parameter per option
    *,
    settings: Settings,
    states: frozenset[State] | None,
    agent_name: str | None,
    limit: int | None,
    show_all: bool,
    as_json: bool,
) -> None:
    """Show every live agent, the most urgent first, and the pipeline.

    While Redis is unavailable, the agents are shown as of the last watermark, from the database. Exit status 1 if no
    agent of the given name was ever registered.
    """
    selection = Selection(
        states=states or (frozenset(State) if show_all else LIVE_STATES), agent_name=agent_name, limit=limit
    )
    with open_database(settings) as engine, open_redis(settings) as client:
        view = read_fleet(settings, engine, client, selection)
        with reading(engine) as connection:
            unknown = unknown_name(connection, agent_name, view.agents)
    if as_json:
        print_json(view.to_json())
    elif unknown is None:
        console().print(render(view, filtered=bool(states or agent_name)))
    if unknown is not None:
        raise unknown


def render(view: FleetView, *, filtered: bool = False) -> RenderableType:
    """Draw the dashboard for a terminal of about 100 columns; `filtered`: whether only some agents were asked for."""
    parts: list[RenderableType] = [headline(view), *banner(view.pipeline, view.maintenance, view.incident), Text()]
    parts.append(_agents_table(view) if view.agents else no_agents_text(filtered=filtered))
    hidden = sum(view.counts.values()) - len(view.agents)
    if hidden:
        parts.append(Text(f"… and {counted(hidden, 'more agent')}: raise --limit.", style="dim"))
    if any(_is_cut(agent) for agent in view.agents):
        parts.append(Text("(+N): N more characters. In full: fleetbeat agents show NAME", style="dim"))
    return Group(*parts, Text(), _pipeline_line(view.pipeline))


def _agents_table(view: FleetView) -> Table:
    table = plain_table(
        "State",
        name_column(view, max_width=14),
        "Last seen\n(UTC)",
        wrapped("Every,\nmissed", max_width=16),
        "Tasks",
        wrapped("Current work", ratio=1),
        wrapped("Summary, error", ratio=1),
    )
    for agent in view.agents:
        missed_style = STYLES[agent.state] if agent.missed_intervals else "dim"
        table.add_row(
            Text("\n").join([state_text(agent, view.pipeline.now), *marks(agent)]),
            safe(agent.agent_name, "bold"),
            last_seen_text(agent.last_seen_at, view.pipeline.now),
            Text.assemble(schedule_text(agent), "\n", (missed_text(agent.missed_intervals), missed_style)),
            _tasks_text(agent),
            _work_text(agent),
            _summary_text(agent),
        )
    return table


def _tasks_text(agent: AgentView) -> Text:
    stale = (f"{agent.stale_tasks:,} stale", "yellow" if agent.stale_tasks else "dim")
    return Text.assemble((f"{agent.open_tasks:,} open", "" if agent.open_tasks else "dim"), "\n", stale)


def _work_text(agent: AgentView) -> Text:
    work = safe(agent.current_work, limit=TEXT_LIMIT)
    if not agent.work_item_id:
        return work
    item = safe(f"[{agent.work_item_id}]", "dim", limit=TEXT_LIMIT)
    return Text("\n").join([work, item]) if work else item


def _summary_text(agent: AgentView) -> Text:
    summary = ": ".join(part for part in (clean(agent.status or ""), clean(agent.summary or "")) if part)
    lines = [safe(summary, limit=TEXT_LIMIT)] if summary else []
    if agent.error:
        lines.append(safe(f"error: {clean(agent.error)}", "red", limit=TEXT_LIMIT))
    return Text("\n").join(lines)


def _is_cut(agent: AgentView) -> bool:
    texts = (agent.current_work, f"{agent.status}: {agent.summary}", f"error: {agent.error}", agent.work_item_id)
    return any(len(text or "") > TEXT_LIMIT for text in texts)


def _pipeline_line(pipeline: PipelineView) -> Text:
    line = Text.assemble(("Pipeline  ", "bold"))
    if pipeline.backlog is None or pipeline.lag_seconds is None or pipeline.workers is None:
        line.append("Redis unavailable", style="bold yellow")
    else:
        line.append(f"backlog {pipeline.backlog:,}, lag ")
        line.append(format_duration(pipeline.lag_seconds), style="bold yellow" if pipeline.held else "").append(", ")
        line.append(counted(pipeline.workers, "worker"), style="" if pipeline.workers else "bold yellow")
    line.append(", last sweep ")
    line.append("never" if pipeline.last_sweep_at is None else ago(pipeline.last_sweep_at, pipeline.now))
    line.append(", ")
    line.append(f"{pipeline.rejected:,} rejected", style="yellow" if pipeline.rejected else "")
    if pipeline.rejected:
        line.append(" (fleetbeat rejected list)", style="dim")
    return line
