"""`fleetbeat-agent run`: runs a command as an agent.

The command has priority: it starts before anything is sent, keeps its streams, signals and exit status, and is not
affected by any failure of Fleetbeat.
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

# Exit codes for a command that can't be started, as in shells.
NOT_EXECUTABLE = 126
NOT_FOUND = 127

LAST_LINE_SECONDS = 0.5
"""How long to wait at most for the last line of stderr: a reader of stderr that is stuck must not delay the exit."""
END_SECONDS = 1.5
"""How long after the command's end messages may still be sent. The promise is 2 s, with the process's own exit."""
LONGEST_ERROR = 2000


class _Run(click.Command):
    """Leaves `--json` to the command that is run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.find_root().obj = False  # the group has searched all words for it, also those of the command
        return super().parse_args(ctx, args)


def _redis_url(context: click.Context, option: click.Parameter, url: str | None) -> str | None:
    """Refuse a wrong URL given as an option. One from the environment must not stop the command."""
    if url is None or context.get_parameter_source(option.name or "") is not ParameterSource.COMMANDLINE:
        return url
    try:
        parts = urlsplit(url)
        is_known = parts.scheme.startswith("redis") or parts.scheme == "unix"
        _ = parts.port  # raises ValueError when it is not a number
    except ValueError:
        is_known = False
    if not is_known:
        message = "it is not a Redis URL. Examples: redis://host:port/0, rediss://…, unix://path"
        raise click.BadParameter(message)
    return url


@click.command(
    cls=_Run,
    context_settings={"allow_interspersed_args": False},
    epilog="\b\nExamples:\n  fleetbeat-agent run --name backup --every 30s -- ./backup.sh today\n"
    "  fleetbeat-agent run --name sync --every 1m --stable -- make feed",
)
@click.option("--name", required=True, metavar="NAME", help="The agent's name: 1 to 64 printable characters.")
@click.option(
    "--every", required=True, metavar="DURATION", callback=duration, help="Interval of its heartbeats: 30s, 5m, 6h."
)
@promise_options
@click.option("--project", metavar="TEXT", help="The project that the agent belongs to.")
@click.option("--work", metavar="TEXT", help="What it is going to do.")
@metadata_option
@click.option("--stable", is_flag=True, help="Derive the session id from the name, so that --agent finds it.")
@click.option("--parallel", is_flag=True, help="Keep other live sessions of this name; otherwise they end.")
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
    """Run a command as an agent: register it, send heartbeats while it runs, and report how it ended.

    Its streams, the signals sent to it and its exit status pass through: 128+n if signal n ended it, 127 if it isn't
    found, 126 if it can't be executed. It runs the same with or without Redis. If it fails, the last line of its stderr
    is reported as the error; where stderr is a terminal, its exit status is.
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
    context.exit(_run(command, _Reporter(registration, every, redis_url)))


def _run(words: Sequence[str], reporter: _Reporter) -> int:
    gc.enable()  # which the group has disabled for one-shot calls
    try:
        command = Command(words)
    except (OSError, ValueError) as error:  # ValueError: an empty word as the command
        status = NOT_FOUND if isinstance(error, FileNotFoundError | ValueError) else NOT_EXECUTABLE
        why = getattr(error, "strerror", None) or error
        sentence = f"{words[0] or 'The empty command'} can't be started: {why}. Check its name and PATH."
        _print_error(f"Error: {sentence}")
        reporter.begin()
        reporter.end(status, sentence, END_SECONDS)
        return status
    reporter.begin()
    status = command.wait()
    ends_at = time.monotonic() + END_SECONDS
    last_line = command.last_line(LAST_LINE_SECONDS)
    reporter.end(status, last_line or _describe_exit(status), ends_at - time.monotonic())
    command.release()
    return status


def _describe_exit(status: int) -> str:
    """Describe the end of a command that wrote nothing to stderr."""
    try:
        return f"ended by {signal.Signals(status - 128).name}"
    except ValueError:
        return f"ended with exit status {status}"


class _Reporter:
    """Sends a command's registration, heartbeats and deregistration. Never raises; only `end` waits."""

    def __init__(self, registration: Register, interval_seconds: float, redis_url: str | None) -> None:
        self._registration = registration
        self._interval_seconds = interval_seconds
        self._redis_url = redis_url
        self._sender: Sender | None = None
        self._warning = _FirstWarning()

    def begin(self) -> None:
        """Register, and send heartbeats from now on."""
        logging.getLogger("fleetbeat").addHandler(self._warning)
        session_id = self._registration.session_id
        try:
            settings = Settings.from_environment(os.environ)
            changes = {} if self._redis_url is None else {"redis_url": self._redis_url}
            # Not the process's own sender: that would wait again at the interpreter's exit.
            sender = Sender(settings.model_copy(update=changes))
            sender.put(self._registration)
            sender.put(compose(Heartbeat, session_id))
            sender.auto_heartbeats.add(session_id, self._interval_seconds, time.monotonic())
            sender.wake(at_once=True)
            self._sender = sender
        except Exception as error:  # noqa: BLE001 - whatever it is, the command runs on
            self._warning.add(f"The command runs, but isn't registered with Fleetbeat: {error}")

    def end(self, status: int, error: str, within_seconds: float) -> None:
        """Report how the command ended, and wait for limited time until everything has been sent."""
        if self._sender is not None:
            with suppress(Exception):  # whatever it is, we exit with the command's exit status
                self._deregister(self._sender, status, error, within_seconds)
        self._warning.print_pending()

    def _deregister(self, sender: Sender, status: int, error: str, within_seconds: float) -> None:
        session_id = self._registration.session_id
        sender.auto_heartbeats.remove(session_id)
        reported = None if status == 0 else error[:LONGEST_ERROR]
        sender.put(compose(Deregister, session_id, error=reported, exit_status=status))
        if not sender.flush(within_seconds):
            why = sender.stats().last_error or "no answer in time"
            self._warning.add(f"The command's end can't be reported to {place(sender.settings.redis_url)} ({why}).")


class _FirstWarning(logging.Handler):
    """Prints a run's first warning on one line; on a terminal only after the command's end."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._sentence: str | None = None
        self._first = threading.Lock()  # only the first warning gets it

    def emit(self, record: logging.LogRecord) -> None:
        """Add a warning of the sender."""
        self.add(record.getMessage())

    def add(self, sentence: str) -> None:
        """Print a sentence, now or at the end, if it is the first."""
        if self._first.acquire(blocking=False):
            self._sentence = sentence
            if not os.isatty(STDERR):
                self.print_pending()

    def print_pending(self) -> None:
        """Print the warning, unless it has been printed."""
        sentence, self._sentence = self._sentence, None
        if sentence is not None:
            _print_error(f"Warning: {sentence}")


def _print_error(sentence: str) -> None:
    with suppress(OSError):  # stderr was closed
        click.echo(sentence, err=True)
