"""`fleetbeat sweep`: one look for silent agents, now."""

from __future__ import annotations

from dataclasses import asdict

import click

from fleetbeat_shared.connection import redis_errors
from fleetbeat_shared.sanitize import clean
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import format_duration
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database, open_redis
from fleetbeat_worker.cli.output import counted, print_json, stamp
from fleetbeat_worker.sweep.job import sweep as run_sweep
from fleetbeat_worker.sweep.transaction import SweepReport


@click.command(epilog=example("fleetbeat sweep --dry-run"))
@click.option("--dry-run", is_flag=True, help="Change nothing; say what a sweep would do.")
@json_option
@common_options
def sweep(*, settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Look for silent agents now; workers do the same by themselves every few seconds."""
    with open_database(settings) as engine, open_redis(settings) as client, redis_errors(settings.redis_url):
        report = run_sweep(client, engine, settings, periodic=False, dry_run=dry_run)
    if as_json:
        print_json({**asdict(report), "dry_run": dry_run})
        return
    if report.refused is not None:
        click.echo(f"Nobody can be judged, as Redis refuses what agents send: {clean(report.refused)}")
        return
    would = "would be" if dry_run else "are now"
    as_of = f"As of {stamp(report.watermark)} UTC" if report.watermark else "Nothing is known yet"
    click.echo(f"{as_of}: {counted(len(report.degraded), 'agent')} {would} degraded.")
    for name in report.degraded:
        click.echo(f"  {clean(name)}")
    if report.maintenance_since is not None:
        click.echo(f"There is maintenance since {stamp(report.maintenance_since)} UTC, so nobody is flagged.")
    if report.resumed:
        click.echo(f"The pause of {counted(len(report.resumed), 'agent')} is over.")
    for names, what in ((report.stuck, "stuck"), (report.unjudged, "set aside, as they can't be judged")):
        if names:
            click.echo(f"{counted(len(names), 'agent')} {would} {what}: {', '.join(map(clean, names))}")
    _say_what_was_lost(report, "would move" if dry_run else "moved")


def _say_what_was_lost(report: SweepReport, moved: str) -> None:
    if report.trimmed:
        click.echo(f"{counted(report.trimmed, 'message')} left the inbox before they were in SQL: some agent trims it.")
    if report.lost_backlog is not None:
        waited = counted(report.lost_backlog, "message")
        click.echo(f"Redis came back without the inbox, in which {waited} waited at the last sweep.")
    if report.outage_seconds is not None:
        click.echo(f"Nobody had watched for {format_duration(report.outage_seconds)}; that {moved} the deadlines.")
