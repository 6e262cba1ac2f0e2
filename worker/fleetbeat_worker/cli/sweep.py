"""`fleetbeat sweep`: check all agents for missed deadlines, now."""

from __future__ import annotations

from dataclasses import asdict

import click

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.options import common_options, dry_run_option, example, open_database, open_redis
from fleetbeat_worker.cli.output import counted, print_json, stamp
from fleetbeat_worker.sweep.job import sweep as run_sweep
from fleetbeat_worker.sweep.transaction import SweepReport


@click.command(epilog=example("fleetbeat sweep --dry-run"))
@dry_run_option
@common_options
def sweep(*, settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Check all agents for missed deadlines now; running workers do so every few seconds."""
    with open_database(settings) as engine, open_redis(settings) as client, redis_errors(settings.redis_url):
        report = run_sweep(client, engine, settings, periodic=False, dry_run=dry_run)
    if as_json:
        print_json({**asdict(report), "dry_run": dry_run})
    elif report.refused is not None:
        click.echo(f"No agent can be judged, because Redis refuses what agents send: {clean(report.refused)}")
    else:
        _print_report(report, dry_run=dry_run)


def _print_report(report: SweepReport, *, dry_run: bool) -> None:
    would = "would be" if dry_run else "now"
    as_of = f"As of {stamp(report.watermark)} UTC" if report.watermark else "Nothing is known yet"
    click.echo(f"{as_of}: {counted(len(report.degraded), 'agent')} {would} degraded.")
    for name in report.degraded:
        click.echo(f"  {clean(name)}")
    if report.maintenance_since is not None:
        click.echo(f"Maintenance since {stamp(report.maintenance_since)} UTC: no agent is flagged.")
    if report.resumed:
        click.echo(f"The pause of {counted(len(report.resumed), 'agent')} is over.")
    for names, what in ((report.stuck, "stuck"), (report.unjudged, "unjudged (no deadline can be computed)")):
        if names:
            click.echo(f"{counted(len(names), 'agent')} {would} {what}: {', '.join(map(clean, names))}")
    if report.trimmed:
        click.echo(f"{counted(report.trimmed, 'message')} left the inbox before being stored: an agent trims it.")
    if report.lost_backlog is not None:
        lost = counted(report.lost_backlog, "message")
        click.echo(f"Redis lost the inbox, in which {lost} waited at the last sweep.")
    if report.outage_seconds is not None:
        moved = "would move" if dry_run else "moved"
        click.echo(f"No sweep had run for {format_duration(report.outage_seconds)}; that {moved} the deadlines.")
