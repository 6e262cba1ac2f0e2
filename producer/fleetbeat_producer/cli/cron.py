"""`fleetbeat-agent cron`: a fleet's heartbeats as lines of the user's crontab."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from fleetbeat_producer.cli import REFUSED
from fleetbeat_producer.cli.output import print_json, print_result
from fleetbeat_producer.cron.crontab import (
    CrontabError,
    build_block,
    diff_lines,
    read_crontab,
    replace_block,
    write_crontab,
)
from fleetbeat_producer.cron.fleet_file import absolute, read_fleet_file
from fleetbeat_producer.cron.line_times import machine_zones

if TYPE_CHECKING:
    from collections.abc import Callable

_Command = TypeVar("_Command", bound="Callable[..., object]")


def _file_argument(command: _Command) -> _Command:
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)
    return click.argument("file", type=click.Path(path_type=Path))(command)


_yes_option = click.option("--yes", is_flag=True, help="Don't ask.")


@click.group()
def cron() -> None:
    """Let cron send heartbeats for the agents of a file.

    docs/agents.toml is an example of such a file, docs/cron.md explains its lines.
    """


@cron.command("print", epilog="\b\nExample:\n  fleetbeat-agent cron print agents.toml")
@_file_argument
def print_(*, file: Path, as_json: bool) -> None:
    """Print the crontab lines of a file's agents, with the markers around them."""
    block = _block(file)
    if as_json:
        print_json({"ok": True, "file": str(absolute(file)), "lines": block.splitlines()})
    else:
        click.echo(block, nl=False)


@cron.command(
    epilog="\b\nExamples:\n  fleetbeat-agent cron install agents.toml\n  fleetbeat-agent cron install agents.toml --yes"
)
@_file_argument
@_yes_option
def install(*, file: Path, yes: bool, as_json: bool) -> None:
    """Write the lines of a file's agents into your crontab, in place of their earlier lines.

    Nothing else in it changes. Shows the difference, and asks.
    """
    _change(file, _block(file), "Installed.", yes=yes, as_json=as_json)


@cron.command(epilog="\b\nExample:\n  fleetbeat-agent cron remove agents.toml")
@_file_argument
@_yes_option
def remove(*, file: Path, yes: bool, as_json: bool) -> None:
    """Remove the lines of a file's agents from your crontab; the file need not exist any more.

    Nothing else in it changes. Shows the difference, and asks.
    """
    _change(file, "", "Removed.", yes=yes, as_json=as_json)


def _block(file: Path) -> str:
    return build_block(read_fleet_file(file), os.environ, machine_zones(os.environ), datetime.now(UTC))


def _change(file: Path, block: str, sentence: str, *, yes: bool, as_json: bool) -> None:
    before = read_crontab()
    after = replace_block(before, absolute(file), block)
    changes = diff_lines(before, after) if after != before else []
    result = {"ok": True, "file": str(absolute(file)), "changed": after != before, "difference": changes}
    if after == before:
        print_result(result, "The crontab is up to date; nothing was written.", as_json=as_json)
        return
    if not as_json:
        click.echo("\n".join(changes))
    if not yes:
        _ask(as_json=as_json)
        if read_crontab() != before:
            message = "The crontab was changed in the meantime. Nothing was written; try again."
            raise CrontabError(message)
    write_crontab(after)
    print_result(result, sentence, as_json=as_json)


def _ask(*, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        text = "There is no terminal to ask for confirmation. To write without asking, pass --yes."
        raise click.UsageError(text)
    if not click.confirm("Write this crontab?", err=True):
        click.echo("Nothing was written.", err=True)
        click.get_current_context().exit(REFUSED)
