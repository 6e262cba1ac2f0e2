"""The command `fleetbeat`, for the people who run a fleet.

Each command's module is imported when the command is used: `fleetbeat dashboard` doesn't import what a worker needs.
"""

from __future__ import annotations

from typing import Any

import click

from fleetbeat_shared.errors import FleetbeatError
from fleetbeat_shared.lazy_group import LazyGroup
from fleetbeat_shared.sanitize import clean
from fleetbeat_worker.cli.exit_codes import REFUSED, exit_code

COMMANDS = {
    "up": ("up:up", "Start everything on this machine: Valkey, SQLite and workers."),
    "demo": ("demo:demo", "Watch four agents run, one die, be flagged, and recover."),
    "dashboard": ("dashboard:dashboard", "Show every agent and the state of the pipeline."),
    "agents": ("agents:agents", "List agents, show one in full, pause and resume them."),
    "maintenance": ("maintenance:maintenance", "Manage maintenance windows, one-off or recurring."),
    "events": ("events:events", "Show the latest events, newest last."),
    "explain": ("explain:explain", "Explain an agent's state, now or at a past time."),
    "backtest": ("backtest:backtest", "Replay heartbeats under other settings, and compare."),
    "tasks": ("tasks:tasks", "Manage the work items of agents."),
    "check": ("check:check", "Report the fleet's health in one line and an exit status."),
    "queue": ("queue:queue", "Show the inbox, the RQ jobs and the workers."),
    "rejected": ("rejected:rejected", "Inspect, requeue and purge rejected messages."),
    "notifications": ("notifications:notifications", "Inspect and retry notifications, and send a test message."),
    "worker": ("worker:worker", "Run workers and the dispatcher."),
    "workers": ("workers:workers", "List the workers on all machines, and scale their pools."),
    "sweep": ("sweep:sweep", "Check all agents for missed deadlines now."),
    "acl": ("acl:acl", "Print the least Redis permissions for agents and workers."),
    "db": ("db:db", "Upgrade, check, measure and prune the database."),
}
"""Name to `module:attribute` in this package and a short help text, in the order of `--help`."""

_EXTRAS = {"sqlalchemy", "alembic", "rq", "rich", "apprise"}


class _Commands(LazyGroup):
    """Prints an expected error as one sentence on stderr, and exits with its status."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().invoke(ctx)
        except FleetbeatError as error:
            click.echo(f"Error: {clean(str(error))}", err=True)
            ctx.exit(exit_code(error))
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            click.echo(f'Error: {error.name} is not installed. Run: pip install "fleetbeat[worker]"', err=True)
            ctx.exit(REFUSED)


@click.group(
    cls=_Commands,
    package=__name__,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n  fleetbeat demo\n  fleetbeat up\n  fleetbeat dashboard --state late,degraded",
)
@click.version_option(package_name="fleetbeat", prog_name="fleetbeat")
def main() -> None:
    """Monitor a fleet of agents by their heartbeats."""
