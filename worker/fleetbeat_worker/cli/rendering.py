"""Text for terminals, made with rich: the console, tables, and the cells that several commands show of an agent.

Text that came from an agent is cleaned here once more, and reaches rich as `Text`, never as markup.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.time_text import amount, format_duration
from fleetbeat_worker.cli.output import ago, clock, counted, incident_sentence, maintenance_sentence, stamp
from fleetbeat_worker.fleet.agents import AgentView, FleetView, IncidentView
from fleetbeat_worker.fleet.pipeline import PipelineView
from fleetbeat_worker.rules.liveness import MISSED_COUNTED, Promise, State
from fleetbeat_worker.rules.maintenance_windows import Window

PIPE_WIDTH = 100
"""Columns when the output is not a terminal; the variable COLUMNS overrides it."""

NAME_WIDTH = 9
"""Columns that an agent's name keeps, if it needs them, on however narrow a terminal."""

STYLES = {
    State.DEGRADED: "bold red",
    State.LATE: "yellow",
    State.PENDING: "cyan",
    State.PAUSED: "magenta",
    State.OK: "green",
    State.ENDED: "dim",
}


def console() -> Console:
    """Make a console on the standard output: colours on a terminal, plain text elsewhere."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # an agent's name may have letters that the terminal lacks
    made = Console(markup=False, emoji=False, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def safe(text: str | None, style: str = "", *, limit: int | None = None) -> Text:
    """Make text from outside harmless to a terminal; cut it after `limit` characters and add how many are left out."""
    cleaned = clean(text or "")
    if limit is not None and len(cleaned) > limit:
        cleaned = f"{cleaned[:limit].rstrip()}… (+{len(cleaned) - limit})"
    return Text(cleaned, style=style)


def safe_lines(lines: Sequence[str]) -> Text:
    """Make lines from outside harmless to a terminal."""
    return Text("\n").join([safe(line) for line in lines])


def plain_table(*columns: str | Column) -> Table:
    """Make an empty table in the style of all commands; a column given as a name doesn't wrap."""
    headers = [Column(one, no_wrap=True) if isinstance(one, str) else one for one in columns]
    return Table(
        *headers, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0)
    )


def wrapped(header: str, *, max_width: int | None = None, ratio: int | None = None) -> Column:
    """Describe a column of text that wraps."""
    return Column(header, overflow="fold", max_width=max_width, ratio=ratio)


def numeric(header: str) -> Column:
    """Describe a column of numbers."""
    return Column(header, justify="right", no_wrap=True)


def name_column(view: FleetView, *, max_width: int) -> Column:
    """Describe the column of agents' names: on a terminal too narrow for all columns, the others shrink first."""
    longest = max(cell_len(clean(agent.agent_name)) for agent in view.agents)
    return Column("Agent", overflow="fold", min_width=min(NAME_WIDTH, longest), max_width=max_width)


def facts_table(facts: dict[str, Text]) -> Table:
    """Show names and values, one below the other; empty values are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="bold"), value)
    return table


@contextmanager
def progress_bar(title: str, *, shown: bool, total: Callable[[], float] | None = None) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr if that is a terminal.

    Yields rich's `Progress.update` for the bar (`advance=…`, or `completed=…, total=…`). `total` is called only when
    the bar is shown.
    """
    output = Console(stderr=True)
    if not shown or not output.is_terminal:
        yield lambda **_: None
        return
    from rich.progress import Progress

    with Progress(console=output, transient=True) as progress:
        task = progress.add_task(title, total=total and total())
        yield partial(progress.update, task)


def banner(pipeline: PipelineView, maintenance: Window | None, incident: IncidentView | None = None) -> list[Text]:
    """Collect the lines that stand above any view of agents: the pipeline's trouble, maintenance, an incident."""
    lines = [safe(pipeline.trouble, "bold yellow")]
    if maintenance:
        lines.append(safe(maintenance_sentence(maintenance, pipeline.now), "bold magenta"))
    if incident:
        lines.append(safe(incident_sentence(incident, pipeline.now), "bold red"))
    return [line for line in lines if line]


def headline(view: FleetView) -> Text:
    """Show how many agents there are in each state, and as of when."""
    total = counted(sum(view.counts.values()), "agent")
    line = Text.assemble((total, "bold"))
    for state in sorted(view.counts, key=list(STYLES).index):
        line.append(", " if len(line) > len(total) else ": ")
        line.append(f"{view.counts[state]:,} {state}", style=STYLES[state])
    if view.as_of is None:
        return line.append("  HELD: no state is known yet", style="bold yellow")
    as_of = f"as of {stamp(view.as_of)} UTC"
    if not view.pipeline.held:
        return line.append(f"  {as_of}", style="dim")
    return line.append(f"  HELD {as_of}, {ago(view.as_of, view.pipeline.now)}", style="bold yellow")


def no_agents_text(*, filtered: bool) -> Text:
    """Stand in for an empty table; `filtered`: whether only some agents were asked for."""
    if filtered:
        return Text("No agent matches. Ended sessions are shown with --all.")
    return Text("No live agents. Register one: fleetbeat-agent register --name NAME --every 30s")


def state_text(agent: AgentView, now: datetime | None = None) -> Text:
    """Show a state as a word, degraded in capitals for terminals without colour; with `now`, also a pause's end."""
    word = str(agent.state).upper() if agent.degraded else str(agent.state)
    text = Text(word, style=STYLES[agent.state])
    if now is not None and agent.paused_until is not None:
        text.append("\nuntil\n", style="dim").append(clock(agent.paused_until, now).replace(" ", "\n"), style="dim")
    return text


def marks(agent: AgentView) -> list[Text]:
    """List the marks that an agent has beside its state."""
    words = ("stuck", "flapping", "unjudged")
    return [Text(word, style="bold yellow") for word in words if getattr(agent, word)]


def last_seen_text(last_seen_at: datetime | None, now: datetime) -> Text:
    """Show how long ago an agent's last heartbeat was, and below it when."""
    if last_seen_at is None:
        return Text("never", style="dim")
    return Text.assemble(ago(last_seen_at, now), "\n", (clock(last_seen_at, now).replace(" ", "\n"), "dim"))


def schedule_text(agent: AgentView) -> Text:
    """Show an agent's interval, or its cron schedule with the time zone below."""
    if agent.interval_seconds is not None:
        return Text(format_duration(agent.interval_seconds))
    return Text.assemble(safe(agent.schedule), "\n", safe(agent.time_zone or "UTC", "dim"))


def promise_text(promise: Promise, missed_limit: int) -> Text:
    """Show a promise in one line: when heartbeats are due, the grace, and how many may be missed."""
    limit = f", {amount(promise.grace_seconds)} grace, degraded at {missed_limit} missed"
    if promise.interval_seconds is not None:
        return Text(f"every {amount(promise.interval_seconds)}{limit}")
    return Text.assemble("at ", safe(promise.schedule), " ", safe(promise.time_zone or "UTC"), limit)


def missed_text(missed: int | None) -> str:
    """Show how many intervals an agent missed; counting stops at MISSED_COUNTED."""
    if missed is None:
        return "? missed"
    return f"{missed}+ missed" if missed >= MISSED_COUNTED else f"{missed} missed"
