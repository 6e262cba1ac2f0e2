"""`fleetbeat db`: the database's schema, its size, and the removal of old rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click
from rich.table import Table

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_worker.cli.exit_codes import REFUSED
from fleetbeat_worker.cli.options import asked_to_stop, common_options, dry_run_option, example, open_database
from fleetbeat_worker.cli.output import counted, print_json, stamp
from fleetbeat_worker.cli.rendering import console, numeric, plain_table, progress_bar
from fleetbeat_worker.cli.types import LONGEST, DurationType
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.engine import open_engine, place, reading
from fleetbeat_worker.retention.job import Cutoffs, PruneReport, count_old, prune as run_prune
from fleetbeat_worker.retention.table_sizes import TableSize, read_file_size, read_table_sizes

LEAST_AGE = timedelta(hours=1)
"""Younger rows may still be needed: by an agent that waits, by a verdict, by a replay."""


@click.group()
def db() -> None:
    """Upgrade, check, measure and prune the database."""


@db.command(epilog=example("fleetbeat db upgrade", "fleetbeat db upgrade --database-url postgresql://fleet@db/fleet"))
@common_options
def upgrade(*, settings: Settings, as_json: bool) -> None:
    """Upgrade the database to this version's schema. It is safe to repeat, and to run several times at once."""
    engine = open_engine(settings.sql_url)
    try:
        changed = schema.upgrade(engine)
        where = place(engine)
    finally:
        engine.dispose()
    if as_json:
        print_json({"database": where, "schema": schema.HEAD, "changed": changed})
    else:
        click.echo(f"{where} {'was upgraded to' if changed else 'is already at'} schema {schema.HEAD}.")


@db.command(epilog=example("fleetbeat db check"))
@common_options
def check(*, settings: Settings, as_json: bool) -> None:
    """Check the schema of the database. Exit status 1 if it isn't this version's."""
    with open_database(settings) as engine:
        where = place(engine)
    if as_json:
        print_json({"database": where, "schema": schema.HEAD})
    else:
        click.echo(f"{where} is at schema {schema.HEAD}, as this version needs it.")


@db.command(epilog=example("fleetbeat db stats", "fleetbeat db stats --json | jq .tables"))
@common_options
def stats(*, settings: Settings, as_json: bool) -> None:
    """Show size, number of rows and age of each table."""
    with open_database(settings) as engine:
        where = place(engine)
        with reading(engine) as connection:
            tables, file = read_table_sizes(connection), read_file_size(connection)
    if as_json:
        file_json = None if file is None else asdict(file)
        print_json({"database": where, "tables": [asdict(table) for table in tables], "file": file_json})
        return
    console().print(_sizes_table(tables))
    if file is not None:
        click.echo(f"\nThe file takes {_bytes(file.bytes)}, of which {_bytes(file.free_bytes)} are free for new rows.")


def _sizes_table(tables: Sequence[TableSize]) -> Table:
    table = plain_table("Table", numeric("Rows"), numeric("Size"), "Oldest (UTC)", "Newest (UTC)")
    for size in tables:
        parts = f" ({size.partitions} partitions)" if size.partitions else ""
        table.add_row(
            f"{size.name}{parts}",
            f"{'about ' if size.estimated else ''}{size.rows:,}",
            "" if size.bytes is None else _bytes(size.bytes),
            stamp(size.oldest_at) if size.oldest_at else "",
            stamp(size.newest_at) if size.newest_at else "",
        )
    return table


def _bytes(number: float) -> str:
    """Format a size: `512 B`, `3.4 MB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:  # noqa: PLR2004 - a thousand of one unit are one of the next
        number /= 1000
        units.pop(0)
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


@db.command(epilog=example("fleetbeat db prune --dry-run", "fleetbeat db prune --older-than 7d"))
@click.option(
    "--older-than",
    type=DurationType(within=(LEAST_AGE.total_seconds(), LONGEST.total_seconds())),
    metavar="AGE",
    help="Remove everything older than this, for example 7d, whatever the settings say.",
)
@dry_run_option
@common_options
def prune(*, settings: Settings, older_than: timedelta | None, dry_run: bool, as_json: bool) -> None:
    """Remove old rows now.

    Workers do the same in the background, a little at a time. It blocks nothing, and can be stopped with Ctrl-C at any
    time. Live sessions stay, whatever their age, and so does what verdicts need. Exit status 1 if anything old is left.
    """
    with open_database(settings) as engine:
        cutoffs = Cutoffs.of(engine, settings, datetime.now(UTC), older_than)
        if cutoffs is None:
            message = "No sweep has run yet, so no row counts as old. Start a worker: fleetbeat worker"
            raise FleetbeatError(message)
        if dry_run:
            report = count_old(engine, cutoffs)
        else:
            stop = asked_to_stop()
            with progress_bar(
                "Removing rows", shown=not as_json, total=lambda: count_old(engine, cutoffs).rows
            ) as update:
                report = run_prune(engine, cutoffs, stop=stop, advance=lambda number: update(advance=number))
    if as_json:
        print_json({**asdict(report), "cutoffs": asdict(cutoffs), "dry_run": dry_run})
    else:
        _print_report(report, cutoffs, dry_run=dry_run)
    if not report.finished or report.in_use:
        raise SystemExit(REFUSED)


def _print_report(report: PruneReport, cutoffs: Cutoffs, *, dry_run: bool) -> None:
    cutoff_of = {kind.table: before for kind, before in cutoffs.steps()}
    table = plain_table("Table", numeric("To be removed" if dry_run else "Removed"), "Older than (UTC)")
    for name, number in report.removed.items():
        table.add_row(name, f"{number:,}", stamp(cutoff_of[name]))
    console().print(table)
    if report.partitions:
        dropped = "would be dropped" if dry_run else "dropped"
        days = ", ".join(report.partitions)
        click.echo(f"{counted(len(report.partitions), 'partition')} of heartbeats {dropped}: {days}.")
    if report.in_use:
        click.echo(f"Not dropped yet, because another connection reads heartbeats: {', '.join(report.in_use)}.")
    if not report.finished:
        click.echo("Stopped before the end. Run it again to remove the rest.")
