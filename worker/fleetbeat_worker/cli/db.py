"""`fleetbeat db`: the database's schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleetbeat_worker import schema
from fleetbeat_worker.cli.options import common_options, example, json_option, open_database
from fleetbeat_worker.cli.output import print_json
from fleetbeat_worker.database import open_engine, place

if TYPE_CHECKING:
    from fleetbeat_shared.settings import Settings


@click.group()
def db() -> None:
    """Upgrade or check the database's schema."""


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
