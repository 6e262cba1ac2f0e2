"""`fleetbeat-agent run`: a command as an agent, for as long as it runs.

The command comes first: it starts before anything is sent, its streams, signals and exit status are its own, and
nothing that goes wrong with Fleetbeat reaches it.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from fleetbeat_producer.background.sender import Sender
from fleetbeat_producer.cli.compose import choose_session_id, compose
from fleetbeat_producer.cli.options import duration, metadata_option, promise_options
from fleetbeat_producer.cli.supervised_command import STDERR, Command
from fleetbeat_shared.connection import place
from fleetbeat_shared.messages import Deregister, Heartbeat, Register
from fleetbeat_shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

# Exit codes of a command that can't be started, as shells have them.
NOT_EXECUTABLE = 126
NOT_FOUND = 127

LAST_LINE_SECONDS = 0.5
"""How long to wait at most for the last line of stderr, so that somebody who doesn't read it can't hold us up."""
END_SECONDS = 1.5
"""When to let go, after the command's end: the process itself needs some time to end too, and 2 s are promised."""
ERROR_SHOWN = 2000


class _Run(click.Command):
    """Leaves `--json` to the command that is run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.find_root().obj = False  # the script looked for it among all words, those of the command too
        return super().parse_args(ctx, args)


def _redis_url(context: click.Context, option: click.Parameter, url: str | None) -> str | None:
    """Refuse a URL that is none of Redis's, if it was given as an option: the environment's may not stop a command."""
    if url is None or context.get_parameter_source(option.name or "") is not ParameterSource.COMMANDLINE:
        return url
    try:
        parts = urlsplit(url)
        is_known = parts.scheme.startswith("redis") or parts.scheme == "unix"
        _ = parts.port  # raises when it is no number
    except ValueError:
        is_known = False
    if not is_known:
        message = "it is no Redis URL; write redis://host:port/0, rediss://… or unix://path."
        raise click.BadParameter(message)
    return url


@click.command(
    cls=_Run,
    context_settings={"allow_interspersed_args": False},
    epilog="\b\nExamples:\n  fleetbeat-agent run --name backup --every 30s -- ./backup.sh today\n"
    "  fleetbeat-agent run --name sync --every 1m --stable -- make feed",
)
@click.option("--name", required=True, metavar="NAME", help="1 to 64 printable characters.")
@click.option("--every", required=True, metavar="DURATION", callback=duration, help="How often to beat: 30s, 5m, 6h.")
@promise_options
@click.option("--project", metavar="TEXT", help="What the agent belongs to.")
@click.option("--work", metavar="TEXT", help="What it is about to do.")
@metadata_option
@click.option("--stable", is_flag=True, help="Derive the session id from the name, for use with --agent.")
@click.option("--parallel", is_flag=True, help="Let other live sessions of this name go on.")
@click.option(
    "--redis-url",
    envvar="FLEETBEAT_REDIS_URL",
    show_envvar=True,
    metavar="URL",
    callback=_redis_url,
    help="The Redis that the workers read from.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.pass_context
def run(  # noqa: PLR0913 - one for each option
    context: click.Context,
    *,
    name: str,
    every: float,
    grace: float | None,
    missed: int | None,
    stuck_after: int | None,
    project: str | None,
    work: str | None,
    metadata: dict[str, Any] | None,
    stable: bool,
    parallel: bool,
    redis_url: str | None,
    command: tuple[str, ...],
) -> None:
    """Run a command as an agent: register, beat while it runs, say how it ended.

    Its streams, the signals sent to it and its exit status pass through, 128+n if signal n ended it; 127 if it isn't
    found, 126 if it can't be executed. Whether Redis is there makes no difference to it. If it fails, the last line of
    its stderr is told as the error, unless stderr is a terminal: then the exit status.
    """
    registration = compose(
        Register,
        choose_session_id(name, stable=stable, parallel=parallel, session_id=None),
        agent_name=name,
        interval_seconds=every,
        grace_seconds=grace,
        missed_intervals=missed,
        stuck_after=stuck_after,
        project=project,
        work=work,
        metadata=metadata,
        parallel=parallel,
    )
    context.exit(_run(command, _Report(registration, every, redis_url)))


def _run(words: Sequence[str], report: _Report) -> int:
    gc.enable()  # which the script has switched off for its one-shots
    try:
        command = Command(words)
    except (OSError, ValueError) as error:  # ValueError: an empty word as the command
        status = NOT_FOUND if isinstance(error, FileNotFoundError | ValueError) else NOT_EXECUTABLE
        why = getattr(error, "strerror", None) or error
        sentence = f"{words[0] or 'The empty command'} can't be started: {why}. Check its name and PATH."
        _tell(f"Error: {sentence}")
        report.begin()
        report.end(status, sentence, END_SECONDS)
        return status
    report.begin()
    status = command.wait()
    ends_at = time.monotonic() + END_SECONDS
    last_line = command.last_line(LAST_LINE_SECONDS)
    report.end(status, last_line or _ending(status), ends_at - time.monotonic())
    command.let_go()
    return status


def _ending(status: int) -> str:
    """Return in words how a command ended that said nothing itself."""
    try:
        return f"ended by {signal.Signals(status - 128).name}"
    except ValueError:
        return f"ended with exit status {status}"


class _Report:
    """What Fleetbeat is told of a command. Nothing here raises, and only the end waits, for a time."""

    def __init__(self, registration: Register, interval_seconds: float, redis_url: str | None) -> None:
        self._registration = registration
        self._interval_seconds = interval_seconds
        self._redis_url = redis_url
        self._sender: Sender | None = None
        self._warning = _FirstWarning()

    def begin(self) -> None:
        """Register, and beat from now on."""
        logging.getLogger("fleetbeat").addHandler(self._warning)
        session_id = self._registration.session_id
        try:
            settings = Settings.from_environment(os.environ)
            changes = {} if self._redis_url is None else {"redis_url": self._redis_url}
            # Not the process's own sender: that would wait again when the interpreter ends.
            sender = Sender(settings.model_copy(update=changes))
            sender.put(self._registration)
            sender.put(compose(Heartbeat, session_id))
            sender.auto_heartbeats.add(session_id, self._interval_seconds, time.monotonic())
            sender.wake(at_once=True)
            self._sender = sender
        except Exception as error:  # noqa: BLE001 - whatever it is, the command goes on
            self._warning.tell(f"The command runs, but Fleetbeat isn't told of it: {error}")

    def end(self, status: int, error: str, within_seconds: float) -> None:
        """Say how the command ended, and wait for a time until everything has been sent."""
        if self._sender is not None:
            with suppress(Exception):  # whatever it is, the command's exit status is what we end with
                self._say_goodbye(self._sender, status, error, within_seconds)
        self._warning.show()

    def _say_goodbye(self, sender: Sender, status: int, error: str, within_seconds: float) -> None:
        session_id = self._registration.session_id
        sender.auto_heartbeats.remove(session_id)
        told = None if status == 0 else error[:ERROR_SHOWN]
        sender.put(compose(Deregister, session_id, error=told, exit_status=status))
        if not sender.flush(within_seconds):
            why = sender.stats().last_error or "no answer in time"
            self._warning.tell(f"How the command ended can't be sent to {place(sender.settings.redis_url)} ({why}).")


class _FirstWarning(logging.Handler):
    """Shows a run's first warning, on one line; on a terminal after the command's end, as the screen is its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._waiting: str | None = None
        self._first = threading.Lock()  # whoever gets it is the first

    def emit(self, record: logging.LogRecord) -> None:
        """Take a warning of the sender's."""
        self.tell(record.getMessage())

    def tell(self, sentence: str) -> None:
        """Show a sentence, now or at the end, if it is the first."""
        if self._first.acquire(blocking=False):
            self._waiting = sentence
            if not os.isatty(STDERR):
                self.show()

    def show(self) -> None:
        """Show what waits to be shown."""
        sentence, self._waiting = self._waiting, None
        if sentence is not None:
            _tell(f"Warning: {sentence}")


def _tell(sentence: str) -> None:
    with suppress(OSError):  # nobody reads our stderr any more
        click.echo(sentence, err=True)
