"""`fleetbeat db`: the database's schema, its size, and what is old in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
from sqlalchemy import Engine

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.settings import Settings
from fleetbeat_shared.time_text import parse_duration
from fleetbeat_worker.cli.exit_codes import REFUSED
from fleetbeat_worker.cli.options import asked_to_stop, common_options, example, json_option, open_database
from fleetbeat_worker.cli.output import console, counted, plain_table, print_json, stamp
from fleetbeat_worker.database import schema
from fleetbeat_worker.database.engine import open_engine, place, reading
from fleetbeat_worker.retention.job import Cutoffs, PruneReport, count_old, prune as run_prune
from fleetbeat_worker.retention.table_sizes import TableSize, read_file_size, read_table_sizes

if TYPE_CHECKING:
    from rich.table import Table

LEAST_AGE = timedelta(hours=1)
"""What is younger may still be waited for: by an agent, by a verdict, by a replay."""
LONGEST_AGE = timedelta(days=36_500)


@click.group()
def db() -> None:
    """Upgrade, check, measure and prune the database."""


@db.command(epilog=example("fleetbeat db upgrade", "fleetbeat db upgrade --database-url postgresql://fleet@db/fleet"))
@json_option
@common_options
def upgrade(*, settings: Settings, as_json: bool) -> None:
    """Bring the database to this version's schema; safe to repeat, and safe with several at once."""
    engine = open_engine(settings.sql_url)
    try:
        changed = schema.upgrade(engine)
        where = place(engine)
    finally:
        engine.dispose()
    if as_json:
        print_json({"database": where, "schema": schema.HEAD, "changed": changed})
    else:
        click.echo(f"{where} {'was brought to' if changed else 'is already at'} schema {schema.HEAD}.")


@db.command(epilog=example("fleetbeat db check"))
@json_option
@common_options
def check(*, settings: Settings, as_json: bool) -> None:
    """Say whether the database has this version's schema; exit status 1 if not."""
    with open_database(settings) as engine:
        where = place(engine)
    if as_json:
        print_json({"database": where, "schema": schema.HEAD})
    else:
        click.echo(f"{where} is at schema {schema.HEAD}, as it should be.")


@db.command(epilog=example("fleetbeat db stats", "fleetbeat db stats --json | jq .tables"))
@json_option
@common_options
def stats(*, settings: Settings, as_json: bool) -> None:
    """Show how many rows each table has, how much room they take, and how far back they go."""
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
        click.echo(f"\nThe file has {_bytes(file.bytes)}, of which {_bytes(file.free_bytes)} are free for new rows.")


def _sizes_table(tables: Sequence[TableSize]) -> Table:
    table = plain_table()
    table.add_column("Table", no_wrap=True)
    for name in ("Rows", "Size"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("Oldest (UTC)", "Newest (UTC)"):
        table.add_column(name, no_wrap=True)
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
    """Return a size as people say it: `512 B`, `3.4 MB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:  # noqa: PLR2004 - a thousand of one unit are one of the next
        number /= 1000
        units.pop(0)
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


def _age(_context: click.Context, _parameter: click.Parameter, value: str | None) -> timedelta | None:
    if value is None:
        return None
    try:
        age = timedelta(seconds=parse_duration(value))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error)) from None
    if not LEAST_AGE <= age <= LONGEST_AGE:
        message = f"{value} is not between 1h and 36500d; write for example 7d."
        raise click.BadParameter(message)
    return age


@db.command(epilog=example("fleetbeat db prune --dry-run", "fleetbeat db prune --older-than 7d"))
@click.option(
    "--older-than",
    metavar="AGE",
    callback=_age,
    help="Remove all that is older than this, such as 7d, instead of what is older than the settings say.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be removed.")
@json_option
@common_options
def prune(*, settings: Settings, older_than: timedelta | None, dry_run: bool, as_json: bool) -> None:
    """Remove old rows now; workers do the same by themselves, a little at a time.

    Nobody waits for it, and it may be stopped with Ctrl-C at any time. Live sessions stay, whatever their age, and what
    verdicts need. Exit status 1 if anything old is left.
    """
    with open_database(settings) as engine:
        cutoffs = Cutoffs.of(engine, settings, datetime.now(UTC), older_than)
        if cutoffs is None:
            message = "No sweep has run here yet, so nothing is old. Start workers: fleetbeat worker"
            raise FleetbeatError(message)
        if dry_run:
            report = count_old(engine, cutoffs)
        else:
            stop = asked_to_stop()
            with _progress(engine, cutoffs, shown=not as_json) as advance:
                report = run_prune(engine, cutoffs, stop=stop, advance=advance)
    if as_json:
        print_json({**asdict(report), "cutoffs": asdict(cutoffs), "dry_run": dry_run})
    else:
        _tell(report, cutoffs, dry_run=dry_run)
    if not report.finished or report.in_use:
        raise SystemExit(REFUSED)


@contextmanager
def _progress(engine: Engine, cutoffs: Cutoffs, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar while rows are removed, on a terminal."""
    output = console()
    if not shown or not output.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output, transient=True) as bar:
        task = bar.add_task("Rows removed", total=count_old(engine, cutoffs).rows)
        yield lambda number: bar.advance(task, number)


def _tell(report: PruneReport, cutoffs: Cutoffs, *, dry_run: bool) -> None:
    cutoff_of = {kind.table: before for kind, before in cutoffs.steps()}
    table = plain_table()
    table.add_column("Table", no_wrap=True)
    table.add_column("To be removed" if dry_run else "Removed", justify="right", no_wrap=True)
    table.add_column("Older than (UTC)", no_wrap=True)
    for name, number in report.removed.items():
        table.add_row(name, f"{number:,}", stamp(cutoff_of[name]))
    console().print(table)
    if report.partitions:
        would = "would be dropped" if dry_run else "dropped"
        days = ", ".join(report.partitions)
        click.echo(f"{counted(len(report.partitions), 'partition')} of heartbeats {would}: {days}.")
    if report.in_use:
        days = ", ".join(report.in_use)
        click.echo(f"Somebody reads heartbeats all the time, so these days could not be dropped yet: {days}.")
    if not report.finished:
        click.echo("Stopped; the rest is left for the next time.")
