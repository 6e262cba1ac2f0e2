"""The command `fleetbeat`: for the people who run a fleet.

Each command's module is imported when the command is used: `fleetbeat dashboard` never pays for what a worker needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.sanitize import clean
from fleetbeat_worker.cli.exit_codes import REFUSED, exit_code

COMMANDS = {
    "up": ("up:up", "Start all of it here: Valkey, SQLite, workers. For one machine."),
    "demo": ("demo:demo", "Watch four agents beat, one die, be flagged, and come back."),
    "dashboard": ("dashboard:dashboard", "Show every agent and the pipeline."),
    "agents": ("agents:agents", "List agents, show one in full, pause and resume them."),
    "maintenance": ("maintenance:maintenance", "Have nobody flagged for a time, once or again and again."),
    "events": ("events:events", "Show what changed, newest last."),
    "explain": ("explain:explain", "Say why an agent is judged as it is, now or before."),
    "backtest": ("backtest:backtest", "Say who would have been flagged under other settings."),
    "tasks": ("tasks:tasks", "Keep the work items of agents."),
    "check": ("check:check", "Say in one line and an exit status whether all is well."),
    "queue": ("queue:queue", "Show the inbox, the RQ jobs and the workers."),
    "rejected": ("rejected:rejected", "Look at messages that were set aside, and requeue them."),
    "notifications": ("notifications:notifications", "Look at what people were told, and try whether telling works."),
    "worker": ("worker:worker", "Run workers and the dispatcher."),
    "workers": ("workers:workers", "List the workers on all machines, and scale their pools."),
    "sweep": ("sweep:sweep", "Look for silent agents now."),
    "acl": ("acl:acl", "Print the least rights that agents and workers need in Redis."),
    "db": ("db:db", "Upgrade, check, measure and prune the database."),
}
"""Name to `module:attribute` in this package and a short help text, in the order of `--help`."""

_EXTRAS = {"sqlalchemy", "alembic", "rq", "rich", "apprise"}


class _Commands(click.Group):
    """A group that imports a command when it is used, and tells our errors in one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        try:
            command = getattr(import_module(f"{__name__}.{module}"), attribute)
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            message = f'{error.name} is missing; install it with: pip install "fleetbeat[worker]"'
            raise click.ClickException(message) from error
        if not isinstance(command, click.Command):
            message = f"{module}:{attribute} is no command"
            raise TypeError(message)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run a command; an error that we raise on purpose becomes a sentence on stderr and an exit status."""
        try:
            return super().invoke(ctx)
        except FleetbeatError as error:
            click.echo(f"Error: {clean(str(error))}", err=True)
            ctx.exit(exit_code(error))
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            click.echo(f'Error: {error.name} is missing; install it with: pip install "fleetbeat[worker]"', err=True)
            ctx.exit(REFUSED)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n  fleetbeat demo\n  fleetbeat up\n  fleetbeat dashboard --state late,degraded",
)
@click.version_option(package_name="fleetbeat", prog_name="fleetbeat")
def main() -> None:
    """Tell which agents of a fleet are alive."""
