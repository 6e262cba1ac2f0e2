"""`fleetbeat backtest`: which agents other settings would have flagged."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from fleetbeat_shared.click_types import WholeNumber
from fleetbeat_shared.errors import UnknownSession
from fleetbeat_shared.messages import MAX_INTERVAL_SECONDS, MIN_INTERVAL_SECONDS
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.options import common_options, example, open_database, unknown_name
from fleetbeat_worker.cli.output import counted, print_json, stamp
from fleetbeat_worker.cli.rendering import console, numeric, plain_table, progress_bar, safe, wrapped
from fleetbeat_worker.cli.types import DurationType, PatternType, is_pattern
from fleetbeat_worker.database.engine import reading
from fleetbeat_worker.explain.backtest import BacktestReport, Total, Trial, backtest as run_backtest

MOST_AGENTS = 50
"""How many agents the text lists, those with most flags first; `--json` has all."""


@click.command(
    epilog=example(
        "fleetbeat backtest --missed 3",
        "fleetbeat backtest --grace 30s --since 24h --agent 'crawler-*'",
    )
)
@click.option("--missed", type=WholeNumber(1, 100), help="How many intervals an agent may miss.")
@click.option(
    "--grace",
    type=DurationType(zero=True, within=(0, MAX_INTERVAL_SECONDS)),
    help="How much later than promised a heartbeat may arrive.",
)
@click.option(
    "--interval",
    type=DurationType(within=(MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS)),
    help="The interval of agents without a cron schedule.",
)
@click.option("--since", type=DurationType(), default="7d", show_default=True, help="How far to go back.")
@click.option("--agent", "agent_glob", type=PatternType(), help="Only agents with such names: 'crawler-*'.")
@click.option(
    "--limit",
    type=WholeNumber(0, 1_000_000),
    default=20,
    show_default=True,
    help="List at most this many silences, the latest.",
)
@common_options
def backtest(  # noqa: PLR0913 - one parameter per option
    *,
    settings: Settings,
    missed: int | None,
    grace: timedelta | None,
    interval: timedelta | None,
    since: timedelta,
    agent_glob: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show which agents would have been flagged under other settings, beside which were.

    The stored heartbeats are judged again by the same rules. What isn't given stays as it is for each agent, so without
    options this shows what today's settings would have done. Exit status 1 if no agent of the given name was ever
    registered; a pattern that matches no name causes a warning.
    """
    trial = Trial(
        missed,
        None if grace is None else grace.total_seconds(),
        None if interval is None else interval.total_seconds(),
    )
    with open_database(settings) as engine, progress_bar("Judging sessions", shown=not as_json) as update:
        report = run_backtest(
            engine,
            settings,
            trial,
            since=since,
            agent_glob=agent_glob,
            limit=limit,
            advance=lambda done, total: update(completed=done, total=total),
        )
        unknown = None
        if agent_glob is not None and not report.sessions and not report.unjudged:
            unknown = _check_name(engine, agent_glob)
    if as_json:
        print_json(_report_json(report))
    elif unknown is None:
        console().print(_report_text(report))
    if unknown is not None:
        raise unknown


def _check_name(engine: Engine, pattern: str) -> UnknownSession | None:
    """Warn of a pattern that matches no name; make the error for a name that was never registered."""
    if is_pattern(pattern):
        hint = "See: fleetbeat agents list --all"
        click.echo(f"Warning: No agent's name matches {clean(pattern)!r} in that period. {hint}", err=True)
        return None
    with reading(engine) as connection:
        return unknown_name(connection, pattern, ())


def _report_json(report: BacktestReport) -> dict[str, Any]:
    return {
        "since": report.since,
        "until": report.until,
        "is_cut": report.is_cut,
        "sessions": report.sessions,
        "heartbeats": report.heartbeats,
        "unjudged": report.unjudged,
        "would_be": report.would.to_json(),
        "was": report.was.to_json(),
        "agents": [
            {"agent_name": name, "would_be": would.to_json(), "was": was.to_json()}
            for name, (would, was) in sorted(report.by_agent.items())
        ],
        "silences": [finding.to_json() for finding in report.findings],
    }


def _report_text(report: BacktestReport) -> RenderableType:
    judged = f"{counted(report.heartbeats, 'heartbeat')} of {counted(report.sessions, 'session')}"
    parts: list[RenderableType] = [Text(f"{judged}, from {stamp(report.since)} to {stamp(report.until)} UTC.")]
    if report.is_cut:
        parts.append(Text("Older heartbeats are not stored (any more).", style="yellow"))
    if report.unjudged:
        left_out = f"{counted(report.unjudged, 'session')} left out: the schedule can't be evaluated here."
        parts.append(Text(left_out, style="yellow"))
    if not report.by_agent:
        return Group(*parts, Text("No agent would have been flagged, and none was."))
    parts += [Text(), _agents_table(report)]
    hidden = len(report.by_agent) - MOST_AGENTS
    if hidden > 0:
        parts.append(Text(f"… and {counted(hidden, 'more agent')}: --json has all.", style="dim"))
    if report.findings:
        parts += [Text(), _silences_table(report)]
        left = max(report.would.flags, report.was.flags) - len(report.findings)
        if left > 0:
            parts.append(Text("Older silences: raise --limit.", style="dim"))
    return Group(*parts)


def _agents_table(report: BacktestReport) -> Table:
    headers = ("Would be\nflagged", "\nfor", "Was\nflagged", "\nfor")
    table = plain_table(wrapped("Agent", max_width=40), *map(numeric, headers))
    ordered = sorted(report.by_agent.items(), key=lambda item: (-max(total.flags for total in item[1]), item[0]))
    for name, (would, was) in ordered[:MOST_AGENTS]:
        table.add_row(safe(name, "bold"), *_cells(would), *_cells(was))
    table.add_row(Text("all"), *_cells(report.would), *_cells(report.was), style="bold")
    return table


def _cells(total: Total) -> tuple[str, str]:
    return f"{total.flags:,}", format_duration(round(total.seconds)) if total.flags else ""


def _silences_table(report: BacktestReport) -> Table:
    table = plain_table(
        "Silent since (UTC)", wrapped("Agent", max_width=24), "Would be flagged", "Was flagged", "Ended"
    )
    for finding in report.findings:
        since = finding.silent_since
        table.add_row(
            stamp(since),
            safe(finding.agent_name, "bold"),
            _after(since, finding.would_at, "no"),
            _after(since, finding.was_at, "no"),
            _after(since, finding.ended_at, "still silent"),
        )
    return table


def _after(since: datetime, moment: datetime | None, otherwise: str) -> str:
    return otherwise if moment is None else f"after {format_duration((moment - since).total_seconds())}"
