"""`fleetbeat-agent`: the command of the producer for shells, cron lines and programs in other languages."""

from __future__ import annotations

import gc
from typing import Any

import click

from fleetbeat_producer.cli.output import print_json
from fleetbeat_shared.errors import FleetbeatError, InvalidMessage, NotConfirmed, RedisUnavailable, SettingsError
from fleetbeat_shared.lazy_group import LazyGroup

# Exit codes. 0: done.
REFUSED = 1  # refused or failed: the session is unknown or has ended, the workers rejected the message
USAGE = 2  # a bad option, argument or setting; nothing was sent
TRY_AGAIN = 75  # Redis is away, or no worker confirmed in time (EX_TEMPFAIL of sysexits.h)

COMMANDS = {
    "register": ("register:register", "Register an agent, and the interval or schedule of its heartbeats."),
    "heartbeat": ("heartbeat:heartbeat", "Send a heartbeat: the agent is alive, and what it does."),
    "deregister": ("heartbeat:deregister", "End a session: no more heartbeats are expected."),
    "run": ("run:run", "Run a command as an agent, and report how it ended."),
    "cron": ("cron:cron", "Let cron send heartbeats for the agents of a file."),
}
"""Name to `module:attribute` in this package and a short help text, in the order of `--help`."""


class _Script(LazyGroup):
    """Prints an error as one sentence on stderr, or with `--json` as an object."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - click's signature
        """Run as a script, without garbage collection, which doesn't pay in a process that ends at once.

        Measured: a call takes 1.3 times as long as `import redis`, and 1.8 times with garbage collection.
        """
        gc.disable()
        try:
            return super().__call__(*arguments, **options)
        finally:
            gc.freeze()  # so that the interpreter doesn't collect at its exit either

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Searched here, as a command whose options can't be parsed never sees its own --json.
        ctx.obj = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().invoke(ctx)
        except FleetbeatError as error:
            if ctx.obj:
                spooled = getattr(error, "spooled", None)
                result = {"ok": False, "error": str(error), "code": error.code}
                print_json(result if spooled is None else result | {"spooled": spooled})
            else:
                click.echo(f"Error: {error}", err=True)
            ctx.exit(_exit_code(error))
        except click.UsageError as error:
            if not ctx.obj:
                raise
            print_json({"ok": False, "error": error.format_message(), "code": "usage"})
            ctx.exit(USAGE)


def _exit_code(error: FleetbeatError) -> int:
    if isinstance(error, InvalidMessage | SettingsError):
        return USAGE
    return TRY_AGAIN if isinstance(error, RedisUnavailable | NotConfirmed) else REFUSED


@click.group(cls=_Script, package=__name__, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fleetbeat")
def main() -> None:
    """Register agents and send their heartbeats to Fleetbeat."""
